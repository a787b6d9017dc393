"""The report stage: predictions of one or more models on the same rows → `metrics.json` and `report.html`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from rectune.baselines.questions import FROZEN, PROTOCOLS
from rectune.files import atomic_path, write_json, write_text
from rectune.measure.bootstrap import Difference
from rectune.measure.calibration import ece
from rectune.measure.classification import log_loss, probability
from rectune.measure.slices import Cut, measure_slices
from rectune.report import figures
from rectune.report.beside import AVERAGE
from rectune.report.compare import check_same_rows, disagreements, measure, measure_difference, split_by_outcome
from rectune.report.page import PageContent, PageFigure, metrics_name, render_page
from rectune.report.verdict import ALONE, FROZEN_UAUC, METRIC_NAMES, WITHOUT, Estimate, comparison_sentence, verdict
from rectune.score.score import OWN, TUNED, UNTUNED
from rectune.score.settings import MODEL, OFFSET

PROTOCOL = "online: each test event is scored given everything strictly earlier"

SUMMARY = ("auc", FROZEN_UAUC, "accuracy", "f1")
"""What the terminal shows."""
_OURS = (TUNED, UNTUNED, ALONE, WITHOUT)
"""Names that are no baseline by themselves."""
_FROZEN_METRICS = ("auc", "uauc", "pr_auc", "loss")
_OF_THRESHOLD = ("accuracy", "f1", "uauc")
"""Of texts these are shown by class instead, or have no meaning."""
_PAGE_METRICS = ("auc", "uauc", "pr_auc", "accuracy", "f1", "loss", "brier", "ece")


@dataclass(frozen=True)
class Calibration:
    """What was fitted on validation.

    Attributes:
        temperature, offset: of the model's log-odds.
        blend: weights of the model and of the baselines that join it, and the offset; empty where none does.
    """

    temperature: float = 1.0
    offset: float = 0.0
    blend: Mapping[str, float] = field(default_factory=dict)


_NOTHING_FITTED = Calibration()


def estimates(report: Mapping[str, Any]) -> dict[str, dict[str, Estimate]]:
    """Rows for `summary_table` and the page, out of what `write_report` returns or `metrics.json` holds.

    Args:
        report: the whole, or its part `frozen`.
    """
    rows: dict[str, dict[str, Estimate]] = {}
    for name, model in report["models"].items():
        rows[name] = {
            metric: Estimate(model["metrics"][metric], *model["intervals"].get(metric, (None, None)))
            for metric in METRIC_NAMES
            if metric in model["metrics"]
        }
    return rows


def both_protocols(report: Mapping[str, Any]) -> dict[str, dict[str, Estimate]]:
    """Rows of `estimates`, with UAUC of the frozen histories beside those of the online ones."""
    rows = estimates(report)
    for name, values in (estimates(report["frozen"]) if report["frozen"] else {}).items():
        rows[name][FROZEN_UAUC] = values["uauc"]
    return rows


def _difference(report: Mapping[str, Any], other: str, metric: str) -> Difference | None:
    found = report["paired_differences"].get(f"{TUNED} - {other}", {}).get(metric)
    return Difference(**found) if found else None


def best_baseline(report: Mapping[str, Any], metric: str = "auc") -> str | None:
    """The baseline with the highest metric on these very rows, which favours the baseline; None without one."""
    measured = {
        name: model["metrics"][metric]
        for name, model in report["models"].items()
        if name not in (*_OURS, *report.get("beside", ())) and model["metrics"][metric] is not None
    }
    return max(measured, key=lambda name: measured[name]) if measured else None


def _sentence(report: Mapping[str, Any], metric: str, level: float, joining: Sequence[str]) -> str:
    """The verdict on one metric of one protocol, on a model that these baselines join."""
    baseline = best_baseline(report, metric)
    against = (baseline, _difference(report, baseline, metric)) if baseline else None
    subject = f"The tuned model with {' and '.join(joining)}" if joining else "The tuned model"
    return verdict(_difference(report, UNTUNED, metric), against, metric, level, UNTUNED in report["models"], subject)


def _beside(report: Mapping[str, Any], metric: str, level: float, part: Mapping[str, Any] | None = None) -> list[str]:
    """A sentence on each other run in the report, of the whole of it or of a part with its own differences."""
    named = {name: f"the {name}" if name == AVERAGE else name for name in report["beside"]}
    return [
        f"Beside it: {comparison_sentence(_difference(part or report, name, metric), other, metric, level)}"
        for name, other in named.items()
    ]


def _sentences(report: Mapping[str, Any], level: float) -> tuple[str, list[str]]:
    """The verdict on AUC online, and the same question asked of UAUC, with frozen histories where there are some."""
    if TUNED not in report["models"]:
        return "No tuned model was measured; these are the models it will have to beat.", []
    if report.get("by_class"):
        return _sentence(report, "auc", level, []), [*report["by_class"]["notes"], *_beside(report, "auc", level)]
    blend = report["calibration"]["blend"]
    joining = [name for name in blend if name not in (MODEL, OFFSET)]
    if set(report["models"]) == {TUNED}:
        return _sentence(report, "auc", level, joining), []
    within = report["frozen"] or report
    what = "history frozen at the split" if report["frozen"] else "online"
    notes = [f"Within users (UAUC, {what}, blind to who likes much): {_sentence(within, 'uauc', level, joining)}"]
    if blend and not blend[MODEL]:
        notes.append(
            "The language model has no weight in these answers: on validation it added nothing to "
            f"{' and '.join(joining)}."
        )
    for part, metric in ((report, "auc"), (within, "uauc")):
        if WITHOUT in part["models"]:
            parts = (_difference(part, WITHOUT, metric), f"the {WITHOUT}", metric, level)
            notes.append(f"What the language model adds to its baselines: {comparison_sentence(*parts)}")
        notes += _beside(report, metric, level, part)
    return _sentence(report, "auc", level, joining), notes


def _figures(
    predictions: Mapping[str, pl.DataFrame], log_history: Sequence[Mapping[str, Any]], threshold: float,
    positive: str = "liked",
) -> dict[str, PageFigure]:  # fmt: skip
    frame = next(iter(predictions.values()))
    labels, users = frame["label"].to_numpy(), frame["user_id"].to_numpy()
    odds = {name: table["log_odds"].to_numpy() for name, table in predictions.items()}
    drawn = {
        "Training": (
            figures.training_curves(log_history),
            "Loss, validation metrics, validation loss by class and learning rate, by optimiser step.",
        ),
        "ROC": (
            figures.roc_curves(labels, odds),
            "Towards the upper left is better; the thin diagonal is guessing.",
        ),
        "Precision and recall": (
            figures.pr_curves(labels, odds),
            f"The thin line is the share of {positive} rows, which guessing reaches.",
        ),
        "Calibration": (
            figures.calibration_curves(labels, odds, positive),
            f"On the diagonal a score of 0.7 is {positive} 7 times in 10. Larger dots hold more rows.",
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
        name: PageFigure(svg, caption, wide=name in ("Training", "Confusion"), tall=name == "Training")
        for name, (svg, caption) in drawn.items()
        if svg is not None
    }


def measured(
    predictions: Mapping[str, pl.DataFrame], threshold: float, draws: int, level: float, seed: int
) -> dict[str, Any]:
    """`models` and `paired_differences` of a report: every model's metrics, and tuned minus each other.

    Args:
        predictions: model name → frame with user_id, label and log_odds, all of the same rows in the same order.
        threshold, draws, level, seed: as `write_report` takes them.
    """
    settings = (threshold, draws, level, seed)
    tuned = predictions.get(TUNED)
    return {
        "models": {name: measure(table, *settings) for name, table in predictions.items()},
        "paired_differences": {
            f"{TUNED} - {name}": measure_difference(tuned, table, *settings)
            for name, table in predictions.items()
            if tuned is not None and name != TUNED
        },
    }


def _calibration(tuned: pl.DataFrame, fitted: Calibration) -> dict[str, Any]:
    """Log loss and ECE of the tuned model's scores, with and without what was fitted on validation."""
    labels, odds = tuned["label"].to_numpy(), tuned["log_odds"].to_numpy()
    raw = tuned[OWN].to_numpy() if OWN in tuned.columns else (odds - fitted.offset) * fitted.temperature
    return {
        "temperature": fitted.temperature,
        "offset": fitted.offset,
        "blend": dict(fitted.blend),
        **{
            name: {"loss": log_loss(labels, each), "ece": ece(labels, probability(each))}
            for name, each in (("before", raw), ("after", odds))
        },
    }


def _slices(
    predictions: Mapping[str, pl.DataFrame], cuts: Mapping[str, Cut], level: float, seed: int
) -> dict[str, dict[str, Any]]:
    """Metrics of the models shown in every slice."""
    frame = next(iter(predictions.values()))
    labels, users = frame["label"].to_numpy(), frame["user_id"].to_numpy()
    odds = {name: table["log_odds"].to_numpy() for name, table in predictions.items()}
    rivals = [name for name in odds if name not in _OURS] or [name for name in odds if name != TUNED]
    compare = (TUNED, rivals[0]) if TUNED in odds and rivals else None
    return {
        name: measure_slices(cut.rows, labels, odds, users, compare, cut.order, level=level, seed=seed)
        for name, cut in cuts.items()
    }


def _few(report: Mapping[str, Any]) -> list[str]:
    """The models that a reader needs at once: ours, and the best baselines under both protocols."""
    found = [name for name in (*_OURS, *report["beside"]) if name in report["models"]]
    for part, metric in ((report, "auc"), (report["frozen"] or report, "uauc")):
        values = {
            name: model["metrics"][metric]
            for name, model in part["models"].items()
            if name not in found and model["metrics"][metric] is not None
        }
        found += sorted(values, key=lambda name: -values[name])[:2]
    return found


def _frozen_rows(report: Mapping[str, Any]) -> dict[str, dict[str, Estimate]]:
    """Rows of the page's table of frozen histories."""
    if not report["frozen"]:
        return {}
    return {
        name: {metric: row[metric] for metric in _FROZEN_METRICS} for name, row in estimates(report["frozen"]).items()
    }


def _told(baselines: Mapping[str, Any]) -> dict[str, str]:
    """What each baseline may see and how it was set, for the page."""
    found = {}
    for name, notes in baselines.items():
        setting = ", ".join(f"{key} {value}" for key, value in notes["setting"].items())
        found[name] = f"sees {notes['sees']}" + (f"; {setting}, of {len(notes['tried'])} tried" if setting else "")
    return found


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
    frozen: dict[str, pl.DataFrame] | None = None,
    baselines: Mapping[str, Any] | None = None,
    cuts: Mapping[str, Cut] | None = None,
    calibration: Calibration = _NOTHING_FITTED,
    beside: Sequence[str] = (),
    diagnosis: Sequence[Mapping[str, Any]] = (),
    by_class: Mapping[str, Any] | None = None,
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
        frozen: the same rows by the same models, each user's history frozen at the split.
        baselines: what each baseline sees and how it was tuned, as `Fitted.notes` has it.
        cuts: name → slices of the rows to measure in.
        calibration: what is in the tuned model's log-odds.
        beside: names among `predictions` that are other runs, no baselines.
        diagnosis: what was found wrong with the training.
        by_class: of texts, what `report.classes.class_report` found, with `notes` on it.

    Returns:
        What `metrics.json` holds: verdict, notes, protocol, rows, users, threshold, intervals (how they were made),
        models (name → metrics, intervals, confusion, and generated where answers were), paired_differences
        ("tuned - name" → metric → difference, low, high, p_value), frozen (models and paired_differences of the frozen
        histories), calibration, slices, baselines, beside, counts (improvements and so on; None without both models),
        diagnosis and how_made.

    Raises:
        DataError: a frame without rows or columns, or frames whose rows differ.
        ResourceError: the disk is full or the folder cannot be written.
    """
    check_same_rows(predictions)
    if frozen:
        check_same_rows({**predictions, **{f"{name}, frozen": table for name, table in frozen.items()}})
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
        **measured(predictions, *settings),
        "frozen": None,
        "calibration": None,
        "slices": {},
        "baselines": dict(baselines or {}),
        "beside": list(beside),
        "counts": None,
        "diagnosis": list(diagnosis),
        "how_made": dict(how_made),
        **({"by_class": dict(by_class)} if by_class else {}),
    }
    if frozen:
        report["frozen"] = {"protocol": PROTOCOLS[FROZEN], **measured(frozen, *settings)}
    rival = best_baseline(report) or (UNTUNED if untuned is not None else None)
    changed: list[dict[str, Any]] = []
    if tuned is not None:
        report["calibration"] = _calibration(tuned, calibration)
        if untuned is not None:
            report["counts"] = split_by_outcome(untuned, tuned, threshold).counts()
        if rival is not None:
            changed = disagreements(predictions[rival], tuned, threshold=threshold)
    shown = {name: table for name, table in predictions.items() if name in (TUNED, UNTUNED, rival)}
    report["slices"] = _slices(shown or predictions, cuts or {}, level, seed)
    report["verdict"], report["notes"] = _sentences(report, level)
    wanted = [metric for metric in _PAGE_METRICS if not by_class or metric not in _OF_THRESHOLD]
    rows = {name: {metric: row[metric] for metric in wanted} for name, row in estimates(report).items()}
    counted = report["models"][next(iter(predictions))]["metrics"]["uauc_users"]
    page = render_page(
        PageContent(
            title=title,
            verdict=report["verdict"],
            rows=rows,
            frozen=_frozen_rows(report),
            shown=_few(report),
            slices=report["slices"],
            figures=_figures(
                shown or predictions, log_history, threshold, by_class["classes"][1] if by_class else "liked"
            ),
            disagreements=changed,
            rival=rival or UNTUNED,
            how_made={
                "protocol": protocol,
                "rows": f"{len(frame):,} texts"
                if by_class
                else f"{len(frame):,} of {report['users']:,} users ({counted:,} counted in UAUC)",
                "intervals": f"percentile bootstrap over users, {bootstrap_draws:,} draws, seed {seed}",
                "threshold": f"{threshold:g}",
                **how_made,
                **_told(report["baselines"]),
            },
            diagnosis=report["diagnosis"],
            notes=report["notes"],
            level=level,
            by_class=by_class or {},
        )
    )
    with ExitStack() as stack:
        write_json(stack.enter_context(atomic_path(run_dir / metrics_name(out_name))), report)
        write_text(stack.enter_context(atomic_path(run_dir / f"{out_name}.html")), page)
    return report
