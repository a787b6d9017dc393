"""What a first look at a table finds, warns of and proposes, worked out by hand."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from rectune.data.look import Look, look, propose_histories, propose_threshold, say_look, warnings
from rectune.data.sources.source import Nouns

NOUNS = Nouns("orders", "dishes")


def events(users: list[int], **columns: Any) -> pl.DataFrame:
    """As many events of each user as the list says, of different times and items."""
    user = [str(place) for place, count in enumerate(users) for _ in range(count)]
    size = len(user)
    base: dict[str, Any] = {
        "user_id": user,
        "item_id": [str(at % 3) for at in range(size)],
        "rating": [float(at % 5 + 1) for at in range(size)],
        "timestamp": [1_600_000_000 + 86_400 * at for at in range(size)],
        "label": [at % 2 for at in range(size)],
    }
    return pl.DataFrame({**base, **columns}, schema_overrides={"rating": pl.Float64})


def test_a_look_counts_users_items_density_likes_ties_and_lengths() -> None:
    stamps = [1, 1, 2, 3, 3, 3, 4, 5, 6, 7]
    found = look(events([2, 3, 5], timestamp=stamps))
    # User 1's times are 2, 3, 3 and user 2's 3, 4, 5, 6, 7: ties are user 0's two and user 1's two.
    assert found == Look(
        events=10, users=3, items=3, density=8 / 9, liked=0.5, ratings=(1.0, 5.0, 5), first=1, last=7, tied=0.4,
        lengths=(2, 3, 5, 5), busiest=0.5, short=pytest.approx(1 / 3), once=0.0,
    )  # fmt: skip


def test_a_look_is_told_in_four_lines() -> None:
    said: list[str] = []
    say_look(look(events([2, 3, 5])), NOUNS, True, said.append)
    assert said == [
        "look: 10 orders of 3 users about 3 dishes; 88.89% of all pairs",
        "look: 50.0% liked; ratings from 1 to 5, 5 different",
        "look: from 2020-09-13 to 2020-09-22; 0.0% share user and time",
        "look: events of a user: p10 2, p50 3, p90 5, most 5",
    ]


@pytest.mark.parametrize(
    ("users", "columns", "ordered", "words"),
    [
        ([4, 4, 4], {}, False, "there is no time order: histories and splits go by the order of the rows"),
        ([4, 4, 4], {"timestamp": [7] * 12}, True, "all orders have one time, so every history is empty"),
        ([4, 4, 4], {"timestamp": [1, 1, 2, 2] * 3}, True, "100% of the orders share their time with another"),
        ([4, 4, 4], {"rating": [3.0] * 12}, True, "all ratings are 3: they tell nothing"),
        ([4, 4, 4], {"label": [1] * 12}, True, "all orders are liked: there is nothing to tell apart"),
        ([4, 4, 4], {"label": [0] * 12}, True, "all orders are not liked"),
        ([40, 40, 20], {"label": [1] + [0] * 99}, True, "1.0% are liked: always the same answer is hard to beat"),
        ([12], {}, True, "there is one user only"),
        ([6, 3, 3], {}, True, "one user has 50% of all orders"),
        ([1, 2, 2, 9, 9], {}, True, "60% of the users have fewer than three orders"),
        ([3, 3, 3], {"item_id": list("abcdefggg")}, True, "86% of the dishes occur once"),
    ],
)
def test_what_is_odd_is_warned_of(users: list[int], columns: dict[str, Any], ordered: bool, words: str) -> None:
    assert any(words in line for line in warnings(look(events(users, **columns)), NOUNS, ordered))


def test_nothing_is_warned_of_where_nothing_is_odd() -> None:
    assert warnings(look(events([4, 4, 4])), NOUNS, True) == []


def test_a_history_is_as_long_as_leaves_half_of_the_events_and_most_users() -> None:
    assert propose_histories(events([40] * 5)).history_len == 15
    # 15 of 20 would leave a quarter of the events, 10 half of them.
    found = propose_histories(events([20] * 5))
    assert (found.history_len, found.min_history) == (10, None)
    assert found.why == "leaves 50% of the events to ask about, of 5 users"
    # Users of one event each are lost whatever the length: they are asked about their first.
    found = propose_histories(events([1] * 30 + [4] * 5))
    assert (found.history_len, found.min_history) == (4, 0) and "from their first event on" in found.why


@pytest.mark.parametrize(
    ("ratings", "threshold"),
    [
        ([1, 2, 3, 4, 5], 4.0),
        ([2, 4, 6, 8, 10], 8.0),
        ([10, 50, 85, 100], 80.0),
        ([0, 1, 1], 1.0),
        ([5] * 98 + [4, 3], 5.0),
        ([1, 2, 3] * 30, 3.0),
        ([-3, -1, 0, 2, 4], 4.0),
    ],
)
def test_the_threshold_divides_the_ratings(ratings: list[float], threshold: float) -> None:
    assert propose_threshold(pl.DataFrame({"rating": [float(one) for one in ratings]}))[0] == threshold
