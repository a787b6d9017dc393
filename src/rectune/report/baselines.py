"""The baselines of a dataset by themselves: what a tuned model will have to beat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import polars as pl
from rich.console import Console

from rectune.baselines.fit import Fitted, fit_baselines
from rectune.baselines.questions import FROZEN, ONLINE, PROTOCOLS, split_rows
from rectune.config import Config
from rectune.config_classify import CLASSIFY
from rectune.data.columns import LABEL, ROW_ID, USER_ID
from rectune.files import write_json
from rectune.prompt.dataset import Dataset, open_dataset
from rectune.report.report import SUMMARY, best_baseline, both_protocols, measured
from rectune.report.text_baselines import measure_text_baselines
from rectune.report.verdict import summary_table

DRAWS, LEVEL, SEED, THRESHOLD = 1000, 0.95, 0, 0.5

Say = Callable[[str], None]


def _tables(data: Dataset, fitted: Fitted, split: str, protocol: str) -> dict[str, pl.DataFrame]:
    """Every baseline's predictions: user_id, label, log_odds."""
    rows = data.events.select(ROW_ID, USER_ID, pl.col(LABEL).cast(pl.Int64))[split_rows(data.events, split).tolist()]
    return {
        name: rows.with_columns(log_odds=pl.Series(fitted.log_odds(name, split, protocol, rows[ROW_ID])))
        for name in fitted.notes
    }


def measure_baselines(config: Config, split: str, say: Say, console: Console) -> dict[str, Any]:
    """Fit every baseline of a dataset, measure all on one split, print the table.

    Writes `metrics_baselines_SPLIT.json` into the dataset folder.

    Args:
        config: names the dataset.
        split: `test` or `validation`.
        say: prints one line.
        console: shows progress and the table.

    Returns:
        What the JSON holds: protocol, rows, users, models (name → metrics, intervals, confusion), frozen (the same
        with frozen histories), baselines (what each sees, its setting and what was tried), intervals, dataset_hash.
    """
    data = open_dataset(config, say)
    if config.task == CLASSIFY:
        return measure_text_baselines(config, data, split, say, console)
    fitted = fit_baselines(
        data.folder, data.events, data.catalog, data.content_hash, config.preprocessing_cache_dir, say, console,
        quick=config.baselines == "quick",
    )  # fmt: skip
    online = _tables(data, fitted, split, ONLINE)
    settings = (THRESHOLD, DRAWS, LEVEL, SEED)
    some = next(iter(online.values()))
    report: dict[str, Any] = {
        "protocol": PROTOCOLS[ONLINE],
        "split": split,
        "rows": some.height,
        "users": some[USER_ID].n_unique(),
        **measured(online, *settings),
        "frozen": {"protocol": PROTOCOLS[FROZEN], **measured(_tables(data, fitted, split, FROZEN), *settings)},
        "baselines": fitted.notes,
        "intervals": {"method": "percentile bootstrap over users", "draws": DRAWS, "level": LEVEL, "seed": SEED},
        "dataset_hash": data.content_hash,
    }
    rows = both_protocols(report)
    shown = sorted(rows, key=lambda name: -(rows[name]["auc"].value or 0.0))
    console.print(summary_table({name: rows[name] for name in shown}, SUMMARY))
    for what, part, metric in (("AUC, online", report, "auc"), ("UAUC, frozen", report["frozen"], "uauc")):
        say(f"best {what}: {best_baseline(part, metric)}")
    path = data.folder / f"metrics_baselines_{split}.json"
    write_json(path, report)
    say(f"written: {path}")
    return report
