"""A file of (user, item) pairs, read as CSV, Parquet or JSONL, and written again with scores added."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from rectune.data.columns import ITEM_ID, USER_ID
from rectune.errors import ConfigError, DataError
from rectune.files import atomic_path

FORMATS = (".csv", ".parquet", ".jsonl")
LOG_ODDS, SCORE = "log_odds", "score"
"""Columns that scoring adds."""
NO_PAIRS = f"holds no pairs; give one {USER_ID} and {ITEM_ID} a line"


@dataclass(frozen=True)
class Pairs:
    """A file of pairs.

    Attributes:
        file: where it lies.
        table: its columns in its order, one row a pair; user_id and item_id are text.
        first: how many rows of a Parquet file stand before the table's.
    """

    file: Path
    table: pl.DataFrame
    first: int = 0

    def place(self, row: int) -> str:
        """Where in the file a row of the table stands: `line 3`, or `row 3` of a Parquet file, counted from 1."""
        if self.file.suffix == ".parquet":
            return f"row {self.first + row + 1}"
        with self.file.open(encoding="utf-8-sig", newline="") as stream:
            lines = _csv_lines(stream) if self.file.suffix == ".csv" else _json_lines(stream)
            return f"line {next(number for at, (number, _) in enumerate(lines) if at == row)}"


def _csv_lines(stream: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
    """Where each record of a CSV file begins, and its fields; the header and empty records left out."""
    reader = csv.reader(stream)
    next(reader, None)
    begin = reader.line_num + 1
    for fields in reader:
        if any(fields):
            yield begin, fields
        begin = reader.line_num + 1


def _json_lines(stream: Iterator[str]) -> Iterator[tuple[int, str]]:
    """The lines of a JSONL file that are not blank, with their numbers."""
    return ((number, line) for number, line in enumerate(stream, start=1) if line.strip())


def read_pairs(file: Path) -> Pairs:
    """Read a file of pairs: user_id, item_id and whatever else it has, as CSV, Parquet or JSONL by its ending.

    CSV columns stay the text they are. Empty lines are no pairs; a pair may occur twice.

    Raises:
        DataError: the file is missing, empty or unreadable, lacks a column, has an id that is missing or no text or
            whole number, or has a column of the result's name.
    """
    if file.suffix not in FORMATS:
        raise DataError(f"--pairs: {file}: got a file ending in {file.suffix!r}, allowed: {', '.join(FORMATS)}")
    if not file.is_file():
        raise DataError(f"--pairs: {file}: no such file; give a file with the columns {USER_ID} and {ITEM_ID}")
    try:
        table = _read(file)
    except pl.exceptions.NoDataError:
        table = pl.DataFrame()
    except (OSError, UnicodeDecodeError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{file}: cannot be read as {file.suffix[1:]} ({_fault(file, error)})") from error
    if table.width == 0 or table.height == 0:
        raise DataError(f"{file}: {NO_PAIRS}")
    check_columns(file, table.schema)
    return with_ids(Pairs(file, table))


def check_columns(file: Path, schema: pl.Schema) -> None:
    """Refuse a file whose columns cannot be those of pairs.

    Raises:
        DataError: user_id or item_id is missing or of another kind than ids, or a column has the result's name.
    """
    for name in (USER_ID, ITEM_ID):
        if name not in schema:
            found = ", ".join(list(schema)[:8])
            raise DataError(f"{file}: the column {name} is missing; found: {found}; both {USER_ID} and {ITEM_ID} count")
        kind = schema[name]
        if not (kind.is_integer() or kind in (pl.String, pl.Categorical, pl.Enum, pl.Null)):
            raise DataError(f"{file}: the column {name} is {kind}; ids are text or whole numbers, write them so")
    for name in (LOG_ODDS, SCORE):
        if name in schema:
            raise DataError(f"{file}: has a column {name!r} already, which scoring adds; rename it or leave it out")


def with_ids(pairs: Pairs) -> Pairs:
    """The pairs, their ids as text.

    Raises:
        DataError: an id is missing.
    """
    found = replace(pairs, table=pairs.table.with_columns(pl.col(USER_ID, ITEM_ID).cast(pl.String)))
    for name in (USER_ID, ITEM_ID):
        empty = found.table.select((pl.col(name).is_null() | (pl.col(name) == "")).arg_true()).to_series()
        if len(empty):
            raise DataError(f"{pairs.file}: {len(empty):,} rows have no {name}, the first on {found.place(empty[0])}")
    return found


def _read(file: Path) -> pl.DataFrame:
    if file.suffix == ".parquet":
        return pl.read_parquet(file)
    if file.suffix == ".csv":
        table = pl.read_csv(file, infer_schema=False)
        return table.filter(~pl.all_horizontal((pl.all() == "").fill_null(True)))
    if not any(line.strip() for line in file.open("rb")):
        return pl.DataFrame()
    # Every line is looked at for the columns: one that comes late would otherwise be left out without a word.
    ids = {USER_ID: pl.String, ITEM_ID: pl.String}
    try:
        return pl.read_ndjson(file, infer_schema_length=None, schema_overrides=ids)
    except pl.exceptions.SchemaFieldNotFoundError:
        return pl.read_ndjson(file, infer_schema_length=None)


def _fault(file: Path, error: Exception) -> str:
    """What is wrong with a file that the library could not read, with the line where that can be found."""
    said = (str(error).strip().splitlines() or [type(error).__name__])[0]
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            if file.suffix == ".csv":
                width = len(next(csv.reader(stream)))
                stream.seek(0)
                for number, fields in _csv_lines(stream):
                    if len(fields) > width:
                        return f"line {number} has {len(fields)} fields, the header {width}"
            elif file.suffix == ".jsonl":
                for number, line in _json_lines(stream):
                    try:
                        good = isinstance(json.loads(line), dict)
                    except ValueError:
                        good = False
                    if not good:
                        return f"line {number} is no JSON object"
    except (OSError, UnicodeDecodeError, csv.Error) as other:
        return " ".join(str(other).split())
    return said


def check_output(pairs: Pairs, output: Path) -> None:
    """Refuse an output that cannot be written, before anything is loaded.

    Raises:
        ConfigError: another ending, a folder, the file of pairs itself, or nested columns for a CSV file.
    """
    if output.suffix not in FORMATS:
        raise ConfigError(f"--output: got {str(output)!r}, allowed with --pairs: a file ending in {', '.join(FORMATS)}")
    if output.is_dir():
        raise ConfigError(f"--output: {output} is a folder; give a file")
    if output.exists() and output.samefile(pairs.file):
        raise ConfigError("--output: is the file of pairs itself; give another one")
    nested = [name for name, kind in pairs.table.schema.items() if kind.is_nested() or kind == pl.Binary]
    if output.suffix == ".csv" and nested:
        raise ConfigError(f"--output: the column {nested[0]} cannot be written as CSV; write .parquet or .jsonl")


def write_pairs(table: pl.DataFrame, output: Path) -> None:
    """Write a table whole or not at all, in the format that the name ends in."""
    with atomic_path(output) as temporary:
        if output.suffix == ".csv":
            table.write_csv(temporary)
        elif output.suffix == ".jsonl":
            table.write_ndjson(temporary)
        else:
            table.write_parquet(temporary)
