"""A report by class: precision, recall and F1 of each, on the rows as they come and on as many of every class."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rectune.measure.bootstrap import paired_bootstrap
from rectune.measure.classes import balanced_rows, by_class, confusion_table, over_classes
from rectune.measure.threshold import choose_threshold
from rectune.report.verdict import comparison_sentence

if TYPE_CHECKING:
    from rich.table import Table

NATURAL, BALANCED = "natural", "balanced"
ANSWER, HALF, BEST_F1 = "as it answers", "P ≥ 0.5", "best F1"
"""How a probability becomes a class: the word with the higher logit; one half; from the threshold of the best F1 of the
positive class on validation."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Decision:
    """A model's classes by one rule.

    Attributes:
        model: its name.
        rule: how its scores became classes.
        predicted: int64 [n].
        margin: float64 [n], what is at least 0 where the class is 1; None with more than two classes.
    """

    model: str
    rule: str
    predicted: Array
    margin: Array | None = None

    @classmethod
    def at(cls, model: str, rule: str, log_odds: Array, threshold: float = 0.5) -> Decision:
        """Of two classes: 1 where the score is at least the threshold."""
        margin = np.asarray(log_odds, dtype=np.float64) - math.log(threshold / (1 - threshold))
        return cls(model, rule, (margin >= 0).astype(np.int64), margin)


def decisions(
    model: str, log_odds: Array, known: tuple[Array, Array] | None, answers: Array | None = None
) -> list[Decision]:
    """The classes of one model of two classes by every rule that can be applied to it.

    Args:
        model: its name.
        log_odds: [n]; calibrated where they are.
        known: labels and log-odds on validation, to choose a threshold by; None without.
        answers: [n]; the difference of the two words' logits as they came from the model.
    """
    found = [] if answers is None else [Decision.at(model, ANSWER, answers)]
    if answers is None or known is not None:
        found.append(Decision.at(model, HALF, log_odds))
    if known is not None and 0 < known[0].mean() < 1:
        found.append(Decision.at(model, BEST_F1, log_odds, choose_threshold(known[0], known[1], "f1")))
    return found


def _measured(labels: Array, chosen: Sequence[Decision], classes: Sequence[str], rows: Array) -> dict[str, Any]:
    lines = []
    for each in chosen:
        table = confusion_table(labels[rows], each.predicted[rows], len(classes))
        lines.append(
            {
                "model": each.model, "rule": each.rule, **over_classes(table), "per_class": by_class(table, classes),
                "confusion": table.tolist(),
            }
        )  # fmt: skip
    return {"rows": len(rows), "decisions": lines}


def class_report(labels: Array, chosen: Sequence[Decision], classes: Sequence[str], seed: int) -> dict[str, Any]:
    """Every decision measured by class, on all rows and on a balanced draw of them.

    Args:
        labels: [n].
        chosen: the decisions.
        classes: names of the labels.
        seed: of the draw.

    Returns:
        classes, natural and balanced; the last two have rows and decisions: model, rule, accuracy, macro_f1,
        balanced_accuracy, per_class (name → precision, recall, f1, rows) and confusion, the true class down.
    """
    return {
        "classes": list(classes),
        NATURAL: _measured(labels, chosen, classes, np.arange(len(labels))),
        BALANCED: _measured(labels, chosen, classes, balanced_rows(labels, len(classes), seed)),
    }


def _of(chosen: Sequence[Decision], model: str, rules: Sequence[str]) -> Decision | None:
    """The first decision of a model by the first of these rules that it has."""
    return next((each for rule in rules for each in chosen if (each.model, each.rule) == (model, rule)), None)


def recall_notes(
    labels: Array, users: Array, chosen: Sequence[Decision], classes: Sequence[str], tuned: str, untuned: str,
    rivals: Sequence[str], level: float, seed: int,
) -> tuple[list[str], dict[str, Any]]:  # fmt: skip
    """Of two classes: sentences on recall before and after, and on F1 against each rival, each by its own best rule.

    Returns:
        The sentences, and the differences behind them: name → metric → difference, low, high, p_value.
    """
    positive = classes[1]
    notes, told = [], {}
    best = (BEST_F1, HALF, ANSWER)
    pairs = [(_of(chosen, tuned, (ANSWER,)), _of(chosen, untuned, (ANSWER,)), "recall", "the untuned one")]
    pairs += [(_of(chosen, tuned, best), _of(chosen, rival, best), "f1", f"the {rival} baseline") for rival in rivals]
    for ours, theirs, metric, other in pairs:
        if ours is None or theirs is None or ours.margin is None or theirs.margin is None:
            continue
        found = paired_bootstrap(labels, ours.margin, theirs.margin, users, (metric,), level=level, seed=seed)
        difference = found.get(metric)
        told[f"{ours.model}, {ours.rule} - {theirs.model}, {theirs.rule}"] = {
            name: asdict(value) for name, value in found.items()
        }
        sentence = comparison_sentence(difference, other, metric, level)
        notes.append(f"{positive}, {ours.rule}: {sentence}")
    return notes, told


def class_table(found: Mapping[str, Any], which: str) -> Table:
    """The terminal's table of one set of rows: a line a decision, precision, recall and F1 of each class."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    part = found[which]
    caption = f"{part['rows']:,} rows, " + ("as they come" if which == NATURAL else "as many of every class")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=caption)
    table.add_column("model")
    table.add_column("class by")
    for name in found["classes"][::-1]:
        table.add_column(Text(f"{name}\nP / R / F1"), justify="right")
    table.add_column("macro F1", justify="right")
    for line in part["decisions"]:
        cells = (line["per_class"][name] for name in found["classes"][::-1])
        shown = (" / ".join(f"{cell[key]:.3f}" for key in ("precision", "recall", "f1")) for cell in cells)
        table.add_row(Text(line["model"]), line["rule"], *shown, f"{line['macro_f1']:.3f}")
    return table
