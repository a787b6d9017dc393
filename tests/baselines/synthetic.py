"""Small made-up datasets for the tests of the baselines, and the check that a score sees no label that it may not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from hypothesis import strategies as st

from rectune.baselines.questions import FROZEN, Floats, Ints, Log, Questions, ask
from rectune.data.split import timeline

GENRES = ["Drama, Comedy", "Drama", None, "Comedy", "War, Drama, Comedy", ""]
Row = tuple[str, str, int, int]
Feature = Callable[[Log, Questions], Floats]
May = npt.NDArray[np.bool_]


def catalog_of(items: int) -> pl.DataFrame:
    """Items 0, 1, 2 ..., each third one without a year, each of GENRES in turn."""
    return pl.DataFrame(
        {
            "item_id": [str(item) for item in range(items)],
            "title": [f"Film {item}" for item in range(items)],
            "genres": [GENRES[item % len(GENRES)] for item in range(items)],
            "year": [None if item % 3 == 0 else 1980 + item for item in range(items)],
        },
        schema_overrides={"year": pl.Int64, "genres": pl.String},
    )


def events_of(rows: list[Row], history_len: int = 1, **split: Any) -> pl.DataFrame:
    """Events of (user, item, timestamp, label), split as prepared datasets are; a like has 5 stars, a dislike 1."""
    names = ["user_id", "item_id", "timestamp", "label"]
    table = pl.DataFrame(rows, schema=names, orient="row").with_columns(
        pl.col("label").cast(pl.UInt8), rating=1.0 + 4.0 * pl.col("label")
    )
    ratios = {"test_ratio": 0.3, "validation_ratio": 0.3, **split}
    return timeline(table, history_len=history_len, **ratios).events


def log_of(rows: list[Row], items: int, history_len: int = 1, **split: Any) -> Log:
    return Log.of(events_of(rows, history_len, **split), catalog_of(items))


def tastes(users: int = 60, items: int = 40, each: int = 25, seed: int = 0) -> list[Row]:
    """Rows of users of two tastes and of their own generosity, who rate some items twice in a second, none twice.

    Args:
        users, items, each: how many, and how many events of each user.
        seed: of everything drawn.
    """
    draw = np.random.default_rng(seed)
    good, rows = draw.normal(0.0, 1.0, items), []
    for user in range(users):
        generous, moments = draw.normal(0.3, 1.0), np.sort(draw.integers(0, 50_000, each))
        for place, item in enumerate(draw.permutation(items)[:each]):
            taste = 1.5 if item % 2 == user % 2 else -1.5
            label = draw.random() < 1 / (1 + np.exp(-(good[item] + generous + taste)))
            at = moments[place - 1] if place % 5 == 4 else moments[place]
            rows.append((str(user), str(item), int(at), int(label)))
    return rows


ITEMS = 5


@st.composite
def small_rows(draw: Any, repeats: bool = True) -> list[Row]:
    """Rows of up to four users, three to seven events each, within six moments, so with many ties."""
    rows = []
    for user in range(draw(st.integers(1, 4))):
        item = st.lists(st.integers(0, ITEMS - 1), min_size=3, max_size=7 if repeats else ITEMS, unique=not repeats)
        for each in draw(item):
            rows.append((f"u{user}", str(each), draw(st.integers(0, 5)), draw(st.integers(0, 1))))
    return rows


def flip(log: Log, rows: Ints | list[int]) -> Log:
    """The log with the labels of these events the other way round, and their ratings with them."""
    label, rating = log.label.copy(), log.rating.copy()
    label[rows], rating[rows] = 1.0 - label[rows], 6.0 - rating[rows]
    return replace(log, label=label, rating=rating)


def moments(log: Log, rows: Ints, protocol: str) -> list[int]:
    """When each of these events is asked about, by definition: its own time, or that of the user's first of them."""
    if protocol != FROZEN:
        return [int(log.timestamp[row]) for row in rows]
    return [int(min(log.timestamp[other] for other in rows if log.user[other] == log.user[row])) for row in rows]


def own_earlier(log: Log, rows: Ints, protocol: str) -> May:
    """Which labels a question may see that knows the user's strictly earlier events only, bool [rows, events]."""
    at = moments(log, rows, protocol)
    return np.array(
        [
            [log.user[event] == log.user[row] and log.timestamp[event] < moment for event in range(len(log.user))]
            for row, moment in zip(rows, at, strict=True)
        ]
    )


def all_earlier(log: Log, rows: Ints, protocol: str) -> May:
    """The same for one that knows all users' strictly earlier events."""
    return np.array([[when < moment for when in log.timestamp] for moment in moments(log, rows, protocol)])


def and_known(log: Log, rows: Ints, protocol: str) -> May:
    """The same for one that knows the user's strictly earlier events and what models are fitted on."""
    return own_earlier(log, rows, protocol) | log.known


def all_earlier_and_known(log: Log, rows: Ints, protocol: str) -> May:
    """The same for one that knows all users' strictly earlier events, and starts from the mean of the known ones."""
    return all_earlier(log, rows, protocol) | log.known


def leaks(
    feature: Feature,
    log: Log,
    rows: Ints,
    protocol: str,
    may_see: Callable[[Log, Ints, str], May] = own_earlier,
    within: float = 0.0,
) -> list[tuple[int, int]]:
    """Pairs (event asked about, event whose label changes the answer although the question may not see it).

    Args:
        feature: what is checked.
        log: all events.
        rows: the events asked about.
        protocol: of PROTOCOLS.
        may_see: which labels each of them may see.
        within: changes up to this size are no leak; for what is summed in floating point over the whole log.
    """
    allowed = may_see(log, rows, protocol)
    before = feature(log, ask(log, rows, protocol)).reshape(len(rows), -1)
    found = []
    for event in range(len(log.user)):
        changed = flip(log, [event])
        after = feature(changed, ask(changed, rows, protocol)).reshape(len(rows), -1)
        same = (before == after) | (np.isnan(before) & np.isnan(after)) | (np.abs(before - after) <= within)
        found += [(int(rows[one]), event) for one in np.flatnonzero(~same.all(axis=1) & ~allowed[:, event])]
    return found


def before_training(log: Log) -> Log:
    """The log with nothing known but its warm-up, so that training events too are questions about what is not known.

    The mean label of the known events, which rates start from, is one number for all questions: it holds a training
    event's own label, but tells no questions apart. With this log a check sees what there is besides.
    """
    return replace(log, known=log.known & ~log.asked)


def kept_events() -> pl.DataFrame:
    """Events of forty users, for what is fitted once for a dataset and kept."""
    return events_of(tastes(users=40, items=20, each=18), 4, validation_ratio=0.2, test_ratio=0.2)
