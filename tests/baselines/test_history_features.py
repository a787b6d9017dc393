"""Counts of a history worked out by hand, against loops over its events, and blind to what comes after it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from synthetic import ITEMS, Row, leaks, log_of, own_earlier, small_rows

from rectune.baselines.history_features import NAMES, STRENGTH, history_features, moving_average, user_rate
from rectune.baselines.questions import FROZEN, ONLINE, Floats, Log, Questions, ask

# Item 0 is drama and comedy, 1 drama, 2 has no genre, 3 comedy, 4 all three; the last two events are tied.
BY_HAND: list[Row] = [
    ("a", "0", 1, 1),
    ("a", "1", 2, 0),
    ("a", "2", 3, 1),
    ("a", "3", 4, 1),
    ("a", "4", 4, 0),
]


def test_features_are_as_worked_out_by_hand() -> None:
    log = log_of(BY_HAND, ITEMS)
    found = dict(zip(NAMES, history_features(log, ask(log, np.arange(5), ONLINE), 0.6).T, strict=True))
    assert found["history_length"].tolist() == [0, 1, 2, 3, 3]
    # Five events' worth of 0.6.
    rate = np.array([3 / 5, 4 / 6, 4 / 7, 5 / 8, 5 / 8])
    np.testing.assert_allclose(found["user_rate"], rate)
    # Of the history of the last two: drama 1 of 2, comedy 1 of 1, war 0 of 0; three events' worth of the user's rate.
    drama, comedy, war = (1 + 3 * rate[3]) / 5, (1 + 3 * rate[3]) / 4, rate[3]
    by_genre = [0, (1 + 3 * rate[1]) / 4 - rate[1], 0, comedy - rate[3], (drama + comedy + war) / 3 - rate[3]]
    np.testing.assert_allclose(found["genre_affinity"], by_genre, atol=1e-15)
    assert found["genre_count"].tolist() == [0, 1, 0, 1, 3]
    np.testing.assert_allclose(found["last_3"], [rate[0], *((n + 2 * r) / (m + 2) for n, m, r in (
        (1, 1, rate[1]), (1, 2, rate[2]), (2, 3, rate[3]), (2, 3, rate[4])))])  # fmt: skip


def test_a_moving_average_forgets_what_is_further_back_than_its_length() -> None:
    log = log_of([("a", str(at % 5), at, label) for at, label in enumerate([1, 1, 1, 0, 0, 1, 0])], ITEMS)
    asked = Questions(np.array([6]), np.array([6]))
    for length, likes, counted in ((1, 1, 1), (2, 1, 2), (3, 1, 3), (4, 2, 4), (9, 4, 6)):
        found = moving_average(log, asked, length, np.array([0.5]))
        np.testing.assert_allclose(found, [(likes + 1) / (counted + 2)])


def by_loops(log: Log, row: int, stop: int, mean: float) -> list[float]:
    history = range(log.first[row], stop)
    labels = [log.label[event] for event in history]
    rate = (sum(labels) + STRENGTH * mean) / (len(labels) + STRENGTH)
    affinities, seen = [], 0
    for genre in np.flatnonzero(log.genres[log.item[row]]):
        of_genre = [log.label[event] for event in history if log.genres[log.item[event], genre]]
        affinities.append((sum(of_genre) + 3 * rate) / (len(of_genre) + 3) - rate)
        seen += len(of_genre)
    affinity = float(np.mean(affinities)) if affinities else 0.0
    recent = [(sum(labels[-length:]) + 2 * rate) / (len(labels[-length:]) + 2) for length in (3, 10, 30)]
    return [len(labels), rate, affinity, seen, *recent]


@given(rows=small_rows())
@settings(max_examples=60, deadline=None)
def test_features_are_those_of_loops_over_the_history(rows: list[Row]) -> None:
    log = log_of(rows, ITEMS)
    every = np.arange(len(log.user))
    for protocol in (ONLINE, FROZEN):
        asked = ask(log, every, protocol)
        expected = [by_loops(log, row, stop, 0.6) for row, stop in zip(asked.rows, asked.stops, strict=True)]
        np.testing.assert_allclose(history_features(log, asked, 0.6), expected, atol=1e-12)
        np.testing.assert_allclose(user_rate(log, asked, 0.6), [each[1] for each in expected], atol=1e-12)


@given(rows=small_rows())
@settings(max_examples=40, deadline=None)
def test_no_feature_changes_with_a_label_that_its_question_may_not_see(rows: list[Row]) -> None:
    log = log_of(rows, ITEMS)
    every = np.arange(len(log.user))
    for protocol in (ONLINE, FROZEN):
        assert leaks(lambda log, asked: history_features(log, asked, 0.6), log, every, protocol) == []


@pytest.mark.parametrize("protocol", [ONLINE, FROZEN])
def test_the_same_features_of_a_history_that_holds_the_event_itself_are_caught(protocol: str) -> None:
    log, every = log_of(BY_HAND, ITEMS), np.arange(5)

    def leaky(log: Log, asked: Questions) -> Floats:
        return history_features(log, Questions(asked.rows, asked.rows + 1), 0.6)

    found = leaks(leaky, log, every, protocol, own_earlier)
    assert {(row, row) for row in every} <= set(found)


def test_no_history_and_no_question_give_numbers() -> None:
    log = log_of(BY_HAND, ITEMS)
    nothing = history_features(log, Questions(np.array([3]), np.array([0])), 0.6)
    np.testing.assert_allclose(nothing, [[0, 0.6, 0, 0, 0.6, 0.6, 0.6]], atol=1e-15)
    empty = np.empty(0, dtype=np.int64)
    assert history_features(log, Questions(empty, empty), 0.6).shape == (0, len(NAMES))
