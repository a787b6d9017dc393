"""Events as arrays, and questions about them: which item, and how much of the user's history is known when asking.

Every baseline answers the same questions from the same arrays, so that none of them sees what another may not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from rectune.data.columns import (
    GENRES,
    ITEM_ID,
    LABEL,
    POSITION,
    RATING,
    SPLIT,
    TIMESTAMP,
    TRAIN,
    USER_ID,
    WARMUP,
    YEAR,
)
from rectune.data.folder import history_slices
from rectune.errors import DataError

ONLINE, FROZEN = "online", "frozen"
PROTOCOLS = {
    ONLINE: "each event is scored given everything strictly earlier, the user's earlier events of the split included",
    FROZEN: "all of a user's events of the split are scored given the history strictly before the first of them",
}

GENRES_AND_YEARS = "2"
"""How these are read from a catalog; part of the key of whatever is kept after it was fitted on them."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Log:
    """Whole timelines as arrays, users one after the other, each one's events in order of time.

    Attributes:
        user: int64 [events]; 0 .. users - 1.
        item: int64 [events]; place in the catalog, or `len(items)` for an item that it does not hold.
        label, rating: float64 [events]; 0 or 1, and the rating (NaN where there is none).
        timestamp: int64 [events].
        first: int64 [events]; row of the user's first event.
        stop: int64 [events]; the user's strictly earlier events are the rows first .. stop.
        known: bool [events]; warm-up and training events, whose labels a model may be fitted on.
        asked: bool [events]; training events, whose labels a model is trained to give.
        items: item ids of the catalog.
        genres: float64 [items + 1, genres]; 1 where the item has the genre.
        year: float64 [items + 1]; NaN where it is not known.
    """

    user: Ints
    item: Ints
    label: Floats
    rating: Floats
    timestamp: Ints
    first: Ints
    stop: Ints
    known: npt.NDArray[np.bool_]
    asked: npt.NDArray[np.bool_]
    items: list[str]
    genres: Floats
    year: Floats

    @classmethod
    def of(cls, events: pl.DataFrame, catalog: pl.DataFrame) -> Log:
        """The log of a prepared dataset.

        Args:
            events: whole timelines, as `load_events` returns them.
            catalog: item_id; genres and year where it has them.

        Raises:
            DataError: an event is about an item that the catalog does not hold.
        """
        items = catalog[ITEM_ID].to_list()
        place = pl.Series(range(len(items)), dtype=pl.Int64)
        item = events[ITEM_ID].replace_strict(catalog[ITEM_ID], place, default=-1, return_dtype=pl.Int64).to_numpy()
        if len(item) and item.min() < 0:
            unknown = events[ITEM_ID][int(np.argmin(item))]
            raise DataError(
                f"catalog.parquet: does not hold item {unknown!r}, which an event is about; "
                "run `rectune prepare CONFIG --force`"
            )
        split = events[SPLIT]
        genres, year = attributes(catalog)
        return cls(
            user=events[USER_ID].rle_id().to_numpy().astype(np.int64),
            item=item,
            label=events[LABEL].to_numpy().astype(np.float64),
            rating=events[RATING].cast(pl.Float64).fill_null(float("nan")).to_numpy(),
            timestamp=events[TIMESTAMP].to_numpy(),
            first=np.arange(events.height) - events[POSITION].to_numpy().astype(np.int64),
            stop=history_slices(events, events.height)[1],
            known=split.is_in([WARMUP, TRAIN]).to_numpy(),
            asked=(split == TRAIN).to_numpy(),
            items=items,
            genres=genres,
            year=year,
        )

    @property
    def users(self) -> int:
        """How many users there are."""
        return int(self.user[-1]) + 1 if len(self.user) else 0


def attributes(catalog: pl.DataFrame) -> tuple[Floats, Floats]:
    """Genres and years of a catalog's items and of one that it does not hold, [items + 1, genres] and [items + 1].

    Genres are joined by ", ", as every reader writes them. A catalog without genres, or without years, has none; a
    year that is no number is not known.
    """
    texts = catalog[GENRES].to_list() if GENRES in catalog.columns else [None] * catalog.height
    lists = [[name for name in (text or "").split(", ") if name] for text in texts]
    names = {name: place for place, name in enumerate(sorted({name for each in lists for name in each}))}
    genres = np.zeros((catalog.height + 1, len(names)))
    for place, each in enumerate(lists):
        genres[place, [names[name] for name in each]] = 1.0
    year = np.full(catalog.height + 1, np.nan)
    if YEAR in catalog.columns:
        year[:-1] = catalog[YEAR].cast(pl.Float64, strict=False).fill_null(float("nan")).to_numpy()
    return genres, year


@dataclass(frozen=True)
class Questions:
    """What is asked.

    Attributes:
        rows: int64 [n]; the events asked about, rows of a log.
        stops: int64 [n]; the user's history is first .. stop of these rows; never beyond the event's own `stop`.
    """

    rows: Ints
    stops: Ints

    def __len__(self) -> int:
        return len(self.rows)


def ask(log: Log, rows: Ints, protocol: str) -> Questions:
    """Questions about events of one split, under a protocol of PROTOCOLS.

    Args:
        log: all events.
        rows: int64 [n]; ascending. For `frozen` the first of a user's rows decides where the history ends, so give
            all of the user's rows of the split, or the same rows to every model.
    """
    if protocol == ONLINE:
        return Questions(rows, log.stop[rows])
    if protocol != FROZEN:
        raise ValueError(f"protocol: got {protocol!r}, allowed: {', '.join(PROTOCOLS)}")
    users, begin = np.unique(log.user[rows], return_index=True)
    return Questions(rows, log.stop[rows[begin]][np.searchsorted(users, log.user[rows])])


def split_rows(events: pl.DataFrame, split: str) -> Ints:
    """All events of a split.

    Raises:
        DataError: there are none.
    """
    rows = events.select((pl.col(SPLIT) == split).arg_true()).to_series().to_numpy().astype(np.int64)
    if not len(rows):
        raise DataError(f"{split}: the split is empty; prepare with more users or a lower history_len")
    return rows
