"""JSON lines read one by one, through gzip or not, and values of a line as what they should be."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from rectune.data.clean import REJECTS_SCHEMA
from rectune.data.sources.text_file import opened
from rectune.errors import DataError


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """Numbers, from 1, and texts of a file's lines; blank ones are left out, and still counted.

    Raises:
        DataError: the file cannot be read to its end; the last whole line is named.
    """
    number = 0
    with opened(path) as stream:
        try:
            for raw in stream:
                number += 1
                text = raw.decode("utf-8", "replace").removeprefix("\ufeff").strip()
                if text:
                    yield number, text
        except (EOFError, zlib.error, OSError) as error:
            why = " ".join(str(error).split())
            raise DataError(f"{path}: broken off behind line {number:,} ({why}); fetch it again") from error


def object_of(text: str) -> dict[str, Any] | None:
    """A line as an object; None where it is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def text_of(value: Any) -> str | None:
    """A JSON value as an id or a name; null where it is empty or none."""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return None
    # Half of a surrogate pair is no text.
    return " ".join(str(value).encode("utf-8", "replace").decode("utf-8").split()) or None


def number_of(value: Any) -> float | None:
    """A JSON value as a number; null where it is none."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def rejects_of(file: Path, bad: list[tuple[int, str, str]]) -> pl.DataFrame:
    """Rejects of a file, of line, reason and text each."""
    rows = [(file.name, line, reason, text.encode("utf-8", "replace").decode("utf-8")) for line, reason, text in bad]
    return pl.DataFrame(rows, schema=REJECTS_SCHEMA, orient="row")
