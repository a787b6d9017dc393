"""What scores parts: the model is loaded once, then each part is pairs and timelines in, a Parquet file out."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import polars as pl

from rectune.bulk.divide import Dealt, Piece
from rectune.bulk.manifest import finish_part, part_file
from rectune.data.columns import USER_ID
from rectune.data.folder import load_catalog, load_meta
from rectune.data.work import Work
from rectune.errors import ModelError
from rectune.files import atomic_path, write_once
from rectune.prompt.dataset import Dataset
from rectune.score.candidates import CandidateScorer
from rectune.score.open_run import OpenRun, open_run
from rectune.score.pairs import PairWork, score_chunks
from rectune.spread import Job, Say, Told

ARITHMETIC = "arithmetic"
"""File of the work folder: what scores are computed in."""


class Asked(NamedTuple):
    """What is asked of every worker.

    Attributes:
        run: the run folder.
        overrides: `key=value` strings.
        dataset: the dataset folder.
        folder: the work folder with the pieces.
        pieces: all of them.
        output: the folder of scores.
        as_of: of `score.pairs.AS_OF`.
    """

    run: Path
    overrides: list[str]
    dataset: Path
    folder: Path
    pieces: Sequence[Piece]
    output: Path
    as_of: str


def _agree(file: Path, arithmetic: str) -> None:
    """Hold what a worker computes in against what the first of all has written down.

    Raises:
        ModelError: it is another, so that scores of one folder would differ by more than their rounding.
    """
    with suppress(FileExistsError):
        write_once(file, arithmetic)
    first = file.read_text(encoding="utf-8")
    if first != arithmetic:
        raise ModelError(
            f"scores: this worker computes in {arithmetic}, other parts were computed in {first}; set bf16 and "
            "flash_attn so that all machines do the same, and give another --output"
        )


class _Loaded(NamedTuple):
    """What a worker loads once."""

    run: OpenRun
    catalog: pl.DataFrame
    scorer: CandidateScorer
    dealt: Dealt
    arithmetic: str


def _load(say: Say, asked: Asked) -> _Loaded:
    run = open_run(asked.run, asked.overrides, say)
    arithmetic = f"{str(run.loaded.dtype).removeprefix('torch.')}, attention {run.loaded.attention}"
    _agree(asked.folder / ARITHMETIC, arithmetic)
    # The command has held the events against their hash; of the dataset nothing else is needed here.
    catalog = load_catalog(asked.dataset)
    return _Loaded(run, catalog, CandidateScorer(run, say), Dealt(asked.folder, asked.pieces), arithmetic)


def part_scorer(say: Say, asked: Asked) -> Job:
    """What scores parts; each one's chunks are kept in the work folder until the part is whole."""
    work, meta = Work.beside(asked.folder), load_meta(asked.dataset)
    # With the first part, so that a process that dies while it loads is counted like one that dies over the part.
    load = cache(partial(_load, say, asked))

    def score(part: int) -> Told:
        began, name = time.monotonic(), f"part-{part}"
        begun = work.begin(name)
        run, catalog, scorer, dealt, arithmetic = load()
        store = asked.folder / f"chunks-{part}"
        table = dealt.rows("pairs", part)
        own = table.select(USER_ID).unique()
        events = dealt.rows("events", part).join(own, on=USER_ID, how="semi", maintain_order="left")
        pairs = PairWork(run, Dataset(asked.dataset, events, catalog, meta), table, asked.as_of)
        steps = score_chunks(pairs, scorer, store, lambda count: None)
        kept = next(steps)
        if kept:
            say(f"part {part}: going on behind the {kept:,} pairs that a process had scored before it ended")
        elif begun > 1:
            say(f"part {part}: begun again, since the process that scored it has ended")
        for _ in steps:
            work.got_on(name)
        with atomic_path(part_file(asked.output, part)) as temporary:
            pairs.scored(table).write_parquet(temporary)
        told = finish_part(
            asked.output,
            part,
            {
                "part": part,
                "counts": pairs.counts._asdict(),
                "kept": kept,
                "arithmetic": arithmetic,
                "tokens_a_pass": scorer.budget.tokens,
                "seconds": round(time.monotonic() - began, 3),
            },
        )
        shutil.rmtree(store, ignore_errors=True)
        work.got_on(name)
        return told

    return score
