"""The command `score`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rectune.cli_options import AsOf, Mode, Overrides, RayAddress, RunPath, Split, Workers, console, refuse_idle, say

SCORE_EXAMPLE = (
    "Example: rectune score output/demo --input data/demo/test_raw.jsonl --output answers   ·   "
    "rectune score output/demo --pairs pairs.csv --as-of test   ·   "
    "rectune score output/demo --pairs pairs.parquet --output scores --workers 2"
)


def _score_pairs(run: Path, overrides: list[str], file: Path, output: Path | None, as_of: str) -> None:
    """Score a file of pairs; everything about the files is checked before the model is loaded."""
    from rectune.score.pair_file import check_output, read_pairs

    pairs = read_pairs(file)
    output = output or run / f"{file.stem}_scored{file.suffix}"
    check_output(pairs, output)
    from rectune.score.open_run import open_run
    from rectune.score.pairs import score_pairs
    from rectune.score.score import open_data

    opened = open_run(run, overrides, say)
    table = score_pairs(opened, open_data(opened, say), pairs, output, as_of, say, console())
    say(f"written: {output} ({len(table):,} rows)")


def _score_in_parts(
    run: Path, overrides: list[str], source: Path, output: Path | None, as_of: str, workers: int, address: str | None
) -> None:
    """Score Parquet files of pairs by several processes."""
    from functools import partial

    from rectune.bulk.pool import check_pool, ray_pool
    from rectune.bulk.score import score_in_parts

    check_pool(address)
    start = partial(ray_pool, workers, address, say)
    score_in_parts(run, overrides, source, output or run / f"{source.stem}_scored", as_of, start, say, console())


def classifies(run: Path, overrides: list[str], asks: str | None, generates: bool) -> bool:
    """Whether a run classifies texts; what such a run cannot be asked is refused before its model is loaded.

    Raises:
        ConfigError: it is asked so.
    """
    if not run.is_dir():
        return False
    from rectune.config_classify import CLASSIFY, only_recommending, only_two_classes
    from rectune.score.open_run import run_config

    config = run_config(run, overrides)
    if asks is not None:
        only_recommending(config, asks)
    if generates:
        only_two_classes(config, "--mode generate")
    return config.task == CLASSIFY


def score(
    run: RunPath,
    overrides: Overrides = None,
    input_file: Annotated[Path | None, typer.Option("--input", help="test_raw.jsonl or Alpaca JSON.")] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(
            help="CSV, Parquet or JSONL with user_id and item_id; a killed call goes on. With --workers Parquet, or a "
            "folder of it."
        ),
    ] = None,
    as_of: Annotated[
        AsOf | None, typer.Option(help="With --pairs: show all events (now, the default), or those before this split.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="File for a split or --pairs, folder for --input and with --workers.")
    ] = None,
    workers: Workers = None,
    ray: RayAddress = None,
    split: Annotated[Split | None, typer.Option(help="The events to ask about; test when left out.")] = None,
    mode: Annotated[Mode | None, typer.Option(help="logits when left out; generate adds greedy answers.")] = None,
    max_samples: Annotated[int | None, typer.Option(min=1, help="At most this many records of --input.")] = None,
    compare_base: Annotated[bool, typer.Option("--compare-base", help="Ask the untuned model too.")] = False,
    demo: Annotated[bool, typer.Option("--demo", help="One canned prompt, base beside tuned.")] = False,
    text: Annotated[str | None, typer.Option(help="Of a run that classifies: the class of this text.")] = None,
) -> None:
    """P(yes) for every event of a split, for every record of a file, for pairs of user and item, or for one prompt.

    Of a run that classifies texts: classes and their probabilities, of --text, or of every text of --input (CSV, TSV,
    JSONL or Parquet).
    """
    if pairs is None:
        refuse_idle({"--workers": workers}, "without --pairs")
    if workers is None:
        refuse_idle({"--ray": ray}, "without --workers")
    of_file: dict[str, object] = {"--max-samples": max_samples, "--compare-base": compare_base}
    if text is not None:
        others = {"--input": input_file, "--output": output, "--split": split, "--mode": mode, "--pairs": pairs}
        refuse_idle({**others, **of_file, "--as-of": as_of, "--demo": demo}, "with --text")
    elif demo:
        others = {"--input": input_file, "--output": output, "--split": split, "--mode": mode, "--pairs": pairs}
        refuse_idle({**others, **of_file, "--as-of": as_of}, "with --demo")
    elif pairs is not None:
        refuse_idle({"--input": input_file, "--split": split, "--mode": mode, **of_file}, "with --pairs")
    elif input_file is not None:
        refuse_idle({"--split": split, "--as-of": as_of}, "with --input")
    else:
        refuse_idle(of_file, "without --input")
        refuse_idle({"--as-of": as_of}, "without --pairs")
    asks = "--demo" if demo else "--pairs" if pairs is not None else None
    of_texts = classifies(run, overrides or [], asks, mode is Mode.GENERATE)
    if of_texts and input_file is not None:
        refuse_idle({"--mode": mode if mode is Mode.GENERATE else None}, "with --input of texts")
    if pairs is not None and workers is not None:
        moment = (as_of or AsOf.NOW).value
        _score_in_parts(run, overrides or [], pairs, output, moment, workers, ray)
        return
    if pairs is not None:
        _score_pairs(run, overrides or [], pairs, output, (as_of or AsOf.NOW).value)
        return
    from rectune.report.infer import infer_demo, infer_file
    from rectune.report.infer_texts import infer_text, infer_texts
    from rectune.score.open_run import open_run
    from rectune.score.score import TUNED, open_data, score_rows, split_rows, write_predictions

    way, part = mode or Mode.LOGITS, split or Split.TEST
    opened = open_run(run, overrides or [], say)
    if text is not None:
        infer_text(opened, text, say)
    elif demo:
        infer_demo(opened, say)
    elif input_file is not None and of_texts:
        infer_texts(opened, input_file, output or run / "inference", max_samples, compare_base, say)
    elif input_file is not None:
        infer_file(opened, input_file, output or run / "inference", max_samples, compare_base, way.value, say)
    else:
        data = open_data(opened, say)
        rows = split_rows(opened, data, part.value)
        table = score_rows(opened, data, rows, (TUNED,), way.value, say, console())[TUNED]
        path = output or run / f"predictions_{part.value}_tuned.parquet"
        write_predictions(table, path)
        say(f"written: {path} ({len(table):,} rows)")
