"""Raw rows in, usable rows and rejects out: nothing vanishes silently."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO, NamedTuple

import polars as pl

from rectune.data import columns as c
from rectune.errors import DataError

LOWEST_RATING = 0.5
HIGHEST_RATING = 5.0

# The reasons a row is rejected for, as they stand in the rejects file.
TOO_FEW_FIELDS = "too few fields"
TOO_MANY_FIELDS = "too many fields"
CUT_LAST_LINE = "cut last line"
MISSING_FIELD = "missing field"
BAD_USER = "user id is not a whole number"
BAD_ITEM = "item id is not a whole number"
BAD_RATING = "rating is not a number"
BAD_TIMESTAMP = "timestamp is not a whole number"
RATING_OUT_OF_RANGE = f"rating outside {LOWEST_RATING} to {HIGHEST_RATING:g}"
UNKNOWN_MOVIE = "unknown movie"
DUPLICATE = "duplicate of an earlier row"
EMPTY_TITLE = "empty title"
BROKEN_QUOTES = "broken quotes"
NOT_UTF8 = "not UTF-8 text"

REJECTS_SCHEMA = {c.FILE: pl.String, c.LINE: pl.UInt32, c.REASON: pl.String, c.TEXT: pl.String}
CATALOG_SCHEMA = {c.ITEM_ID: pl.String, c.TITLE: pl.String, c.GENRES: pl.String, c.YEAR: pl.Int64}
NO_ROW = "the file is empty or holds no row; fetch or unpack it again"
FIELDS = ("userId", "movieId", "rating", "timestamp")

_BLOCK = 64 << 20
_YEAR = re.compile(r"\((\d{4})(?:\s*[-–]\s*\d{0,4})?\s*\)")
# Of two dates in UNIX seconds since 1996 neither is four times the other: such a one has lost its last digits.
_CUT_FACTOR = 4


class Cleaned(NamedTuple):
    """Usable rows and the rows that are not.

    `rows` is interactions (user_id, item_id, rating, timestamp, in the order of the file) or a catalog (item_id,
    title, genres, year); `rejects` has file, line (1-based), reason and text.
    """

    rows: pl.DataFrame
    rejects: pl.DataFrame


class Movie(NamedTuple):
    """One line of a movies file, still as text; `problem` is set where the line could not be taken apart."""

    line: int
    raw: str
    item: str = ""
    title: str = ""
    genres: str = ""
    problem: str | None = None


class Allowed(NamedTuple):
    """How many rows of a file may be unusable: a share of them, or so many; what is more is no matter of some dirty
    rows but of a wrong column or a damaged file."""

    share: float = 0.5
    rows: int | None = None

    @classmethod
    def of(cls, text: str | int) -> Allowed:
        """Read `1%` or `100`.

        Raises:
            ValueError: it is neither.

        >>> Allowed.of("1%"), Allowed.of(0)
        (Allowed(share=0.01, rows=None), Allowed(share=0.5, rows=0))
        """
        found = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,15})?)\s*(%?)\s*", str(text), re.ASCII)
        if found is None or (found[2] and float(found[1]) > 100) or (not found[2] and "." in found[1]):
            raise ValueError(f"got {text!r}, allowed: a share such as 1%, or a number of rows such as 100")
        return cls(float(found[1]) / 100) if found[2] else cls(rows=int(found[1]))

    def words(self) -> str:
        """As it is written in a configuration."""
        return f"{100 * self.share:g}%" if self.rows is None else str(self.rows)

    def holds(self, rejected: int, total: int) -> bool:
        """Whether so many of all rows may be unusable."""
        return rejected <= (self.share * total if self.rows is None else self.rows)


HALF = Allowed()
"""What is allowed as a rule."""


def whole_lines(stream: BinaryIO, block: int = _BLOCK) -> Iterator[bytes]:
    """The rest of a file in pieces of about `block` bytes; a line is never divided, the last may have no line end."""
    rest = b""
    while True:
        chunk = stream.read(block)
        data = rest + chunk
        end = data.rfind(b"\n") + 1 if chunk else len(data)
        rest = data[end:]
        if end:
            yield data[:end]
        if not chunk:
            return


def lines_of(data: bytes, line: int, encoding: str = "utf-8") -> tuple[pl.DataFrame, int]:
    """Whole lines as a frame.

    Args:
        data: the lines, at least one.
        line: the number of the first.
        encoding: how the text is written; bytes that do not fit become U+FFFD.

    Returns:
        line (UInt32, 1-based), text (without line end), and whole (Boolean: the line has a line end); and the number of
        the line behind them. A byte order mark and blank lines are left out, and blank lines are still counted.
    """
    whole = data[-1:] == b"\n"
    text = data[: -1 if whole else None].decode(encoding, errors="replace")
    if line == 1:
        text = text.removeprefix("\ufeff")
    texts = pl.Series(c.TEXT, [text]).str.split("\n").explode().str.strip_chars_end("\r")
    frame = texts.to_frame().with_row_index(c.LINE, offset=line)
    marked = frame.with_columns(
        pl.col(c.LINE).cast(pl.UInt32),
        pl.lit(True).alias("whole") if whole else (pl.int_range(pl.len()) < pl.len() - 1).alias("whole"),
    )
    return marked.filter(pl.col(c.TEXT).str.strip_chars() != ""), line + frame.height


def line_blocks(stream: BinaryIO, encoding: str = "utf-8", block: int = _BLOCK) -> Iterator[pl.DataFrame]:
    """Read a text file as frames of lines, about `block` bytes at a time, see `lines_of`."""
    line = 1
    for data in whole_lines(stream, block):
        frame, line = lines_of(data, line, encoding)
        yield frame


def check_header(header: Sequence[str], wanted: Sequence[str], file: str) -> list[int]:
    """The place of each wanted column in a header.

    Raises:
        DataError: a column is missing; the message names it, the nearest one and all that were found.
    """
    found = [name.strip().strip('"') for name in header]
    missing = [name for name in wanted if name not in found]
    if missing:
        by_lower = {name.lower(): name for name in found}
        hints = []
        for name in missing:
            near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
            hints.append(f"{name}" + (f" (nearest: {by_lower[near[0]]})" if near else ""))
        raise DataError(
            f"{file}: missing column{'s' if len(missing) > 1 else ''} {', '.join(hints)}; "
            f"found {', '.join(found)}; rename the columns in the first line to {','.join(wanted)}"
        )
    return [found.index(name) for name in wanted]


def _number(name: str, kind: type[pl.Int64] | type[pl.Float64]) -> pl.Expr:
    return pl.col(name).str.strip_chars(' \t"').cast(kind, strict=False)


def parse_ratings(
    block: pl.DataFrame, separator: str, places: Sequence[int], width: int, known: pl.Series
) -> pl.DataFrame:
    """Take the lines of one block apart: typed columns, and the reason where a row is unusable."""
    parts = pl.col(c.TEXT).str.split_exact(separator, width - 1).struct
    raw = {name: parts.field(f"field_{place}").alias(name) for name, place in zip(FIELDS, places, strict=True)}
    frame = block.with_columns(
        *raw.values(), count=pl.col(c.TEXT).str.count_matches(separator, literal=True).cast(pl.Int64) + 1
    ).with_columns(
        _number("userId", pl.Int64).alias(c.USER_ID),
        _number("movieId", pl.Int64).alias(c.ITEM_ID),
        _number("rating", pl.Float64).alias(c.RATING),
        _number("timestamp", pl.Int64).alias(c.TIMESTAMP),
        empty=pl.any_horizontal(pl.col(name).str.strip_chars(' \t"') == "" for name in FIELDS),
    )
    checks = (
        ((pl.col("count") < width) & ~pl.col("whole"), CUT_LAST_LINE),
        (pl.col("count") < width, TOO_FEW_FIELDS),
        (pl.col("count") > width, TOO_MANY_FIELDS),
        (pl.col("empty"), MISSING_FIELD),
        (pl.col(c.USER_ID).is_null(), BAD_USER),
        (pl.col(c.ITEM_ID).is_null(), BAD_ITEM),
        (pl.col(c.RATING).is_null() | ~pl.col(c.RATING).is_finite(), BAD_RATING),
        (pl.col(c.TIMESTAMP).is_null(), BAD_TIMESTAMP),
        (~pl.col(c.RATING).is_between(LOWEST_RATING, HIGHEST_RATING), RATING_OUT_OF_RANGE),
        (~pl.col(c.ITEM_ID).is_in(known.implode()), UNKNOWN_MOVIE),
    )
    reason = pl.coalesce(pl.when(test).then(pl.lit(name)) for test, name in checks)
    return frame.select(c.LINE, c.TEXT, "whole", c.USER_ID, c.ITEM_ID, c.RATING, c.TIMESTAMP, reason.alias(c.REASON))


def clean_ratings(
    blocks: Iterable[pl.DataFrame],
    *,
    file: str,
    separator: str,
    header: bool,
    known_items: pl.Series,
    allowed: Allowed = HALF,
) -> Cleaned:
    """Parse and check a ratings file.

    Args:
        blocks: lines as `line_blocks` yields them.
        file: its name, for rejects and messages.
        separator: what stands between two fields.
        header: whether the first line names the columns (else: user, item, rating, timestamp).
        known_items: item ids of the catalog, as text.
        allowed: how many rows may be unusable.

    Returns:
        Interactions with user_id (String), item_id (String), rating (Float64) and timestamp (Int64).

    Raises:
        DataError: the file is empty, a column is missing, or more rows are unusable than allowed.
    """
    known = known_items.cast(pl.Int64)
    places, width = [0, 1, 2, 3], len(FIELDS)
    frames = []
    for block in blocks:
        rows = block
        if header and block.height:
            names = block[c.TEXT][0].split(separator)
            places, width = check_header(names, FIELDS, file), len(names)
            rows, header = block.slice(1), False
        frames.append(parse_ratings(rows, separator, places, width, known))
    if not frames or not any(frame.height for frame in frames):
        raise DataError(f"{file}: {NO_ROW}")
    rows = pl.concat(frames)
    rows = mark_cut_timestamp(rows, rows[c.TIMESTAMP][:-1].min())
    usable = pl.col(c.REASON).is_null()
    again = ~pl.struct(c.USER_ID, c.ITEM_ID, c.TIMESTAMP).is_first_distinct()
    good = rows.filter(usable).with_columns(pl.when(again).then(pl.lit(DUPLICATE)).alias(c.REASON))
    bad = pl.concat([rows.filter(~usable), good.filter(~usable)])
    rejects = _rejects(bad, file)
    check_rejects(rejects, rows.height, file, expected_of(separator), allowed)
    interactions = good.filter(usable).select(
        pl.col(c.USER_ID).cast(pl.String), pl.col(c.ITEM_ID).cast(pl.String), c.RATING, c.TIMESTAMP
    )
    return Cleaned(interactions, rejects)


def expected_of(separator: str) -> str:
    """What a row of ratings should be, in words."""
    return "columns " + ", ".join(FIELDS) + f" divided by {separator!r}"


def mark_cut_timestamp(rows: pl.DataFrame, earliest: object) -> pl.DataFrame:
    """Reject a last line that has all its fields but lost the end of its timestamp.

    Args:
        rows: parsed; the last is the file's last.
        earliest: the earliest time of all rows of the file but the last.
    """
    last = rows.row(-1, named=True)
    if last["whole"] or last[c.REASON] is not None or not isinstance(earliest, int):
        return rows
    if last[c.TIMESTAMP] * _CUT_FACTOR >= earliest:
        return rows
    is_last = pl.int_range(pl.len()) == pl.len() - 1
    return rows.with_columns(pl.when(is_last).then(pl.lit(CUT_LAST_LINE)).otherwise(c.REASON).alias(c.REASON))


def clean_catalog(movies: Iterable[Movie], *, file: str, allowed: Allowed = HALF) -> Cleaned:
    """Check a movies file.

    Args:
        movies: one per line; genres already joined by ", ".
        file: its name, for rejects and messages.
        allowed: how many lines may be unusable.

    Returns:
        Catalog with item_id (String), title (String), genres (String), year (Int64, null where the title has none).

    Raises:
        DataError: there is no movie, or more lines are unusable than allowed.
    """
    kept: dict[str, tuple[str, str, str, int | None]] = {}
    bad: list[tuple[str, int, str, str]] = []
    total = 0
    for movie in movies:
        total += 1
        title = movie.title.strip()
        number = movie.item.strip().strip('"')
        problem = movie.problem
        if problem is None and "\ufffd" in movie.raw:
            problem = NOT_UTF8
        elif problem is None and not re.fullmatch(r"-?\d{1,18}", number, re.ASCII):
            problem = BAD_ITEM
        elif problem is None and not title:
            problem = EMPTY_TITLE
        if problem is None:
            item = str(int(number))
            if item in kept:
                problem = DUPLICATE
            else:
                years = _YEAR.findall(title)
                kept[item] = (item, title, movie.genres, int(years[-1]) if years else None)
        if problem is not None:
            bad.append((file, movie.line, problem, movie.raw))
    if not total:
        raise DataError(f"{file}: the file is empty or holds no movie; fetch or unpack it again")
    rejects = pl.DataFrame(bad, schema=REJECTS_SCHEMA, orient="row")
    check_rejects(rejects, total, file, "a whole-number id and a title", allowed)
    return Cleaned(pl.DataFrame(list(kept.values()), schema=CATALOG_SCHEMA, orient="row"), rejects)


def _rejects(bad: pl.DataFrame, file: str) -> pl.DataFrame:
    return bad.sort(c.LINE).select(pl.lit(file).alias(c.FILE), c.LINE, c.REASON, c.TEXT)


def check_rejects(rejects: pl.DataFrame, total: int, file: str, expected: str, allowed: Allowed) -> None:
    """Stop when more rows are unusable than `max_rejects` allows, as a rule half of them.

    Args:
        rejects: file, line, reason, text, sorted by line.
        total: rows of the file, usable or not.
        file: its name, for the message.
        expected: what its rows should be, in words.
        allowed: how many may be unusable.

    Raises:
        DataError: more are; the most frequent reason is named with its first line, and where not one may be the first
            such line.
    """
    if allowed.holds(rejects.height, total):
        return
    if allowed.rows == 0:
        first = rejects.sort(c.LINE).row(0, named=True)
        raise DataError(
            f"{file}: line {first[c.LINE]} cannot be used: {first[c.REASON]} ({first[c.TEXT][:80]!r}); expected "
            f"{expected}; max_rejects=0 (--strict) allows no such line"
        )
    counts = rejects.group_by(c.REASON).len().sort(["len", c.REASON], descending=[True, False])
    reason, number = counts.row(0)
    example = rejects.filter(pl.col(c.REASON) == reason).row(0, named=True)
    more = "" if allowed == HALF else f"; more than max_rejects={allowed.words()} allows"
    raise DataError(
        f"{file}: {rejects.height:,} of {total:,} rows cannot be used, {number:,} of them for: {reason} "
        f"(first in line {example[c.LINE]}: {example[c.TEXT][:80]!r}); expected {expected}{more}"
    )
