"""A prepared dataset, opened: made first where it is missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from rectune.config import Config
from rectune.data.columns import USER_ID
from rectune.data.folder import load_catalog, load_events, load_meta, scan_events
from rectune.data.portions import Events, held, load
from rectune.data.prepare import prepare


@dataclass(frozen=True)
class Dataset:
    """The tables of a dataset folder.

    Attributes:
        folder: where it lies.
        table: all events, sorted by user and position, held or to be read from their file; "row" everywhere means a
            row of this table.
        catalog: its items.
        meta: what `meta.json` says.
    """

    folder: Path
    table: Events
    catalog: pl.DataFrame
    meta: dict[str, Any]

    @property
    def content_hash(self) -> str:
        """Hash of events, catalog and settings."""
        return str(self.meta["content_hash"])

    @cached_property
    def events(self) -> pl.DataFrame:
        """The table in memory: some 80 bytes an event, so whoever needs a few rows or columns asks `at` or `table`."""
        return held(self.table)

    @property
    def columns(self) -> list[str]:
        """Names of the table's columns."""
        return self.table.lazy().collect_schema().names()

    def at(self, rows: npt.NDArray[np.integer[Any]], columns: Sequence[str]) -> pl.DataFrame:
        """These rows, in this order, of these columns."""
        wanted, place = np.unique(rows.astype(np.int64), return_inverse=True)
        if not len(wanted):
            return self.table.lazy().select(columns).head(0).collect()
        return load(self.table, wanted, columns)[place]

    def users(self, rows: npt.NDArray[np.integer[Any]]) -> list[str]:
        """Users of these events."""
        return list(self.at(rows, [USER_ID]).to_series().to_list())


def open_dataset(config: Config, say: Callable[[str], None]) -> Dataset:
    """The dataset of a configuration, prepared first where it is missing or was made with other settings."""
    folder = prepare(config, say=say)
    meta = load_meta(folder)
    large = int(meta["events"]) > config.part_rows
    return Dataset(folder, scan_events(folder) if large else load_events(folder), load_catalog(folder), meta)
