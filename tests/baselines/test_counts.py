"""Rates worked out by hand and by brute force over all events; aggregates that leak are caught by the same check."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from synthetic import (
    ITEMS,
    Row,
    all_earlier,
    all_earlier_and_known,
    and_known,
    before_training,
    events_of,
    leaks,
    log_of,
    moments,
    small_rows,
)

from rectune.baselines.counts import (
    STRENGTH,
    asked_at,
    five_features,
    log_odds,
    rolling_features,
    rolling_item_rate,
    static_rate,
)
from rectune.baselines.history_features import moving_average, user_rate
from rectune.baselines.item_rates import EARLIER, item_rates
from rectune.baselines.questions import FROZEN, ONLINE, Floats, Log, Questions, ask

# Warm-up, train, validation and test of a, and of b; a's 20 is b's 20, and b's 30 holds two events.
BY_HAND: list[Row] = [
    ("a", "0", 10, 1),
    ("a", "0", 20, 0),
    ("a", "1", 30, 1),
    ("a", "0", 40, 1),
    ("b", "0", 20, 1),
    ("b", "1", 25, 0),
    ("b", "0", 30, 0),
    ("b", "1", 30, 1),
]


def test_rolling_rates_are_as_worked_out_by_hand() -> None:
    log = log_of(BY_HAND, ITEMS)
    found = rolling_item_rate(log, ask(log, np.arange(8), ONLINE))
    # Of all that is strictly earlier: likes, events; and of the item.
    earlier = [
        (0, 0, 0, 0),
        (1, 1, 1, 1),
        (2, 4, 0, 1),
        (4, 7, 2, 4),
        (1, 1, 1, 1),
        (2, 3, 0, 0),
        (2, 4, 2, 3),
        (2, 4, 0, 1),
    ]
    assert found.count.tolist() == [each[3] for each in earlier]
    expected = [
        (likes + 5 * (all_likes + 1) / (events + 2)) / (count + 5) for all_likes, events, likes, count in earlier
    ]
    np.testing.assert_allclose(found.rate, expected)


def test_frozen_rolling_rates_count_what_is_before_the_first_event_of_the_split() -> None:
    log = log_of(BY_HAND, ITEMS)
    rows = np.array([1, 2, 3])
    # All three are asked at 20, when one event is known.
    asked = ask(log, rows, FROZEN)
    assert asked_at(log, asked).tolist() == [20, 20, 20]
    found = rolling_item_rate(log, asked)
    assert found.count.tolist() == [1, 0, 1]
    np.testing.assert_allclose(found.rate, [(1 + 5 * 2 / 3) / 6, 2 / 3, (1 + 5 * 2 / 3) / 6])


def test_static_rates_are_as_worked_out_by_hand() -> None:
    log = log_of(BY_HAND, ITEMS)
    assert np.flatnonzero(log.known).tolist() == [0, 1, 4, 5]
    asked = ask(log, np.array([2, 3, 6, 7]), ONLINE)
    # Known are 2 likes of 4: item 0 has 2 of 3, item 1 has 0 of 1; a and b have 1 of 2.
    by_item = static_rate(log, log.known, log.item, ITEMS + 1, asked)
    assert by_item.count.tolist() == [1, 3, 3, 1]
    np.testing.assert_allclose(by_item.rate, [2.5 / 6, 4.5 / 8, 4.5 / 8, 2.5 / 6])
    by_user = static_rate(log, log.known, log.user, log.users, asked)
    assert by_user.count.tolist() == [2, 2, 2, 2]
    np.testing.assert_allclose(by_user.rate, [0.5] * 4)


def test_log_odds_are_finite_at_the_edges() -> None:
    np.testing.assert_allclose(log_odds(np.array([0.25, 0.5, 0.75])), [-np.log(3), 0, np.log(3)], atol=1e-15)
    edges = log_odds(np.array([0.0, 1.0]))
    assert np.isfinite(edges).all() and edges[0] == pytest.approx(-edges[1]) == pytest.approx(-np.log(1e6), rel=1e-6)


def by_brute_force(log: Log, row: int, moment: int) -> tuple[float, int]:
    earlier = [event for event in range(len(log.user)) if log.timestamp[event] < moment]
    mean = (sum(log.label[event] for event in earlier) + 1) / (len(earlier) + 2)
    mine = [log.label[event] for event in earlier if log.item[event] == log.item[row]]
    return (sum(mine) + STRENGTH * mean) / (len(mine) + STRENGTH), len(mine)


@given(rows=small_rows())
@settings(max_examples=60, deadline=None)
def test_rolling_rates_are_those_counted_by_brute_force(rows: list[Row]) -> None:
    log = log_of(rows, ITEMS)
    every = np.arange(len(log.user))
    for protocol in (ONLINE, FROZEN):
        found = rolling_item_rate(log, ask(log, every, protocol))
        at = moments(log, every, protocol)
        expected = [by_brute_force(log, row, moment) for row, moment in zip(every, at, strict=True)]
        np.testing.assert_allclose(found.rate, [rate for rate, _ in expected], atol=1e-12)
        assert found.count.tolist() == [count for _, count in expected]


def test_rolling_rates_are_those_that_the_prompts_show() -> None:
    """The other implementation, which tables of prompts use."""
    events, log = events_of(BY_HAND), log_of(BY_HAND, ITEMS)
    shown, found = item_rates(events, EARLIER, STRENGTH), rolling_item_rate(log, ask(log, np.arange(8), ONLINE))
    np.testing.assert_allclose(found.rate, shown.rate)
    assert found.count.tolist() == shown.count.tolist()


def test_features_for_boosting_are_as_worked_out_by_hand() -> None:
    day = 86_400
    rows = [("a", "0", 0, 1), ("a", "1", 2 * day, 0), ("a", "2", 5 * day, 1), ("a", "4", 5 * day, 1)]
    log = log_of(rows, ITEMS)
    found = rolling_features(log, ask(log, np.arange(4), ONLINE))
    assert found.shape == (4, 2 + 7 + 2)
    np.testing.assert_allclose(found[:, 0], log_odds(rolling_item_rate(log, ask(log, np.arange(4), ONLINE)).rate))
    np.testing.assert_array_equal(found[:, -2], [np.nan, 1981, 1982, 1984])
    # Days since the event before; none before the first.
    np.testing.assert_array_equal(found[:, -1], [np.nan, 2, 3, 3])


def test_five_features_are_the_rates_and_counts_of_user_and_item_and_the_last_ten_labels() -> None:
    log = log_of(BY_HAND, ITEMS)
    asked = ask(log, np.arange(8), ONLINE)
    item, mean = rolling_item_rate(log, asked), log.label[log.known].mean()
    rate = user_rate(log, asked, mean)
    found = five_features(log, asked)
    assert found[:, 1].tolist() == [0, 1, 2, 3, 0, 1, 2, 2]
    np.testing.assert_allclose(found[:, 0], rate)
    np.testing.assert_allclose(found[:, 2:4], np.column_stack([item.rate, item.count]))
    np.testing.assert_allclose(found[:, 4], moving_average(log, asked, 10, rate))


@given(rows=small_rows())
@settings(max_examples=40, deadline=None)
def test_no_rolling_aggregate_changes_with_a_label_that_its_question_may_not_see(rows: list[Row]) -> None:
    log = before_training(log_of(rows, ITEMS))
    every = np.flatnonzero(~log.known)
    for protocol in (ONLINE, FROZEN):
        for feature in (rolling_features, five_features, lambda log, asked: rolling_item_rate(log, asked).rate):
            assert leaks(feature, log, every, protocol, all_earlier_and_known) == []


@given(rows=small_rows())
@settings(max_examples=40, deadline=None)
def test_no_static_rate_changes_with_the_label_of_a_held_out_event(rows: list[Row]) -> None:
    log = log_of(rows, ITEMS)
    held_out = np.flatnonzero(~log.known)

    def static(log: Log, asked: Questions) -> Floats:
        by_item = static_rate(log, log.known, log.item, len(log.items) + 1, asked)
        by_user = static_rate(log, log.known, log.user, log.users, asked)
        return np.column_stack([by_item.rate, by_item.count, by_user.rate, by_user.count])

    for protocol in (ONLINE, FROZEN):
        assert leaks(static, log, held_out, protocol, and_known) == []


def test_planted_leaks_in_item_rates_are_caught() -> None:
    log, every = log_of(BY_HAND, ITEMS), np.arange(8)

    def until_now(log: Log, asked: Questions) -> Floats:
        """Of the item at this moment or before: with the event itself and those tied with it."""
        return rolling_item_rate(log, asked).rate + np.array(
            [log.label[(log.item == log.item[row]) & (log.timestamp == log.timestamp[row])].sum() for row in asked.rows]
        )

    def of_all(log: Log, asked: Questions) -> Floats:
        """Of the item at any time, held out or not."""
        return static_rate(log, np.ones(len(log.user), dtype=bool), log.item, len(log.items) + 1, asked).rate

    assert leaks(lambda log, asked: rolling_item_rate(log, asked).rate, log, every, ONLINE, all_earlier) == []
    own = [(row, row) for row in range(8)]
    # 1 and 4 are of one item at one moment, and so are 2 and 7.
    assert sorted(leaks(until_now, log, every, ONLINE, all_earlier)) == sorted([*own, (1, 4), (4, 1), (2, 7), (7, 2)])
    assert set(own) < set(leaks(of_all, log, every, ONLINE, all_earlier))
    assert (2, 2) in leaks(of_all, log, np.array([2]), ONLINE, and_known)


def test_a_training_events_own_label_is_in_the_mean_of_all_and_nowhere_else() -> None:
    """A mean of all known labels is one number for all questions; with it held, nothing of the own label is left."""
    log = log_of(BY_HAND, ITEMS)
    row = np.flatnonzero(log.asked)[:1]
    assert (row[0], row[0]) in leaks(rolling_features, log, row, ONLINE, all_earlier)
    assert leaks(rolling_features, before_training(log), row, ONLINE, all_earlier_and_known) == []
