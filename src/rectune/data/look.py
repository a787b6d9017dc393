"""A first look at interactions: how many, how dense, how long the histories, and what is odd about them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import polars as pl

from rectune.data import columns as c
from rectune.data.sources.source import Nouns
from rectune.data.sources.table_values import date_of

PERCENTILES = (10, 50, 90)
_HALF = 0.5
_RARE = 0.05
"""Share of one label below which the other nearly always is the answer."""
_LENGTHS = (15, 10, 8, 5, 3, 2, 1)
"""Lengths of a history to propose, the longest first."""

Say = Callable[[str], None]


class Look(NamedTuple):
    """What a first look finds.

    Attributes:
        events, users, items: how many.
        density: share of all pairs of user and item that there is an event of.
        liked: share of events with label 1.
        ratings: lowest, highest and how many different; None where there are none.
        first, last: timestamps.
        tied: share of events that share user and timestamp with another.
        lengths: events of a user at each of PERCENTILES, and of the busiest.
        busiest: share of all events that are of one user.
        short: share of users with fewer than three events: one each to learn from, to validate and to test on.
        once: share of items with a single event.
    """

    events: int
    users: int
    items: int
    density: float
    liked: float
    ratings: tuple[float, float, int] | None
    first: int
    last: int
    tied: float
    lengths: tuple[int, ...]
    busiest: float
    short: float
    once: float


def look(events: pl.DataFrame) -> Look:
    """Look at labelled interactions.

    Args:
        events: user_id, item_id, rating, timestamp, label; at least one.
    """
    of_user = events.group_by(c.USER_ID).len()["len"]
    of_item = events.group_by(c.ITEM_ID).len()["len"]
    rated = events[c.RATING].drop_nulls()
    tied = events.select((pl.len().over(c.USER_ID, c.TIMESTAMP) > 1).mean()).item()
    lengths = tuple(int(of_user.quantile(share / 100, "nearest") or 0) for share in PERCENTILES)
    most = int(of_user.max() or 0)  # type: ignore[arg-type]
    return Look(
        events.height,
        len(of_user),
        len(of_item),
        events.select(pl.struct(c.USER_ID, c.ITEM_ID).n_unique()).item() / (len(of_user) * len(of_item)),
        float(events[c.LABEL].mean()),  # type: ignore[arg-type]
        (float(rated.min()), float(rated.max()), rated.n_unique()) if len(rated) else None,  # type: ignore[arg-type]
        int(events[c.TIMESTAMP].min()),  # type: ignore[arg-type]
        int(events[c.TIMESTAMP].max()),  # type: ignore[arg-type]
        float(tied),
        (*lengths, most),
        most / events.height,
        float((of_user < 3).mean()),  # type: ignore[arg-type]
        float((of_item == 1).mean()),  # type: ignore[arg-type]
    )


def say_look(found: Look, nouns: Nouns, ordered: bool, say: Say) -> None:
    """Print what was found, a line each.

    Args:
        found: from `look`.
        nouns: of the source.
        ordered: whether there are times; without, the span of the rows' numbers says nothing.
        say: prints one line.
    """
    say(
        f"look: {found.events:,} {nouns.interactions} of {found.users:,} users about {found.items:,} "
        f"{nouns.items}; {found.density:.2%} of all pairs"
    )
    ratings = ""
    if found.ratings is not None:
        low, high, different = found.ratings
        ratings = f"; ratings from {low:g} to {high:g}, {different:,} different"
    say(f"look: {found.liked:.1%} liked{ratings}")
    if ordered:
        say(f"look: from {date_of(found.first)} to {date_of(found.last)}; {found.tied:.1%} share user and time")
    shown = ", ".join(f"p{share} {length:,}" for share, length in zip(PERCENTILES, found.lengths, strict=False))
    say(f"look: events of a user: {shown}, most {found.lengths[-1]:,}")


def warnings(found: Look, nouns: Nouns, ordered: bool, negatives: bool = False) -> list[str]:
    """What is odd enough to think about before training.

    Args:
        found: from `look`.
        nouns: of the source.
        ordered: whether there are times.
        negatives: whether some are drawn beside these events, which may then all be liked.
    """
    odd = []
    if not ordered:
        odd.append(
            "there is no time order: histories and splits go by the order of the rows; name a column of times, or sort "
            "the file by time"
        )
    elif found.first == found.last:
        odd.append(f"there is no time order: all {nouns.interactions} have one time, so every history is empty")
    elif found.tied > _HALF:
        odd.append(
            f"{found.tied:.0%} of the {nouns.interactions} share their time with another of the user; these never see "
            "each other, so histories are shorter than they look: finer times would help"
        )
    if found.ratings is not None and found.ratings[2] == 1:
        odd.append(f"all ratings are {found.ratings[0]:g}: they tell nothing; are these purchases (--purchases)?")
    if found.liked in (0.0, 1.0) and not negatives:
        what = "liked" if found.liked else "not liked"
        odd.append(f"all {nouns.interactions} are {what}: there is nothing to tell apart, and nothing can be learned")
    elif not negatives and not _RARE <= found.liked <= 1 - _RARE:
        odd.append(f"{found.liked:.1%} are liked: always the same answer is hard to beat; read AUC, not accuracy")
    if found.users == 1:
        odd.append("there is one user only, so nothing can be learned from others")
    elif found.busiest >= _HALF:
        odd.append(f"one user has {found.busiest:.0%} of all {nouns.interactions}; is it a default or a test account?")
    if found.short > _HALF:
        odd.append(
            f"{found.short:.0%} of the users have fewer than three {nouns.interactions}: there is hardly any history "
            "to learn from"
        )
    if found.once > _HALF:
        odd.append(f"{found.once:.0%} of the {nouns.items} occur once: only their text can tell something of them")
    return odd


class Histories(NamedTuple):
    """Which histories to train with.

    Attributes:
        history_len: longest history, and warm-up events of each user.
        min_history: warm-up events where they are fewer than `history_len`, else None.
        why: the reason.
    """

    history_len: int
    min_history: int | None
    why: str


def propose_histories(events: pl.DataFrame) -> Histories:
    """The longest history of 15, 10, 8, 5, 3, 2 or 1 events that leaves half of the events to ask about and users with
    four fifths of them; where none does, users are asked about from their first event on."""
    of_user = events.group_by(c.USER_ID).len()["len"].cast(pl.Int64)
    for length in _LENGTHS:
        more = of_user.filter(of_user > length)
        asked, kept = int((more - length).sum()), int(more.sum())
        if asked * 2 >= events.height and kept * 5 >= events.height * 4:
            why = f"leaves {asked / events.height:.0%} of the events to ask about, of {len(more):,} users"
            return Histories(length, None, why)
    longest = min(_LENGTHS[0], max(1, int(of_user.quantile(0.9, "nearest") or 1)))
    return Histories(longest, 0, "histories are short, so users are asked about from their first event on")


def propose_threshold(events: pl.DataFrame) -> tuple[float, str]:
    """From which rating on an event is liked: four fifths of the scale's top where that divides the events, as 4 of 5
    does; else the highest rating that at least a fifth of them reach.

    >>> propose_threshold(pl.DataFrame({"rating": [1.0, 3.0, 4.0, 5.0]}))
    (4.0, '50% reach it')
    >>> propose_threshold(pl.DataFrame({"rating": [0.0, 1.0, 1.0]}))
    (1.0, '67% reach it')
    """
    ratings = events[c.RATING].drop_nulls()
    low, high = float(ratings.min()), float(ratings.max())  # type: ignore[arg-type]
    top = next((scale for scale in (1.0, 5.0, 10.0, 100.0) if low >= 0 and high <= scale), high)
    chosen = top if top == 1.0 or low < 0 else 0.8 * top
    share = float((ratings >= chosen).mean())  # type: ignore[arg-type]
    if not _RARE <= share <= 1 - _RARE:
        distinct = ratings.unique().sort(descending=True)
        shares = [(value, float((ratings >= value).mean())) for value in distinct.head(200)]
        chosen, share = next(((value, part) for value, part in shares if part >= 0.2), (high, share))
    return round(chosen, 6), f"{share:.0%} reach it"
