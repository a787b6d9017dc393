"""Item rates worked out by hand, counted by brute force, and free of the labels that they must not see."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rectune.baselines.item_rates import EARLIER, FOLDS, OTHER_USERS, item_rates, rate_table, rate_text

SPLITS = ["warmup", "train", "validation", "test"]
Row = tuple[str, str, int, int, str]


def events_of(rows: list[Row]) -> pl.DataFrame:
    """Events of (user, item, timestamp, label, split)."""
    names = ["user_id", "item_id", "timestamp", "label", "split"]
    return pl.DataFrame(rows, schema=names, orient="row").with_columns(pl.col("label").cast(pl.UInt8))


# Films x and y; user a's events at 20 are tied with b's at 20.
BY_HAND = events_of(
    [
        ("a", "x", 10, 1, "warmup"),
        ("a", "x", 20, 0, "train"),
        ("a", "y", 20, 1, "train"),
        ("b", "x", 20, 1, "train"),
        ("b", "y", 30, 0, "validation"),
        ("b", "x", 30, 1, "test"),
    ]
)


def test_earlier_rates_are_as_worked_out_by_hand() -> None:
    # The mean of the strictly earlier labels starts from one like and one dislike: 1/2 at 10, 2/3 at 20 (one like),
    # (1 + 0 + 1 + 1 + 1) / (4 + 2) = 4/6 at 30.
    found = item_rates(BY_HAND, EARLIER, 2.0)
    assert found.count.tolist() == [0, 1, 0, 1, 1, 3]
    expected = [
        1 / 2,
        (1 + 2 * 2 / 3) / 3,
        2 / 3,
        (1 + 2 * 2 / 3) / 3,
        (1 + 2 * 4 / 6) / 3,
        (2 + 2 * 4 / 6) / 5,
    ]
    np.testing.assert_allclose(found.rate, expected)
    np.testing.assert_allclose(found.log_odds, [np.log(rate / (1 - rate)) for rate in expected], atol=1e-12)


def test_other_users_rates_are_as_worked_out_by_hand() -> None:
    # Known are the first four events, 3 likes of 4, mean (3 + 1) / (4 + 2) = 2/3; a and b lie in different folds.
    # Outside a's fold 1 like of 1, mean 2/3; outside b's 2 of 3, mean (2 + 1) / (3 + 2) = 3/5.
    found = item_rates(BY_HAND, OTHER_USERS, 2.0)
    # a's x: b's one like. a's y: nothing. b's x: a's 1 of 2. Held out: everyone's training events, b's own too.
    assert found.count.tolist() == [1, 1, 0, 2, 1, 3]
    expected = [
        (1 + 4 / 3) / 3,
        (1 + 4 / 3) / 3,
        2 / 3,
        (1 + 2 * 3 / 5) / 4,
        (1 + 4 / 3) / 3,
        (2 + 4 / 3) / 5,
    ]
    np.testing.assert_allclose(found.rate, expected)


def test_the_table_at_the_end_is_as_worked_out_by_hand() -> None:
    # Without the held-out two: 3 likes of 4, mean 4/6; x 2 of 3, y 1 of 1.
    table = rate_table(BY_HAND, 2.0)
    assert table.columns == ["item_id", "rate", "count"]
    assert table["item_id"].to_list() == ["x", "y", None]
    assert table["count"].to_list() == [3, 1, 0]
    np.testing.assert_allclose(table["rate"], [(2 + 8 / 6) / 5, (1 + 8 / 6) / 3, 4 / 6])


def test_the_table_says_what_an_event_after_all_others_would_be_given() -> None:
    later = events_of([("c", item, 99, 1, "test") for item in ("x", "y", "z")])
    table = rate_table(BY_HAND, 5.0)
    found = item_rates(pl.concat([BY_HAND, later]), OTHER_USERS, 5.0)
    np.testing.assert_allclose(found.rate[-3:], table["rate"])
    assert found.count[-3:].tolist() == table["count"].to_list()


@pytest.mark.parametrize("source", [EARLIER, OTHER_USERS])
def test_log_odds_stay_finite_and_text_is_written(source: str) -> None:
    alike = BY_HAND.with_columns(label=pl.lit(1, pl.UInt8))
    assert np.isfinite(item_rates(alike, source, 1e-9).log_odds).all()
    assert rate_text(0.666, 3) == " (67% of 3)"


rows = st.lists(
    st.tuples(
        st.integers(0, 12).map(str),
        st.sampled_from("xyz"),
        st.integers(0, 5),
        st.integers(0, 1),
        st.sampled_from(SPLITS),
    ),
    min_size=1,
    max_size=30,
)
KNOWN = ("warmup", "train")


def by_hand_earlier(all_rows: list[Row], row: Row, strength: float) -> tuple[float, int]:
    before = [other for other in all_rows if other[2] < row[2]]
    mean = (sum(other[3] for other in before) + 1) / (len(before) + 2)
    mine = [other[3] for other in before if other[1] == row[1]]
    return (sum(mine) + strength * mean) / (len(mine) + strength), len(mine)


def by_hand_other_users(all_rows: list[Row], row: Row, strength: float) -> tuple[float, int]:
    users = sorted({other[0] for other in all_rows})
    known = [other for other in all_rows if other[4] in KNOWN]
    held_out = row[4] not in KNOWN
    apart = [other for other in known if held_out or (users.index(other[0]) - users.index(row[0])) % FOLDS]
    mean = (sum(other[3] for other in apart) + 1) / (len(apart) + 2)
    mine = [other[3] for other in apart if other[1] == row[1]]
    return (sum(mine) + strength * mean) / (len(mine) + strength), len(mine)


@given(rows=rows, strength=st.sampled_from([0.5, 5.0, 20.0]))
@settings(max_examples=60, deadline=None)
def test_rates_are_those_counted_by_brute_force(rows: list[Row], strength: float) -> None:
    for source, count in ((EARLIER, by_hand_earlier), (OTHER_USERS, by_hand_other_users)):
        found = item_rates(events_of(rows), source, strength)
        expected = [count(rows, row, strength) for row in rows]
        np.testing.assert_allclose(found.rate, [rate for rate, _ in expected], atol=1e-12)
        assert found.count.tolist() == [number for _, number in expected]


def flipped(all_rows: list[Row], chosen: Any) -> pl.DataFrame:
    return events_of([(*row[:3], 1 - row[3], row[4]) if chosen(row) else row for row in all_rows])


@given(rows=rows, moment=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_labels_of_the_same_moment_or_later_change_no_earlier_rate(rows: list[Row], moment: int) -> None:
    before = item_rates(events_of(rows), EARLIER, 5.0)
    after = item_rates(flipped(rows, lambda row: row[2] >= moment), EARLIER, 5.0)
    kept = np.array([row[2] <= moment for row in rows])
    np.testing.assert_array_equal(after.rate[kept], before.rate[kept])
    np.testing.assert_array_equal(after.count, before.count)


def test_an_earlier_label_changes_the_rates_behind_it() -> None:
    rows: list[Row] = [("a", "x", 1, 1, "train"), ("b", "x", 2, 1, "test"), ("b", "y", 2, 0, "train")]
    before = item_rates(events_of(rows), EARLIER, 5.0).rate
    after = item_rates(flipped(rows, lambda row: row[2] == 1), EARLIER, 5.0).rate
    assert (after < before).tolist() == [False, True, True]  # y's through the mean of all


@given(rows=rows)
@settings(max_examples=60, deadline=None)
def test_other_users_rates_count_no_label_of_the_own_user(rows: list[Row]) -> None:
    """Without the pull to the mean, flipping all of a user's labels leaves that user's training rates as they are."""
    for user in {row[0] for row in rows}:
        tiny = 1e-9
        before = item_rates(events_of(rows), OTHER_USERS, tiny)
        after = item_rates(flipped(rows, lambda row, user=user: row[0] == user), OTHER_USERS, tiny)
        own = np.array([row[0] == user and row[4] in KNOWN for row in rows], dtype=bool) & (before.count > 0)
        np.testing.assert_allclose(after.rate[own], before.rate[own], atol=2e-6)
        np.testing.assert_array_equal(after.count, before.count)


@given(rows=rows)
@settings(max_examples=60, deadline=None)
def test_held_out_labels_change_no_other_users_rate(rows: list[Row]) -> None:
    before = item_rates(events_of(rows), OTHER_USERS, 5.0)
    after = item_rates(flipped(rows, lambda row: row[4] not in KNOWN), OTHER_USERS, 5.0)
    np.testing.assert_array_equal(after.rate, before.rate)


def test_flipping_an_events_own_label_leaves_its_other_users_rate_alone() -> None:
    rows: list[Row] = [("a", "x", 1, 1, "train"), ("b", "x", 2, 1, "train"), ("b", "y", 2, 0, "train")]
    before = item_rates(events_of(rows), OTHER_USERS, 5.0).rate
    after = item_rates(flipped(rows, lambda row: row[0] == "a"), OTHER_USERS, 5.0).rate
    assert after[0] == before[0]
