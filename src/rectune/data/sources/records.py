"""Records of a delimited text file: its separator, and each line or quoted run of lines taken apart."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import TextIO

import polars as pl

from rectune.data import columns as c
from rectune.data.clean import BROKEN_QUOTES, CUT_LAST_LINE, TOO_FEW_FIELDS, TOO_MANY_FIELDS

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_BLOCK = 1 << 24
"""Characters read at a time."""
_LONGEST = 200
"""Lines that a quoted field may run over: a quote that is never closed must cost one row, not the rest of the file."""
_LOOK = 64
"""Lines that decide what separates the fields."""


def fields_of(text: str, separator: str) -> list[str] | None:
    """The fields of one record; None where its quotes do not match.

    >>> fields_of('1;"a ""b"";c";', ";"), fields_of('1;"a', ";")
    (['1', 'a "b";c', ''], None)
    """
    if '"' not in text:
        return text.split(separator)
    try:
        # A record may hold line ends inside its quotes, so it is read as a file would be.
        (fields,) = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    except (csv.Error, ValueError):
        return None
    return fields


def separator_of(lines: Sequence[str]) -> str | None:
    """What separates the fields of these lines, the first of which holds names; None where nothing does.

    It is the sign that gives most lines as many fields as the first line has, and of two such signs the one with more.
    """
    best: tuple[float, int, str] | None = None
    for sign in SEPARATORS:
        header = fields_of(lines[0], sign)
        if header is None or len(header) < 2:
            continue
        alike = [len(fields_of(line, sign) or ()) == len(header) for line in lines[1:]]
        found = (sum(alike) / max(len(alike), 1), len(header), sign)
        best = found if best is None or found[:2] > best[:2] else best
    return None if best is None else best[2]


def head_of(stream: TextIO) -> list[str]:
    """The first lines that are not blank."""
    found: list[str] = []
    size = 0
    for line in stream:
        size += len(line)
        if line.strip():
            found.append(line.rstrip("\n"))
        if len(found) > _LOOK or size > _BLOCK:
            break
    return found


def _lines(stream: TextIO) -> Iterator[tuple[list[str], bool, bool]]:
    """Lines a block at a time; whether the block's last line has a line end, and whether it is the last block."""
    rest = ""
    while True:
        chunk = stream.read(_BLOCK)
        data = rest + chunk
        end = data.rfind("\n") + 1 if chunk else len(data)
        rest = data[end:]
        if end or not chunk:
            lines = data[:end].split("\n")
            whole = data[end - 1 : end] == "\n"
            if whole or not end:
                lines.pop()
            yield lines, whole, not chunk
        if not chunk:
            return


def read_records(stream: TextIO, separator: str) -> Iterator[list[str] | pl.DataFrame]:
    """The header's fields, then frames of records; blank lines are left out, and still counted.

    Args:
        stream: the text; a byte order mark is gone already.
        separator: one sign.

    Yields:
        First the names. Then frames with line (UInt32, 1-based, of a record's first line), text, reason (null where it
        could be taken apart), and the fields as `field_0`, `field_1`, ... (String), null where there is a reason.
    """
    names: list[str] | None = None
    number, carried = 1, list[str]()
    for fresh, whole, last in _lines(stream):
        lines, at = [*carried, *fresh], 0
        if names is None:
            at = next((place for place, line in enumerate(lines) if line.strip()), len(lines))
            if at == len(lines):
                number += len(lines)
                continue
            names, taken = _first(lines[at:], separator)
            at += taken
            yield names
        cut = None if whole or not lines else len(lines) - 1
        frame, used = _block(lines, at, number, separator, len(names), cut, last)
        number += used
        carried = lines[used:]
        if frame.height:
            yield frame


def _first(lines: list[str], separator: str) -> tuple[list[str], int]:
    for count in range(1, min(len(lines), _LONGEST) + 1):
        fields = fields_of("\n".join(lines[:count]), separator)
        if fields is not None:
            return fields, count
    return lines[0].replace('"', "").split(separator), 1


def _block(
    lines: list[str], at: int, number: int, separator: str, width: int, cut: int | None, last: bool
) -> tuple[pl.DataFrame, int]:
    """Take lines apart from place `at` on: those without quotes all at once, the others one by one.

    Returns:
        the records, and how many of the lines they use up: a record that may go on in the next block is left.
    """
    plain = pl.Series(c.TEXT, lines[at:], dtype=pl.String)
    quotes = plain.str.count_matches('"', literal=True).to_list() if plain.len() else []
    quoted = [at + place for place, count in enumerate(quotes) if count]
    taken: dict[int, int] = {}
    parsed: list[tuple[int, str, str | None, list[str | None]]] = []
    used, behind = len(lines), at
    for index, place in enumerate(quoted):
        if place < behind:
            continue
        text, count = lines[place], 1
        fields = fields_of(text, separator)
        if fields is None and _is_open(text, separator):
            # Quotes inside a field are doubled, so only a line with an odd number of them can close it.
            end = next((near for near in quoted[index + 1 :] if quotes[near - at] % 2), None)
            if end is None and not last and len(lines) - place < _LONGEST:
                used = place
                break
            if end is not None and end - place < _LONGEST:
                joined = "\n".join(lines[place : end + 1])
                fields = fields_of(joined, separator)
                if fields is not None:
                    text, count = joined, end + 1 - place
        reason = _reason(fields, width, place + count - 1 == cut)
        values: list[str | None] = list(fields) if fields is not None and reason is None else [None] * width
        parsed.append((number + place, text, reason, values))
        taken[place] = count
        behind = place + count
    gone = {place + extra for place, count in taken.items() for extra in range(count)}
    rest = [place for place in range(at, used) if place not in gone] if gone else range(at, used)
    texts = [lines[place] for place in rest]
    frame = pl.DataFrame(
        {c.LINE: [number + place for place in rest], c.TEXT: texts, "cut": [place == cut for place in rest]},
        schema={c.LINE: pl.UInt32, c.TEXT: pl.String, "cut": pl.Boolean},
    ).filter(pl.col(c.TEXT).str.strip_chars() != "")
    count_of = pl.col(c.TEXT).str.count_matches(separator, literal=True).cast(pl.Int64) + 1
    few = pl.when("cut").then(pl.lit(CUT_LAST_LINE)).otherwise(pl.lit(TOO_FEW_FIELDS))
    frame = frame.with_columns(
        pl.when(count_of < width).then(few).when(count_of > width).then(pl.lit(TOO_MANY_FIELDS)).alias(c.REASON)
    )
    parts = pl.col(c.TEXT).str.split_exact(separator, width - 1).struct
    good = pl.col(c.REASON).is_null()
    names = [f"field_{place}" for place in range(width)]
    frame = frame.select(
        c.LINE, c.TEXT, c.REASON, *(pl.when(good).then(parts.field(name)).alias(name) for name in names)
    )
    if not parsed:
        return frame, used
    schema = {c.LINE: pl.UInt32, c.TEXT: pl.String, c.REASON: pl.String, **dict.fromkeys(names, pl.String)}
    odd = pl.DataFrame([(*one[:3], *one[3]) for one in parsed], schema=schema, orient="row")
    return pl.concat([frame, odd]).sort(c.LINE), used


def _is_open(text: str, separator: str) -> bool:
    """Whether a record ends inside a quoted field."""
    try:
        list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True))
    except csv.Error as error:
        return "unexpected end of data" in str(error)
    return False


def _reason(fields: list[str] | None, width: int, at_cut: bool) -> str | None:
    if fields is not None and len(fields) == width:
        return None
    if fields is not None and len(fields) > width:
        return TOO_MANY_FIELDS
    if at_cut:
        return CUT_LAST_LINE
    return BROKEN_QUOTES if fields is None else TOO_FEW_FIELDS
