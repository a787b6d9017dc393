"""What a split lets the training see of the future, and how much of its test is cold."""

from __future__ import annotations

from typing import NamedTuple

import polars as pl

from rectune.config_classify import STRATIFIED
from rectune.data import columns as c
from rectune.data.split import COLUMN, GLOBAL_TIME, LEAVE_ONE_OUT, TIMELINE

SPLIT_BY = {
    TIMELINE: "each user's own timeline",
    GLOBAL_TIME: "one moment for all users",
    LEAVE_ONE_OUT: "each user's last event",
    COLUMN: "the data's own column",
    STRATIFIED: "random draws within each class",
}
"""How a split is made, in words, as in "split by ..."."""


class Cold(NamedTuple):
    """Test events about what training knows nothing of: users, or items, without any warm-up or train event.

    Attributes:
        test: all test events.
        users: those of cold users.
        items: those about cold items.
    """

    test: int
    users: int
    items: int


class OwnLeak(NamedTuple):
    """What a split of the data's own may let a user's events see of each other.

    Attributes:
        before: test events with a later train event of their own user.
        shown: train events with a validation or test event of their own user strictly before them: their histories
            show its outcome.
    """

    before: int
    shown: int


def own_leak(events: pl.DataFrame) -> OwnLeak:
    """Count what train knows of the held-out events of the same users.

    Args:
        events: user_id, timestamp, split of all events.
    """
    train, test = pl.col(c.SPLIT) == c.TRAIN, pl.col(c.SPLIT) == c.TEST
    held_out = pl.col(c.SPLIT).is_in([c.VALIDATION, c.TEST])
    time = pl.col(c.TIMESTAMP)
    last = time.filter(train).max().over(c.USER_ID)
    first = time.filter(held_out).min().over(c.USER_ID)
    found = events.select((test & (time < last)).sum().alias("before"), (train & (time > first)).sum().alias("shown"))
    return OwnLeak(*found.row(0))


class Leak(NamedTuple):
    """What `leak_note` tells.

    Attributes:
        share: of the test events, for which train holds a later event; None without test or train events. But for a
            split of the data's own these are of other users, since a user's own train events are never later.
        cold, own: see there.
        trained: all train events.
    """

    share: float | None
    cold: Cold
    own: OwnLeak
    trained: int


def leak_note(leak: Leak, split: str = TIMELINE) -> str:
    """One sentence: what this split lets the training see of the future, and how cold its test is.

    Args:
        leak: what was counted.
        split: how the events were split, a key of SPLIT_BY.
    """
    share, own, tests = leak.share, leak.own, leak.cold.test
    if share is None:
        seen = "there are no train events, so nothing of the future is seen"
    elif split == GLOBAL_TIME:
        seen = "no warm-up or train event is as late as any validation or test event, so nothing of the future is seen"
    elif split == COLUMN:
        seen = (
            f"{share:.1%} of the test events have train events after them in time, {own.before:,} "
            f"({own.before / tests:.1%}) of their own user; {own.shown:,} of {leak.trained:,} train events "
            f"({own.shown / leak.trained:.1%}) come after a validation or test event of their user, whose outcome "
            "their histories show"
        )
    else:
        seen = (
            "no event sees its own user's future, but other users' later events are in train: "
            f"{share:.1%} of the test events have train events after them in time"
        )
    return f"Split by {SPLIT_BY[split]}: {seen}; {_cold_words(leak.cold)}."


def _cold_words(found: Cold) -> str:
    if not found.test:
        return "there are no test events"
    return (
        f"of {found.test:,} test events {found.users:,} ({found.users / found.test:.1%}) are of users and "
        f"{found.items:,} ({found.items / found.test:.1%}) about items without any warm-up or train event"
    )
