"""A prepared dataset, opened: made first where it is missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from rectune.config import Config
from rectune.data.columns import USER_ID
from rectune.data.folder import load_catalog, load_events, load_meta
from rectune.data.prepare import prepare


@dataclass(frozen=True)
class Dataset:
    """The tables of a dataset folder.

    Attributes:
        folder: where it lies.
        events: all events, sorted by user and position; "row" everywhere means a row of this table.
        catalog: its items.
        meta: what `meta.json` says.
    """

    folder: Path
    events: pl.DataFrame
    catalog: pl.DataFrame
    meta: dict[str, Any]

    @property
    def content_hash(self) -> str:
        """Hash of events, catalog and settings."""
        return str(self.meta["content_hash"])

    def users(self, rows: np.ndarray[Any, Any]) -> list[str]:
        """Users of these events."""
        return list(self.events[USER_ID].gather(rows).to_list())


def open_dataset(config: Config, say: Callable[[str], None]) -> Dataset:
    """The dataset of a configuration, prepared first where it is missing or was made with other settings."""
    folder = prepare(config, say=say)
    return Dataset(folder, load_events(folder), load_catalog(folder), load_meta(folder))
