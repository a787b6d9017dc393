"""A log in parts, from whole timelines to a dataset folder: what all users decide together, then a part at a time.

The folder is the one that `prepare` writes of a log that fits the memory, value for value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from rectune.config import Config
from rectune.data import alpaca, folder
from rectune.data import columns as c
from rectune.data.folder import EVENTS_SCHEMA
from rectune.data.meta import content_hash, describe, json_left_out, say_read, say_split, write_rest
from rectune.data.parts import SEQUENCE, Parts, ordered_part, timelines_in_parts
from rectune.data.progress import progress
from rectune.data.sources.blocks import Blocks
from rectune.data.split import COUNT, GLOBAL_TIME, Timeline, cuts_of, moments_of, split_of_each, users_kept
from rectune.data.tally import Tally
from rectune.data.work import Work
from rectune.files import atomic_path, remove_leftovers
from rectune.lock import run_lock
from rectune.spread import Job, Say, Told, Workers, one_process
from rectune.version import __version__

_FORMAT = 1
"""Of the pieces; those of another are not gone on with."""
_ROW_IDS = "row_ids.npy"
"""File of the work folder: the number of each usable row of the log among the rows kept, uint32."""
_GROUP = 1 << 19
"""Rows of a row group of the events: what has to be read to look at a few."""


class _Decided(NamedTuple):
    """What all users decide together.

    Attributes:
        kept: users that are kept; None for all.
        split: the split of each row.
        line: what was left out, and cuts; its events are elsewhere.
        json_left_out: JSON files that are not written.
    """

    kept: pl.Series | None
    split: pl.Expr
    line: Timeline
    json_left_out: list[str]


@contextmanager
def prepare_in_parts(
    config: Config, blocks: Blocks, source: dict[str, str], settings: dict[str, Any], say: Say, anew: bool = False,
    workers: Workers = one_process,
) -> Iterator[tuple[Callable[[Path], None], int]]:  # fmt: skip
    """Prepare a log a part at a time.

    Pieces lie in a hidden folder beside the dataset's, until the block is left without an error. A call that finds
    pieces of an earlier one, of the same source with the same settings, goes on with them, unless all is to be made
    anew. Whoever does the parts, the files are the same.

    Yields:
        what writes the dataset's files into an empty folder; and how many rows were rejected.

    Raises:
        ConfigError: another process prepares this dataset.
        DataError: the log is unusable.
    """
    target = config.dataset_folder()
    place = target.with_name(f".{target.name}.parts")
    key = {"format": _FORMAT, "version": __version__, "source": source, "settings": settings,
           "part_rows": config.part_rows, "json_files": config.json_files}  # fmt: skip
    with run_lock(place.with_name(place.name + ".lock"), say, "dataset_dir"):
        remove_leftovers(place.parent)  # a whole dataset may lie there half-written
        if anew and place.exists():
            say(f"parts: what an earlier call has left in {place} is removed, because that was asked for (force)")
        work = Work(place, key, anew=anew)
        if work.old:
            say(f"parts: going on with what an earlier call has left in {place}")
        else:
            say(
                f"parts: more than part_rows={config.part_rows:,} rows, so they are prepared in parts, which lie in "
                f"{place} meanwhile; stopped at any moment, the same command goes on"
            )
        try:
            with workers() as spread:
                parts = timelines_in_parts(
                    blocks, work, config.part_rows, config.rating_threshold, config.max_per_user, say, spread
                )
                say_read(parts.rows, blocks.catalog, parts.rejects, blocks.nouns, say)
                decided = _decide(config, work, parts, say)
                left = [part for part in range(parts.number) if work.done(f"events-{part}") is None]
                make = partial(_finisher, folder=place, config=config, catalog=blocks.catalog, decided=decided)
                with progress("split", parts.number, "parts", say, parts.number - len(left)) as advance:
                    for _ in spread(make, left):
                        advance(1)
        except KeyboardInterrupt:
            say(f"parts: stopped; what is finished lies in {place}, and the same command goes on behind it")
            raise
        yield (
            lambda folder: _assemble(folder, config, blocks, source, settings, work, parts, decided, say),
            parts.rejects.height,
        )
        work.close()


def _decide(config: Config, work: Work, parts: Parts, say: Say) -> _Decided:
    """Which users are kept, the number of each row, where time is cut, and how large the splits are.

    Raises:
        DataError: see `split.timeline`.
    """
    every = range(parts.number)
    counts = pl.concat([ordered_part(work, part, c.USER_ID, COUNT).unique() for part in every])
    old = sum(work.told(f"ordered-{part}", "old") for part in every)
    eligible, drawn = users_kept(counts, config.warmup, config.max_users, config.seed)
    kept = drawn[c.USER_ID] if drawn.height < counts.height else None
    flags = np.zeros(parts.sequences, dtype=bool)
    moments = pl.DataFrame(schema={c.TIMESTAMP: pl.Int64, "len": pl.get_index_type()})
    for part in every:
        rows = _of(ordered_part(work, part, c.USER_ID, SEQUENCE, c.TIMESTAMP, c.POSITION), kept)
        flags[rows[SEQUENCE].to_numpy()] = True
        if config.split == GLOBAL_TIME:
            more = pl.concat([moments, moments_of(rows, config.warmup)])
            moments = more.group_by(c.TIMESTAMP).agg(pl.col("len").sum()).sort(c.TIMESTAMP)
    cuts = None
    if config.split == GLOBAL_TIME:
        cuts = cuts_of(moments, config.warmup, config.test_ratio, config.validation_ratio)
    split = split_of_each(config.split, config.warmup, config.test_ratio, config.validation_ratio, cuts).alias(c.SPLIT)
    sizes: dict[str, int] = {}
    for part in every:
        rows = _of(ordered_part(work, part, c.USER_ID, c.TIMESTAMP, c.POSITION, COUNT), kept)
        for name, number in rows.select(split).group_by(c.SPLIT).len().iter_rows():
            sizes[name] = sizes.get(name, 0) + number
    line = Timeline(
        events=pl.DataFrame(),
        short_users=counts.height - eligible.height,
        short_events=parts.rows - old - int(eligible[COUNT].sum()),
        users_not_drawn=eligible.height - drawn.height,
        events_not_drawn=int(eligible[COUNT].sum()) - int(drawn[COUNT].sum()),
        old_events=old,
        cuts=cuts,
    )
    with atomic_path(work.path(_ROW_IDS)) as temporary, temporary.open("wb") as stream:
        np.save(stream, np.cumsum(flags, dtype=np.uint32) - np.uint32(1))
    return _Decided(kept, split, line, json_left_out(config, sizes, say))


def _of(rows: pl.DataFrame, users: pl.Series | None) -> pl.DataFrame:
    """The rows of these users, in their order."""
    return rows if users is None else rows.join(users.to_frame(), on=c.USER_ID, how="semi", maintain_order="left")


def _finisher(say: Say, folder: Path, config: Config, catalog: pl.DataFrame, decided: _Decided) -> Job:
    """What writes parts of the events."""
    work, words = Work.beside(folder), alpaca.ItemWords.of(catalog, config)
    row_ids = np.load(work.path(_ROW_IDS), mmap_mode="r")
    return lambda part: _finish(config, words, work, part, decided, row_ids)


def _finish(
    config: Config, words: alpaca.ItemWords, work: Work, part: int, decided: _Decided, row_ids: np.ndarray
) -> Told:
    """Write a part of the events as they are in the dataset, and its records of the JSON files."""
    work.begin(f"events-{part}")
    rows = _of(ordered_part(work, part), decided.kept)
    ids = pl.Series(c.ROW_ID, row_ids[rows[SEQUENCE].to_numpy()])
    events = rows.with_columns(decided.split, ids).select(
        pl.col(name).cast(dtype) for name, dtype in EVENTS_SCHEMA.items()
    )
    wanted = [name for name in alpaca.JSON_FILES if name not in decided.json_left_out]
    if wanted:
        records = alpaca.Records(events, words, config)
        for name in wanted:
            with work.writing(f"{part}-{name}") as file:
                alpaca.write_fragment(file, records.of_file(name), alpaca.SEPARATORS[name])
    with work.writing(f"events-{part}.arrow") as file:
        events.write_ipc(file, compression="lz4")
    return work.finish(f"events-{part}")


def _assemble(
    place: Path,
    config: Config,
    blocks: Blocks,
    source: dict[str, str],
    settings: dict[str, Any],
    work: Work,
    parts: Parts,
    decided: _Decided,
    say: Say,
) -> None:
    """Put the parts together to the files of the dataset, and say what they hold."""
    from pyarrow.parquet import ParquetWriter

    files = [work.path(f"events-{part}.arrow") for part in range(parts.number)]
    tally = Tally(config.history_len, config.warmup)
    schema = pl.DataFrame(schema=EVENTS_SCHEMA).to_arrow().schema
    with (
        progress("written", parts.number, "parts", say) as advance,
        ParquetWriter(place / folder.EVENTS, schema, compression="zstd") as writer,
    ):
        for file in files:
            events = pl.read_ipc(file)
            if events.height:
                tally.add(events)
                writer.write_table(events.to_arrow().cast(schema), row_group_size=_GROUP)
            advance(1)

    def column(name: str) -> Iterable[pl.Series]:
        return (pl.read_ipc(file, columns=[name]).to_series() for file in files)

    digest = content_hash(column, EVENTS_SCHEMA, blocks.catalog, settings["protocol"])
    meta = describe(config, source, settings, tally, decided.line, parts.rejects, blocks.catalog, digest)
    say_split(meta, say)
    for name in alpaca.JSON_FILES:
        if name not in decided.json_left_out:
            alpaca.join_fragments(place / name, (work.path(f"{part}-{name}") for part in range(parts.number)), name)
    write_rest(place, config, blocks.catalog, parts.rejects, meta, decided.json_left_out)
