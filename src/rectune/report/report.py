"""The report stage: predictions of one or more models on the same rows → `metrics.json` and `report.html`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import polars as pl

from rectune.files import atomic_path, write_json, write_text
from rectune.measure.bootstrap import Difference
from rectune.report import figures
from rectune.report.compare import check_same_rows, disagreements, measure, measure_difference, split_by_outcome
from rectune.report.page import PageContent, PageFigure, render_page
from rectune.report.verdict import METRIC_NAMES, Estimate, verdict
from rectune.score.score import TUNED, UNTUNED

PROTOCOL = "online: each test event is scored given everything strictly earlier"

_PAGE_METRICS = ("auc", "uauc", "pr_auc", "accuracy", "f1", "loss", "brier", "ece")


def estimates(report: Mapping[str, Any]) -> dict[str, dict[str, Estimate]]:
    """Rows for `summary_table` and the page, out of what `write_report` returns or `metrics.json` holds."""
    rows: dict[str, dict[str, Estimate]] = {}
    for name, model in report["models"].items():
        rows[name] = {
            metric: Estimate(model["metrics"][metric], *model["intervals"].get(metric, (None, None)))
            for metric in METRIC_NAMES
        }
    return rows


def _difference(report: Mapping[str, Any], other: str, metric: str) -> Difference | None:
    found = report["paired_differences"].get(f"{TUNED} - {other}", {}).get(metric)
    return Difference(**found) if found else None


def best_baseline(report: Mapping[str, Any], metric: str = "auc") -> str | None:
    """The baseline with the highest metric on these very rows, which favours the baseline; None without one."""
    measured = {
        name: model["metrics"][metric]
        for name, model in report["models"].items()
        if name not in (TUNED, UNTUNED) and model["metrics"][metric] is not None
    }
    return max(measured, key=lambda name: measured[name]) if measured else None


def _sentences(report: Mapping[str, Any], level: float) -> tuple[str, list[str]]:
    """The verdict on AUC, and the same question asked of UAUC."""
    if TUNED not in report["models"]:
        return "No tuned model was measured; these are the models it will have to beat.", []
    has_untuned = UNTUNED in report["models"]
    texts = []
    for metric in ("auc", "uauc"):
        baseline = best_baseline(report, metric)
        against = (baseline, _difference(report, baseline, metric)) if baseline else None
        texts.append(verdict(_difference(report, UNTUNED, metric), against, metric, level, has_untuned))
    alone = not has_untuned and best_baseline(report) is None
    return texts[0], [] if alone else [f"Within users (UAUC, blind to who likes much): {texts[1]}"]


def _figures(
    predictions: Mapping[str, pl.DataFrame], log_history: Sequence[Mapping[str, Any]], threshold: float
) -> dict[str, PageFigure]:
    frame = next(iter(predictions.values()))
    labels, users = frame["label"].to_numpy(), frame["user_id"].to_numpy()
    odds = {name: table["log_odds"].to_numpy() for name, table in predictions.items()}
    drawn = {
        "Training": (
            figures.training_curves(log_history),
            "Loss and validation metrics by optimiser step.",
        ),
        "ROC": (
            figures.roc_curves(labels, odds),
            "Towards the upper left is better; the thin diagonal is guessing.",
        ),
        "Precision and recall": (
            figures.pr_curves(labels, odds),
            "The thin line is the share of liked items, which guessing reaches.",
        ),
        "Calibration": (
            figures.calibration_curves(labels, odds),
            "On the diagonal a score of 0.7 is liked 7 times in 10. Larger dots hold more rows.",
        ),
        "AUC by user": (
            figures.user_auc_histogram(users, labels, odds),
            "Users with both liked and not liked test items; their mean is UAUC.",
        ),
        "Confusion": (
            figures.confusion_matrices(labels, odds, threshold),
            f"Counts and shares within each row, at a threshold of {threshold:g}.",
        ),
    }
    return {
        name: PageFigure(svg, caption, wide=name in ("Training", "Confusion"))
        for name, (svg, caption) in drawn.items()
        if svg is not None
    }


def metrics_name(out_name: str) -> str:
    """The file of figures beside a page, so that one split's report never overwrites another's.

    >>> metrics_name("report"), metrics_name("report_validation"), metrics_name("some")
    ('metrics.json', 'metrics_validation.json', 'metrics_some.json')
    """
    rest = out_name.removeprefix("report").removeprefix("_")
    return f"metrics_{rest}.json" if rest else "metrics.json"


def write_report(
    run_dir: Path,
    predictions: dict[str, pl.DataFrame],
    log_history: list[dict[str, Any]],
    how_made: dict[str, str],
    threshold: float = 0.5,
    bootstrap_draws: int = 1000,
    out_name: str = "report",
    *,
    title: str = "rectune report",
    protocol: str = PROTOCOL,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure the models and write `{out_name}.html`, and its figures as JSON, into `run_dir`.

    Args:
        run_dir: the run folder; made when missing.
        predictions: model name → frame with the columns of `report.compare.COLUMNS`, all with the same rows in the
            same order. "tuned" and "untuned" are the models, every other name is a baseline; any of them may be left
            out. Models are shown in the order given.
        log_history: the Trainer's log entries, for the training curves; may be empty.
        how_made: what → how, shown in order.
        threshold: scores at least this high are predicted positive.
        bootstrap_draws: draws of users behind every interval.
        out_name: name of the page without ending; `report` goes with `metrics.json`, others see `metrics_name`.
        title: heading of the page.
        protocol: what a row's score may have seen, said beside the numbers.
        level: of the intervals.
        seed: of the draws.

    Returns:
        What `metrics.json` holds: verdict, notes, protocol, rows, users, threshold, intervals (how they were made),
        models (name → metrics, intervals, confusion, and generated where answers were), paired_differences
        ("tuned - name" → metric → difference, low, high, p_value), counts (improvements and so on; None without both
        models) and how_made.

    Raises:
        DataError: a frame without rows or columns, or frames whose rows differ.
        ResourceError: the disk is full or the folder cannot be written.
    """
    check_same_rows(predictions)
    settings = (threshold, bootstrap_draws, level, seed)
    frame = next(iter(predictions.values()))
    tuned, untuned = predictions.get(TUNED), predictions.get(UNTUNED)
    report: dict[str, Any] = {
        "verdict": "",
        "notes": [],
        "protocol": protocol,
        "rows": len(frame),
        "users": frame["user_id"].n_unique(),
        "threshold": threshold,
        "intervals": {
            "method": "percentile bootstrap over users",
            "draws": bootstrap_draws,
            "level": level,
            "seed": seed,
        },
        "models": {name: measure(table, *settings) for name, table in predictions.items()},
        "paired_differences": {},
        "counts": None,
        "how_made": dict(how_made),
    }
    if tuned is not None:
        report["paired_differences"] = {
            f"{TUNED} - {name}": measure_difference(tuned, table, *settings)
            for name, table in predictions.items()
            if name != TUNED
        }
    changed: list[dict[str, Any]] = []
    if tuned is not None and untuned is not None:
        report["counts"] = split_by_outcome(untuned, tuned, threshold).counts()
        changed = disagreements(untuned, tuned, threshold=threshold)
    report["verdict"], report["notes"] = _sentences(report, level)
    rows = {name: {metric: row[metric] for metric in _PAGE_METRICS} for name, row in estimates(report).items()}
    counted = report["models"][next(iter(predictions))]["metrics"]["uauc_users"]
    page = render_page(
        PageContent(
            title=title,
            verdict=report["verdict"],
            rows=rows,
            figures=_figures(predictions, log_history, threshold),
            disagreements=changed,
            how_made={
                "protocol": protocol,
                "rows": f"{len(frame):,} of {report['users']:,} users ({counted:,} counted in UAUC)",
                "intervals": f"percentile bootstrap over users, {bootstrap_draws:,} draws, seed {seed}",
                "threshold": f"{threshold:g}",
                **how_made,
            },
            notes=report["notes"],
            level=level,
        )
    )
    with ExitStack() as stack:
        write_json(stack.enter_context(atomic_path(run_dir / metrics_name(out_name))), report)
        write_text(stack.enter_context(atomic_path(run_dir / f"{out_name}.html")), page)
    return report
