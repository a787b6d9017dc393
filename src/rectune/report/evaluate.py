"""The stages that end in figures: evaluate a run, and compare it with its untuned base model."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console

from rectune.baselines.fit import check_classes, fit_baselines
from rectune.baselines.item_rates import uses_rates
from rectune.baselines.questions import FROZEN, ONLINE
from rectune.baselines.texts import fit_text_baselines
from rectune.config_classify import CLASSIFY, only_two_classes
from rectune.data.columns import ITEM_ID, LABEL, ROW_ID, SPLIT, TEST, USER_ID, VALIDATION
from rectune.data.leak import SPLIT_BY
from rectune.errors import DataError
from rectune.files import write_json
from rectune.measure.classification import classification_metrics
from rectune.prompt.dataset import Dataset
from rectune.report.beside import add_beside, read_beside
from rectune.report.classes import BALANCED, NATURAL, class_table
from rectune.report.compare import write_comparison
from rectune.report.many import with_baselines, write_many
from rectune.report.parts import add_parts, predictions_as
from rectune.report.report import SUMMARY, Calibration, both_protocols, estimates, write_report
from rectune.report.slices import slices_of
from rectune.report.texts import PROTOCOL, add_text_baselines, by_length, texts_by_class
from rectune.report.verdict import summary_table
from rectune.score.frozen import score_frozen
from rectune.score.generate import agreement, generated_line, generated_metrics
from rectune.score.joined import joined_rows
from rectune.score.open_run import OpenRun, open_run, run_config
from rectune.score.predictions import LOG_P
from rectune.score.score import OWN, TUNED, UNTUNED, open_data, score_rows, split_rows, write_predictions
from rectune.train.publish import VALIDATION_PREDICTIONS
from rectune.train.start import DIAGNOSIS, HISTORY

Say = Callable[[str], None]
Rows = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Evaluation:
    """What was measured and where it was written."""

    report: dict[str, Any]
    page: Path


@dataclass(frozen=True)
class _Split:
    """A user's events of a split, all asked about after one history."""

    user: str
    items: list[str]

    def asked(self, which: str) -> list[str]:
        return self.items


def _frozen(
    run: OpenRun, data: Dataset, split: str, rows: Rows, tables: dict[str, pl.DataFrame], say: Say, console: Console
) -> dict[str, pl.DataFrame]:
    """The same rows, scored by the same models with each user's history frozen at the split."""
    like = next(iter(tables.values()))
    users = like.group_by(USER_ID, maintain_order=True).agg(ITEM_ID)
    cases = [_Split(user, list(dict.fromkeys(items))) for user, items in users.iter_rows()]
    say(f"frozen: the same {like.height:,} events, each user's after the history before the split")
    scored = score_frozen(run, data, split, cases, list(tables), "frozen", say, console, calibrated=False)
    keys = like.select(USER_ID, ITEM_ID)
    tables = {
        which: predictions_as(
            like, keys.join(found, on=[USER_ID, ITEM_ID], how="left", maintain_order="left")["log_odds"].to_numpy()
        )
        for which, found in scored.items()
    }
    own = tables[TUNED]["log_odds"].to_numpy()
    joined = joined_rows(run.settings.joining, data, rows, FROZEN)
    final = predictions_as(like, run.settings.calibrated(own, joined))
    return {**tables, TUNED: final.with_columns(pl.Series(OWN, own))}


def _command(
    folder: Path, overrides: list[str], split: str, mode: str, untuned: bool, beside: Sequence[Path] = ()
) -> str:
    """The command that makes this report again.

    >>> _command(Path("out"), ["seed=1"], "validation", "generate", False, [Path("ids")])
    'rectune evaluate out seed=1 --split validation --mode generate --beside ids --no-base'
    """
    words = ["rectune", "evaluate", str(folder), *overrides]
    words += [] if split == TEST else ["--split", split]
    words += [] if mode == "logits" else ["--mode", mode]
    words += [word for other in beside for word in ("--beside", str(other))]
    return shlex.join(words if untuned else [*words, "--no-base"])


def _how_made(run: OpenRun, data: Dataset, split: str, command: str) -> dict[str, str]:
    """What a reader needs to make the figures again."""
    config = run.config
    history = f"{config.history_len} events of history, prompts of at most {config.cutoff_len} tokens"
    if config.task == CLASSIFY:
        history = f"prompts of at most {config.cutoff_len} tokens, oversampling {config.oversample}"
    if config.layout == "stream":
        history = f"streams in windows of at most {config.cutoff_len} tokens"
    if uses_rates(config):
        ways = {"as a prior": config.prior == "item_rate", "in the text": config.item_rate_text}
        used = " and ".join(way for way, on in ways.items() if on)
        history += f", item like-rates ({config.item_rate_from.replace('_', ' ')}) {used}"
    if config.prior == "stack":
        history += ", starting from the stacked baseline"
    return {
        "model": f"{run.settings.base_model} with LoRA (rank {config.lora_rank}, {config.lora_target}), {run.folder}",
        "data": f"{data.meta['name']}, {split} split by {SPLIT_BY[config.split]}, {history}",
        **_negatives(data),
        "dataset hash": data.content_hash,
        "adapter hash": run.adapter_hash,
        "precision": f"{str(run.loaded.dtype).removeprefix('torch.')} on {run.loaded.device.type}",
        "leak": str(data.meta.get("leak", {}).get("note", "")),
        "calibration": run.settings.correction_text,
        "versions": ", ".join(f"{name} {number}" for name, number in run.settings.versions.items()),
        "command": command,
    }


def _kept_validation(run: OpenRun) -> pl.DataFrame | None:
    """The validation predictions that training kept of the best adapter, or None where it left none.

    Raises:
        DataError: they are damaged.
    """
    file = run.folder / VALIDATION_PREDICTIONS
    try:
        return pl.read_parquet(file, columns=[ROW_ID, LABEL, "log_odds"]) if file.is_file() else None
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{file}: damaged ({_short(error)}); copy it from best/ in the run, or remove it") from error


def _negatives(data: Dataset) -> dict[str, str]:
    """Which negatives the metrics are measured among; nothing where the data has dislikes of its own."""
    drawn = data.meta.get("negatives")
    if drawn is None:
        return {}
    again = drawn["purchases_of_items_bought_before"] / max(drawn["purchases"], 1)
    return {
        "negatives": f"{drawn['per_purchase']} sampled for each purchase ({drawn['sampling']}), never an item that the "
        f"user bought; {again:.1%} of the purchases are of an item bought before, which no negative is"
    }


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


def _check_against_training(run: OpenRun, table: pl.DataFrame, say: Say) -> None:
    """Say by how much validation scores differ from those that training saw for the best adapter.

    Raises:
        DataError: the scores kept by training are damaged.
    """
    file = run.folder / VALIDATION_PREDICTIONS
    if not file.is_file():
        return
    try:
        then = pl.read_parquet(file, columns=["row_id", LOG_P if run.many else "log_odds"])
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{file}: damaged ({_short(error)}); copy it from best/ in the run, or remove it") from error
    if not then["row_id"].equals(table["row_id"]):
        say("check: these are not the validation rows of training, so their scores are not compared")
        return
    if run.many:
        before = run.settings.class_log_probabilities(np.array(then[LOG_P].to_list()))
        gaps = np.abs(before - np.array(table[LOG_P].to_list()))
    else:
        gaps = np.abs(then["log_odds"].to_numpy() - table[OWN].to_numpy())
    largest = float(gaps.max(initial=0.0))
    say(f"check: largest difference from the scores during training, row by row: {largest:g} in log-odds")


def _log_history(folder: Path) -> list[dict[str, Any]]:
    """What training logged, for the curves; nothing where it left none.

    Raises:
        DataError: the file is damaged.
    """
    for place in (folder / HISTORY, folder / "trainer_state.json"):
        if place.is_file():
            try:
                found = json.loads(place.read_text(encoding="utf-8"))
                entries = found["log_history"] if isinstance(found, dict) else found
                if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
                    raise ValueError("no list of log entries")
            except (OSError, ValueError, KeyError) as error:
                raise DataError(f"{place}: damaged ({_short(error)}); remove it to leave out the curves") from error
            return entries
    return []


def _diagnosis(folder: Path) -> list[dict[str, Any]]:
    """What was found wrong with a run's training; nothing where it left no file.

    Raises:
        DataError: the file is damaged.
    """
    file = folder / "logs" / DIAGNOSIS
    if not file.is_file():
        return []
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return [{key: each[key] for key in ("code", "step", "severity", "message", "advice")} for each in found]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: damaged ({_short(error)}); remove it to leave the diagnosis out") from error


def evaluate(
    folder: Path,
    overrides: list[str],
    split: str,
    mode: str,
    untuned: bool,
    say: Say,
    console: Console,
    beside: Sequence[Path] = (),
) -> Evaluation:
    """Score a split with the tuned model (and the untuned one), measure them beside the baselines, write the report.

    Writes `predictions_SPLIT_MODEL.parquet`, `metrics.json` and `report.html` into the run; for validation
    `metrics_validation.json` and `report_validation.html`, so that the test's figures stay.

    Args:
        folder: a run folder.
        overrides: `key=value` strings.
        split: `test` or `validation`.
        mode: `logits` or `generate`.
        untuned: whether to score the untuned model too.
        say: prints one line.
        console: shows progress and the table.
        beside: other runs, evaluated on this split before, to stand in the report with their average.
    """
    if beside or mode != "logits":
        _only_two_classes(folder, overrides, "--beside" if beside else "--mode generate")
    texts = bool(beside) and folder.is_dir() and run_config(folder, overrides).task == CLASSIFY
    others = read_beside(folder, beside, split, (ONLINE,) if texts else (ONLINE, FROZEN))
    run = open_run(folder, overrides, say)
    history, diagnosis = _log_history(run.folder), _diagnosis(run.folder)
    data = open_data(run, say)
    rows = split_rows(run, data, split)
    held_out = data.events.filter(pl.col(SPLIT) == VALIDATION)[LABEL].to_numpy()
    if len(held_out):  # an hour of scoring must not end in what was known before it
        check_classes(held_out)
    models = (UNTUNED, TUNED) if untuned else (TUNED,)
    found = score_rows(run, data, rows, models, mode, say, console)
    if split == VALIDATION:
        _check_against_training(run, found[TUNED], say)
    if mode == "generate":
        for which, table in found.items():
            same = agreement(table["generated"].to_list(), table["log_odds"].to_numpy(), run.prompts.verbalizer)
            say(f"generation, {which}: {same:.2%} of the answers name the label with the higher logit")
            given = generated_metrics(table[LABEL].to_list(), table["generated_label"].to_list())
            say(generated_line(which, given))
    for which, table in found.items():
        write_predictions(table, run.folder / f"predictions_{split}_{which}.parquet")
    if run.many:
        return _of_many(
            run, data, split, found, history, _command(folder, overrides, split, mode, untuned), say, console
        )
    texts = run.config.task == CLASSIFY
    frozen = {} if texts else _frozen(run, data, split, rows, found, say, console)
    for which, table in frozen.items():
        write_predictions(table, run.folder / f"predictions_{split}_{which}_frozen.parquet")
    online, quick = dict(found), run.config.baselines == "quick"
    name = "report" if split != VALIDATION else "report_validation"
    how = _how_made(run, data, split, _command(folder, overrides, split, mode, untuned, beside))
    title = f"rectune: {data.meta['name']}, {split}"
    if texts:
        fitted_texts = fit_text_baselines(
            data.folder, data.events, data.catalog, data.content_hash, len(run.config.classes), say, quick
        )
        add_text_baselines(online, fitted_texts)
        added = add_beside(others, {ONLINE: online})
        by_class = texts_by_class(run, data, split, online, _kept_validation(run), fitted_texts)
        report = write_report(
            run.folder, online, history, how, run.settings.threshold, out_name=name, title=title, protocol=PROTOCOL,
            baselines=fitted_texts.notes, cuts=by_length(data, rows), diagnosis=diagnosis, by_class=by_class,
            calibration=Calibration(run.settings.temperature, run.settings.offset, {}), beside=added,
        )  # fmt: skip
        console.print(summary_table(estimates(report), ("auc", "pr_auc", "loss", "ece")))
        for which in (NATURAL, BALANCED):
            console.print(class_table(by_class, which))
        return _said(report, run.folder / f"{name}.html", diagnosis, console)
    fitted = fit_baselines(
        data.folder, data.events, data.catalog, data.content_hash, run.config.preprocessing_cache_dir, say, console,
        quick=quick,
    )  # fmt: skip
    like, row_ids = found[TUNED], found[TUNED][ROW_ID]
    if run.settings.blend:
        add_parts(run, data, rows, {ONLINE: online, FROZEN: frozen})
    for baseline in fitted.notes:
        online[baseline], frozen[baseline] = (
            predictions_as(like, fitted.log_odds(baseline, split, protocol, row_ids)) for protocol in (ONLINE, FROZEN)
        )
    added = add_beside(others, {ONLINE: online, FROZEN: frozen})
    report = write_report(
        run.folder, online, history, how, run.settings.threshold, out_name=name, title=title, frozen=frozen,
        baselines=fitted.notes, cuts=slices_of(data, rows),
        calibration=Calibration(run.settings.temperature, run.settings.offset, run.settings.blend), beside=added,
        diagnosis=diagnosis,
    )  # fmt: skip
    console.print(summary_table(both_protocols(report), SUMMARY))
    return _said(report, run.folder / f"{name}.html", diagnosis, console)


def _only_two_classes(folder: Path, overrides: list[str], doing: str) -> None:
    """Refuse what is made for two classes before the model is loaded; what is wrong with the folder is said later."""
    if folder.is_dir():
        only_two_classes(run_config(folder, overrides), doing)


def _of_many(
    run: OpenRun, data: Dataset, split: str, found: dict[str, pl.DataFrame], history: list[dict[str, Any]],
    command: str, say: Say, console: Console,
) -> Evaluation:  # fmt: skip
    """The report of more than two classes."""
    config = run.config
    fitted = fit_text_baselines(
        data.folder, data.events, data.catalog, data.content_hash, len(config.classes), say, config.baselines == "quick"
    )
    name = "report" if split != VALIDATION else "report_validation"
    report, rows = write_many(
        run.folder, with_baselines(found, fitted), config.classes, config.seed, history,
        _how_made(run, data, split, command), fitted, name, f"rectune: {data.meta['name']}, {split}",
    )  # fmt: skip
    console.print(summary_table(rows, ("accuracy", "macro_f1", "balanced_accuracy", "auc")))
    for which in (NATURAL, BALANCED):
        console.print(class_table(report["by_class"], which))
    return _said(report, run.folder / f"{name}.html", [], console)


def _said(report: dict[str, Any], page: Path, diagnosis: Sequence[dict[str, Any]], console: Console) -> Evaluation:
    """The verdict, the notes and what was wrong with the training, said to a person."""
    console.print(report["verdict"], highlight=False, markup=False)
    for note in report["notes"]:
        console.print(note, highlight=False, markup=False)
    for each in diagnosis:
        if each["severity"] != "info":
            line = f"In training, step {each['step']}: {each['message']}; {each['advice']}"
            console.print(line, highlight=False, markup=False)
    return Evaluation(report, page)


def compare(folder: Path, overrides: list[str], split: str, output: Path | None, say: Say, console: Console) -> Path:
    """Base beside tuned on the same rows, in one pass over one copy of the weights.

    Writes the prediction files of both, their improvements and regressions, and `comparison_report.json`.

    Returns:
        The folder written.
    """
    _only_two_classes(folder, overrides, "compare")
    run = open_run(folder, overrides, say)
    data = open_data(run, say)
    rows = split_rows(run, data, split)
    found = score_rows(run, data, rows, (UNTUNED, TUNED), "logits", say, console)
    target = output or run.folder / "comparison"
    report = write_comparison(found[UNTUNED], found[TUNED], target, run.settings.threshold)
    say(f"compared: {report['counts']}")
    say(f"written: {target}")
    return target


def write_metrics(table: pl.DataFrame, path: Path, threshold: float) -> dict[str, Any]:
    """Metrics of labelled predictions as JSON, with those of the generated answers where there are any."""
    labels, users = table[LABEL].to_numpy(), table["user_id"].to_list()
    metrics: dict[str, Any] = {**classification_metrics(labels, table["log_odds"].to_numpy(), users, threshold)}
    if "generated_label" in table.columns:
        metrics["generated"] = generated_metrics(labels.tolist(), table["generated_label"].to_list())
    write_json(path, metrics)
    return metrics
