from __future__ import annotations

import polars as pl

from rectune.config_classify import STRATIFIED
from rectune.data.label import add_label
from rectune.data.leak import SPLIT_BY, Leak, leak_note, own_leak
from rectune.data.split import COLUMN, GLOBAL_TIME, LEAVE_ONE_OUT, TIMELINE, timeline
from rectune.data.tally import Tally


def log(rows: list[tuple[str, str, int]]) -> pl.DataFrame:
    schema = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}
    data = pl.DataFrame(rows, schema=schema, orient="row").with_columns(pl.lit(4.0).alias("rating"))
    return add_label(data, 4.0)


def events_of(data: pl.DataFrame, split: str = TIMELINE) -> pl.DataFrame:
    return timeline(data, split=split, history_len=2, test_ratio=0.25, validation_ratio=0.2).events


def leak_of(events: pl.DataFrame) -> Leak:
    """What was counted over all events at once, which is also what comes of counting user by user."""
    whole, parts = Tally(2, 2), Tally(2, 2)
    whole.add(events)
    for user in events["user_id"].unique(maintain_order=True):
        parts.add(events.filter(pl.col("user_id") == user))
    assert parts.leak() == whole.leak()
    assert (parts.items, parts.history(), parts.early) == (whole.items, whole.history(), whole.early)
    return whole.leak()


EARLY = [("1", f"early {place}", place) for place in range(5)]
LATE = [("2", f"late {place}", 100 + place) for place in range(5)]


def test_the_leak_is_the_share_of_test_events_before_the_last_train_event() -> None:
    for split in (TIMELINE, LEAVE_ONE_OUT):
        events = events_of(log(EARLY + LATE), split)
        assert leak_of(events).share == 0.5  # user 1's test event at 4 comes before user 2's train event at 102
        assert "50.0% of the test events have train events after them" in leak_note(leak_of(events), split)
    assert leak_of(events_of(log(EARLY[:3]))).share is None
    assert "no train events, so nothing of the future" in leak_note(leak_of(events_of(log(EARLY[:3]))))


def test_cut_at_one_moment_nothing_of_the_future_is_seen_but_new_users_and_items_are_cold() -> None:
    events = events_of(
        log(EARLY + LATE + [("3", "early 0", 200), ("3", "late 3", 201), ("3", "early 1", 202)]), GLOBAL_TIME
    )
    # Of seven usable events a quarter is nearest to two: test begins with user 2's last, whose film is nobody else's.
    assert leak_of(events).share == 0.0
    # What only validation holds ("late 3") is cold too.
    assert leak_of(events).cold == (4, 3, 2)
    assert leak_note(leak_of(events), GLOBAL_TIME) == (
        "Split by one moment for all users: no warm-up or train event is as late as any validation or test event, so "
        "nothing of the future is seen; of 4 test events 3 (75.0%) are of users and 2 (50.0%) about items without any "
        "warm-up or train event."
    )


def test_a_warm_up_event_makes_its_user_and_its_item_known() -> None:
    # Three events: two of warm-up and one of test, whose item the other user has among warm-up.
    events = events_of(log([*EARLY[:2], ("1", "late 0", 9), *LATE]))
    assert leak_of(events).cold == (2, 0, 1)  # user 2's last film is nobody else's


def test_every_split_has_its_words() -> None:
    assert set(SPLIT_BY) == {TIMELINE, GLOBAL_TIME, LEAVE_ONE_OUT, COLUMN, STRATIFIED}


def test_a_split_of_the_datas_own_says_what_its_users_events_see_of_each_other() -> None:
    rows = [("1", "a", 1, "train"), ("1", "b", 2, "test"), ("1", "c", 3, "train"), ("1", "d", 3, "validation"),
            ("2", "e", 9, "train"), ("2", "f", 9, "test"), ("2", "g", 4, "train")]  # fmt: skip
    data = log([(user, item, time) for user, item, time, _ in rows]).with_columns(
        pl.Series("split", [name for *_, name in rows])
    )
    events = events_of(data, COLUMN)
    # User 1's test event comes before a train event of theirs; user 2's shares its second with one, which sees nothing.
    assert own_leak(events) == (1, 1)
    assert leak_note(leak_of(events), COLUMN) == (
        "Split by the data's own column: 50.0% of the test events have train events after them in time, 1 (50.0%) of "
        "their own user; 1 of 4 train events (25.0%) come after a validation or test event of their user, whose "
        "outcome their histories show; of 2 test events 0 (0.0%) are of users and 2 (100.0%) about items without any "
        "warm-up or train event."
    )
