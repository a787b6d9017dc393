from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rectune.data.folder import history_slices
from rectune.data.label import add_label
from rectune.data.sources.movielens import read_movielens
from rectune.data.split import COLUMN, GLOBAL_TIME, LEAVE_ONE_OUT, TIMELINE, Timeline, timeline
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


def by_moment(data: pl.DataFrame, history_len: int = 2, test: float = 0.1, validation: float = 0.1) -> Timeline:
    return timeline(data, split=GLOBAL_TIME, history_len=history_len, test_ratio=test, validation_ratio=validation)


def test_one_moment_cuts_all_users_and_new_users_first_events_are_asked_about() -> None:
    old = frame([("1", str(place), 4.0, 10 * place) for place in range(10)])  # 0, 10, ... 90
    new = frame([("2", str(place), 4.0, 75 + 10 * place) for place in range(4)])  # 75, 85, 95, 105
    result = by_moment(pl.concat([old, new]), test=0.3, validation=0.2)
    # Ten are usable, user 1's from 20 on and user 2's at 95 and 105: three from 90 on, two more from 70 on.
    assert result.cuts == (70, 90, 10, 2, 3)
    assert result.events["split"].to_list() == [
        *["warmup"] * 2, *["train"] * 5, "validation", "validation", "test",
        "validation", "validation", "test", "test",
    ]  # fmt: skip
    starts, stops = history_slices(result.events, 2)
    assert (stops - starts).tolist()[10:] == [0, 1, 2, 2]


def test_a_moment_is_never_cut_so_that_the_nearest_share_is_taken() -> None:
    # Behind the two warm-up events: 4 at 10, 2 at 20, 3 at 30, 1 at 40.
    times = [0, 1, 10, 10, 10, 10, 20, 20, 30, 30, 30, 40]
    data = frame([("1", str(place), 4.0, time) for place, time in enumerate(times)])
    # Ten usable events: 0.1 of them is the one at 40, and 2.6 is nearer to the four from 30 on than to one; the first
    # moment is left to train and the second to validation, whatever is asked for.
    assert by_moment(data, test=0.1, validation=0.3).cuts == (30, 40, 10, 3, 1)
    assert by_moment(data, test=0.26, validation=0.2).cuts == (20, 30, 10, 2, 4)
    assert by_moment(data, test=0.9, validation=0.05).cuts == (20, 30, 10, 2, 4)


def test_of_two_shares_equally_near_the_later_moment_is_taken() -> None:
    cuts = by_moment(one_user(12), test=0.25, validation=0.25).cuts
    assert cuts is not None and (cuts.usable_test, cuts.usable_validation) == (2, 2)


def test_fewer_than_three_moments_cannot_be_cut_in_three() -> None:
    data = frame([("1", str(place), 4.0, time) for place, time in enumerate([0, 1, 2, 3, 3, 3])])
    with pytest.raises(DataError, match=r"split: global_time needs .* behind their users' first 2 have 2; use split="):
        by_moment(data)


def test_leave_one_out_takes_the_last_event_of_each_user_and_the_one_before() -> None:
    data = pl.concat([one_user(count, str(count)) for count in (2, 3, 4, 5, 60)])
    result = timeline(data, split=LEAVE_ONE_OUT, history_len=2, test_ratio=0.5, validation_ratio=0.4)
    found = {user: own["split"].to_list()[2:] for (user,), own in result.events.group_by("user_id")}
    assert found == {
        "3": ["test"],
        "4": ["validation", "test"],
        "5": ["train", "validation", "test"],
        "60": ["train"] * 56 + ["validation", "test"],
    }
    assert result.cuts is None


def test_leave_one_out_takes_the_last_in_file_order_of_a_tied_moment() -> None:
    data = frame([("1", item, 4.0, time) for item, time in [("a", 1), ("late", 9), ("later", 9), ("b", 2)]])
    events = timeline(data, split=LEAVE_ONE_OUT, history_len=1, test_ratio=0.1, validation_ratio=0.1).events
    assert events.select("item_id", "split").rows() == [
        ("a", "warmup"), ("b", "train"), ("late", "validation"), ("later", "test"),
    ]  # fmt: skip


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="'weekly', allowed: timeline, global_time, leave_one_out"):
        timeline(one_user(9), split="weekly", history_len=2, test_ratio=0.1, validation_ratio=0.1)


@pytest.mark.parametrize(
    ("split", "counts"),
    [
        (GLOBAL_TIME, {"warmup": 8175, "train": 77933, "validation": 4884, "test": 9844}),
        (LEAVE_ONE_OUT, {"warmup": 9150, "train": 90466, "validation": 610, "test": 610}),
    ],
)
def test_ml_latest_small_is_split_to_the_row(latest_small: Path, split: str, counts: dict[str, int]) -> None:
    data = add_label(read_movielens(latest_small).interactions, 4.0)
    result = timeline(data, split=split, history_len=15, test_ratio=0.1, validation_ratio=0.05)
    assert dict(result.events.group_by("split").len().iter_rows()) == counts
    # 91,686 usable events: 9,168.6 and 4,584.3 are wanted.
    assert result.cuts == ((1481817439, 1498499019, 91686, 4584, 9169) if split == GLOBAL_TIME else None)


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


def timelines_of(drawn: list[tuple[int, int]], history_len: int) -> dict[int, list[tuple[int, int]]]:
    """Time and row of each kept user's events in order, by Python's stable sort."""
    own: dict[int, list[tuple[int, int]]] = {}
    for row, (user, time) in enumerate(drawn):
        own.setdefault(user, []).append((time, row))
    return {user: sorted(events) for user, events in own.items() if len(events) > history_len}


def split_by_moment(
    drawn: list[tuple[int, int]], history_len: int, test: Fraction, validation: Fraction
) -> dict[int, str] | None:
    """The split of each row by trying every pair of moments in exact arithmetic; None where there is no such pair."""
    own = timelines_of(drawn, history_len)
    usable = [time for events in own.values() for time, _ in events[history_len:]]
    moments = sorted(set(usable))

    def gap(low: int, high: int | None, share: Fraction) -> Fraction:
        inside = sum(low <= time and (high is None or time < high) for time in usable)
        return abs(inside - share * len(usable))

    pairs = [(at, before) for at in moments for before in moments if before < at and before > moments[0]]
    if not pairs:
        return None
    at, before = min(pairs, key=lambda pair: (
        gap(pair[0], None, test), -pair[0], gap(pair[1], pair[0], validation), -pair[1],
    ))  # fmt: skip
    names = {}
    for events in own.values():
        for place, (time, row) in enumerate(events):
            early = "warmup" if place < history_len else "train"
            names[row] = "test" if time >= at else "validation" if time >= before else early
    return names


shares = st.integers(1, 45).map(lambda percent: Fraction(percent, 100))


@settings(max_examples=100, deadline=None)
@given(interactions, st.integers(1, 4), shares, shares)
def test_global_time_equals_trying_every_pair_of_moments(
    drawn: list[tuple[int, int]], history_len: int, test: Fraction, validation: Fraction
) -> None:
    data = frame([(str(user), str(row), 4.0, time) for row, (user, time) in enumerate(drawn)])
    wanted = split_by_moment(drawn, history_len, test, validation)
    if wanted is None:
        with pytest.raises(DataError):
            by_moment(data, history_len, float(test), float(validation))
        return
    result = by_moment(data, history_len, float(test), float(validation))
    events = result.events
    # The item ids are the rows of the drawn list.
    assert {int(item): name for item, name in events.select("item_id", "split").iter_rows()} == wanted
    times = {name: events.filter(pl.col("split") == name)["timestamp"].to_list() for name in set(wanted.values())}
    assert {"train", "validation", "test"} <= set(times)
    assert max(times["train"] + times.get("warmup", [])) < min(times["validation"])
    assert max(times["validation"]) < min(times["test"])
    # The cuts are moments of usable events, so both splits begin exactly there.
    assert result.cuts is not None and result.cuts[:2] == (min(times["validation"]), min(times["test"]))


@settings(max_examples=50, deadline=None)
@given(interactions, st.integers(1, 4))
def test_leave_one_out_equals_cutting_every_users_list_by_hand(drawn: list[tuple[int, int]], history_len: int) -> None:
    own = timelines_of(drawn, history_len)
    data = frame([(str(user), str(row), 4.0, time) for row, (user, time) in enumerate(drawn)])
    if not own:
        with pytest.raises(DataError):
            timeline(data, split=LEAVE_ONE_OUT, history_len=history_len, test_ratio=0.1, validation_ratio=0.1)
        return
    events = timeline(data, split=LEAVE_ONE_OUT, history_len=history_len, test_ratio=0.1, validation_ratio=0.1).events
    wanted = {}
    for mine in own.values():
        names = ["train"] * (len(mine) - history_len) + ["validation", "test"]
        names = ["warmup"] * history_len + names[-(len(mine) - history_len) :]
        wanted |= {row: name for (_, row), name in zip(mine, names, strict=True)}
    assert {int(item): name for item, name in events.select("item_id", "split").iter_rows()} == wanted


@settings(max_examples=30, deadline=None)
@given(interactions, st.integers(1, 3))
def test_histories_are_the_same_whatever_the_split(drawn: list[tuple[int, int]], history_len: int) -> None:
    data = frame([(str(user), str(row), 4.0, time) for row, (user, time) in enumerate(drawn)])
    if split_by_moment(drawn, history_len, Fraction(1, 10), Fraction(1, 10)) is None:
        return
    tables = [
        timeline(data, split=name, history_len=history_len, test_ratio=0.1, validation_ratio=0.1).events.drop("split")
        for name in (TIMELINE, GLOBAL_TIME, LEAVE_ONE_OUT)
    ]
    assert tables[0].equals(tables[1]) and tables[0].equals(tables[2])


def own(rows: list[tuple[str, int, str]]) -> pl.DataFrame:
    """One user's or several users' events with a split of their own."""
    data = frame([(user, str(place), 4.0, time) for place, (user, time, _) in enumerate(rows)])
    return data.with_columns(pl.Series("split", [name for *_, name in rows]))


def test_a_split_of_the_datas_own_stays_as_it_is_whatever_the_time_and_however_short_the_user() -> None:
    data = own([("1", 9, "train"), ("1", 3, "test"), ("2", 5, "validation"), ("1", 1, "train")])
    found = timeline(data, split=COLUMN, history_len=15, test_ratio=0.1, validation_ratio=0.05)
    assert found.events.select("user_id", "timestamp", "split").rows() == [
        ("1", 1, "train"), ("1", 3, "test"), ("1", 9, "train"), ("2", 5, "validation"),
    ]  # fmt: skip
    assert (found.short_users, found.short_events, found.old_events) == (0, 0, 0)
    with pytest.raises(DataError, match="split: column, but this dataset has no split of its own; use split=timeline"):
        timeline(one_user(3), split=COLUMN, history_len=1, test_ratio=0.1, validation_ratio=0.05)


def test_of_each_user_the_last_events_in_time_are_kept_and_the_others_counted() -> None:
    data = frame([("1", "a", 4.0, 5), ("2", "b", 4.0, 1), ("1", "c", 4.0, 9), ("1", "d", 4.0, 2), ("1", "e", 4.0, 9)])
    found = timeline(data, history_len=0, test_ratio=0.1, validation_ratio=0.05, max_per_user=2)
    assert found.events.select("user_id", "item_id", "split", "position").rows() == [
        ("1", "c", "validation", 0), ("1", "e", "test", 1), ("2", "b", "test", 0),
    ]  # fmt: skip
    assert found.old_events == 2 and found.short_users == 0
    # Of a moment that is cut in two, what is later in the file.
    found = timeline(data, history_len=0, test_ratio=0.1, validation_ratio=0.05, max_per_user=1)
    assert found.events["item_id"].to_list() == ["e", "b"]


def test_with_no_warm_up_every_event_is_asked_about_the_first_with_an_empty_history() -> None:
    found = timeline(one_user(30), history_len=0, test_ratio=0.1, validation_ratio=0.05).events
    assert found["split"].to_list() == ["train"] * 26 + ["validation"] + ["test"] * 3
    starts, stops = history_slices(found, 5)
    assert (stops - starts).tolist()[:7] == [0, 1, 2, 3, 4, 5, 5]
    starts, stops = history_slices(found, 0)
    assert (stops - starts).tolist() == [0] * 30


def test_ids_that_are_one_number_written_in_two_ways_are_two_users() -> None:
    data = frame([("7", "a", 4.0, 1), ("007", "b", 4.0, 2), ("7", "c", 4.0, 3), ("007", "d", 4.0, 4)])
    found = timeline(data, history_len=1, test_ratio=0.1, validation_ratio=0.05).events
    assert found["item_id"].to_list() == ["b", "d", "a", "c"]
    assert found["position"].to_list() == [0, 1, 0, 1]
