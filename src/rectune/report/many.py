"""The evaluation of more than two classes: metrics of the most probable class, by class, beside the baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from rectune.baselines.texts import TextBaselines
from rectune.data.columns import LABEL, ROW_ID, USER_ID
from rectune.files import atomic_path, write_json, write_text
from rectune.measure.bootstrap import Difference, drawn_difference, percentile_interval
from rectune.measure.classes import Floats, class_metrics, confusion_table, drawn_tables, macro_f1
from rectune.measure.classification import user_index
from rectune.report import figures
from rectune.report.classes import Decision, class_report
from rectune.report.page import PageContent, PageFigure, metrics_name, render_page
from rectune.report.verdict import Estimate, comparison_sentence
from rectune.score.predictions import LOG_P, PREDICTED
from rectune.score.score import TUNED, UNTUNED

DRAWS, LEVEL, SEED = 1000, 0.95, 0
MOST_PROBABLE = "most probable"
_SHOWN = ("accuracy", "macro_f1", "balanced_accuracy", "auc", "loss")


def _log_p(table: pl.DataFrame) -> Floats:
    return np.array(table[LOG_P].to_list(), dtype=np.float64)


def with_baselines(tables: Mapping[str, pl.DataFrame], fitted: TextBaselines) -> dict[str, pl.DataFrame]:
    """The models' predictions and those of the baselines, of the same rows."""
    like, found = tables[TUNED], dict(tables)
    for name in fitted.notes:
        log_p = fitted.log_probabilities(name, like[ROW_ID])
        found[name] = like.with_columns(
            pl.Series(LOG_P, log_p.tolist(), dtype=pl.List(pl.Float64)),
            pl.Series(PREDICTED, log_p.argmax(axis=1), dtype=pl.Int64),
        )
    return found


def _differences(drawn: Mapping[str, Floats], points: Mapping[str, float]) -> dict[str, Difference]:
    """Macro F1 of the tuned model less that of each other one."""
    return {
        name: drawn_difference(points[TUNED] - points[name], drawn[TUNED] - values, LEVEL)
        for name, values in drawn.items()
        if name != TUNED
    }


def report_of(
    tables: Mapping[str, pl.DataFrame], classes: Sequence[str], seed: int
) -> tuple[dict[str, Any], dict[str, dict[str, Estimate]]]:
    """What `metrics.json` holds of the models, and the page's rows.

    Args:
        tables: model → predictions as `class_frame` makes them, all of the same rows, the tuned model among them.
        classes: names of the labels.
        seed: of the balanced draw.
    """
    like = tables[TUNED]
    labels, users = like[LABEL].to_numpy(), user_index(like[USER_ID].to_list())
    chosen = [Decision(name, MOST_PROBABLE, table[PREDICTED].to_numpy()) for name, table in tables.items()]
    size = len(classes)
    drawn = {each.model: macro_f1(drawn_tables(labels, each.predicted, users, size, DRAWS, SEED)) for each in chosen}
    points = {
        each.model: float(macro_f1(confusion_table(labels, each.predicted, size)[None])[0]) for each in chosen
    }  # fmt: skip
    models: dict[str, dict[str, dict[str, Any]]] = {
        name: {
            "metrics": class_metrics(labels, _log_p(table)),
            "intervals": {"macro_f1": list(percentile_interval(drawn[name], LEVEL))},
        }
        for name, table in tables.items()
    }
    differences = _differences(drawn, points)
    rivals = [name for name in tables if name not in (TUNED, UNTUNED)]
    best = max(rivals, key=lambda name: points[name])
    sentences = []
    if UNTUNED in tables:
        sentences.append(comparison_sentence(differences[UNTUNED], "the untuned one", "macro_f1", LEVEL))
    sentences.append(comparison_sentence(differences[best], f"the {best} baseline", "macro_f1", LEVEL))
    rows = {
        name: {
            metric: Estimate(model["metrics"][metric], *model["intervals"].get(metric, (None, None)))
            for metric in _SHOWN
        }
        for name, model in models.items()
    }
    found = {
        "verdict": " ".join(sentences),
        "notes": [],
        "rows": len(like),
        "users": int(users.max()) + 1,
        "intervals": {"method": "percentile bootstrap over texts", "draws": DRAWS, "level": LEVEL, "seed": SEED},
        "models": models,
        "paired_differences": {
            f"{TUNED} - {name}": {"macro_f1": asdict(difference)} for name, difference in differences.items()
        },
        "by_class": class_report(labels, chosen, classes, seed),
    }
    return found, rows


def write_many(
    folder: Path, tables: Mapping[str, pl.DataFrame], classes: Sequence[str], seed: int,
    history: Sequence[Mapping[str, Any]], how_made: Mapping[str, str], fitted: TextBaselines, out_name: str, title: str,
) -> tuple[dict[str, Any], dict[str, dict[str, Estimate]]]:  # fmt: skip
    """Measure, and write `{out_name}.html` and its figures as JSON into a folder.

    Returns:
        What `report_of` gives.
    """
    found, rows = report_of(tables, classes, seed)
    found |= {"baselines": fitted.notes, "how_made": dict(how_made)}
    curves = figures.training_curves(history)
    drawn = {} if curves is None else {"Training": PageFigure(curves, "By optimiser step.", wide=True, tall=True)}
    page = render_page(
        PageContent(
            title=title, verdict=found["verdict"], rows=rows, figures=drawn, by_class=found["by_class"],
            how_made={"rows": f"{found['rows']:,} texts", **how_made}, level=LEVEL,
        )
    )  # fmt: skip
    with ExitStack() as stack:
        write_json(stack.enter_context(atomic_path(folder / metrics_name(out_name))), found)
        write_text(stack.enter_context(atomic_path(folder / f"{out_name}.html")), page)
    return found, rows
