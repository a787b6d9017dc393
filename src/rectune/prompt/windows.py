"""Cut users' timelines into windows of the stream layout, and lay each window out as one tree.

A window is a run of a user's events as history (its trunk), with answers at some of them. An event that is the first
of its moment is answered on the trunk itself; the others of a tied moment, and those after the trunk's end, are
branches at the trunk's beginning of their moment, so that no event sees another of the same timestamp.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from rectune.errors import DataError
from rectune.prompt.tree import Trees, ragged, starts_of

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Timelines:
    """All events of a dataset as numbers, users one after the other.

    Attributes:
        order: int64 [events]; row of the table of events at each place. Equal to 0, 1, 2, ... unless tied events
            were put in another order.
        first: int64 [events]; place where the event's user begins.
        history_end: int64 [events]; place of the first event of its moment.
        line: int64 [events]; index of the event's line among the pieces.
        suffix: int64 [events]; index of what stands behind its cue.
        room: int64 [events]; tokens to reserve for the event's line. Windows are cut by these, and by the longest
            suffix, since how much history an event sees must not depend on its own or on later labels and ratings. It
            does depend on how many later events share its window, and how long their titles are.
    """

    order: Ints
    first: Ints
    history_end: Ints
    line: Ints
    suffix: Ints
    room: Ints


@dataclass(frozen=True)
class Window:
    """Places of the events of a trunk, `start` to before `stop`, and which of the answers it carries."""

    start: int
    stop: int
    answers: slice


def cut_windows(
    asked: Ints, history_end: Ints, line_lengths: Ints, ends: Ints, room: int, overlap: int
) -> Iterator[Window]:
    """Windows over the asked events of one user, each asked event in exactly one.

    A window begins with at most `overlap` tokens of history before its first answer, takes as many answers as fit,
    and fills what is left with older history.

    Args:
        asked: int64 [answers]; places of the asked events in the user's timeline, moment after moment, and within
            one ascending. A sampled negative's is behind all of the user's own events.
        history_end: int64 [answers]; place of the first event of each one's moment.
        line_lengths: int64 [answers]; tokens of each one's line.
        ends: int64 [events + 1]; tokens of the user's whole events before each place.
        room: tokens that a window has beside its head.
        overlap: tokens of history that a window repeats.

    Raises:
        DataError: a line alone is longer than the room.
    """
    opens = asked == history_end
    branches = starts_of(np.where(opens, 0, line_lengths))
    # The last moment's first event is not on the trunk but a branch too, since nothing follows it.
    at = np.arange(len(asked))
    opener = np.maximum.accumulate(np.where(opens, at, -1))
    same = (opener >= 0) & (history_end[opener] == history_end)
    last = np.where(same, line_lengths[opener], 0)
    sizes = ends[history_end] + branches[1:] + last
    index = 0
    while index < len(asked):
        stop = int(history_end[index])
        if same[index] and opener[index] < index:
            # The tie was cut in two: its first event is in the window before.
            rest = slice(index, int(np.searchsorted(history_end, stop, side="right")))
            sizes[rest] -= last[rest]
            last[rest] = 0
        spare = min(overlap, room - int(line_lengths[index]))
        if spare < 0:
            raise DataError(f"cutoff_len: a line of {int(line_lengths[index])} tokens does not fit")
        start = int(np.searchsorted(ends, ends[stop] - spare))
        before = int(branches[index])
        following = int(np.searchsorted(sizes, room + ends[start] + before, side="right"))
        following = max(following, index + 1)
        used = int(sizes[following - 1]) - before
        start = min(start, int(np.searchsorted(ends, used - room)))
        yield Window(start, int(history_end[following - 1]), slice(index, following))
        index = following


def lay_windows(
    timelines: Timelines,
    asked: Ints,
    pieces: list[list[int]],
    head: list[int],
    labels: npt.NDArray[np.integer],
    prior: npt.NDArray[np.floating],
    cutoff_len: int,
    overlap: float,
    suffix_room: int,
    hidden: npt.NDArray[np.bool_] | None = None,
) -> Trees:
    """Trees of all windows over the asked events.

    Args:
        timelines: all events.
        asked: int64 [answers]; their places, in the order that `cut_windows` needs, users one after the other.
        pieces: token ids of lines and suffixes.
        head: ids before the first line.
        labels, prior: one number per row of the table of events.
        cutoff_len: longest tree in tokens.
        overlap: share of the room that a later window repeats as history.
        suffix_room: tokens of the longest suffix that there can be.
        hidden: bool [events]; places of events that no later one sees: each is off the trunk, and where it is asked
            about a branch. Windows are cut as if nothing were hidden, and are then shorter than they could be.

    Raises:
        DataError: a line does not fit beside the head.
    """
    sizes = np.array([len(piece) for piece in pieces], dtype=np.int64)
    lines = timelines.room
    ends = starts_of(lines + max(suffix_room, int(sizes[timelines.suffix].max(initial=0))))
    room = cutoff_len - len(head)
    windows: list[Window] = []
    edges = np.flatnonzero(np.diff(timelines.first[asked], prepend=-1, append=-1))
    for low, high in pairwise(edges.tolist()):
        mine = asked[low:high]
        first = int(timelines.first[mine[0]])
        of_user = ends[first : int(mine.max()) + 1] - ends[first]
        try:
            for window in cut_windows(
                mine - first, timelines.history_end[mine] - first, lines[mine], of_user, room, int(overlap * room)
            ):
                answers = slice(low + window.answers.start, low + window.answers.stop)
                windows.append(Window(first + window.start, first + window.stop, answers))
        except DataError as error:
            needed = len(head) + int(lines[mine].max())
            raise DataError(
                f"cutoff_len: got {cutoff_len}, but an item's line needs {needed} tokens with no history at all; "
                f"set cutoff_len={needed} or more, or shorten the texts"
            ) from error
    visible = np.ones(len(lines), dtype=bool) if hidden is None else ~hidden
    return _trees(timelines, asked, windows, [head, *pieces], labels, prior, visible)


def _trees(
    timelines: Timelines,
    asked: Ints,
    windows: list[Window],
    pieces: list[list[int]],
    labels: npt.NDArray[np.integer],
    prior: npt.NDArray[np.floating],
    visible: npt.NDArray[np.bool_],
) -> Trees:
    """Put windows together from pieces, the head being piece 0: pure gathers, no loop over events."""
    starts = np.array([window.start for window in windows], dtype=np.int64)
    stops = np.array([window.stop for window in windows], dtype=np.int64)
    low = np.array([window.answers.start for window in windows], dtype=np.int64)
    high = np.array([window.answers.stop for window in windows], dtype=np.int64)
    tree_of = np.repeat(np.arange(len(windows)), high - low)  # of each answer
    history_end = timelines.history_end[asked]
    on_trunk = (asked == history_end) & (asked < stops[tree_of]) & visible[asked]
    shown = np.flatnonzero(visible)  # places of the events that trunks are made of
    rank = starts_of(visible.astype(np.int64))  # how many of these stand before each place

    # Piece numbers of every tree: head, then line and suffix of each trunk event, then the branches' lines.
    branch_counts = np.bincount(tree_of[~on_trunk], minlength=len(windows))
    lengths = rank[stops] - rank[starts]
    counts = 1 + 2 * lengths + branch_counts
    piece_offsets = starts_of(counts)
    sequence = np.zeros(piece_offsets[-1], dtype=np.int64)
    trunk_offsets = starts_of(lengths)
    within = np.arange(trunk_offsets[-1]) - np.repeat(trunk_offsets[:-1], lengths)
    trunk_events = shown[within + np.repeat(rank[starts], lengths)]
    places = np.repeat(piece_offsets[:-1] + 1, lengths) + 2 * within
    sequence[places] = 1 + timelines.line[trunk_events]
    sequence[places + 1] = 1 + timelines.suffix[trunk_events]
    branch_trees = tree_of[~on_trunk]
    number = np.arange(len(branch_trees)) - np.repeat(starts_of(branch_counts)[:-1], branch_counts)
    branch_places = piece_offsets[branch_trees] + 1 + 2 * lengths[branch_trees] + number
    sequence[branch_places] = 1 + timelines.line[asked[~on_trunk]]

    flat = np.array([token for piece in pieces for token in piece], dtype=np.int32)
    table = starts_of(np.array([len(piece) for piece in pieces], dtype=np.int64))
    gathered, piece_ends = ragged(table, sequence)
    offsets = piece_ends[piece_offsets]
    answer_piece = np.empty(len(asked), dtype=np.int64)
    trunk_trees = tree_of[on_trunk]
    answer_piece[on_trunk] = piece_offsets[trunk_trees] + 1 + 2 * (rank[asked[on_trunk]] - rank[starts[trunk_trees]])
    answer_piece[~on_trunk] = branch_places
    fork_piece = piece_offsets[branch_trees] + 1 + 2 * (rank[history_end[~on_trunk]] - rank[starts[branch_trees]])
    rows = timelines.order[asked]
    return Trees(
        tokens=flat[gathered],
        offsets=offsets,
        answer_at=(piece_ends[answer_piece + 1] - 1 - offsets[tree_of]).astype(np.int32),
        answer_offsets=starts_of(high - low),
        labels=labels[rows].astype(np.int32),
        rows=rows.astype(np.int32),
        shown_from=starts[tree_of].astype(np.int32),
        prior=prior[rows].astype(np.float32),
        branch_at=(piece_ends[branch_places] - offsets[branch_trees]).astype(np.int32),
        branch_fork=(piece_ends[fork_piece] - offsets[branch_trees]).astype(np.int32),
        branch_offsets=starts_of(branch_counts),
    )
