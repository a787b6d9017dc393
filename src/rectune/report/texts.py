"""What an evaluation of texts of two classes has besides: other baselines, and all of it by class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from rectune.baselines.texts import MAJORITY, TextBaselines
from rectune.data.columns import LABEL, ROW_ID, SPLIT, TEST, USER_ID, VALIDATION
from rectune.measure.classes import Floats
from rectune.measure.classification import user_index
from rectune.measure.slices import Cut, cut_by_edges
from rectune.prompt.dataset import Dataset
from rectune.report.classes import ANSWER, HALF, NATURAL, Decision, class_report, decisions, recall_notes
from rectune.report.parts import predictions_as
from rectune.score.open_run import OpenRun
from rectune.score.score import OWN, TUNED, UNTUNED

PROTOCOL = "each text by itself"
LEVEL, SEED = 0.95, 0
_WORDS = (25, 50, 75, 100, 200)


def log_odds_of(log_probabilities: Floats) -> Floats:
    """Log-odds of label 1 against label 0, [n]."""
    found: Floats = log_probabilities[:, 1] - log_probabilities[:, 0]
    return found


def add_text_baselines(tables: dict[str, pl.DataFrame], fitted: TextBaselines) -> None:
    """Put every baseline's answers to the same texts among the tables."""
    like = tables[TUNED]
    for name in fitted.notes:
        tables[name] = predictions_as(like, log_odds_of(fitted.log_probabilities(name, like[ROW_ID])))


def by_length(data: Dataset, rows: np.ndarray[Any, Any]) -> dict[str, Cut]:
    """Slices by how many words the texts have."""
    items = data.events.select("item_id")[rows.tolist()]
    titles = items.join(data.catalog, on="item_id", how="left", maintain_order="left")["title"]
    return {"words of the text": cut_by_edges(titles.str.count_matches(r"\S+").to_numpy(), _WORDS)}


def _known(run: OpenRun, data: Dataset, kept: pl.DataFrame | None, fitted: TextBaselines) -> dict[str, Any]:
    """Labels and log-odds on validation of every model that was asked there: name → (labels, log-odds)."""
    held_out = data.events.filter(pl.col(SPLIT) == VALIDATION).select(ROW_ID, LABEL)
    labels = held_out[LABEL].to_numpy().astype(np.int64)
    found = {
        name: (labels, log_odds_of(fitted.log_probabilities(name, held_out[ROW_ID])))
        for name in fitted.notes
        if name != MAJORITY
    }
    if kept is not None:
        mine = kept[LABEL].to_numpy().astype(np.int64)
        found[TUNED] = (mine, run.settings.calibrated(kept["log_odds"].to_numpy()))
    return found


def _decided(tables: Mapping[str, pl.DataFrame], known: Mapping[str, Any]) -> list[Decision]:
    """Every model's classes by every rule it has."""
    found: list[Decision] = []
    for name, table in tables.items():
        odds = table["log_odds"].to_numpy()
        answers = {UNTUNED: odds, TUNED: table[OWN].to_numpy() if OWN in table.columns else None}.get(name)
        found += decisions(name, odds, known.get(name), answers)
        if name == TUNED and name not in known:
            found.append(Decision.at(name, HALF, odds))
    return found


def texts_by_class(
    run: OpenRun, data: Dataset, split: str, tables: Mapping[str, pl.DataFrame], kept: pl.DataFrame | None,
    fitted: TextBaselines,
) -> dict[str, Any]:  # fmt: skip
    """All models by class on these rows, natural and balanced, with notes; and the tuned one on validation.

    Args:
        run, data, split: what was asked.
        tables: predictions of every model.
        kept: the validation predictions of training, with the log-odds as they came; None where it left none.
        fitted: the baselines.
    """
    classes, labels = run.config.classes, tables[TUNED][LABEL].to_numpy().astype(np.int64)
    known = _known(run, data, kept, fitted)
    chosen = _decided(tables, known)
    found = class_report(labels, chosen, classes, run.config.seed)
    users = user_index(tables[TUNED][USER_ID].to_list())
    rivals = sorted(known.keys() - {TUNED})
    notes, told = recall_notes(labels, users, chosen, classes, TUNED, UNTUNED, rivals, LEVEL, SEED)
    lines = {(line["model"], line["rule"]): line["per_class"][classes[1]] for line in found[NATURAL]["decisions"]}
    said = [f"{model} {lines[model, ANSWER]['recall']:.3f}" for model in (UNTUNED, TUNED) if (model, ANSWER) in lines]
    notes.insert(0, f"Recall of {classes[1]}, as the model answers: {', '.join(said)}.")
    if split == VALIDATION:
        notes.append("The thresholds of best F1 were chosen on these very texts, so what they reach here flatters.")
    found |= {"notes": notes, "differences": told}
    if split == TEST and kept is not None:
        mine, odds = known[TUNED]
        on_validation = decisions(TUNED, odds, known[TUNED], kept["log_odds"].to_numpy())
        found["validation"] = class_report(mine, on_validation, classes, run.config.seed)
    return found
