"""An item's like-rate and count as known before an event, without the event's own future.

Two sources, both free of leakage: events that are strictly earlier in time, or other users' training events. Given
to the model as text, or added to its log-odds as a prior.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from rectune.config import Config
from rectune.data.columns import ITEM_ID, LABEL, SPLIT, TEST, TIMESTAMP, USER_ID, VALIDATION
from rectune.data.portions import Events, codes, numbers, rows_where

FOLDS = 10
"""Groups of users for `other_users`: an event counts the other groups' events only, so never its own label."""
EARLIER, OTHER_USERS = "earlier", "other_users"
Ints = npt.NDArray[np.int64]
_HELD_OUT = (VALIDATION, TEST)
_EDGE = 1e-6
"""Rates stay this far from 0 and 1, so that log-odds are finite."""


@dataclass(frozen=True)
class ItemRates:
    """One row per event, in the events' order.

    Attributes:
        rate: float64 [events]; smoothed like-rate of the item.
        count: int64 [events]; how many events it was counted on.
    """

    rate: npt.NDArray[np.float64]
    count: npt.NDArray[np.int64]

    @property
    def log_odds(self) -> npt.NDArray[np.float64]:
        """log(rate / (1 - rate)), float64 [events]."""
        found: npt.NDArray[np.float64] = np.log(self.rate) - np.log1p(-self.rate)
        return found

    def of(self, rows: npt.NDArray[np.int64]) -> ItemRates:
        """Those of some events."""
        return ItemRates(self.rate[rows], self.count[rows])


def _smoothed(likes: pl.Expr, count: pl.Expr, mean: pl.Expr, strength: float) -> pl.Expr:
    return (likes + strength * mean) / (count + strength)


def _before(order: Ints, opens: npt.NDArray[np.bool_], values: Ints) -> Ints:
    """Of each event the sum of the values of those that stand before its moment.

    Args:
        order: the events, moment after moment.
        opens: whether each of them, so ordered, is the first of its moment.
        values: of the events, so ordered.
    """
    sums = np.cumsum(values) - values
    first = np.maximum.accumulate(np.where(opens, np.arange(len(order)), 0))
    found = np.empty(len(order), dtype=np.int64)
    found[order] = sums[first]
    return found


def _earlier(events: Events, strength: float) -> ItemRates:
    """Counts over all events with a smaller timestamp; the mean starts from one like and one dislike."""
    item, time = codes(events, ITEM_ID), numbers(events, TIMESTAMP)
    label = numbers(events, LABEL).astype(np.int64)
    order = np.argsort(time, kind="stable")
    new = _changes(time[order])
    mean = (_before(order, new, label[order]) + 1) / (_before(order, new, np.ones_like(label)) + 2)
    order = np.lexsort((time, item))
    # What stands before an item's first event is not the item's: it is taken off again.
    of_item = _changes(item[order])
    new = of_item | _changes(time[order])
    likes = _before(order, new, label[order]) - _before(order, of_item, label[order])
    count = _before(order, new, np.ones_like(label)) - _before(order, of_item, np.ones_like(label))
    return ItemRates((likes + strength * mean) / (count + strength), count)


def _changes(values: npt.NDArray[np.generic]) -> npt.NDArray[np.bool_]:
    """Where a value differs from the one before it; so does the first."""
    found = np.ones(len(values), dtype=bool)
    found[1:] = values[1:] != values[:-1]
    return found


def _other_users(events: Events, strength: float) -> ItemRates:
    """Counts over the training and warm-up events of users in other folds; held-out events count all of them."""
    item, fold = codes(events, ITEM_ID).astype(np.int64), codes(events, USER_ID) % FOLDS
    label = numbers(events, LABEL).astype(np.int64)
    known = np.ones(len(label), dtype=bool)
    known[rows_where(events, pl.col(SPLIT).is_in(_HELD_OUT))] = False
    items = int(item.max(initial=-1)) + 1
    both = item * FOLDS + fold

    def counted(weights: Ints) -> tuple[Ints, Ints]:
        """Sums of training events: of each event's item and, if it is one of them, less those of its fold; of all."""
        of_both = np.bincount(both[known], weights[known], items * FOLDS).astype(np.int64).reshape(items, FOLDS)
        of_folds = of_both.sum(axis=0)
        own = np.where(known, of_both.reshape(-1)[both], 0)
        return of_both.sum(axis=1)[item] - own, of_folds.sum() - np.where(known, of_folds[fold], 0)

    likes, all_likes = counted(label)
    count, everything = counted(np.ones_like(label))
    mean = (all_likes + 1) / (everything + 2)
    return ItemRates((likes + strength * mean) / (count + strength), count)


def item_rates(events: Events, source: str, strength: float) -> ItemRates:
    """The like-rate of each event's item, as known before the event.

    rate = (likes + strength * mean) / (count + strength), the posterior mean under a Beta prior around the mean.

    Args:
        events: user_id, item_id, timestamp, label, split of all events of a dataset.
        source: `earlier` counts all events with a smaller timestamp, of any user and split; `other_users` counts
            training and warm-up events at any time, for an event that is one of them without its own fold of users
            (users in order of their ids, dealt into 10).
        strength: how many events' worth of the mean each item starts with.
    """
    found = _earlier(events, strength) if source == EARLIER else _other_users(events, strength)
    return ItemRates(np.clip(found.rate, _EDGE, 1 - _EDGE), found.count)


def rate_table(events: Events, strength: float) -> pl.DataFrame:
    """The like-rates at the end of training, for candidates that are no event of the dataset.

    Held-out events are not counted, from whichever source the events' own rates come: they are what a file of test
    records asks about.

    Args:
        events: item_id, label, split of all events.
        strength: as `item_rates` takes it.

    Returns:
        item_id, rate, count; the row whose item_id is null is an item that nobody has rated.
    """
    wanted = events.lazy().filter(~pl.col(SPLIT).is_in(_HELD_OUT)).select(ITEM_ID, pl.col(LABEL).cast(pl.Int64))
    known = wanted.collect()
    mean = (float(known[LABEL].sum()) + 1) / (known.height + 2)
    table = known.group_by(ITEM_ID).agg(pl.col(LABEL).sum().alias("likes"), pl.len().cast(pl.Int64).alias("count"))
    rate = _smoothed(pl.col("likes"), pl.col("count"), pl.lit(mean), strength).clip(_EDGE, 1 - _EDGE)
    rated = table.select(ITEM_ID, rate.alias("rate"), "count").sort(ITEM_ID)
    unrated = pl.DataFrame({ITEM_ID: [None], "rate": [mean], "count": [0]}, schema=rated.schema)
    return pl.concat([rated, unrated])


def uses_rates(config: Config) -> bool:
    """Whether item rates are written into prompts or added to the log-odds."""
    return config.item_rate_text or config.prior == "item_rate"


def rate_text(rate: float, count: int) -> str:
    """A like-rate as it stands behind an item's text.

    >>> rate_text(0.714, 230), rate_text(0.5, 0)
    (' (71% of 230)', ' (50% of 0)')
    """
    return f" ({100 * rate:.0f}% of {count})"
