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

FOLDS = 10
"""Groups of users for `other_users`: an event counts the other groups' events only, so never its own label."""
EARLIER, OTHER_USERS = "earlier", "other_users"
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


def _smoothed(likes: pl.Expr, count: pl.Expr, mean: pl.Expr, strength: float) -> pl.Expr:
    return (likes + strength * mean) / (count + strength)


def _earlier(events: pl.DataFrame, strength: float) -> pl.DataFrame:
    """Counts over all events with a smaller timestamp; the mean starts from one like and one dislike."""
    per_moment = events.group_by(ITEM_ID, TIMESTAMP).agg(pl.col(LABEL).sum().alias("likes"), pl.len().alias("count"))
    per_item = per_moment.sort(TIMESTAMP).with_columns(
        (pl.col("likes").cum_sum().over(ITEM_ID) - pl.col("likes")).alias("likes"),
        (pl.col("count").cum_sum().over(ITEM_ID) - pl.col("count")).alias("count"),
    )
    overall = (
        per_moment.group_by(TIMESTAMP)
        .agg(pl.col("likes").sum(), pl.col("count").sum())
        .sort(TIMESTAMP)
        .select(
            TIMESTAMP,
            (
                (pl.col("likes").cum_sum() - pl.col("likes") + 1) / (pl.col("count").cum_sum() - pl.col("count") + 2)
            ).alias("mean"),
        )
    )
    joined = events.select(ITEM_ID, TIMESTAMP).join(
        per_item, on=[ITEM_ID, TIMESTAMP], how="left", maintain_order="left"
    )
    joined = joined.join(overall, on=TIMESTAMP, how="left", maintain_order="left")
    return joined.select(_smoothed(pl.col("likes"), pl.col("count"), pl.col("mean"), strength).alias("rate"), "count")


def _other_users(events: pl.DataFrame, strength: float) -> pl.DataFrame:
    """Counts over the training and warm-up events of users in other folds; held-out events count all of them."""
    users = events.select(pl.col(USER_ID).unique().sort()).with_row_index("fold")
    folded = events.select(USER_ID, ITEM_ID, LABEL, SPLIT).join(
        users.with_columns(pl.col("fold") % FOLDS), on=USER_ID, how="left", maintain_order="left"
    )
    known = folded.filter(~pl.col(SPLIT).is_in(_HELD_OUT))
    liked, counted = pl.col(LABEL).sum(), pl.len().cast(pl.Int64)
    total = known.group_by(ITEM_ID).agg(liked.alias("likes"), counted.alias("count"))
    inside = known.group_by(ITEM_ID, "fold").agg(liked.alias("own_likes"), counted.alias("own_count"))
    folds = known.group_by("fold").agg(liked.alias("fold_likes"), counted.alias("fold_count"))
    joined = (
        folded.join(total, on=ITEM_ID, how="left", maintain_order="left")
        .join(inside, on=[ITEM_ID, "fold"], how="left", maintain_order="left")
        .join(folds, on="fold", how="left", maintain_order="left")
        .with_columns(pl.col("likes", "count", "own_likes", "own_count", "fold_likes", "fold_count").fill_null(0))
    )
    inner = pl.when(pl.col(SPLIT).is_in(_HELD_OUT)).then(0).otherwise(1)
    likes, count = (pl.col(name) - inner * pl.col(f"own_{name}") for name in ("likes", "count"))
    all_likes = int(known[LABEL].sum()) - inner * pl.col("fold_likes") + 1
    mean = all_likes / (known.height - inner * pl.col("fold_count") + 2)
    return joined.select(_smoothed(likes, count, mean, strength).alias("rate"), count.alias("count"))


def item_rates(events: pl.DataFrame, source: str, strength: float) -> ItemRates:
    """The like-rate of each event's item, as known before the event.

    rate = (likes + strength * mean) / (count + strength), the posterior mean under a Beta prior around the mean.

    Args:
        events: user_id, item_id, timestamp, label, split of all events of a dataset.
        source: `earlier` counts all events with a smaller timestamp, of any user and split; `other_users` counts
            training and warm-up events at any time, for an event that is one of them without its own fold of users
            (users in order of their ids, dealt into 10).
        strength: how many events' worth of the mean each item starts with.
    """
    wide = events.with_columns(pl.col(LABEL).cast(pl.Int64))
    found = _earlier(wide, strength) if source == EARLIER else _other_users(wide, strength)
    rate = found["rate"].to_numpy()
    return ItemRates(np.clip(rate, _EDGE, 1 - _EDGE), found["count"].cast(pl.Int64).to_numpy())


def rate_table(events: pl.DataFrame, strength: float) -> pl.DataFrame:
    """The like-rates at the end of training, for candidates that are no event of the dataset.

    Held-out events are not counted, from whichever source the events' own rates come: they are what a file of test
    records asks about.

    Args:
        events: item_id, label, split of all events.
        strength: as `item_rates` takes it.

    Returns:
        item_id, rate, count; the row whose item_id is null is an item that nobody has rated.
    """
    known = events.filter(~pl.col(SPLIT).is_in(_HELD_OUT)).with_columns(pl.col(LABEL).cast(pl.Int64))
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
