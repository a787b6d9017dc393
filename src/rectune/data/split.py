"""The split protocol: each user's own timeline, cut into warm-up, train, validation and test."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import polars as pl

from rectune.data import columns as c
from rectune.errors import DataError

# Shares such as 0.1 are not exact in binary: without this, 0.29 of 100 rows would be 28.
_ROUNDING = 1e-9
_ORDER = "_order"
_COUNT = "_count"
_FIRST = "_first"


class Timeline(NamedTuple):
    """The events of the users kept, and what was left out."""

    events: pl.DataFrame
    short_users: int
    short_events: int
    users_not_drawn: int
    events_not_drawn: int


def timeline(
    interactions: pl.DataFrame,
    *,
    history_len: int,
    test_ratio: float,
    validation_ratio: float,
    max_users: int | None = None,
    seed: int = 0,
) -> Timeline:
    """Order every user's interactions in time and split them.

    Users with at most `history_len` interactions are left out. The first `history_len` of the others are
    warm-up; of the n that remain the last max(1, floor(n * test_ratio)) are test and the
    max(1, floor(n * validation_ratio)) before those validation, test being filled first where n is 1 or 2.
    Interactions of one moment keep the order of the file; users come in numeric order where all ids are numbers.

    Args:
        interactions: user_id, item_id, rating, timestamp, label; one row each, in the order of the file.
        history_len: warm-up events of each user.
        test_ratio: share of the usable events that are test.
        validation_ratio: share of the usable events that are validation.
        max_users: keep this many of the eligible users, those with the smallest SHA-256 of `seed:user_id`;
            a smaller draw is therefore a part of a larger one.
        seed: seed of that draw.

    Returns:
        events: the interactions kept, with split, position, history_end and row_id, sorted by user and position.

    Raises:
        DataError: no user has more than `history_len` interactions.
    """
    counts = interactions.group_by(c.USER_ID).agg(pl.len().alias(_COUNT))
    eligible = counts.filter(pl.col(_COUNT) > history_len)
    if eligible.is_empty():
        longest = max(counts[_COUNT].to_list(), default=0)
        raise DataError(
            f"history_len: {history_len} warm-up events leave nothing to predict, since the busiest user has "
            f"{longest} events; choose a smaller history_len or a dataset with longer histories"
        )
    kept = eligible
    if max_users is not None and max_users < eligible.height:
        drawn = sorted(eligible[c.USER_ID].to_list(), key=lambda user: _draw_key(user, seed))[:max_users]
        kept = eligible.filter(pl.col(c.USER_ID).is_in(drawn))
    events = _ordered(interactions.join(kept, on=c.USER_ID, how="inner", maintain_order="left"))
    events = events.with_columns(_split(history_len, test_ratio, validation_ratio))
    eligible_events = int(eligible[_COUNT].sum())
    return Timeline(
        events=events.select(
            c.USER_ID,
            c.ITEM_ID,
            c.RATING,
            c.TIMESTAMP,
            c.LABEL,
            c.SPLIT,
            pl.col(c.POSITION).cast(pl.UInt32),
            pl.col(c.HISTORY_END).cast(pl.UInt32),
            c.ROW_ID,
        ),
        short_users=counts.height - eligible.height,
        short_events=interactions.height - eligible_events,
        users_not_drawn=eligible.height - kept.height,
        events_not_drawn=eligible_events - events.height,
    )


def _draw_key(user: str, seed: int) -> bytes:
    # A hash, not a random generator: the draw must not change with the version of a library.
    return hashlib.sha256(f"{seed}:{user}".encode()).digest()


def _ordered(interactions: pl.DataFrame) -> pl.DataFrame:
    """Sort by user, time and file order; add row_id, position and history_end."""
    numeric = pl.col(c.USER_ID).cast(pl.Int64, strict=False)
    all_numeric = interactions.select(numeric.is_not_null().all()).item()
    row = pl.int_range(pl.len(), dtype=pl.Int64)
    new_user = pl.col(c.USER_ID).ne_missing(pl.col(c.USER_ID).shift(1))
    new_moment = new_user | pl.col(c.TIMESTAMP).ne_missing(pl.col(c.TIMESTAMP).shift(1))
    return (
        interactions.with_row_index(c.ROW_ID)
        .with_columns(pl.col(c.ROW_ID).cast(pl.UInt32), (numeric if all_numeric else pl.col(c.USER_ID)).alias(_ORDER))
        .sort(_ORDER, c.TIMESTAMP, c.ROW_ID)
        .with_columns(pl.when(new_user).then(row).forward_fill().alias(_FIRST), new_moment.alias("_new_moment"))
        .with_columns((row - pl.col(_FIRST)).alias(c.POSITION))
        .with_columns(pl.when("_new_moment").then(c.POSITION).forward_fill().alias(c.HISTORY_END))
    )


def _split(history_len: int, test_ratio: float, validation_ratio: float) -> pl.Expr:
    """The split of each event, from its position and the number of its user's events."""
    usable = pl.col(_COUNT).cast(pl.Int64) - history_len
    from_end = pl.col(_COUNT).cast(pl.Int64) - 1 - pl.col(c.POSITION)
    tests = _share(usable, test_ratio)
    validations = _share(usable, validation_ratio)
    return (
        pl.when(pl.col(c.POSITION) < history_len)
        .then(pl.lit(c.WARMUP))
        .when(from_end < tests)
        .then(pl.lit(c.TEST))
        .when(from_end < tests + validations)
        .then(pl.lit(c.VALIDATION))
        .otherwise(pl.lit(c.TRAIN))
        .alias(c.SPLIT)
    )


def _share(usable: pl.Expr, ratio: float) -> pl.Expr:
    return pl.max_horizontal((usable * ratio + _ROUNDING).floor().cast(pl.Int64), pl.lit(1, dtype=pl.Int64))


def leak_share(events: pl.DataFrame) -> float | None:
    """Share of test events for which train holds a later event; None without test or train events."""
    test = events.filter(pl.col(c.SPLIT) == c.TEST)
    last_train = events.filter(pl.col(c.SPLIT) == c.TRAIN)[c.TIMESTAMP].max()
    if test.is_empty() or last_train is None:
        return None
    # A user's own train events are never later than the user's test events, so these are of other users.
    return float(test.select((pl.col(c.TIMESTAMP) < last_train).sum()).item()) / test.height


def leak_note(events: pl.DataFrame) -> str:
    """One sentence: what this split lets the training see of the future."""
    share = leak_share(events)
    if share is None:
        return "Split by each user's own timeline: there are no train events, so nothing of the future is seen."
    return (
        "Split by each user's own timeline: no event sees its own user's future, but other users' later events are "
        f"in train: {share:.1%} of the test events have train events after them in time."
    )
