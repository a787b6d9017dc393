"""A request as the questions of a log: what a served baseline is shown, item by item."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rectune.baselines.questions import Floats, Log, Questions
from rectune.baselines.served import Met, Served


class Shown(Served):
    """Keeps what it was asked."""

    def __init__(self) -> None:
        self.items = ["a", "b", "c"]
        self.genres, self.year = np.zeros((4, 0)), np.full(4, np.nan)

    def score(self, log: Log, asked: Questions) -> Floats:
        self.log, self.asked = log, asked
        return np.arange(len(asked), dtype=np.float64)

    def to_bytes(self) -> bytes:
        return b""


def test_every_candidate_is_asked_about_after_the_whole_history_and_nothing_else() -> None:
    shown = Shown()
    answer = shown.answer([Met("b", 1, 4.5), Met("unheard of", 0), Met(None, 1, 2.0)], ["c", "a", None])
    assert answer.tolist() == [0, 1, 2]
    assert shown.log.item.tolist() == [1, 3, 3, 2, 0, 3]
    assert shown.log.label[:3].tolist() == [1, 0, 1]
    assert shown.log.rating[0] == 4.5 and np.isnan(shown.log.rating[[1, 3, 4, 5]]).all() and shown.log.rating[2] == 2.0
    assert shown.asked.rows.tolist() == [3, 4, 5] and shown.asked.stops.tolist() == [3, 3, 3]
    assert not shown.log.known.any() and not shown.log.asked.any() and shown.log.first.tolist() == [0] * 6


def test_a_log_of_another_catalog_is_shown_with_items_by_their_ids() -> None:
    shown = Shown()
    nothing = np.zeros(4, dtype=np.int64)
    genres, year = np.ones((5, 2)), np.full(5, 1999.0)
    log = Log(
        nothing, np.array([0, 1, 2, 4]), nothing * 1.0, nothing * 1.0, nothing, nothing, nothing, nothing == 0,
        nothing == 0, ["c", "new", "a", "b"], genres, year,
    )  # fmt: skip
    asked = Questions(np.arange(4), nothing)
    shown.of_log(log, asked)
    assert shown.log.item.tolist() == [2, 3, 0, 3] and shown.log.items == shown.items
    assert shown.log.genres is shown.genres and shown.log.year is shown.year and shown.asked is asked
    same = replace(log, items=["a", "b", "c"], item=np.array([0, 1, 2, 3]))
    shown.of_log(same, asked)  # such as one kept by a version that read the genres otherwise
    assert shown.log.item is same.item and shown.log.genres is shown.genres and shown.log.year is shown.year


def test_no_candidates_are_no_question() -> None:
    shown = Shown()
    assert shown.answer([Met("a", 1)], []).shape == (0,) and not hasattr(shown, "log")
