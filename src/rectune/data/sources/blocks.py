"""A source too large to hold: read a block of rows at a time, from any place where a block ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, NamedTuple

import polars as pl

from rectune.data import columns as c
from rectune.data.clean import FIELDS, Allowed, check_header, lines_of, mark_cut_timestamp, parse_ratings, whole_lines
from rectune.data.sources.source import Nouns


class Place(NamedTuple):
    """Where in a file of rows a reader stands.

    Attributes:
        offset: bytes before it.
        line: number of the line there.
        earliest: the earliest time of the rows before it.
    """

    offset: int = 0
    line: int = 1
    earliest: int | None = None


class Block(NamedTuple):
    """Rows of a file, usable or not.

    Attributes:
        rows: line, text, user_id, item_id, rating, timestamp and reason, which is null where the row can be used.
        behind: where the next block begins.
    """

    rows: pl.DataFrame
    behind: Place


class Blocks(NamedTuple):
    """What `source.Source` is for data that fits the memory, here for data that does not.

    Attributes:
        read: the blocks from a place on, each of about so many rows.
        texts: the lines of these numbers as they stand: line, text; in the file's order.
        file: its name, for rejects and messages.
        expected: what its rows should be, in words.
        allowed: how many of them may be unusable.
        catalog, rejects, nouns: as `Source` has them; the rejects are those of the catalog.
    """

    read: Callable[[Place], Iterator[Block]]
    texts: Callable[[pl.Series], pl.DataFrame]
    file: str
    expected: str
    allowed: Allowed
    catalog: pl.DataFrame
    rejects: pl.DataFrame
    nouns: Nouns


def ratings_in_blocks(
    stream: BinaryIO, *, separator: str, header: Sequence[str] | None, file: str, known_items: pl.Series, size: int,
    start: Place,
) -> Iterator[Block]:  # fmt: skip
    """Parse and check a ratings file a block at a time; duplicates are left in, which show only in all rows together.

    Args:
        stream: the file, opened for bytes at its beginning.
        separator: what stands between two fields.
        header: the names of the columns, which stand in the first line that is not blank; None where none do (then:
            user, item, rating, timestamp).
        file: its name, for messages.
        known_items: item ids of the catalog, as text.
        size: bytes of a block, about.
        start: where to begin: `Place()`, or behind a block of an earlier call.

    Yields:
        Blocks of at least one row; ids are numbers (Int64).
    """
    known = known_items.cast(pl.Int64)
    places = [0, 1, 2, 3] if header is None else check_header(header, FIELDS, file)
    width = len(FIELDS if header is None else header)
    stream.seek(start.offset)
    offset, line, _ = start
    seen_header = header is None or start.offset > 0
    held: pl.DataFrame | None = None
    before = behind = start  # before and behind the block that is held
    for data in whole_lines(stream, size):
        rows, line = lines_of(data, line)
        offset += len(data)
        if not seen_header and rows.height:
            rows, seen_header = rows.slice(1), True
        if not rows.height:
            continue
        if held is not None:
            yield Block(held, behind)
        before = behind
        held = parse_ratings(rows, separator, places, width, known)
        first = held[c.TIMESTAMP].min()
        times = [time for time in (before.earliest, first) if isinstance(time, int)]
        behind = Place(offset, line, min(times, default=None))
    if held is not None:
        times = [time for time in (before.earliest, held[c.TIMESTAMP][:-1].min()) if isinstance(time, int)]
        yield Block(mark_cut_timestamp(held, min(times, default=None)), behind)
