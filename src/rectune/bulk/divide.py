"""Pairs and events that are too many to hold, dealt to parts by user: all of a user in one part.

What is dealt lies in a work folder in pieces, one for so many rows of a file, each sorted by part; a part is read out
of all pieces, in their order, so that rows keep the order of their files.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from pyarrow.parquet import ParquetFile

from rectune.data.columns import USER_ID
from rectune.data.folder import load_catalog
from rectune.data.progress import progress
from rectune.data.work import Work
from rectune.errors import DataError
from rectune.score.pair_file import NO_PAIRS, Pairs, check_columns, with_ids
from rectune.score.pairs import check_items
from rectune.spread import Job, Say, Spread, here

PIECE = 1 << 22
"""Rows of a piece; what a kill while dealing can cost."""
LINES, MOST = 1 << 15, 4096
"""Pairs and events of a part, about, and how many parts there are at most."""
_FEW = 4
"""Pieces that are dealt before other processes would have started."""
_PART = "_part"


class Piece(NamedTuple):
    """Rows of a Parquet file.

    Attributes:
        kind: `pairs` or `events`.
        file: the file.
        first: the rows before it.
        rows: how many rows it has.
    """

    kind: str
    file: Path
    first: int
    rows: int

    def read(self) -> pl.DataFrame:
        """The rows."""
        return pl.scan_parquet(self.file).slice(self.first, self.rows).collect()


def pair_files(source: Path) -> list[Path]:
    """The Parquet files of pairs, in the order of their names.

    Raises:
        DataError: there is none, or one is no Parquet file of pairs, or has other columns than the first.
    """
    if source.is_dir():
        files = sorted(file for file in source.glob("*.parquet") if not file.name.startswith("."))
        if not files:
            raise DataError(f"--pairs: {source}: no file ending in .parquet in this folder")
    elif source.suffix == ".parquet" and source.is_file():
        files = [source]
    elif source.exists():
        raise DataError(f"--pairs: {source}: with --workers give a Parquet file, or a folder of such")
    else:
        raise DataError(f"--pairs: {source}: no such file; give a Parquet file with user_id and item_id, or a folder")
    schemas = [_schema(file) for file in files]
    for file, schema in zip(files, schemas, strict=True):
        check_columns(file, schema)
        if schema != schemas[0]:
            name = next(iter(sorted(dict(schema.items() ^ schemas[0].items()))))
            raise DataError(
                f"{file}: the column {name} is {schema.get(name, 'missing')}, but {schemas[0].get(name, 'missing')} in "
                f"{files[0].name}; files of one folder need the same columns"
            )
    return files


def _schema(file: Path) -> pl.Schema:
    try:
        return pl.scan_parquet(file).collect_schema()
    except (OSError, pl.exceptions.PolarsError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{file}: cannot be read as parquet ({said})") from error


def pieces_of(kind: str, files: Sequence[Path]) -> list[Piece]:
    """Files cut into pieces."""
    found = []
    for file in files:
        with ParquetFile(file) as opened:
            rows = opened.metadata.num_rows
        found += [Piece(kind, file, first, min(PIECE, rows - first)) for first in range(0, rows, PIECE)]
    return found


def parts_for(pieces: Sequence[Piece]) -> int:
    """How many parts there are: the data alone says it, so that no number of workers moves a score.

    Raises:
        DataError: there are no pairs.
    """
    lines = {kind: sum(piece.rows for piece in pieces if piece.kind == kind) for kind in ("pairs", "events")}
    if not lines["pairs"]:
        raise DataError(f"{pieces[0].file if pieces else '--pairs'}: {NO_PAIRS}")
    return min(MOST, -(-sum(lines.values()) // LINES))


def part_of(user: str, parts: int) -> int:
    """The part of a user, the same on every machine."""
    return int.from_bytes(blake2b(user.encode(), digest_size=8).digest(), "big") % parts


def dealer(say: Say, folder: Path, pieces: Sequence[Piece], parts: int, dataset: Path) -> Job:
    """What deals pieces: sorts each one's rows by part, and writes down where each part ends.

    Args:
        say: prints one line.
        folder: the work folder.
        pieces: all of them.
        parts: how many parts there are.
        dataset: the dataset folder, whose catalog holds the pairs' items.
    """
    work = Work.beside(folder)

    @lru_cache(1)
    def catalog() -> pl.DataFrame:
        return load_catalog(dataset)

    def deal(number: int) -> dict[str, object]:
        piece = pieces[number]
        work.begin(f"piece-{number}")
        rows = piece.read()
        if piece.kind == "pairs":
            pairs = with_ids(Pairs(piece.file, rows, piece.first))
            check_items(pairs, catalog())
            rows = pairs.table
        users = rows[USER_ID].unique(maintain_order=True)
        places = pl.Series(_PART, [part_of(user, parts) for user in users], dtype=pl.UInt32)
        rows = rows.join(
            pl.DataFrame({USER_ID: users, _PART: places}), on=USER_ID, how="left", maintain_order="left"
        ).sort(_PART, maintain_order=True)
        ends = np.searchsorted(rows[_PART].to_numpy(), np.arange(parts), side="right")
        with work.writing(f"piece-{number}.arrow") as file:
            rows.drop(_PART).write_ipc(file)  # not compressed, so that a part is read without the others
        return work.finish(f"piece-{number}", {"ends": ends.tolist()})

    return deal


def deal_all(work: Work, pieces: Sequence[Piece], parts: int, dataset: Path, spread: Spread, say: Say) -> None:
    """Deal what an earlier call has not; see `dealer`.

    Raises:
        DataError: a row of the pairs has no id, or an item that the catalog does not hold.
    """
    left = [number for number in range(len(pieces)) if work.done(f"piece-{number}") is None]
    make = partial(dealer, folder=work.folder, pieces=pieces, parts=parts, dataset=dataset)
    done = here(make, left, say=say) if len(left) <= _FEW else spread(make, left)
    with progress("dealt to parts", len(pieces), "pieces", say, len(pieces) - len(left)) as advance:
        for _ in done:
            advance(1)


class Dealt:
    """Parts, read out of pieces.

    Args:
        folder: the work folder, every piece in it.
        pieces: all of them.
    """

    def __init__(self, folder: Path, pieces: Sequence[Piece]) -> None:
        self._work = Work.beside(folder)
        self._pieces = pieces
        self._ends = [
            np.array([0, *(self._work.done(f"piece-{number}") or {})["ends"]]) for number in range(len(pieces))
        ]

    def rows(self, kind: str, part: int) -> pl.DataFrame:
        """A part's pairs or events, in the order of their files."""
        found = []
        for number, (piece, ends) in enumerate(zip(self._pieces, self._ends, strict=True)):
            if piece.kind == kind:
                lazy = pl.scan_ipc(self._work.path(f"piece-{number}.arrow"))
                found.append(lazy.slice(int(ends[part]), int(ends[part + 1] - ends[part])).collect())
        return pl.concat(found)
