"""The stage `inspect`: open the data, build the prompts, show and measure them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from rectune.config import Config
from rectune.data.columns import TRAIN
from rectune.errors import ConfigError, DataError
from rectune.files import write_json
from rectune.model.load import load_tokenizer
from rectune.prompt.dataset import open_dataset
from rectune.prompt.encode import encode, sample_rows
from rectune.prompt.lengths import NO_CUT, character_lengths, report_lengths, show_examples
from rectune.prompt.pieces import Pieces
from rectune.prompt.pointwise import PointwisePrompts


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


def inspect(
    config: Config,
    *,
    examples: int,
    limit: int | None,
    percentiles: str,
    characters: bool,
    packed: bool,
    json_path: Path | None,
    say: Callable[[str], None],
    console: Console,
) -> None:
    """Follow examples through the six steps and measure the training prompts.

    Args:
        config: any configuration.
        examples: how many to follow.
        limit: measure at most this many prompts, drawn with the seed; all when None.
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
    rows = sample_rows(data.events, TRAIN, limit or config.max_train_samples, config.seed)
    if len(rows) == 0:
        raise DataError("no training events to inspect: prepare with more users or a lower history_len")
    if characters:
        found = report_lengths(character_lengths(config, data, rows), "characters", shares, config, False, console)
    else:
        pieces = Pieces(load_tokenizer(config, say))
        if examples:
            show_examples(config, data, PointwisePrompts(config, pieces), examples, console)
        start = time.perf_counter()
        # Lengths are measured uncut; the cut itself is judged against cutoff_len afterwards.
        uncut = config.with_overrides(cutoff_len=NO_CUT)
        trees = encode(uncut, data.events, data.catalog, data.content_hash, PointwisePrompts(uncut, pieces), rows, say)
        seconds = time.perf_counter() - start
        lengths = trees.lengths + (0 if config.prompt_format == "classifier" else 2)
        found = report_lengths(lengths, "tokens", shares, config, packed, console)
        found["prompts_per_second"] = round(len(trees) / seconds)
        say(f"tokenised {len(trees):,} prompts in {seconds:.2f} s ({len(trees) / seconds:,.0f}/s)")
    if json_path is not None:
        write_json(json_path, found)
        say(f"written: {json_path}")
