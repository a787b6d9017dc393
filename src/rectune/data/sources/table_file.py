"""A table in a file, whatever the file is: CSV with any separator, JSON lines or Parquet, packed with gzip or not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from rectune.data import columns as c
from rectune.data.sources.records import SEPARATORS, head_of, read_records, separator_of
from rectune.data.sources.text_file import encoding_of, opened, opened_text, said
from rectune.errors import DataError

_LINES = (".jsonl", ".ndjson", ".json")
SUFFIXES = (".csv", ".tsv", ".tab", ".txt", ".parquet", ".pq", *_LINES)
"""Endings that a table is known by, with `.gz` behind them or not."""
NOT_JSON = "not a JSON object"
_MAGIC = b"PAR1"
_BATCH = 50_000
_LOOK = 1000
"""JSON objects whose keys are the column names."""


class TableFile(NamedTuple):
    """A table that has been looked at and not read yet.

    Attributes:
        path: where it lies.
        names: of its columns.
        notes: what was found out about how it is written, in words; empty where nothing is worth saying.
        blocks: its rows in frames: line (UInt32, 1-based; the row's number in a Parquet file), text (the row as it
            stands), reason (null where it could be taken apart), and the wanted columns as `field_0`, `field_1`, ...
            in their order; texts, but for Parquet, whose columns keep their types.
    """

    path: Path
    names: list[str]
    notes: list[str]
    blocks: Callable[[Sequence[str]], Iterator[pl.DataFrame]]


def is_table(path: Path) -> bool:
    """Whether a path is a file whose ending, or beginning, is that of a table."""
    if not path.is_file():
        return False
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    if suffixes and suffixes[-1] in SUFFIXES:
        return True
    with path.open("rb") as stream:
        return stream.read(4) == _MAGIC


def open_table(path: Path) -> TableFile:
    """Look at a table's beginning.

    Raises:
        DataError: it is empty, unreadable, or nothing separates its columns.
    """
    try:
        with opened(path) as stream:
            begin = stream.read(4)
    except DataError as error:
        if path.is_dir():
            raise DataError(f"{path}: is a folder; give the file") from error
        raise
    if not begin:
        raise DataError(f"{path}: the file is empty")
    if begin == _MAGIC:
        return _parquet(path)
    encoding = encoding_of(path)
    notes = [said(encoding)] if said(encoding) else []
    with opened_text(path, encoding) as text:
        head = head_of(text)
    if not head:
        raise DataError(f"{path}: the file holds nothing but blank lines")
    suffixes = {suffix.lower() for suffix in path.suffixes[-2:]}
    if suffixes & set(_LINES) or head[0].lstrip().startswith("{"):
        return _json_lines(path, encoding, notes)
    separator = separator_of(head)
    if separator is None:
        raise DataError(
            f"{path}: the first line, {head[0][:80]!r}, is not divided by {', '.join(list(SEPARATORS.values())[:-1])} "
            f"or {list(SEPARATORS.values())[-1]}; write the names of at least two columns there"
        )
    with opened_text(path, encoding) as text:
        names = unique(list(next(read_records(text, separator))))
    if separator != ",":
        notes.append(f"columns divided by {SEPARATORS[separator]}")

    def blocks(wanted: Sequence[str]) -> Iterator[pl.DataFrame]:
        places = [f"field_{names.index(name)}" for name in wanted]
        with opened_text(path, encoding) as text:
            records = read_records(text, separator)
            next(records)
            for frame in records:
                if isinstance(frame, pl.DataFrame):
                    fields = [pl.col(place).alias(f"field_{number}") for number, place in enumerate(places)]
                    yield frame.select(c.LINE, c.TEXT, c.REASON, *fields)

    return TableFile(path, names, notes, blocks)


def unique(names: Sequence[Any]) -> list[str]:
    """Column names without white space around them, each once: an empty or repeated one gets its number.

    >>> unique(["a ", "", "a"])
    ['a', 'column 2', 'a (column 3)']
    """
    found: list[str] = []
    for place, name in enumerate(names, start=1):
        text = " ".join(str(name).encode("utf-8", "replace").decode("utf-8").split()) or f"column {place}"
        found.append(f"{text} (column {place})" if text in found else text)
    return found


def _text(value: Any) -> str | None:
    """A JSON value as the text that a CSV file would have in its place."""
    if value is None:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, list) and not any(isinstance(one, (dict, list)) for one in value):
        return ", ".join(text for text in map(_text, value) if text)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    # Half of a surrogate pair is no text.
    return text.encode("utf-8", "replace").decode("utf-8")


def _object(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _json_lines(path: Path, encoding: str, notes: list[str]) -> TableFile:
    with opened_text(path, encoding) as stream:
        objects = (_object(line) for line in islice(filter(str.strip, stream), _LOOK))
        keys = dict.fromkeys(key for one in objects if one is not None for key in one)
    if not keys:
        with opened_text(path, encoding) as stream:
            first = head_of(stream)[0].lstrip()
        form = "a JSON list; write each of its objects on a line" if first.startswith("[") else "no JSON object a line"
        raise DataError(f"{path}: holds {form}")
    names = unique(list(keys))
    key_of = dict(zip(names, keys, strict=True))

    def blocks(wanted: Sequence[str]) -> Iterator[pl.DataFrame]:
        schema: dict[str, type[pl.DataType]] = {c.LINE: pl.UInt32, c.TEXT: pl.String, c.REASON: pl.String}
        schema |= {f"field_{number}": pl.String for number in range(len(wanted))}
        with opened_text(path, encoding) as stream:
            numbered = ((number, line) for number, line in enumerate(stream, start=1) if line.strip())
            while batch := list(islice(numbered, _BATCH)):
                rows = []
                for number, line in batch:
                    found = _object(line)
                    values = [None if found is None else _text(found.get(key_of[name])) for name in wanted]
                    rows.append((number, line.rstrip("\n"), NOT_JSON if found is None else None, *values))
                yield pl.DataFrame(rows, schema=schema, orient="row")

    return TableFile(path, names, notes, blocks)


def _parquet(path: Path) -> TableFile:
    """A Parquet file, read by Arrow: polars' reader panics on damaged ones and prints a stack."""

    def read(columns: Sequence[str] | None) -> Any:
        import pyarrow
        from pyarrow import parquet

        with opened(path) as stream:
            data = stream.read()
        try:
            file = parquet.ParquetFile(BytesIO(data))
            if columns is None:
                return file.schema_arrow.names
            table = file.read(columns=list(dict.fromkeys(columns)))
            table.validate(full=True)  # texts of a damaged file may be none
            _inner_names(table.schema)  # and so may names; polars would panic
            if table.num_rows != file.metadata.num_rows:
                raise ValueError(f"it says {file.metadata.num_rows:,} rows and holds {table.num_rows:,}")
            # Column by column, without the schema's metadata, of which the same is true.
            place = {name: at for at, name in reversed(list(enumerate(table.schema.names)))}
            return pl.DataFrame({name: pl.from_arrow(table.column(place[name])) for name in place})
        except (pyarrow.ArrowException, pl.exceptions.PolarsError, OSError, ValueError, MemoryError) as error:
            first = " ".join(str(error).split()) or type(error).__name__
            raise DataError(f"{path}: cannot be read as Parquet ({first[:200]}); write it again") from error

    def blocks(wanted: Sequence[str]) -> Iterator[pl.DataFrame]:
        frame = read(wanted)
        shown = [pl.col(name).cast(pl.String, strict=False).fill_null("") for name in wanted if _scalar(frame[name])]
        yield frame.select(
            pl.int_range(1, pl.len() + 1, dtype=pl.UInt32).alias(c.LINE),
            (pl.concat_str(shown, separator=",") if shown else pl.lit("")).alias(c.TEXT),
            pl.lit(None, dtype=pl.String).alias(c.REASON),
            *(pl.col(name).alias(f"field_{number}") for number, name in enumerate(wanted)),
        )

    return TableFile(path, read(None), [], blocks)


def _inner_names(kind: Any) -> list[str]:
    """Names of an Arrow schema's or type's fields, and of theirs.

    Raises:
        UnicodeDecodeError: one is no text.
    """
    many = len(kind.names) if hasattr(kind, "names") else kind.num_fields
    fields = [kind.field(place) for place in range(many)]
    return [name for field in fields for name in (field.name, *_inner_names(field.type))]


def _scalar(values: pl.Series) -> bool:
    return not isinstance(values.dtype, (pl.List, pl.Struct, pl.Array, pl.Object, pl.Binary))
