"""Two models on the same rows: where tuning helped, where it hurt, and what both get wrong.

Predictions are frames with the columns of COLUMNS: label is 0 or 1, log_odds = logit(yes) - logit(no), score is
P(yes) and history_titles a list of titles.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from rectune.errors import DataError
from rectune.files import atomic_path, write_json
from rectune.measure.bootstrap import METRICS, bootstrap_intervals, paired_bootstrap
from rectune.measure.classification import classification_metrics, confusion, predict
from rectune.score.generate import generated_metrics

COLUMNS = ("row_id", "user_id", "item_id", "label", "log_odds", "score", "candidate_title", "history_titles")


@dataclass(frozen=True)
class Comparison:
    """The rows of two models, split by who is right; base_score, base_log_odds, tuned_score, tuned_log_odds added."""

    lora_improvements: pl.DataFrame
    lora_regressions: pl.DataFrame
    both_wrong: pl.DataFrame
    both_right: pl.DataFrame

    def counts(self) -> dict[str, int]:
        """Rows in each part."""
        return {
            "lora_improvements": len(self.lora_improvements),
            "lora_regressions": len(self.lora_regressions),
            "both_wrong": len(self.both_wrong),
            "both_right": len(self.both_right),
        }


def check_same_rows(predictions: Mapping[str, pl.DataFrame]) -> None:
    """Check that every frame has the columns, usable values, and the same rows in the same order.

    Raises:
        DataError: no frame, no rows, a missing column, a label other than 0 and 1, log-odds that are not finite,
            row_ids twice, or rows that differ between models.
    """
    if not predictions:
        raise DataError("predictions: no model given; score at least one")
    first = next(iter(predictions))
    for name, frame in predictions.items():
        missing = [column for column in COLUMNS if column not in frame.columns]
        if missing:
            raise DataError(f"predictions of {name}: no column {missing[0]!r}; found {', '.join(frame.columns)}")
        if frame.is_empty():
            raise DataError(f"predictions of {name}: no rows")
        if not frame["label"].is_in([0, 1]).all() or frame["label"].null_count():
            raise DataError(f"predictions of {name}: column label holds other values than 0 and 1")
        broken = len(frame) - int(frame["log_odds"].cast(pl.Float64).is_finite().fill_null(False).sum())
        if broken:
            raise DataError(f"predictions of {name}: {broken} of {len(frame)} log_odds are not finite numbers")
        if frame["row_id"].n_unique() != len(frame):
            raise DataError(f"predictions of {name}: a row_id stands there more than once")
        if len(frame) != len(predictions[first]):
            raise DataError(
                f"predictions of {name}: {len(frame)} rows, but {first} has {len(predictions[first])}; "
                "score both on the same rows"
            )
        for column in ("row_id", "user_id", "label"):
            ours, theirs = frame[column].to_list(), predictions[first][column].to_list()
            if ours != theirs:
                at = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
                raise DataError(
                    f"predictions of {name}: {column} of row {at + 1} is {ours[at]!r}, but {first} has "
                    f"{theirs[at]!r}; score both on the same rows, in the same order"
                )


def split_by_outcome(base: pl.DataFrame, tuned: pl.DataFrame, threshold: float = 0.5) -> Comparison:
    """Split the rows into improvements (base wrong, tuned right), regressions, both wrong and both right.

    Raises:
        DataError: the frames are not predictions of the same rows in the same order.
    """
    check_same_rows({"base": base, "tuned": tuned})
    label = base["label"].to_numpy() == 1
    base_right = predict(base["log_odds"].to_numpy(), threshold) == label
    tuned_right = predict(tuned["log_odds"].to_numpy(), threshold) == label
    rows = base.rename({"log_odds": "base_log_odds", "score": "base_score"}).with_columns(
        tuned["log_odds"].alias("tuned_log_odds"), tuned["score"].alias("tuned_score")
    )

    def part(mask: np.ndarray[Any, Any]) -> pl.DataFrame:
        return rows.filter(pl.Series(mask))

    return Comparison(
        lora_improvements=part(~base_right & tuned_right),
        lora_regressions=part(base_right & ~tuned_right),
        both_wrong=part(~base_right & ~tuned_right),
        both_right=part(base_right & tuned_right),
    )


def disagreements(base: pl.DataFrame, tuned: pl.DataFrame, n: int = 10, threshold: float = 0.5) -> list[dict[str, Any]]:
    """The n rows whose score moved most across the threshold, half improvements and half regressions.

    When one half has too few rows, the other fills up. Each row is a dict with row_id, user_id, item_id,
    candidate_title, history_titles, label, base_score, tuned_score and outcome ("improvement" or "regression"),
    improvements first, largest change first.
    """
    comparison = split_by_outcome(base, tuned, threshold)
    better, worse = comparison.lora_improvements, comparison.lora_regressions
    take_worse = min(n // 2, len(worse))
    take_better = min(n - take_worse, len(better))
    take_worse = min(n - take_better, len(worse))
    keep = [column for column in COLUMNS if column not in ("score", "log_odds")]
    chosen: list[dict[str, Any]] = []
    for outcome, rows, take in (("improvement", better, take_better), ("regression", worse, take_worse)):
        moved = (pl.col("tuned_score") - pl.col("base_score")).abs()
        largest = rows.sort(moved, descending=True, maintain_order=True).head(take)
        chosen += [{**row, "outcome": outcome} for row in largest.select(*keep, "base_score", "tuned_score").to_dicts()]
    return chosen


def measure(predictions: pl.DataFrame, threshold: float, draws: int, level: float, seed: int) -> dict[str, Any]:
    """One model's metrics, intervals ([low, high] per metric) and confusion counts, ready for JSON.

    The metrics are of the log-odds; where answers were generated too, `generated` has those of their labels.
    """
    labels, odds = predictions["label"].to_numpy(), predictions["log_odds"].to_numpy()
    users = predictions["user_id"].to_numpy()
    intervals = bootstrap_intervals(labels, odds, users, METRICS, draws, level, seed, threshold)
    found: dict[str, Any] = {
        "metrics": classification_metrics(labels, odds, users, threshold),
        "intervals": {metric: list(interval) for metric, interval in intervals.items()},
        "confusion": confusion(labels, predict(odds, threshold))._asdict(),
    }
    if "generated_label" in predictions.columns:
        found["generated"] = generated_metrics(labels.tolist(), predictions["generated_label"].to_list())
    return found


def measure_difference(
    a: pl.DataFrame, b: pl.DataFrame, threshold: float, draws: int, level: float, seed: int
) -> dict[str, dict[str, float]]:
    """Metrics of A minus those of B with interval and p-value, ready for JSON."""
    differences = paired_bootstrap(
        a["label"].to_numpy(),
        a["log_odds"].to_numpy(),
        b["log_odds"].to_numpy(),
        a["user_id"].to_numpy(),
        METRICS,
        draws,
        level,
        seed,
        threshold,
    )
    return {metric: asdict(difference) for metric, difference in differences.items()}


def write_comparison(
    base: pl.DataFrame,
    tuned: pl.DataFrame,
    folder: Path,
    threshold: float = 0.5,
    bootstrap_draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Write the predictions of both, the three parts worth reading and `comparison_report.json` into `folder`.

    Files: base_predictions.jsonl, lora_predictions.jsonl, lora_improvements.jsonl, lora_regressions.jsonl,
    both_wrong.jsonl, comparison_report.json. All are complete before the first takes its name, so that an error
    leaves what was there.

    Returns:
        The report: rows, users, threshold, intervals (how they were made), counts, base and tuned (metrics, intervals,
        confusion) and tuned_minus_base (difference, low, high, p_value per metric).

    Raises:
        DataError: the frames are not predictions of the same rows in the same order.
        ResourceError: the disk is full or the folder cannot be written.
    """
    comparison = split_by_outcome(base, tuned, threshold)
    settings = (threshold, bootstrap_draws, level, seed)
    report: dict[str, Any] = {
        "rows": len(base),
        "users": base["user_id"].n_unique(),
        "threshold": threshold,
        "intervals": {
            "method": "percentile bootstrap over users",
            "draws": bootstrap_draws,
            "level": level,
            "seed": seed,
        },
        "counts": comparison.counts(),
        "base": measure(base, *settings),
        "tuned": measure(tuned, *settings),
        "tuned_minus_base": measure_difference(tuned, base, *settings),
    }
    tables = {
        "base_predictions": base,
        "lora_predictions": tuned,
        "lora_improvements": comparison.lora_improvements,
        "lora_regressions": comparison.lora_regressions,
        "both_wrong": comparison.both_wrong,
    }
    with ExitStack() as stack:
        # Contexts close last in, first out: the report is entered first, so that it is renamed last.
        write_json(stack.enter_context(atomic_path(folder / "comparison_report.json")), report)
        for name, table in tables.items():
            table.write_ndjson(stack.enter_context(atomic_path(folder / f"{name}.jsonl")))
    return report
