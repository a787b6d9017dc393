"""Users' whole timelines, so many events at a time, from a table in memory or in a Parquet file."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from rectune.data.columns import LABEL, POSITION, RATING

_LOOK = 1 << 21
"""Rows of a file that are looked at together."""

Places = npt.NDArray[np.int64]
Events = pl.DataFrame | pl.LazyFrame
"""All events of a dataset, sorted by user and position: held, or to be read from their file."""


def height(events: Events) -> int:
    """How many events there are."""
    return events.height if isinstance(events, pl.DataFrame) else int(events.select(pl.len()).collect().item())


def held(events: Events) -> pl.DataFrame:
    """The whole table in memory."""
    return events.lazy().collect()


def rows_where(events: Events, wanted: pl.Expr) -> Places:
    """The rows for which this holds, int64, ascending."""
    found = [np.empty(0, dtype=np.int64)]
    for start in range(0, height(events), _LOOK):
        rows = events.lazy().slice(start, _LOOK).select(wanted.arg_true()).collect().to_series()
        found.append(rows.to_numpy().astype(np.int64) + start)
    return np.concatenate(found)


def codes(events: Events, name: str) -> npt.NDArray[np.int32]:
    """A column of texts as numbers: the place of each among the distinct ones in their order; int32 [events]."""
    blocks = range(0, height(events), _LOOK)

    def block(start: int) -> pl.DataFrame:
        return events.lazy().slice(start, _LOOK).select(name).collect()

    known = pl.concat([block(start).unique() for start in blocks]).unique().sort(name).with_row_index("code")
    found = [block(start).join(known, on=name, how="left", maintain_order="left")["code"] for start in blocks]
    return np.concatenate([np.empty(0, np.int32), *(part.to_numpy().astype(np.int32) for part in found)])


def numbers(events: Events, name: str) -> npt.NDArray[np.generic]:
    """A column of numbers."""
    return events.lazy().select(name).collect().to_series().to_numpy()


def user_starts(events: Events) -> Places:
    """Where each user's events begin, and where the last one's end: int64 [users + 1]."""
    return np.append(rows_where(events, pl.col(POSITION) == 0), height(events))


def outcomes(events: Events) -> list[tuple[float | None, int]]:
    """Every rating with every label that it goes with."""
    found = [
        events.lazy().slice(start, _LOOK).select(RATING, LABEL).unique().collect()
        for start in range(0, height(events), _LOOK)
    ]
    return pl.concat(found).unique().rows()


def portions_of(starts: Places, rows: Places, most: int) -> list[Places]:
    """Cut the users of these events into portions of at most about `most` events: a user is never divided.

    Args:
        starts: see `user_starts`.
        rows: int64 [n], ascending.

    Returns:
        for each portion the rows of its users' events, ascending.
    """
    users = np.unique(np.searchsorted(starts, rows, side="right") - 1)
    sizes = starts[users + 1] - starts[users]
    portion = (np.cumsum(sizes) - sizes) // most
    edges = np.flatnonzero(np.diff(portion)) + 1
    return [
        np.arange(int(size.sum())) + np.repeat(starts[part] - (np.cumsum(size) - size), size)
        for part, size in zip(np.split(users, edges), np.split(sizes, edges), strict=True)
    ]


def load(events: Events, places: Places, columns: Sequence[str]) -> pl.DataFrame:
    """These rows, ascending, of these columns."""
    first, stop = int(places[0]), int(places[-1]) + 1
    if isinstance(events, pl.DataFrame):
        found = events.select(columns)
        return found.slice(first, stop - first) if stop - first == len(places) else found[places]
    frames = []
    for start in range(first, stop, _LOOK):
        low, high = np.searchsorted(places, [start, min(start + _LOOK, stop)])
        if low < high:
            frame = events.slice(start, min(_LOOK, stop - start)).select(columns).collect()
            frames.append(frame if high - low == frame.height else frame[places[low:high] - start])
    return pl.concat(frames)
