"""Windows hold every asked event once, fit their room, and are laid out as worked out by hand."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rectune.errors import DataError
from rectune.prompt.tree import Trees, starts_of
from rectune.prompt.windows import Timelines, Window, cut_windows, lay_windows


def whole(*values: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array(values, dtype=np.int64)


# --- cutting: numbers alone ---


def cut(
    asked: list[int], moments: list[int], lines: list[int], suffixes: list[int], room: int, overlap: int
) -> list[Window]:
    """Windows of one user whose events have these moments and token counts."""
    history_end = whole(*(moments.index(moment) for moment in moments))
    ends = starts_of(whole(*lines) + whole(*suffixes))
    chosen = whole(*asked)
    return list(cut_windows(chosen, history_end[chosen], whole(*lines)[chosen], ends, room, overlap))


def test_one_window_holds_everything_where_there_is_room() -> None:
    # Whole lines of 5 tokens; the last event is a branch of 3 behind a trunk of 3 x 5.
    assert cut([0, 1, 2, 3], [0, 1, 2, 3], [3] * 4, [2] * 4, 18, 0) == [Window(0, 3, slice(0, 4))]
    # One token less, and the last answer goes into a window of its own, filled with older history.
    assert cut([0, 1, 2, 3], [0, 1, 2, 3], [3] * 4, [2] * 4, 17, 0) == [
        Window(0, 2, slice(0, 3)),
        Window(1, 3, slice(3, 4)),
    ]


def test_a_window_repeats_at_most_the_overlap_and_fills_what_is_left() -> None:
    # Six lines of 5 tokens (3 + 2) in a room of 13: two whole lines and a branch of 3.
    lines, suffixes, moments = [3] * 6, [2] * 6, list(range(6))
    assert cut([0, 1, 2, 3, 4, 5], moments, lines, suffixes, 13, 0) == [
        Window(0, 2, slice(0, 3)),
        Window(3, 5, slice(3, 6)),
    ]
    # An overlap of 9 tokens is one whole line of 5; event 3 begins the second window behind line 2.
    assert cut([0, 1, 2, 3, 4, 5], moments, lines, suffixes, 13, 9) == [
        Window(0, 2, slice(0, 3)),
        Window(2, 4, slice(3, 5)),
        Window(3, 5, slice(5, 6)),
    ]


def test_events_of_one_moment_are_branches_that_cost_their_line() -> None:
    # Events 1, 2 and 3 are tied behind a line of 5: 5 + 3 branches of 3 = 14.
    assert cut([1, 2, 3], [0, 1, 1, 1], [3] * 4, [2] * 4, 14, 14) == [Window(0, 1, slice(0, 3))]
    assert cut([1, 2, 3], [0, 1, 1, 1], [3] * 4, [2] * 4, 13, 13)[0] == Window(0, 1, slice(0, 2))


def test_a_line_longer_than_the_room_is_refused() -> None:
    with pytest.raises(DataError, match=r"^cutoff_len: a line of 9 tokens does not fit$"):
        cut([0, 1], [0, 1], [3, 9], [1, 1], 8, 0)


@st.composite
def histories(draw: st.DrawFn, users: int = 1) -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
    """Moments, line lengths and suffix lengths of each user's events."""
    moments: list[list[int]] = []
    for _ in range(users):
        steps = draw(st.lists(st.sampled_from([0, 0, 1]), min_size=1, max_size=14))
        moments.append(np.cumsum(steps).tolist())
    lines = [draw(st.lists(st.integers(1, 6), min_size=len(mine), max_size=len(mine))) for mine in moments]
    suffixes = [draw(st.lists(st.integers(1, 3), min_size=len(mine), max_size=len(mine))) for mine in moments]
    return moments, lines, suffixes


def cost(window: Window, asked: list[int], moments: list[int], lines: list[int], suffixes: list[int]) -> int:
    """Tokens of a window, counted event by event."""
    trunk = sum(lines[at] + suffixes[at] for at in range(window.start, window.stop))
    mine = asked[window.answers]
    return trunk + sum(lines[at] for at in mine if moments.index(moments[at]) != at or at >= window.stop)


@given(history=histories(), data=st.data(), room=st.integers(6, 60), share=st.floats(0, 0.99))
@settings(max_examples=400, deadline=None)
def test_windows_hold_each_answer_once_and_fit_their_room(
    history: Any, data: st.DataObject, room: int, share: float
) -> None:
    moments, lines, suffixes = (column[0] for column in history)
    asked = sorted(data.draw(st.sets(st.integers(0, len(moments) - 1), min_size=1)))
    overlap = int(share * room)
    windows = cut(asked, moments, lines, suffixes, room, overlap)
    assert [at for window in windows for at in range(window.answers.start, window.answers.stop)] == list(
        range(len(asked))
    )
    for number, window in enumerate(windows):
        mine = asked[window.answers]
        opens = [moments.index(moments[at]) for at in mine]
        assert 0 <= window.start <= opens[0] <= opens[-1] == window.stop
        size = cost(window, asked, moments, lines, suffixes)
        assert size <= room
        before = sum(lines[at] + suffixes[at] for at in range(window.start, opens[0]))
        if before > overlap:
            # More history than the overlap stands there only where nothing else did: every answer that could have
            # followed would have burst a window that began with the overlap.
            ends = starts_of(whole(*lines) + whole(*suffixes))
            spare = min(overlap, room - lines[mine[0]])
            start = next(at for at in range(opens[0] + 1) if ends[opens[0]] - ends[at] <= spare)
            tight = Window(start, window.stop, window.answers)
            assert cost(tight, asked, moments, lines, suffixes) <= room
        if number + 1 < len(windows):
            # The next answer did not fit, but for one line that is counted though an earlier window holds it.
            begin = Window(window.start, moments.index(moments[asked[window.answers.stop]]), window.answers)
            longer = Window(begin.start, begin.stop, slice(window.answers.start, window.answers.stop + 1))
            assert cost(longer, asked, moments, lines, suffixes) + max(lines) > room or before > overlap
        # Nothing older would have fitted either (again but for that line).
        if window.start:
            older = lines[window.start - 1] + suffixes[window.start - 1]
            assert size + older + max(lines) > room


# --- laying out: exact tokens ---

HEAD = [90, 91]
# Lines 0 to 3 and suffixes 4 (no) and 5 (yes).
PIECES = [[10], [20, 21], [30], [40, 41], [80, 89], [81, 89]]


def timelines(
    first: list[int], history_end: list[int], line: list[int], suffix: list[int], pieces: list[list[int]] = PIECES
) -> Timelines:
    room = whole(*(len(pieces[at]) for at in line))
    return Timelines(np.arange(len(first)), whole(*first), whole(*history_end), whole(*line), whole(*suffix), room)


# One user: A, then B and C at one moment, then D; another user: C alone.
TWO = timelines([0, 0, 0, 0, 4], [0, 1, 1, 3, 4], [0, 1, 2, 3, 2], [5, 4, 5, 4, 5])
LABELS, PRIOR = whole(1, 0, 1, 0, 1), np.array([0.5, 0.25, 0.0, -1.0, 2.0])


def laid(asked: list[int], cutoff_len: int, overlap: float = 0.0) -> Trees:
    return lay_windows(TWO, whole(*asked), PIECES, HEAD, LABELS, PRIOR, cutoff_len, overlap, suffix_room=0)


def test_a_history_with_a_tie_is_laid_out_as_worked_out_by_hand() -> None:
    trees = laid([0, 1, 2, 3, 4], 64)
    assert len(trees) == 2
    # head, A yes, B no, C yes; then the branches C and D.
    assert trees.tree_tokens(0).tolist() == [90, 91, 10, 81, 89, 20, 21, 80, 89, 30, 81, 89, 30, 40, 41]
    assert trees.tree_tokens(1).tolist() == [90, 91, 30]
    # A is answered at 10 (place 2), B at 21 (place 6), C and D on branches.
    assert trees.answer_at.tolist() == [2, 6, 12, 14, 2]
    assert trees.answer_offsets.tolist() == [0, 4, 5]
    assert trees.branch_at.tolist() == [12, 13, 2]
    # C sees head and A (5 tokens); D sees the whole trunk (12); the other user's C sees the head.
    assert trees.branch_fork.tolist() == [5, 12, 2]
    assert trees.branch_offsets.tolist() == [0, 2, 3]
    assert trees.depths(0).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 5, 12, 13]
    assert trees.depths(1).tolist() == [0, 1, 2]
    assert [column.tolist() for column in trees.runs(0)] == [[0] * 12 + [1, 2, 2], [0] * 12 + [5, 12, 12]]
    assert trees.rows.tolist() == [0, 1, 2, 3, 4]
    assert trees.labels.tolist() == [1, 0, 1, 0, 1]
    assert trees.shown_from.tolist() == [0, 0, 0, 0, 4]
    assert trees.prior.tolist() == [0.5, 0.25, 0.0, -1.0, 2.0]


def test_every_path_of_the_example_is_the_plain_prompt_written_by_hand() -> None:
    plain = laid([0, 1, 2, 3, 4], 64).plain()
    assert [plain.tree_tokens(index).tolist() for index in range(len(plain))] == [
        [90, 91, 10],
        [90, 91, 10, 81, 89, 20, 21],
        [90, 91, 10, 81, 89, 30],
        [90, 91, 10, 81, 89, 20, 21, 80, 89, 30, 81, 89, 40, 41],
        [90, 91, 30],
    ]


def test_a_hidden_event_is_asked_about_on_a_branch_and_seen_by_no_later_one() -> None:
    hidden = np.array([False, True, False, False, True])
    trees = lay_windows(TWO, whole(0, 1, 2, 3, 4), PIECES, HEAD, LABELS, PRIOR, 64, 0.0, suffix_room=0, hidden=hidden)
    # head, A yes, C yes; then the branches B and C behind A, and D behind C.
    assert trees.tree_tokens(0).tolist() == [90, 91, 10, 81, 89, 30, 81, 89, 20, 21, 30, 40, 41]
    assert trees.answer_at.tolist() == [2, 9, 10, 12, 2]
    assert trees.branch_at.tolist() == [8, 10, 11, 2]
    assert trees.branch_fork.tolist() == [5, 5, 8, 2]
    assert trees.rows.tolist() == [0, 1, 2, 3, 4] and trees.labels.tolist() == [1, 0, 1, 0, 1]


def test_only_asked_events_are_answered() -> None:
    trees = laid([2, 3], 64)
    assert trees.tree_tokens(0).tolist() == [90, 91, 10, 81, 89, 20, 21, 80, 89, 30, 81, 89, 30, 40, 41]
    assert trees.answer_at.tolist() == [12, 14]
    assert trees.branch_fork.tolist() == [5, 12]
    assert trees.rows.tolist() == [2, 3]


def test_what_does_not_fit_goes_on_in_a_later_window_behind_older_history() -> None:
    # Room 6: A yes 3, B 2 and C 1 fill the first window; D's takes 2 and shows C, but not B and C.
    trees = laid([0, 1, 2, 3], 8)
    assert [trees.tree_tokens(index).tolist() for index in range(len(trees))] == [
        [90, 91, 10, 81, 89, 20, 21, 30],
        [90, 91, 30, 81, 89, 40, 41],
    ]
    assert trees.rows.tolist() == [0, 1, 2, 3]
    assert trees.shown_from.tolist() == [0, 0, 0, 2]
    assert trees.answer_at.tolist() == [2, 6, 7, 6]
    assert trees.branch_at.tolist() == [5, 7, 5]
    assert trees.branch_fork.tolist() == [5, 5, 5]


def test_the_rest_of_a_tie_that_is_cut_in_two_shows_the_history_that_fits() -> None:
    # Room 5: A yes 3 and B 2 fill the first window; C takes 1 and leaves room for A.
    trees = laid([0, 1, 2, 3], 7)
    assert [trees.tree_tokens(index).tolist() for index in range(len(trees))] == [
        [90, 91, 10, 81, 89, 20, 21],
        [90, 91, 10, 81, 89, 30],
        [90, 91, 30, 81, 89, 40, 41],
    ]


def test_a_line_that_does_not_fit_is_one_error_that_says_what_would() -> None:
    assert len(laid([0, 1, 2, 3, 4], 4)) == 5
    with pytest.raises(DataError) as caught:
        laid([0, 1, 2, 3, 4], 3)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("cutoff_len: got 3, but an item's line needs 4 tokens with no history at all; ")
    assert "set cutoff_len=4 or more" in message


@given(
    history=histories(users=3),
    data=st.data(),
    head=st.integers(0, 4),
    room=st.integers(6, 60),
    overlap=st.floats(0, 0.99),
)
@settings(max_examples=300, deadline=None)
def test_paths_are_head_then_strictly_earlier_events_then_the_own_line(
    history: Any, data: st.DataObject, head: int, room: int, overlap: float
) -> None:
    moments, lines, suffixes = history
    counts = [len(mine) for mine in moments]
    firsts = [sum(counts[:user]) for user in range(3) for _ in range(counts[user])]
    user_of = [user for user in range(3) for _ in range(counts[user])]
    total = sum(counts)
    moment = [at for mine in moments for at in mine]
    # Every event has a line and a suffix of its own, so that tokens name it.
    pieces = [[1000 + 10 * at + step for step in range(size)] for at, size in enumerate(chain(*lines))]
    pieces += [[5000 + 10 * at + step for step in range(size)] for at, size in enumerate(chain(*suffixes))]
    ends = [firsts[at] + moments[user_of[at]].index(moment[at]) for at in range(total)]
    asked = sorted(data.draw(st.sets(st.integers(0, total - 1), min_size=1)))
    hidden = np.zeros(total, dtype=bool)
    hidden[sorted(data.draw(st.sets(st.integers(0, total - 1))))] = True
    head_ids = list(range(head))
    trees = lay_windows(
        timelines(firsts, ends, list(range(total)), list(range(total, 2 * total)), pieces), whole(*asked), pieces,
        head_ids, np.arange(total) % 2, np.arange(total) / 8, head + room, overlap, suffix_room=0,
        hidden=hidden,
    )  # fmt: skip
    assert trees.rows.tolist() == asked
    assert trees.labels.tolist() == [at % 2 for at in asked]
    assert trees.prior.tolist() == [at / 8 for at in asked]
    assert (trees.lengths <= head + room).all()
    plain = trees.plain()
    for index, at in enumerate(asked):
        shown = int(trees.shown_from[index])
        assert firsts[at] <= shown <= ends[at]
        earlier = [
            other
            for other in range(shown, total)
            if user_of[other] == user_of[at] and moment[other] < moment[at] and not hidden[other]
        ]
        wanted = [*head_ids, *(token for other in earlier for token in pieces[other] + pieces[total + other])]
        assert plain.tree_tokens(index).tolist() == wanted + pieces[at]
