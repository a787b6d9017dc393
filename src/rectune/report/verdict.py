"""What the numbers say, in words: verdict sentences and the terminal's table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from rectune.measure.bootstrap import Difference

if TYPE_CHECKING:
    from rich.table import Table

ALONE, WITHOUT = "tuned, alone", "blend without the model"
"""Beside a tuned model that baselines join: the model by itself, and those baselines weighed without it."""
FROZEN_UAUC = "frozen_uauc"
METRIC_NAMES = {
    "auc": "AUC",
    "uauc": "UAUC",
    FROZEN_UAUC: "UAUC, frozen",
    "pr_auc": "PR-AUC",
    "accuracy": "Accuracy",
    "precision": "Precision",
    "recall": "Recall",
    "f1": "F1",
    "loss": "Log loss",
    "brier": "Brier",
    "ece": "ECE",
    "predicted_positive_rate": "Predicted yes",
    "macro_f1": "Macro F1",
    "balanced_accuracy": "Balanced accuracy",
}
"""How a metric is written for people; `measure.bootstrap.METRICS` in the order of the page's table."""


class Estimate(NamedTuple):
    """A metric's value with its interval; None where it has no meaning or no interval."""

    value: float | None
    low: float | None = None
    high: float | None = None


Rows = Mapping[str, Mapping[str, Estimate]]
"""Model name → metric → estimate."""


def percent(level: float) -> str:
    """A share as text.

    >>> percent(0.95)
    '95 %'
    """
    return f"{100 * level:g} %"


def _signed(value: float, digits: int) -> str:
    """A signed number with a real minus, without a minus on zero.

    >>> _signed(-0.0123, 3), _signed(-0.0001, 3), _signed(0.2, 3)
    ('−0.012', '0.000', '0.200')
    """
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


def comparison_sentence(
    difference: Difference | None,
    other: str,
    metric: str = "auc",
    level: float = 0.95,
    subject: str = "The tuned model",
) -> str:
    """One sentence on the tuned model against another; it claims a side only if the interval leaves zero out.

    Args:
        difference: tuned minus other; None when it could not be measured.
        other: the other model as words, such as "the untuned one".
        metric: key of a metric where higher is better.
        level: of the interval.
        subject: the first words.

    >>> comparison_sentence(Difference(0.12, 0.08, 0.16, 0.002), "the untuned one")
    'The tuned model beats the untuned one by 0.120 AUC (95 % interval 0.080 to 0.160).'
    >>> comparison_sentence(Difference(-0.02, -0.03, -0.01, 0.002), "LightGBM")
    'The tuned model does not beat LightGBM: it is worse by 0.020 AUC (95 % interval 0.010 to 0.030).'
    """
    name = METRIC_NAMES.get(metric, metric)
    if difference is None:
        return f"{subject} cannot be compared with {other}: {name} has no interval on these rows."
    d, low, high = difference.difference, difference.low, difference.high
    # Enough digits that an interval clear of zero never reads as touching it.
    digits = 3 if min(abs(low), abs(high)) >= 0.0005 or low <= 0 <= high else 5
    if low > 0:
        return (
            f"{subject} beats {other} by {_signed(d, digits)} {name} "
            f"({percent(level)} interval {_signed(low, digits)} to {_signed(high, digits)})."
        )
    if high < 0:
        return (
            f"{subject} does not beat {other}: it is worse by {_signed(-d, digits)} {name} "
            f"({percent(level)} interval {_signed(-high, digits)} to {_signed(-low, digits)})."
        )
    return (
        f"{subject} does not beat {other}: the difference of {_signed(d, digits)} {name} cannot be told from zero "
        f"({percent(level)} interval {_signed(low, digits)} to {_signed(high, digits)})."
    )


def verdict(
    against_untuned: Difference | None,
    against_baseline: tuple[str, Difference | None] | None,
    metric: str = "auc",
    level: float = 0.95,
    has_untuned: bool = True,
    subject: str = "The tuned model",
) -> str:
    """The verdict: tuned against untuned, then tuned against the best baseline.

    Args:
        against_untuned: tuned minus untuned.
        against_baseline: the best baseline's name and tuned minus it; None when no baseline was measured.
        metric: key of a metric where higher is better.
        level: of the intervals.
        has_untuned: whether an untuned model was measured at all.
        subject: the first words.

    >>> verdict(Difference(0.1, 0.05, 0.15, 0.002), ("item like-rate", Difference(0.01, -0.01, 0.03, 0.4)))
    ... # doctest: +NORMALIZE_WHITESPACE
    'The tuned model beats the untuned one by 0.100 AUC (95 % interval 0.050 to 0.150). It does not beat
    the item like-rate baseline: the difference of 0.010 AUC cannot be told from zero (95 % interval −0.010 to 0.030).'
    """
    sentences = [comparison_sentence(against_untuned, "the untuned one", metric, level, subject)] if has_untuned else []
    if against_baseline is not None:
        name, difference = against_baseline
        words = "It" if sentences else subject
        sentences.append(comparison_sentence(difference, f"the {name} baseline", metric, level, words))
    return " ".join(sentences) or "One model was measured, and nothing to compare it with."


def format_estimate(estimate: Estimate | None, between: str = " ") -> str:
    """Value and interval as text, with `between` between them.

    >>> format_estimate(Estimate(0.71234, 0.69, 0.73)), format_estimate(Estimate(0.5)), format_estimate(Estimate(None))
    ('0.712 [0.690, 0.730]', '0.500', '–')
    """
    if estimate is None or estimate.value is None:
        return "–"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f}{between}[{estimate.low:.3f}, {estimate.high:.3f}]"


def summary_table(rows: Rows, metrics: Sequence[str] = ("auc", "uauc", "accuracy", "f1"), level: float = 0.95) -> Table:
    """The terminal's table: one line per model, each metric with its interval.

    Args:
        rows: model name → metric → estimate; `estimates(report)` in `report.report` makes them.
        metrics: the columns.
        level: of the intervals, for the caption.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    # Two lines a row: with four metrics it fits a terminal of 80 columns.
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, caption=f"value [{percent(level)} interval, bootstrap over users]"
    )
    table.add_column("model")
    for metric in metrics:
        table.add_column(METRIC_NAMES.get(metric, metric), justify="right", no_wrap=True)
    for name, values in rows.items():
        # Text, not markup: a model's name may hold square brackets.
        table.add_row(Text(name), *(Text(format_estimate(values.get(metric), "\n")) for metric in metrics))
    return table
