"""The baselines of a dataset of texts by themselves, by class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console

from rectune.baselines.texts import fit_text_baselines
from rectune.config import Config
from rectune.data.columns import LABEL, ROW_ID, SPLIT, VALIDATION
from rectune.errors import DataError
from rectune.files import write_json
from rectune.measure.classes import class_metrics
from rectune.prompt.dataset import Dataset
from rectune.report.classes import BALANCED, NATURAL, Decision, class_report, class_table, decisions
from rectune.report.many import MOST_PROBABLE
from rectune.report.texts import log_odds_of

Say = Callable[[str], None]


def measure_text_baselines(config: Config, data: Dataset, split: str, say: Say, console: Console) -> dict[str, Any]:
    """Fit the baselines, measure them on one split by class, print the tables.

    Writes `metrics_baselines_SPLIT.json` into the dataset folder.

    Args:
        config: names the dataset and its classes.
        data: the dataset.
        split: `test` or `validation`.
        say: prints one line.
        console: shows the tables.

    Returns:
        What the JSON holds: split, rows, models (name → metrics), by_class, baselines (what each sees, its setting and
        what was tried) and dataset_hash.

    Raises:
        DataError: the split is empty.
    """
    classes = config.classes
    fitted = fit_text_baselines(
        data.folder, data.events, data.catalog, data.content_hash, len(classes), say, config.baselines == "quick"
    )
    rows, held_out = (data.events.filter(pl.col(SPLIT) == which) for which in (split, VALIDATION))
    if not rows.height:
        raise DataError(f"{split}: the split is empty; give more texts, or a larger {split}_ratio")
    labels = rows[LABEL].to_numpy().astype(np.int64)
    chosen: list[Decision] = []
    models = {}
    for name in fitted.notes:
        log_p = fitted.log_probabilities(name, rows[ROW_ID])
        models[name] = {"metrics": class_metrics(labels, log_p)}
        if len(classes) > 2:
            chosen.append(Decision(name, MOST_PROBABLE, log_p.argmax(axis=1)))
            continue
        tuned_on = log_odds_of(fitted.log_probabilities(name, held_out[ROW_ID]))
        known = (held_out[LABEL].to_numpy().astype(np.int64), tuned_on) if np.ptp(tuned_on) else None
        chosen += decisions(name, log_odds_of(log_p), known)
    report: dict[str, Any] = {
        "split": split,
        "rows": rows.height,
        "models": models,
        "by_class": class_report(labels, chosen, classes, config.seed),
        "baselines": fitted.notes,
        "dataset_hash": data.content_hash,
    }
    for which in (NATURAL, BALANCED):
        console.print(class_table(report["by_class"], which))
    path = data.folder / f"metrics_baselines_{split}.json"
    write_json(path, report)
    say(f"written: {path}")
    return report
