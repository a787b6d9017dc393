"""The prepared dataset folder: its files, and reading them back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from rectune.data import columns as c
from rectune.errors import DataError
from rectune.files import hash_file

EVENTS = "events.parquet"
CATALOG = "catalog.parquet"
REJECTS = "rejects.parquet"
REJECTS_CSV = "rejects.csv"
TRAIN_JSON = "train.json"
EVAL_JSON = "eval.json"
TEST_RAW = "test_raw.jsonl"
DATASET_INFO = "dataset_info.json"
META = "meta.json"
FILES = (EVENTS, CATALOG, REJECTS, REJECTS_CSV, TRAIN_JSON, EVAL_JSON, TEST_RAW, DATASET_INFO, META)

EVENTS_SCHEMA = {
    c.USER_ID: pl.String,
    c.ITEM_ID: pl.String,
    c.RATING: pl.Float64,
    c.TIMESTAMP: pl.Int64,
    c.LABEL: pl.UInt8,
    c.SPLIT: pl.String,
    c.POSITION: pl.UInt32,
    c.HISTORY_END: pl.UInt32,
    c.ROW_ID: pl.UInt32,
}
WITH_NEGATIVES = {**EVENTS_SCHEMA, c.DRAWN_FOR: pl.UInt32}
"""Of a dataset of purchases, each with sampled negatives."""
_CATALOG_COLUMNS = (c.ITEM_ID, c.TITLE)
_ADVICE = "run `rectune prepare CONFIG`"


def load_events(folder: Path) -> pl.DataFrame:
    """The events of a prepared dataset, sorted by user and position.

    Args:
        folder: the dataset folder.

    Returns:
        user_id (String), item_id (String), rating (Float64), timestamp (Int64), label (UInt8), split (String),
        position (UInt32), history_end (UInt32), row_id (UInt32, 0-based in the order of the source file); where there
        are sampled negatives also drawn_for (UInt32), see `negatives.py`: a user's stand behind the user's own events.

    Raises:
        DataError: the file is missing, damaged, or not as `meta.json` describes it.
    """
    events = _parquet(folder, EVENTS, tuple(EVENTS_SCHEMA))
    _check_events(folder, events.schema, events.height)
    return events


def scan_events(folder: Path) -> pl.LazyFrame:
    """The same as `load_events`, to be read from its file a piece at a time."""
    file = _checked(folder, EVENTS)
    try:
        events = pl.scan_parquet(file)
        _check_events(folder, events.collect_schema(), int(events.select(pl.len()).collect().item()))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{file}: damaged ({error}); {_ADVICE} again with --force") from error
    return events


def _check_events(folder: Path, schema: pl.Schema, rows: int) -> None:
    known = (pl.Schema(EVENTS_SCHEMA), pl.Schema(WITH_NEGATIVES))
    if schema not in known or rows != load_meta(folder).get("events"):
        raise DataError(f"{folder / EVENTS}: {rows:,} rows do not match {META}; {_ADVICE} again with --force")


def load_catalog(folder: Path) -> pl.DataFrame:
    """The catalog of a prepared dataset: item_id and title (String), and the attributes that its source has.

    Raises:
        DataError: the file is missing or damaged.
    """
    return _parquet(folder, CATALOG, _CATALOG_COLUMNS)


def load_meta(folder: Path) -> dict[str, Any]:
    """What `meta.json` says about a prepared dataset.

    Raises:
        DataError: the file is missing or damaged.
    """
    file = Path(folder) / META
    if not file.is_file():
        raise DataError(f"{file}: no such file, so this is no prepared dataset; {_ADVICE}")
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read ({error}); {_ADVICE} again with --force") from error
    if not isinstance(meta, dict):
        raise DataError(f"{file}: holds no description of a dataset; {_ADVICE} again with --force")
    return meta


def _checked(folder: Path, name: str) -> Path:
    """A Parquet file that is as it was written."""
    file = Path(folder) / name
    if not file.is_file():
        raise DataError(f"{file}: no such file, so this is no prepared dataset; {_ADVICE}")
    recorded = load_meta(folder).get("sha256", {}).get(name)
    if recorded is not None and hash_file(file) != recorded:
        raise DataError(f"{file}: damaged (its content is not what {META} records); {_ADVICE} again with --force")
    return file


def _parquet(folder: Path, name: str, columns: tuple[str, ...]) -> pl.DataFrame:
    file = _checked(folder, name)
    try:
        frame = pl.read_parquet(file)
    except (pl.exceptions.PolarsError, OSError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{file}: damaged ({first}); {_ADVICE} again with --force") from error
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise DataError(f"{file}: the column {missing[0]} is missing; {_ADVICE} again with --force")
    return frame


def own_events(events: pl.DataFrame) -> pl.DataFrame:
    """The events that the data holds, without sampled negatives: what users did. Whole timelines stay whole."""
    return events.filter(pl.col(c.DRAWN_FOR).is_null()) if c.DRAWN_FOR in events.columns else events


def asked_at(events: pl.DataFrame) -> np.ndarray:
    """The position at which each event is asked about, int64 [events]: its own, or that of the purchase it is for."""
    if c.DRAWN_FOR not in events.columns:
        return events[c.POSITION].to_numpy().astype(np.int64)
    return events.select(pl.coalesce(c.DRAWN_FOR, c.POSITION)).to_series().to_numpy().astype(np.int64)


def history_slices(events: pl.DataFrame, history_len: int) -> tuple[np.ndarray, np.ndarray]:
    """Where in `events` the history of each event lies.

    The history of an event is its user's events at the positions [max(0, position - history_len), history_end):
    of the `history_len` events before it those that are strictly earlier in time. It may be empty. A sampled negative
    has the history of the purchase it was drawn for, and, standing behind all of them, is in none.

    Args:
        events: whole timelines, sorted by user and position, as `load_events` returns them.
        history_len: the longest history.

    Returns:
        start and stop, two int64 arrays with one element per event: `events[start:stop]` is its history.

    Raises:
        ValueError: `events` does not hold whole timelines in order.
    """
    position = events[c.POSITION].to_numpy().astype(np.int64)
    follows = position[1:] == position[:-1] + 1
    if position.size and (position[0] != 0 or not bool(np.all(follows | (position[1:] == 0)))):
        raise ValueError("events must be whole timelines, sorted by user and position; do not filter them before")
    first = np.arange(position.size, dtype=np.int64) - position
    stop = first + events[c.HISTORY_END].to_numpy().astype(np.int64)
    start = first + np.maximum(asked_at(events) - history_len, 0)
    return np.minimum(start, stop), stop
