"""The stage `inspect`: open the data, build the prompts, show and measure them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console

from rectune.config import Config
from rectune.data.columns import TRAIN
from rectune.errors import ConfigError, DataError
from rectune.files import write_json
from rectune.model.load import load_tokenizer
from rectune.prompt.dataset import Dataset, open_dataset
from rectune.prompt.encode import encode, encode_stream, sample_rows
from rectune.prompt.follow import follow_events, follow_windows
from rectune.prompt.histories import EventHistories
from rectune.prompt.lengths import (
    NO_CUT,
    character_lengths,
    line_characters,
    report_lengths,
    report_lines,
    report_windows,
    window_figures,
)
from rectune.prompt.pieces import Pieces
from rectune.prompt.pointwise import PointwisePrompts
from rectune.prompt.stream import StreamPrompts

Rows = npt.NDArray[np.int64]
Say = Callable[[str], None]


def _percentiles(text: str) -> list[float]:
    """Percentiles from text such as `50,95`.

    Raises:
        ConfigError: a part is no number from 0 to 100.
    """
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 <= share <= 100 for share in found):
        raise ConfigError(f"--percentiles: got {text!r}, allowed: numbers from 0 to 100 with commas, such as 50,95,100")
    return found


def _prompts(
    config: Config,
    data: Dataset,
    rows: Rows,
    pieces: Pieces,
    examples: int,
    shares: list[float],
    packed: bool,
    say: Say,
    console: Console,
) -> dict[str, Any]:
    """Follow and measure the prompts of the pointwise layout."""
    if examples:
        follow_events(config, data, PointwisePrompts(config, pieces), examples, console)
    start = time.perf_counter()
    # Lengths are measured uncut; the cut itself is judged against cutoff_len afterwards.
    uncut = config.with_overrides(cutoff_len=NO_CUT, sweep={})
    trees = encode(uncut, data.events, data.catalog, data.content_hash, PointwisePrompts(uncut, pieces), rows, say)
    seconds = time.perf_counter() - start
    lengths = trees.lengths + (2 if config.ends_answers else 0)
    found = report_lengths(lengths, "tokens", shares, config, packed, console)
    found["prompts_per_second"] = round(len(trees) / seconds)
    say(f"tokenised {len(trees):,} prompts in {seconds:.2f} s ({len(trees) / seconds:,.0f}/s)")
    return found


def _windows(
    config: Config,
    data: Dataset,
    rows: Rows,
    pieces: Pieces,
    examples: int,
    shares: list[float],
    packed: bool,
    say: Say,
    console: Console,
) -> dict[str, Any]:
    """Follow and measure the windows of the stream layout, made anew, so that the time is that of making them."""
    prompts = StreamPrompts(config, pieces)
    start = time.perf_counter()
    histories = EventHistories(data.events, data.catalog, config)
    trees = encode_stream(prompts, histories, data.events, rows, config.window_overlap)
    seconds = time.perf_counter() - start
    follow_windows(config, data, prompts, histories, trees, examples, console)
    if config.history_drop:
        say(
            f"windows: shown and measured whole; training hides each event from later ones with {config.history_drop:g}"
        )
    if config.shuffle_moments:
        say("windows: shown and measured as the table has them; training shuffles the events of one moment")
    figures = window_figures(data, prompts, histories, trees)
    found = report_windows(trees, figures, shares, config, packed, console)
    rate = len(trees.labels) / seconds
    found["labels_per_second"] = round(rate)
    say(f"tokenised {len(trees.labels):,} labels in {len(trees):,} windows in {seconds:.2f} s ({rate:,.0f} labels/s)")
    return found


def inspect(
    config: Config,
    *,
    examples: int,
    limit: int | None,
    percentiles: str,
    characters: bool,
    packed: bool,
    json_path: Path | None,
    say: Say,
    console: Console,
) -> None:
    """Follow examples through the six steps and measure the training prompts, or the windows of a stream.

    Args:
        config: any configuration.
        examples: how many to follow.
        limit: measure at most this many prompts (in a stream: labels), drawn with the seed; all when None.
        percentiles: with commas.
        characters: count characters, without loading a tokenizer.
        packed: try packing.
        json_path: where the figures go for a program.
        say: prints one line.
        console: prints the report.

    Raises:
        DataError: there are no training events.
    """
    shares = _percentiles(percentiles)
    data = open_dataset(config, say)
    streams = config.layout == "stream"
    rows = sample_rows(data.events, TRAIN, limit or config.max_train_samples, config.seed, streams, config.train_since)
    if len(rows) == 0:
        raise DataError("no training events to inspect: prepare with more users or a lower history_len")
    if characters and streams:
        found = report_lines(line_characters(config, data, rows), shares, console)
    elif characters:
        found = report_lengths(character_lengths(config, data, rows), "characters", shares, config, False, console)
    else:
        pieces = Pieces(load_tokenizer(config, say))
        measure = _windows if streams else _prompts
        found = measure(config, data, rows, pieces, examples, shares, packed, say, console)
    if json_path is not None:
        write_json(json_path, found)
        say(f"written: {json_path}")
