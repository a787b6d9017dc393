"""The stage from a run and a dataset's split to predictions: chunked, resumable, one copy of the weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
from rich.console import Console

from rectune.data.columns import TEST, VALIDATION
from rectune.errors import ConfigError
from rectune.files import atomic_path
from rectune.model.lora import check_effect
from rectune.prompt.dataset import Dataset, open_dataset
from rectune.prompt.encode import encode, split_sample
from rectune.prompt.tree import Trees
from rectune.score.chunks import scoring_bar, stored_chunk
from rectune.score.generate import extract_label, generate_answers, generation_problem
from rectune.score.joined import joined_rows
from rectune.score.open_run import OpenRun
from rectune.score.predictions import LOG_P, class_frame, prediction_frame
from rectune.score.scorer import CHUNK, score_classes, score_trees

TUNED, UNTUNED = "tuned", "untuned"
"""Names of the two models; in a report every other name is a baseline."""
OWN = "model_log_odds"
"""Column of the tuned model's predictions: its log-odds before calibration and blend."""
MODES = ("logits", "generate")

Say = Callable[[str], None]


def split_rows(run: OpenRun, data: Dataset, split: str) -> npt.NDArray[np.int64]:
    """The rows that a run evaluates on: the same draw as during training for validation.

    Raises:
        ConfigError: the split is neither test nor validation.
    """
    if split not in (TEST, VALIDATION):
        raise ConfigError(f"--split: got {split!r}, allowed: test, validation")
    return split_sample(run.config, data.table, split)


def _score_chunk(run: OpenRun, trees: Trees, which: str, mode: str, advance: Callable[[int], None]) -> pl.DataFrame:
    """Log-odds of one chunk by the tuned or the untuned model, and its generated answers where asked."""
    size = run.config.per_device_eval_batch_size
    verbalizer = run.prompts.verbalizer
    with run.model.disable_adapter() if which == UNTUNED else nullcontext():
        if run.many:
            found = score_classes(run.model, trees, verbalizer, size, run.loaded.attention, advance)
            return pl.DataFrame({LOG_P: pl.Series(found.tolist(), dtype=pl.List(pl.Float64))})
        log_odds = score_trees(run.model, trees, verbalizer, size, run.loaded.attention, advance)
        frame = pl.DataFrame({"log_odds": log_odds})
        if mode == "generate":
            texts = generate_answers(run.model, trees.plain(), run.loaded.tokenizer, verbalizer, size)
            labels = [extract_label(text, verbalizer) for text in texts]
            frame = frame.with_columns(
                generated=pl.Series(texts, dtype=pl.String), generated_label=pl.Series(labels, dtype=pl.Int64)
            )
    return frame


def score_rows(
    run: OpenRun,
    data: Dataset,
    rows: npt.NDArray[np.int64],
    models: tuple[str, ...],
    mode: str,
    say: Say,
    console: Console,
) -> dict[str, pl.DataFrame]:
    """Predictions for these rows by each model, in one pass over chunks.

    Each finished chunk is kept under the run folder until all are done, so that a killed call goes on where it was.

    Args:
        run: the opened run.
        data: the dataset.
        rows: int64 [n]; rows of its events.
        models: any of `tuned` and `untuned`.
        mode: `logits`, or `generate` to also answer by greedy generation.
        say: prints one line.
        console: shows progress.

    Returns:
        For each model a frame as `prediction_frame` makes it, in the order of `rows`; the tuned one's log-odds are
        blended and calibrated, and stand as they were, prior added, in OWN. Of more than two classes a `class_frame`.

    Raises:
        ConfigError: an unknown mode.
        ModelError: the adapter changes no answer.
    """
    if mode not in MODES:
        raise ConfigError(f"--mode: got {mode!r}, allowed: {', '.join(MODES)}")
    problem = generation_problem(run) if mode == "generate" else None
    if problem is not None:
        raise ConfigError(f"--mode: generate {problem}; use logits")
    trees = encode(run.config, data.table, data.catalog, data.content_hash, run.prompts, rows, say)
    store = run.folder / "scoring" / run.scoring_key(data.content_hash, rows.tobytes().hex(), mode)
    parts: dict[str, list[pl.DataFrame]] = {which: [] for which in models}
    with scoring_bar(console) as bar:
        task = bar.add_task("scoring", total=len(trees) * len(models), note="")
        for first in range(0, len(trees), CHUNK):
            chosen = np.arange(first, min(first + CHUNK, len(trees)))
            for which in models:
                file = store / f"{which}-{first:09d}.parquet"
                bar.update(task, note=which)
                frame = stored_chunk(file)
                if frame is not None:
                    bar.advance(task, len(chosen))
                else:
                    frame = _score_chunk(run, trees.select(chosen), which, mode, lambda n: bar.advance(task, n))
                    with atomic_path(file) as temporary:
                        frame.write_parquet(temporary)
                    if not console.is_terminal:
                        say(f"scored {which}: {chosen[-1] + 1:,} of {len(trees):,}")
                parts[which].append(frame)
    # Streams answer moment after moment, sampled negatives beside their purchases.
    place = np.argsort(trees.rows, kind="stable")
    scored = {which: pl.concat(frames)[place] for which, frames in parts.items()}
    if TUNED in scored and UNTUNED in scored:
        _check_adapter(run, scored)
    result = {}
    joined = joined_rows(run.settings.joining if TUNED in scored else {}, data, rows)
    for which, frame in scored.items():
        if run.many:
            found = np.array(frame[LOG_P].to_list())
            found = run.settings.class_log_probabilities(found) if which == TUNED else found
            result[which] = class_frame(data, rows, found)
            continue
        odds = frame["log_odds"].to_numpy()
        own, odds = odds, run.settings.calibrated(odds, joined) if which == TUNED else odds
        table = prediction_frame(data, rows, odds, trees.shown_from[place])
        table = table.with_columns(pl.Series(OWN, own)) if which == TUNED else table
        result[which] = pl.concat([table, frame.drop("log_odds")], how="horizontal") if frame.width > 1 else table
    shutil.rmtree(store, ignore_errors=True)
    with suppress(OSError):  # another call's chunks may lie beside them
        store.parent.rmdir()
    return result


def _check_adapter(run: OpenRun, scored: dict[str, pl.DataFrame]) -> None:
    import torch

    column = scored[TUNED].columns[0]  # log_odds, or a log-probability a class
    tuned, untuned = (torch.tensor(scored[which][column].to_list(), dtype=torch.float64) for which in (TUNED, UNTUNED))
    check_effect(run.model, tuned, untuned)


def open_data(run: OpenRun, say: Say) -> Dataset:
    """The dataset of a run; a note when it is not the one trained on."""
    data = open_dataset(run.config, say)
    if data.content_hash != run.settings.data_hash:
        say("data: this dataset is not the one that the adapter was trained on")
    return data


def write_predictions(frame: pl.DataFrame, path: Path) -> None:
    """Write predictions whole, as Parquet, or as JSONL where the name ends so."""
    with atomic_path(path) as temporary:
        if path.suffix == ".jsonl":
            frame.write_ndjson(temporary)
        else:
            frame.write_parquet(temporary)
