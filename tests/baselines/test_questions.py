"""Arrays of a log worked out by hand; histories of questions against loops; planted leaks are caught."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import ITEMS, Row, all_earlier, catalog_of, events_of, leaks, log_of, moments, own_earlier, small_rows

from rectune.baselines.questions import FROZEN, ONLINE, Floats, Log, Questions, ask, attributes, split_rows
from rectune.errors import DataError

# One warm-up event each; of a's other four one is validation and one test, and they are tied; of b's two likewise.
BY_HAND = [
    ("a", "2", 10, 1),
    ("a", "0", 20, 0),
    ("a", "1", 30, 1),
    ("a", "3", 40, 1),
    ("a", "4", 40, 0),
    ("b", "4", 5, 0),
    ("b", "2", 25, 1),
    ("b", "0", 25, 1),
]


def test_a_log_holds_the_events_as_worked_out_by_hand() -> None:
    log = log_of(BY_HAND, ITEMS)
    assert log.users == 2 and log.items == ["0", "1", "2", "3", "4"]
    assert log.user.tolist() == [0] * 5 + [1] * 3
    assert log.item.tolist() == [2, 0, 1, 3, 4, 4, 2, 0]
    assert log.label.tolist() == [1, 0, 1, 1, 0, 0, 1, 1]
    assert log.rating.tolist() == [5, 1, 5, 5, 1, 1, 5, 5]
    assert log.first.tolist() == [0] * 5 + [5] * 3
    assert log.stop.tolist() == [0, 1, 2, 3, 3, 5, 6, 6]
    assert log.known.tolist() == [True, True, True, False, False, True, False, False]
    assert log.asked.tolist() == [False, True, True, False, False, False, False, False]


def test_genres_and_years_have_a_row_for_an_item_that_the_catalog_does_not_hold() -> None:
    genres, year = attributes(catalog_of(ITEMS))
    # Comedy, Drama, War.
    assert genres.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0]]
    np.testing.assert_array_equal(year, [np.nan, 1981, 1982, np.nan, 1984, np.nan])


def test_a_year_that_is_no_number_is_not_known() -> None:
    _, year = attributes(pl.DataFrame({"item_id": ["1", "2", "3"], "year": ["1994", "about 1920", None]}))
    np.testing.assert_array_equal(year, [1994, np.nan, np.nan, np.nan])


def test_an_event_without_a_rating_has_none() -> None:
    events = events_of(BY_HAND).with_columns(rating=pl.lit(None, pl.Float64))
    assert np.isnan(Log.of(events, catalog_of(ITEMS)).rating).all()


def test_an_item_that_the_catalog_lacks_is_named() -> None:
    with pytest.raises(DataError, match=r"catalog.parquet: does not hold item '4'.*rectune prepare CONFIG --force"):
        log_of(BY_HAND, 4)


def test_online_and_frozen_histories_are_as_worked_out_by_hand() -> None:
    events, log = events_of(BY_HAND, test_ratio=0.5, validation_ratio=0.25), log_of(BY_HAND, ITEMS)
    rows = split_rows(events, "test")
    assert rows.tolist() == [3, 4, 7]
    assert ask(log, rows, ONLINE).stops.tolist() == [3, 3, 6]
    assert ask(log, np.array([1, 2, 3, 6]), ONLINE).stops.tolist() == [1, 2, 3, 6]
    assert ask(log, np.array([1, 2, 3, 6]), FROZEN).stops.tolist() == [1, 1, 1, 6]


def test_the_frozen_history_ends_before_a_moment_that_the_split_shares_with_the_one_before() -> None:
    events, log = events_of(BY_HAND), log_of(BY_HAND, ITEMS)
    assert split_rows(events, "validation").tolist() == [3, 6] and split_rows(events, "test").tolist() == [4, 7]
    assert ask(log, np.array([4, 7]), FROZEN).stops.tolist() == [3, 6]


def test_an_empty_split_and_an_unknown_protocol_are_named() -> None:
    events, log = events_of(BY_HAND), log_of(BY_HAND, ITEMS)
    with pytest.raises(DataError, match="validation: the split is empty"):
        split_rows(events.filter(pl.col("split") != "validation"), "validation")
    with pytest.raises(ValueError, match="protocol: got 'later', allowed: online, frozen"):
        ask(log, np.arange(2), "later")
    for protocol in (ONLINE, FROZEN):
        assert len(ask(log, np.empty(0, dtype=np.int64), protocol)) == 0


@given(rows=small_rows(), data=st.data())
@settings(max_examples=60, deadline=None)
def test_histories_are_those_of_a_loop_over_the_events(rows: list[Row], data: st.DataObject) -> None:
    log = log_of(rows, ITEMS)
    size = len(log.user)
    some = np.array(sorted(data.draw(st.sets(st.integers(0, size - 1), min_size=1))))
    for protocol in (ONLINE, FROZEN):
        asked = ask(log, some, protocol)
        for row, stop, moment in zip(asked.rows, asked.stops, moments(log, some, protocol), strict=True):
            mine = [one for one in range(size) if log.user[one] == log.user[row] and log.timestamp[one] < moment]
            assert list(range(log.first[row], stop)) == mine


# What the check below is for: aggregates over a user's own events, the strict one and four that leak.


def own_rate(log: Log, asked: Questions) -> Floats:
    return np.array([log.label[log.first[row] : stop].sum() for row, stop in zip(asked.rows, asked.stops, strict=True)])


def with_itself(log: Log, asked: Questions) -> Floats:
    return own_rate(log, Questions(asked.rows, asked.rows + 1))


def with_ties_before_it(log: Log, asked: Questions) -> Floats:
    return own_rate(log, Questions(asked.rows, asked.rows))


def with_everything_but_itself(log: Log, asked: Questions) -> Floats:
    return np.array([log.label[log.user == log.user[row]].sum() - log.label[row] for row in asked.rows])


def with_ratings(log: Log, asked: Questions) -> Floats:
    return log.rating[asked.rows]


TIED = [("a", "0", 1, 1), ("a", "1", 2, 0), ("a", "2", 2, 1), ("a", "3", 3, 1)]


def test_a_planted_leak_an_aggregate_that_includes_the_event_itself_is_caught() -> None:
    log, rows = log_of(TIED, ITEMS), np.arange(4)
    assert leaks(own_rate, log, rows, ONLINE) == []
    own = [(row, row) for row in range(4)]
    assert set(leaks(with_itself, log, rows, ONLINE)) == {*own, (2, 1)}
    assert leaks(with_ratings, log, rows, ONLINE) == own


def test_planted_leaks_of_tied_and_later_events_are_caught() -> None:
    log, rows = log_of(TIED, ITEMS), np.arange(4)
    assert leaks(with_ties_before_it, log, rows, ONLINE) == [(2, 1)]
    later = {(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 1), (2, 3)}
    assert set(leaks(with_everything_but_itself, log, rows, ONLINE)) == later


def test_a_planted_leak_of_the_users_other_events_of_the_split_is_caught_when_frozen() -> None:
    log, rows = log_of(TIED, ITEMS), np.array([1, 3])

    def online(log: Log, asked: Questions) -> Floats:
        return own_rate(log, ask(log, asked.rows, ONLINE))

    assert leaks(own_rate, log, rows, FROZEN) == []
    assert leaks(online, log, rows, ONLINE) == []
    assert leaks(online, log, rows, FROZEN) == [(3, 1), (3, 2)]


def test_a_planted_leak_of_other_users_later_events_is_caught() -> None:
    log = log_of([*TIED, ("b", "0", 2, 1), ("b", "1", 5, 0)], ITEMS)

    def everyone(log: Log, asked: Questions) -> Floats:
        return np.array([log.label[log.timestamp <= log.timestamp[row]].sum() for row in asked.rows])

    found = leaks(everyone, log, np.array([1]), ONLINE, all_earlier)
    assert found == [(1, 1), (1, 2), (1, 4)]
    assert own_earlier(log, np.array([4]), ONLINE).sum() == 0
