"""Prompts show strictly earlier events of the window, and depend on nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rectune.config import Config, parse_config
from rectune.data.folder import EVENTS_SCHEMA
from rectune.errors import DataError
from rectune.prompt.encode import EventHistories, encode, encode_pointwise
from rectune.prompt.events import Event
from rectune.prompt.pieces import Pieces
from rectune.prompt.pointwise import PointwisePrompts

CATALOG = pl.DataFrame(
    {"item_id": [str(item) for item in range(60)], "title": [f"Film {item}" for item in range(60)], "genres": "Drama"}
)


def table(users: list[list[int]], ratings: list[float]) -> pl.DataFrame:
    """Events of users, each given by the timestamps of its timeline; items are numbered through."""
    rows: list[tuple[Any, ...]] = []
    for user, times in enumerate(users):
        for position, time in enumerate(times):
            rating = ratings[len(rows)]
            earlier = sum(other < time for other in times)
            item = str(len(rows))
            rows.append((str(user), item, rating, time, int(rating >= 4), "train", position, earlier, len(rows)))
    return pl.DataFrame(rows, schema=EVENTS_SCHEMA, orient="row")


def config_of(shows: str = "rating", history_len: int = 3) -> Config:
    keys = {"layout": "pointwise", "history_shows": shows, "history_len": history_len, "cutoff_len": 1 << 20}
    return parse_config(keys, origin="test")


def prompts_of_all(pieces: Pieces, events: pl.DataFrame, config: Config) -> list[list[int]]:
    prompts, rows = PointwisePrompts(config, pieces), np.arange(events.height)
    trees = encode_pointwise(prompts, EventHistories(events, CATALOG, config), rows)
    return [trees.tree_tokens(index).tolist() for index in range(len(trees))]


def test_events_at_one_second_do_not_see_each_other(tiny_pieces: Pieces) -> None:
    # Two users; the first one's 2nd to 4th events are one moment.
    events = table([[10, 20, 20, 20, 30], [5, 6]], [4.0, 1.0, 2.0, 3.0, 5.0, 0.5, 4.5])
    histories = EventHistories(events, CATALOG, config_of())
    films = [[event.title for event in histories.history(row)] for row in range(events.height)]
    assert films == [
        [],
        ["Film 0"],
        ["Film 0"],
        ["Film 0"],
        ["Film 1", "Film 2", "Film 3"],  # a window of three positions
        [],
        ["Film 5"],
    ]
    assert histories.history(6) == [Event("Film 5", 0.5, 0)]


def test_the_window_counts_positions_so_ties_shorten_a_history(tiny_pieces: Pieces) -> None:
    events = table([[10, 20, 30, 30, 30]], [4.0] * 5)
    histories = EventHistories(events, CATALOG, config_of(history_len=2))
    assert [[event.title for event in histories.history(row)] for row in range(5)] == [
        [],
        ["Film 0"],
        ["Film 0", "Film 1"],
        ["Film 1"],
        [],
    ]


@given(
    users=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=8).map(sorted), min_size=1, max_size=3),
    shows=st.sampled_from(["rating", "label", "nothing"]),
    data=st.data(),
)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_prompt_changes_only_with_strictly_earlier_events(
    tiny_pieces: Pieces, users: list[list[int]], shows: str, data: st.DataObject
) -> None:
    count = sum(map(len, users))
    ratings = data.draw(st.lists(st.sampled_from([1.0, 5.0]), min_size=count, max_size=count))
    events, config = table(users, ratings), config_of(shows)
    before = prompts_of_all(tiny_pieces, events, config)
    row = data.draw(st.integers(0, count - 1))
    user, time, position = events["user_id"][row], events["timestamp"][row], events["position"][row]
    hidden = (events["user_id"] != user) | (events["timestamp"] >= time) | (events["position"] + 3 < position)
    flipped = [6.0 - rating if hide else rating for rating, hide in zip(ratings, hidden, strict=True)]
    assert flipped[row] != ratings[row]  # its own label is flipped too
    after = prompts_of_all(tiny_pieces, table(users, flipped), config)
    assert after[row] == before[row]
    text = tiny_pieces.tokenizer.decode(before[row])
    earlier = [other for other in range(count) if not hidden[other]]
    assert [f". Film {other}" in text for other in earlier] == [True] * len(earlier)
    assert f"last {len(earlier)} films" in text


def test_each_shown_event_does_count(tiny_pieces: Pieces) -> None:
    first = prompts_of_all(tiny_pieces, table([[1, 2, 3]], [4.0, 4.0, 4.0]), config_of())
    second = prompts_of_all(tiny_pieces, table([[1, 2, 3]], [1.0, 4.0, 4.0]), config_of())
    assert [left == right for left, right in zip(first, second, strict=True)] == [True, False, False]


def test_an_event_about_an_unknown_item_is_one_line(tiny_pieces: Pieces) -> None:
    events = table([[1, 2]], [4.0, 4.0])
    with pytest.raises(DataError, match=r"2 events are about items it does not hold, such as '0'.*--force"):
        EventHistories(events, CATALOG[5:], config_of())


def test_no_rows_are_an_error_that_says_what_to_do(tiny_pieces: Pieces) -> None:
    events, config = table([[1, 2]], [4.0, 4.0]), config_of()
    with pytest.raises(DataError, match="this split is empty"):
        encode(
            config,
            events,
            CATALOG,
            "hash",
            PointwisePrompts(config, tiny_pieces),
            np.array([], dtype=np.int64),
            print,
        )
