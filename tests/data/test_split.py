from __future__ import annotations

import math

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rectune.data.folder import history_slices
from rectune.data.label import add_label
from rectune.data.split import Timeline, leak_note, leak_share, timeline
from rectune.errors import DataError


def frame(rows: list[tuple[str, str, float, int]]) -> pl.DataFrame:
    schema = {"user_id": pl.String, "item_id": pl.String, "rating": pl.Float64, "timestamp": pl.Int64}
    return add_label(pl.DataFrame(rows, schema=schema, orient="row"), 4.0)


def one_user(count: int, user: str = "1") -> pl.DataFrame:
    return frame([(user, str(place), 4.0, 100 + place) for place in range(count)])


def split(data: pl.DataFrame, history_len: int = 2, test: float = 0.1, validation: float = 0.05) -> Timeline:
    return timeline(data, history_len=history_len, test_ratio=test, validation_ratio=validation)


def names(count: int, **values: float) -> list[str]:
    return split(one_user(count), **values).events["split"].to_list()  # type: ignore[arg-type]


def test_a_rating_at_the_threshold_is_liked() -> None:
    data = add_label(pl.DataFrame({"rating": [0.5, 3.5, 4.0, 5.0]}), 4.0)
    assert data["label"].to_list() == [0, 0, 1, 1]
    assert data.schema["label"] == pl.UInt8


def test_twenty_usable_events_give_two_test_and_one_validation() -> None:
    assert names(22) == ["warmup"] * 2 + ["train"] * 17 + ["validation"] + ["test"] * 2


def test_one_usable_event_is_a_test_event() -> None:
    assert names(3) == ["warmup", "warmup", "test"]


def test_two_usable_events_are_validation_and_test() -> None:
    assert names(4) == ["warmup", "warmup", "validation", "test"]


def test_three_usable_events_are_one_of_each() -> None:
    assert names(5) == ["warmup", "warmup", "train", "validation", "test"]


@pytest.mark.parametrize(("usable", "ratio", "tests"), [(10, 0.1, 1), (100, 0.29, 29), (30, 0.1, 3), (19, 0.1, 1)])
def test_shares_are_floored_as_decimals_not_as_binary_fractions(usable: int, ratio: float, tests: int) -> None:
    assert names(usable + 2, test=ratio).count("test") == tests


def test_a_user_with_no_more_events_than_the_history_is_left_out_and_counted() -> None:
    result = split(pl.concat([one_user(2, "7"), one_user(3, "8")]))
    assert result.events["user_id"].unique().to_list() == ["8"]
    assert (result.short_users, result.short_events) == (1, 2)


def test_no_user_left_is_an_error_that_says_how_long_the_longest_history_is() -> None:
    with pytest.raises(DataError, match="busiest user has 5 events"):
        split(one_user(5), history_len=15)


def test_users_come_in_numeric_order_and_tied_events_in_file_order() -> None:
    data = frame([("10", "a", 4, 5), ("9", "b", 4, 7), ("9", "c", 4, 5), ("9", "d", 4, 5), ("10", "e", 4, 5)])
    events = split(data, history_len=1).events
    assert events["user_id"].to_list() == ["9", "9", "9", "10", "10"]
    assert events["item_id"].to_list() == ["c", "d", "b", "a", "e"]
    assert events["position"].to_list() == [0, 1, 2, 0, 1]
    assert events["history_end"].to_list() == [0, 0, 2, 0, 0]
    assert events["row_id"].to_list() == [2, 3, 1, 0, 4]


def test_user_names_that_are_no_numbers_are_sorted_as_text() -> None:
    data = pl.concat([one_user(3, "b"), one_user(3, "10"), one_user(3, "9")])
    assert split(data).events["user_id"].unique(maintain_order=True).to_list() == ["10", "9", "b"]


def test_a_history_leaves_out_tied_events_and_keeps_to_its_length() -> None:
    times = [1, 2, 2, 2, 3, 4]
    data = frame([("1", str(place), 4.0, time) for place, time in enumerate(times)])
    events = split(data, history_len=2).events
    start, stop = history_slices(events, 2)
    # Position 3 may see positions 1 and 2, but both are of its own moment; position 2 may see only 0.
    assert list(zip(start.tolist(), stop.tolist(), strict=True)) == [(0, 0), (0, 1), (0, 1), (1, 1), (2, 4), (3, 5)]


def test_history_slices_refuse_a_filtered_frame() -> None:
    events = split(one_user(6)).events
    with pytest.raises(ValueError, match="whole timelines"):
        history_slices(events.filter(pl.col("split") == "test"), 2)


def test_a_smaller_draw_of_users_is_part_of_a_larger_one_and_depends_on_the_seed() -> None:
    data = pl.concat([one_user(4, str(user)) for user in range(40)])

    def drawn(count: int, seed: int) -> set[str]:
        result = timeline(data, history_len=2, test_ratio=0.1, validation_ratio=0.1, max_users=count, seed=seed)
        assert result.users_not_drawn == 40 - count
        assert result.events_not_drawn == (40 - count) * 4
        return set(result.events["user_id"].to_list())

    assert drawn(5, 1) < drawn(20, 1)
    assert drawn(5, 1) == drawn(5, 1)
    assert drawn(5, 1) != drawn(5, 2)
    # The five smallest of sha256("1:0") to sha256("1:39"), worked out with sha256sum.
    assert drawn(5, 1) == {"30", "39", "29", "38", "27"}


def test_the_leak_is_the_share_of_test_events_before_the_last_train_event() -> None:
    early = frame([("1", str(place), 4.0, place) for place in range(5)])
    late = frame([("2", str(place), 4.0, 100 + place) for place in range(5)])
    events = split(pl.concat([early, late])).events
    assert leak_share(events) == 0.5  # user 1's test event at 4 comes before user 2's train event at 102
    assert "50.0%" in leak_note(events)
    assert leak_share(split(one_user(3)).events) is None
    assert "no train events" in leak_note(split(one_user(3)).events)


interactions = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 6)), min_size=1, max_size=60)


@settings(max_examples=150, deadline=None)
@given(interactions, st.integers(1, 4), st.floats(0.01, 0.6), st.floats(0.01, 0.35))
def test_every_split_is_a_partition_in_time_order_by_the_formula(
    drawn: list[tuple[int, int]], history_len: int, test: float, validation: float
) -> None:
    data = frame([(str(user), str(row), 4.0, time) for row, (user, time) in enumerate(drawn)])
    sizes = dict(data.group_by("user_id").len().iter_rows())
    if max(sizes.values()) <= history_len:
        with pytest.raises(DataError):
            split(data, history_len, test, validation)
        return
    result = split(data, history_len, test, validation)
    events = result.events
    assert events.height + result.short_events == data.height
    assert sorted(events["row_id"].to_list()) == list(range(events.height))
    rank = {"warmup": 0, "train": 1, "validation": 2, "test": 3}
    for (user,), own in events.group_by("user_id", maintain_order=True):
        splits = own["split"].to_list()
        usable = sizes[user] - history_len
        tests = min(usable, max(1, math.floor(usable * test + 1e-9)))
        assert own["position"].to_list() == list(range(sizes[user]))
        assert own["timestamp"].is_sorted()
        assert [rank[name] for name in splits] == sorted(rank[name] for name in splits)
        assert splits.count("warmup") == history_len
        assert splits.count("test") == tests
        wanted = max(1, math.floor(usable * validation + 1e-9))
        assert splits.count("validation") == min(usable - tests, wanted)


@settings(max_examples=100, deadline=None)
@given(interactions, st.integers(1, 4))
def test_no_event_sees_a_tied_a_future_or_another_users_event(drawn: list[tuple[int, int]], history_len: int) -> None:
    data = frame([(str(user), str(row), 4.0, time) for row, (user, time) in enumerate(drawn)])
    if data.group_by("user_id").len()["len"].max() <= history_len:  # type: ignore[operator]
        return
    events = split(data, history_len).events
    starts, stops = history_slices(events, history_len)
    rows = events.select("user_id", "timestamp", "position").rows()
    for row, (user, time, position) in enumerate(rows):
        seen = rows[starts[row] : stops[row]]
        assert all(past[0] == user and past[1] < time and past[2] >= position - history_len for past in seen)
        earlier = [past for past in rows if past[0] == user and past[1] < time and past[2] >= position - history_len]
        assert list(seen) == earlier
