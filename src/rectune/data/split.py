"""The split protocols: warm-up, train, validation and test by each user's own timeline, by one moment for all, or as
the data itself says."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from rectune.data import columns as c
from rectune.errors import DataError

TIMELINE, GLOBAL_TIME, LEAVE_ONE_OUT, COLUMN = "timeline", "global_time", "leave_one_out", "column"
"""The values of the key `split`; see `timeline`."""

# Shares such as 0.1 are not exact in binary: without this, 0.29 of 100 rows would be 28.
_ROUNDING = 1e-9
_ORDER = "_order"
COUNT = "_count"
"""Column beside events or users: how many events the user has."""
_FIRST = "_first"


class Cuts(NamedTuple):
    """Where `global_time` cuts time, and what came out.

    Attributes:
        validation, test: timestamps; from this one on an event is at least a validation, or a test event.
        usable: events at positions of at least `history_len`, whose shares the ratios are.
        usable_validation, usable_test: how many of these fell into the two splits.
    """

    validation: int
    test: int
    usable: int
    usable_validation: int
    usable_test: int


class Timeline(NamedTuple):
    """The events of the users kept, and what was left out; cuts only for `global_time`.

    Attributes:
        events: see `timeline`.
        short_users, short_events: users with too few events, and theirs.
        users_not_drawn, events_not_drawn: left out by `max_users`.
        old_events: left out by `max_per_user`, of the users kept.
        cuts: see `Cuts`.
    """

    events: pl.DataFrame
    short_users: int
    short_events: int
    users_not_drawn: int
    events_not_drawn: int
    old_events: int = 0
    cuts: Cuts | None = None


def timeline(
    interactions: pl.DataFrame,
    *,
    split: str = TIMELINE,
    history_len: int,
    test_ratio: float,
    validation_ratio: float,
    max_users: int | None = None,
    max_per_user: int | None = None,
    seed: int = 0,
) -> Timeline:
    """Order every user's interactions in time and split them.

    Users with at most `history_len` interactions are left out, whatever the split, so that all splits are of the same
    users. For `global_time` this looks ahead: interactions after the cuts count too, so a user without any before them
    is kept for going on to have more than `history_len`. The others' interactions of one moment keep the order of the
    file; users come in numeric order where all ids are numbers. An interaction is usable where its user has at least
    `history_len` before it. Then, by `split`:

    - `timeline`: each user's first `history_len` are warm-up; of the n that remain the last
      max(1, floor(n * test_ratio)) are test and the max(1, floor(n * validation_ratio)) before those validation, test
      being filled first where n is 1 or 2.
    - `leave_one_out`: the same with one test and one validation event for every user.
    - `global_time`: all users are cut at the same two moments, from which on everything is validation, or test, also
      the first interactions of new users. The test moment is the one that brings the share of usable interactions
      at or after it nearest to `test_ratio` (of two equally near the later), the validation moment likewise before
      it. Of what is earlier, each user's first `history_len` are warm-up and the rest train. Since moments are never
      cut in two, shares come out as ties in time allow, and each of the three splits gets at least one moment.
    - `column`: every event keeps the split that the data gives it, whatever its time, and no user is left out.

    Args:
        interactions: user_id, item_id, rating, timestamp, label, and for `column` split; one row each, in the order of
            the file.
        split: `timeline`, `global_time`, `leave_one_out` or `column`.
        history_len: warm-up events of each user; with 0 a user's first event is asked about too.
        test_ratio: share of the usable events that are test; without effect for `leave_one_out`.
        validation_ratio: share of the usable events that are validation; likewise.
        max_users: keep this many of the eligible users, those with the smallest SHA-256 of `seed:user_id`;
            a smaller draw is therefore a part of a larger one. `global_time` takes its moments from the users kept.
        max_per_user: keep each user's last events, this many, and take none of the others into account; of a moment
            that is cut in two, those later in the file.
        seed: seed of that draw.

    Returns:
        events: the interactions kept, with split, position, history_end and row_id, sorted by user and position.

    Raises:
        DataError: no user has more than `history_len` interactions, or `global_time` finds fewer than three moments.
    """
    if split == COLUMN:
        if c.SPLIT not in interactions.columns:
            raise DataError("split: column, but this dataset has no split of its own; use split=timeline")
        history_len = 0
    whole = interactions.height
    if max_per_user is not None:
        interactions = last_of_each(interactions, max_per_user)
    counts = interactions.group_by(c.USER_ID).agg(pl.len().alias(COUNT))
    eligible, kept = users_kept(counts, history_len, max_users, seed)
    events = ordered(interactions.join(kept, on=c.USER_ID, how="inner", maintain_order="left"))
    cuts = None
    if split == GLOBAL_TIME:
        cuts = cuts_of(moments_of(events, history_len), history_len, test_ratio, validation_ratio)
    events = events.with_columns(split_of_each(split, history_len, test_ratio, validation_ratio, cuts).alias(c.SPLIT))
    eligible_events = int(eligible[COUNT].sum())
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
        old_events=whole - interactions.height,
        cuts=cuts,
    )


def users_kept(
    counts: pl.DataFrame, history_len: int, max_users: int | None, seed: int
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Of users and their numbers of events those with enough, and of these the ones drawn: see `timeline`.

    Raises:
        DataError: no user has more than `history_len`.
    """
    eligible = counts.filter(pl.col(COUNT) > history_len)
    if eligible.is_empty():
        longest = max(counts[COUNT].to_list(), default=0)
        raise DataError(
            f"history_len: {history_len} warm-up events leave nothing to predict, since the busiest user has "
            f"{longest} events; choose a smaller history_len or a dataset with longer histories"
        )
    if max_users is None or max_users >= eligible.height:
        return eligible, eligible
    drawn = sorted(eligible[c.USER_ID].to_list(), key=lambda user: _draw_key(user, seed))[:max_users]
    return eligible, eligible.filter(pl.col(c.USER_ID).is_in(drawn))


def split_of_each(
    split: str, history_len: int, test_ratio: float, validation_ratio: float, cuts: Cuts | None
) -> pl.Expr:
    """The split of each of the `ordered` events, beside which stands the number of its user's: see `timeline`."""
    if split == GLOBAL_TIME and cuts is not None:
        return _by_moment(cuts, history_len)
    if split == LEAVE_ONE_OUT:
        return _by_place(history_len, pl.lit(1), pl.lit(1))
    if split == TIMELINE:
        usable = pl.col(COUNT).cast(pl.Int64) - history_len
        return _by_place(history_len, _share(usable, test_ratio), _share(usable, validation_ratio))
    if split == COLUMN:
        return pl.col(c.SPLIT)
    raise ValueError(f"split: got {split!r}, allowed: {TIMELINE}, {GLOBAL_TIME}, {LEAVE_ONE_OUT}, {COLUMN}")


def last_of_each(interactions: pl.DataFrame, most: int) -> pl.DataFrame:
    """Each user's last interactions in time, at most so many, in the order of the file."""
    row = pl.int_range(pl.len(), dtype=pl.Int64)
    place = pl.struct(c.TIMESTAMP, row).rank("ordinal", descending=True).over(c.USER_ID)
    return interactions.filter(place <= most)


def _draw_key(user: str, seed: int) -> bytes:
    # A hash, not a random generator: the draw must not change with the version of a library.
    return hashlib.sha256(f"{seed}:{user}".encode()).digest()


def ordered(interactions: pl.DataFrame) -> pl.DataFrame:
    """Sort by user, time and file order; add row_id, position and history_end."""
    numeric = pl.col(c.USER_ID).cast(pl.Int64, strict=False)
    all_numeric = interactions.select(numeric.is_not_null().all()).item()
    row = pl.int_range(pl.len(), dtype=pl.Int64)
    new_user = pl.col(c.USER_ID).ne_missing(pl.col(c.USER_ID).shift(1))
    new_moment = new_user | pl.col(c.TIMESTAMP).ne_missing(pl.col(c.TIMESTAMP).shift(1))
    return (
        interactions.with_row_index(c.ROW_ID)
        .with_columns(pl.col(c.ROW_ID).cast(pl.UInt32), (numeric if all_numeric else pl.col(c.USER_ID)).alias(_ORDER))
        # 7 and 007 are two users, though one number.
        .sort(_ORDER, c.USER_ID, c.TIMESTAMP, c.ROW_ID)
        .with_columns(pl.when(new_user).then(row).forward_fill().alias(_FIRST), new_moment.alias("_new_moment"))
        .with_columns((row - pl.col(_FIRST)).alias(c.POSITION))
        .with_columns(pl.when("_new_moment").then(c.POSITION).forward_fill().alias(c.HISTORY_END))
    )


def _by_place(history_len: int, tests: pl.Expr, validations: pl.Expr) -> pl.Expr:
    """The split of each event by its position and how many of its user's last events are test and validation."""
    from_end = pl.col(COUNT).cast(pl.Int64) - 1 - pl.col(c.POSITION)
    return (
        pl.when(pl.col(c.POSITION) < history_len)
        .then(pl.lit(c.WARMUP))
        .when(from_end < tests)
        .then(pl.lit(c.TEST))
        .when(from_end < tests + validations)
        .then(pl.lit(c.VALIDATION))
        .otherwise(pl.lit(c.TRAIN))
    )


def _share(usable: pl.Expr, ratio: float) -> pl.Expr:
    return pl.max_horizontal((usable * ratio + _ROUNDING).floor().cast(pl.Int64), pl.lit(1, dtype=pl.Int64))


def _by_moment(cuts: Cuts, history_len: int) -> pl.Expr:
    """The split of each event by its timestamp; its position matters before validation only."""
    return (
        pl.when(pl.col(c.TIMESTAMP) >= cuts.test)
        .then(pl.lit(c.TEST))
        .when(pl.col(c.TIMESTAMP) >= cuts.validation)
        .then(pl.lit(c.VALIDATION))
        .when(pl.col(c.POSITION) < history_len)
        .then(pl.lit(c.WARMUP))
        .otherwise(pl.lit(c.TRAIN))
    )


def moments_of(events: pl.DataFrame, history_len: int) -> pl.DataFrame:
    """The timestamps of usable events, ascending, and how many there are of each (len)."""
    usable = events.filter(pl.col(c.POSITION) >= history_len)
    return usable.group_by(c.TIMESTAMP).len().sort(c.TIMESTAMP)


def cuts_of(moments: pl.DataFrame, history_len: int, test_ratio: float, validation_ratio: float) -> Cuts:
    """The moments at which `global_time` cuts.

    Args:
        moments: those of all usable events, as `moments_of` gives them.

    Raises:
        DataError: the usable events are of fewer than three moments.
    """
    if moments.height < 3:
        raise DataError(
            "split: global_time needs events of at least three timestamps, one each for train, validation and test, "
            f"but those behind their users' first {history_len} have {moments.height}; use split=timeline or a smaller "
            "history_len"
        )
    usable = int(moments["len"].sum())
    # How many usable events are at or after each moment.
    after = moments["len"].cast(pl.Int64).cum_sum(reverse=True).to_numpy()
    test = _nearest(after, 2, 0, usable * test_ratio)
    validation = _nearest(after[:test], 1, int(after[test]), usable * validation_ratio)
    return Cuts(
        int(moments[c.TIMESTAMP][validation]),
        int(moments[c.TIMESTAMP][test]),
        usable,
        int(after[validation] - after[test]),
        int(after[test]),
    )


def _nearest(after: npt.NDArray[np.int64], first: int, taken: int, wanted: float) -> int:
    """Of the moments from `first` on, the latest one that brings `after` less `taken` nearest to `wanted`."""
    gaps = np.abs(after[first:] - taken - wanted)
    return first + int(np.flatnonzero(gaps <= gaps.min() + _ROUNDING)[-1])
