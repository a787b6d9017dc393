"""What a sweep found: the best trial with its error, what it is worth beside the own settings, and the files."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import Any

import polars as pl

from rectune.config import Config
from rectune.data.columns import LABEL, USER_ID
from rectune.files import write_json, write_text
from rectune.measure.bootstrap import Difference, bootstrap_standard_error, paired_bootstrap
from rectune.train.publish import VALIDATION_PREDICTIONS
from rectune.train.start import HISTORY
from rectune.train.sweep_study import Row, SweepStudy, best_row
from rectune.train.sweep_trial import OUTPUT, RESULT, read_result

TRIALS = "trials"
BEST_CONFIG = "best.yaml"
REPORT = "study.json"
_KEPT = ("config.yaml", "logs", HISTORY, VALIDATION_PREDICTIONS, RESULT, OUTPUT)
"""What stays of a trial that is not the best: its story and its predictions, not its weights."""
_ENOUGH = 10
"""Complete trials from which importances are worth a look; with fewer, the forest behind them fits the noise."""
_STEPS = ("eval_steps", "save_steps", "logging_steps", "max_steps", "warmup_steps")

Say = Callable[[str], None]


def trial_folder(folder: Path, number: int) -> Path:
    """The run folder of a trial."""
    return folder / TRIALS / f"{number:03d}"


def trial_config(config: Config, values: dict[str, Any], run: Path) -> Config:
    """The configuration of a trial.

    Keys that count in optimiser steps follow the batch, so that every trial sees the same events and is evaluated after
    the same number of them.

    Args:
        config: the configuration that is swept.
        values: what this trial changes.
        run: its run folder.

    Raises:
        ConfigError: the values do not go together.
    """
    changed = {**config.model_dump(), **values}
    own, batch = (
        values_of["per_device_train_batch_size"] * values_of["gradient_accumulation_steps"]
        for values_of in (config.model_dump(), changed)
    )
    steps = {key: max(1, int(changed[key] * own / batch + 0.5)) for key in _STEPS if changed[key] > 0}
    return config.with_overrides(**values, **steps, sweep={}, save_total_limit=1, output_dir=run)


def best_config(config: Config, values: dict[str, Any]) -> Config:
    """The configuration that trains the best settings as its trial did, beside the swept run's folder."""
    run = config.output_dir.with_name(f"{config.output_dir.name}-best")
    return trial_config(config, values, run).with_overrides(save_total_limit=config.save_total_limit)


def tidy(folder: Path, rows: list[Row], best: Row | None) -> None:
    """Remove the weights and checkpoints of every ended trial but the best, whose folder stays whole."""
    for row in rows:
        run = trial_folder(folder, row.number)
        if row.outcome == "running" or (best is not None and row.number == best.number) or not run.is_dir():
            continue
        for path in run.iterdir():
            if path.name in _KEPT:
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def _predictions(folder: Path, row: Row) -> pl.DataFrame | None:
    """A trial's validation predictions as its metrics take them: what class weights add to log-odds is taken off."""
    run = trial_folder(folder, row.number)
    if not (run / VALIDATION_PREDICTIONS).is_file():
        return None
    result = read_result(run)
    shift = 0.0 if result is None else result.loss_shift
    return pl.read_parquet(run / VALIDATION_PREDICTIONS).with_columns(pl.col("log_odds") - shift)


def _difference(metric: str, one: pl.DataFrame, other: pl.DataFrame) -> Difference | None:
    """Metric of one trial's predictions minus that of another's, on the same events."""
    labels, users = one[LABEL].to_numpy(), one[USER_ID].to_list()
    odds = (one["log_odds"].to_numpy(), other["log_odds"].to_numpy())
    return paired_bootstrap(labels, *odds, users, (metric,)).get(metric)


def importances(study: SweepStudy) -> tuple[dict[str, float], str]:
    """How much of the variance of the value each key explains (fANOVA, Hutter et al. 2014), or why it is not told."""
    complete = len(study.complete())
    if complete < _ENOUGH:
        return {}, f"not told: {complete} complete trials are too few, {_ENOUGH} are needed"
    evaluator = study.optuna.importance.FanovaImportanceEvaluator(seed=study.config.seed)
    found = study.optuna.importance.get_param_importances(study.study, evaluator=evaluator)
    return {key: float(value) for key, value in found.items()}, ""


def _told(row: Row) -> dict[str, Any]:
    """A row as JSON has it, where a key is a text."""
    return {**asdict(row), "evaluations": {str(number): value for number, value in row.evaluations.items()}}


def summary(study: SweepStudy) -> dict[str, Any]:
    """What `study.json` holds.

    Returns:
        metric, direction, space, trials (each as `Row` has it), best (trial, value, standard_error, step, settings),
        against_own (best minus own settings: difference, low, high, p_value), not_told_apart (complete trials whose
        difference from the best has zero in its 95 % interval), importances, importances_note, events, users.
    """
    rows = study.rows()
    best = best_row(rows, study.metric)
    found: dict[str, Any] = {
        "metric": study.metric,
        "direction": study.study.direction.name.lower(),
        "space": {key: str(part) for key, part in study.space.items()},
        "trials": [_told(row) for row in rows],
        "best": None,
        "against_own": None,
        "not_told_apart": [],
        "importances": {},
        "importances_note": "not told: no trial is complete",
    }
    if best is None:
        return found
    found["importances"], found["importances_note"] = importances(study)
    found["best"] = {"trial": best.number, "value": best.value, "standard_error": None, "step": best.step}
    found["best"]["settings"] = best.values
    own = _predictions(study.folder, best)
    if own is None:
        return found
    labels, odds, users = own[LABEL].to_numpy(), own["log_odds"].to_numpy(), own[USER_ID].to_list()
    found["events"], found["users"] = len(labels), len(set(users))
    found["best"]["standard_error"] = bootstrap_standard_error(labels, odds, users, study.metric)
    for row in rows:
        other = _predictions(study.folder, row) if row.outcome == "complete" and row.number != best.number else None
        difference = None if other is None else _difference(study.metric, own, other)
        if difference is not None and row.number == 0:
            found["against_own"] = asdict(difference)
        if difference is not None and difference.low <= 0 <= difference.high:
            found["not_told_apart"].append(row.number)
    return found


def write_files(study: SweepStudy, found: dict[str, Any]) -> None:
    """Write `study.json`, `trials.csv` and, where a trial is complete, `best.yaml`."""
    write_json(study.folder / REPORT, found)
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(["trial", *study.space, study.metric, "step", "outcome", "seconds", "evaluations", "reason"])
    for row in study.rows():
        told = ["" if value is None else value for value in (row.value, row.step)]
        settings = [row.values.get(key, "") for key in study.space]
        table.writerow(
            [row.number, *settings, *told, row.outcome, f"{row.seconds:.1f}", len(row.evaluations), row.reason]
        )
    write_text(study.folder / "trials.csv", stream.getvalue())
    best = best_row(study.rows(), study.metric)
    if best is not None:
        head = (
            f"# Best of {len(study.finished())} trials of a sweep: {study.metric} {best.value:.4f} on validation "
            f"(trial {best.number}).\n#\n#   rectune train {quote(str(study.folder / BEST_CONFIG))}\n\n"
        )
        write_text(study.folder / BEST_CONFIG, head + best_config(study.config, best.values).to_yaml())


def verdict_lines(found: dict[str, Any]) -> list[str]:
    """What a sweep says at its end, in words."""
    best, metric = found["best"], found["metric"]
    if best is None:
        return ["best: none, since no trial is complete"]
    error = best["standard_error"]
    spread = "" if error is None else f" ± {error:.4f} (standard error, {found['users']} users drawn again and again)"
    lines = [f"best: trial {best['trial']}, {metric} {best['value']:.4f}{spread}"]
    against = found["against_own"]
    if best["trial"] == 0:
        lines.append("own settings: no trial is better than the configuration as it is")
    elif against is not None:
        told = "which is more than chance" if against["low"] > 0 or against["high"] < 0 else "which may be chance"
        lines.append(
            f"own settings: trial {best['trial']} differs from them by {against['difference']:+.4f} "
            f"[{against['low']:+.4f}, {against['high']:+.4f}] on the same events, {told}"
        )
    if found["not_told_apart"]:
        names = ", ".join(str(number) for number in found["not_told_apart"])
        lines.append(f"these events do not tell the best (95 %) from trials {names}")
    lines.append(
        "the best of many is chosen by the events that measure it, which flatters it: check it on other events "
        "(another seed, or rectune evaluate)"
    )
    if found["importances"]:
        shares = ", ".join(f"{key} {100 * share:.0f} %" for key, share in found["importances"].items())
        lines.append(f"what mattered (share of the variance, fANOVA): {shares}")
    else:
        lines.append(f"what mattered: {found['importances_note']}")
    return lines
