"""A log that is too large to hold, from blocks of rows to whole timelines, a part at a time.

Three steps, each of pieces that a killed call leaves to the next: `_read` cleans a block of the file after the other;
`_divide` deals each block's rows to parts, which are runs of users in their order; `_order` finds the duplicates of a
part, which are of one user, and sorts its timelines. What is left to decide from all users together is in `gather.py`.
Memory is that of a part, and beside it some bytes a user and six a row.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from rectune.data import columns as c
from rectune.data.clean import DUPLICATE, NO_ROW, REJECTS_SCHEMA, check_rejects
from rectune.data.label import add_label
from rectune.data.progress import progress
from rectune.data.sources.blocks import Blocks, Place
from rectune.data.split import COUNT, last_of_each, ordered
from rectune.data.work import Work
from rectune.errors import DataError
from rectune.spread import Job, Say, Spread, Told

SEQUENCE = "_sequence"
"""Column: number of a usable row in the order of the file, duplicates counted."""
_PART = "_part"
_KEPT = (c.USER_ID, c.ITEM_ID, c.RATING, c.TIMESTAMP, c.LABEL, SEQUENCE)


class Parts(NamedTuple):
    """Whole timelines in a work folder, as `ordered_part` gives them.

    Attributes:
        number: how many parts.
        sequences: usable rows of the file, duplicates counted.
        rows: usable rows without duplicates.
        rejects: as `Source` has them.
    """

    number: int
    sequences: int
    rows: int
    rejects: pl.DataFrame


def timelines_in_parts(
    blocks: Blocks, work: Work, part_rows: int, threshold: float, max_per_user: int | None, say: Say, spread: Spread
) -> Parts:
    """Read, clean, label and sort a log a part at a time.

    Args:
        blocks: the log.
        work: where pieces lie, some of them perhaps from an earlier call.
        part_rows: rows of a part, about: a user is never divided.
        threshold: see `add_label`.
        max_per_user: keep each user's last events, this many.
        say: prints one line.
        spread: does the parts.

    Raises:
        DataError: there is no row, or more are unusable than allowed.
    """
    pieces = _read(blocks, work, threshold, say)
    count = _divide(work, pieces, part_rows, say, spread)
    sequences = sum(work.told(f"read-{piece}", "good") for piece in range(pieces))
    left = [part for part in range(count) if work.done(f"ordered-{part}") is None]
    with progress("timelines", count, "parts", say, count - len(left)) as advance:
        for _ in spread(partial(_orderer, folder=work.folder, pieces=pieces, max_per_user=max_per_user), left):
            advance(1)
    for piece in range(pieces):
        work.drop(f"divided-{piece}.arrow")
    rejects = _rejects(blocks, work, pieces, count)
    total = sum(work.told(f"read-{piece}", "rows") for piece in range(pieces))
    check_rejects(rejects.filter(pl.col(c.FILE) == blocks.file), total, blocks.file, blocks.expected, blocks.allowed)
    again = sum(work.told(f"ordered-{part}", "again") for part in range(count))
    return Parts(count, sequences, sequences - again, rejects)


def _read(blocks: Blocks, work: Work, threshold: float, say: Say) -> int:
    """Clean one block after the other; how many there are."""
    piece = good = rows = bad = 0
    place = Place()
    while (told := work.done(f"read-{piece}")) is not None:
        place = Place(*told["behind"])
        piece, good, rows, bad = piece + 1, good + told["good"], rows + told["rows"], bad + told["bad"]
    if work.done("read") is not None:
        return work.told("read", "pieces")
    with progress("read", None, "rows", say, rows) as advance:
        for block in blocks.read(place):
            usable = block.rows.filter(pl.col(c.REASON).is_null())
            unusable = block.rows.filter(pl.col(c.REASON).is_not_null()).select(c.LINE, c.REASON, c.TEXT)
            frame = add_label(usable, threshold).with_row_index(SEQUENCE, offset=good)
            with work.writing(f"read-{piece}.arrow") as file:
                frame.select(c.LINE, *_KEPT).write_ipc(file)
            with work.writing(f"rejects-{piece}.arrow") as file:
                unusable.write_ipc(file)
            told = {"rows": block.rows.height, "good": usable.height, "bad": unusable.height}
            work.finish(f"read-{piece}", {**told, "behind": list(block.behind)})
            piece, good, rows, bad = piece + 1, good + usable.height, rows + block.rows.height, bad + unusable.height
            if blocks.allowed.rows is not None and bad > blocks.allowed.rows:
                break
            advance(block.rows.height)
    if not rows:
        raise DataError(f"{blocks.file}: {NO_ROW}")
    if not blocks.allowed.holds(bad, rows):
        found = _unusable(blocks.file, work, piece)
        check_rejects(found, rows, blocks.file, blocks.expected, blocks.allowed)
    work.finish("read", {"pieces": piece})
    return piece


def _divide(work: Work, pieces: int, part_rows: int, say: Say, spread: Spread) -> int:
    """Deal the rows of each block to the parts; how many parts there are."""
    if work.done("users") is None:
        counts = [pl.scan_ipc(work.path(f"read-{piece}.arrow")).group_by(c.USER_ID).len().collect()
                  for piece in range(pieces)]  # fmt: skip
        users = pl.concat(counts).group_by(c.USER_ID).agg(pl.col("len").cast(pl.Int64).sum()).sort(c.USER_ID)
        before = pl.col("len").cum_sum() - pl.col("len")
        with work.writing("users.arrow") as file:
            users.select(c.USER_ID, (before // part_rows).rle_id().alias(_PART)).write_ipc(file)
        work.finish("users", {"parts": int(users.select((before // part_rows).n_unique()).item())})
    parts = work.told("users", "parts")
    left = [piece for piece in range(pieces) if work.done(f"divided-{piece}") is None]
    for piece in sorted({*range(pieces)} - {*left}):
        work.drop(f"read-{piece}.arrow")
    with progress("divided", pieces, "blocks", say, pieces - len(left)) as advance:
        for piece, _ in spread(partial(_divider, folder=work.folder, parts=parts), left):
            work.drop(f"read-{piece}.arrow")
            advance(1)
    return parts


def _divider(say: Say, folder: Path, parts: int) -> Job:
    """What deals the rows of a block to the parts."""
    work = Work.beside(folder)
    users = pl.read_ipc(work.path("users.arrow"))

    def divide(piece: int) -> Told:
        work.begin(f"divided-{piece}")
        rows = pl.read_ipc(work.path(f"read-{piece}.arrow"))
        rows = rows.join(users, on=c.USER_ID, how="left", maintain_order="left")
        rows = rows.sort(_PART, maintain_order=True)
        ends = np.searchsorted(rows[_PART].to_numpy(), np.arange(parts), side="right")
        with work.writing(f"divided-{piece}.arrow") as file:
            rows.drop(_PART).write_ipc(file)
        return work.finish(f"divided-{piece}", {"ends": ends.tolist()})

    return divide


def _orderer(say: Say, folder: Path, pieces: int, max_per_user: int | None) -> Job:
    """What makes a part's timelines."""
    work = Work.beside(folder)
    return lambda part: _order(work, pieces, part, max_per_user)


def _order(work: Work, pieces: int, part: int, max_per_user: int | None) -> Told:
    """Write a part's timelines in order, and which of its rows are duplicates."""
    work.begin(f"ordered-{part}")
    frames = []
    for piece in range(pieces):
        ends = [0, *(work.done(f"divided-{piece}") or {})["ends"]]
        if ends[part + 1] > ends[part]:
            lazy = pl.scan_ipc(work.path(f"divided-{piece}.arrow"))
            frames.append(lazy.slice(ends[part], ends[part + 1] - ends[part]).collect())
    rows = pl.concat(frames)
    first = rows.select(pl.struct(c.USER_ID, c.ITEM_ID, c.TIMESTAMP).is_first_distinct()).to_series()
    again = rows.filter(~first).select(c.LINE)
    rows = rows.filter(first).drop(c.LINE)
    whole = rows.height
    if max_per_user is not None:
        rows = last_of_each(rows, max_per_user)
    rows = ordered(rows).with_columns(pl.len().over(c.USER_ID).alias(COUNT))
    kept = rows.select(*_KEPT, pl.col(c.POSITION, c.HISTORY_END).cast(pl.UInt32), COUNT)
    with work.writing(f"again-{part}.arrow") as file:
        again.write_ipc(file)
    with work.writing(f"ordered-{part}.arrow") as file:
        kept.write_ipc(file, compression="lz4")
    return work.finish(f"ordered-{part}", {"rows": rows.height, "again": again.height, "old": whole - rows.height})


def ordered_part(work: Work, part: int, *columns: str) -> pl.DataFrame:
    """A part's rows, sorted by user and time: the columns of interactions (ids as numbers), label, position,
    history_end, `SEQUENCE`, and `COUNT`, the number of the user's events."""
    return pl.read_ipc(work.path(f"ordered-{part}.arrow"), columns=list(columns) or None)


def _unusable(name: str, work: Work, pieces: int) -> pl.DataFrame:
    frames = [pl.read_ipc(work.path(f"rejects-{piece}.arrow")) for piece in range(pieces)]
    return pl.concat(frames).select(pl.lit(name).alias(c.FILE), c.LINE, c.REASON, c.TEXT)


def _rejects(blocks: Blocks, work: Work, pieces: int, parts: int) -> pl.DataFrame:
    """All rejects, as `Source` has them."""
    lines = pl.concat([pl.read_ipc(work.path(f"again-{part}.arrow")) for part in range(parts)])
    found = _unusable(blocks.file, work, pieces)
    if lines.height:
        again = blocks.texts(lines[c.LINE]).select(
            pl.lit(blocks.file).alias(c.FILE), c.LINE, pl.lit(DUPLICATE).alias(c.REASON), c.TEXT
        )
        found = pl.concat([found, again])
    return pl.concat([blocks.rejects, found.sort(c.LINE)]).select(*REJECTS_SCHEMA)
