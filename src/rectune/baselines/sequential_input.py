"""What the sequential network sees of each question: its item, counts of the history, and the events themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rectune.baselines.counts import log_odds
from rectune.baselines.history_features import history_features
from rectune.baselines.questions import Floats, Ints, Log, Questions

TOGETHER = 32
"""Questions, and events of the timeline in which their histories end, that read one stretch of it."""

Singles = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class RatingScale:
    """Ratings as numbers around zero: (rating - middle) / half."""

    middle: float
    half: float

    @classmethod
    def of(cls, log: Log) -> RatingScale:
        """The scale on which the lowest known rating is -1 and the highest 1; 0 and 1 where there is none."""
        known = log.rating[log.known & ~np.isnan(log.rating)]
        if not len(known):
            return cls(0.0, 1.0)
        return cls(float(known.max() + known.min()) / 2, float(known.max() - known.min()) / 2 or 1.0)

    def apply(self, rating: Floats) -> Floats:
        """Scaled ratings; one that is not known stays NaN."""
        found: Floats = (rating - self.middle) / self.half
        return found


def counts_of(log: Log, asked: Questions) -> Singles:
    """Counts as logarithms and rates as log-odds of the whole history, float32 [n, features], of the size of 1."""
    # Users start from one half and not from the mean like-rate, which every label has a part in.
    length, rate, affinity, of_genre, *recent = history_features(log, asked, 0.5).T
    rates = [log_odds(np.clip(each, 0.02, 0.98)) for each in (rate, *recent)]
    return np.column_stack([np.log1p(length) / 4, np.log1p(of_genre) / 4, 3 * affinity, *rates]).astype(np.float32)


class Batch(NamedTuple):
    """What the network sees of some questions, and what it should say.

    Questions are grouped: b groups of q questions, each group with a stretch of e events.

    Attributes:
        item: int64 [b, q]; the items asked about.
        counts: float32 [b, q, features]; see `counts_of`.
        event: int64 [b, e]; items of the events.
        marks: float32 [b, e, 2]; label as -1 or 1, and rating scaled to -1 .. 1, 0 where there is none.
        seen: bool [b, q, e]; whether the event is in the question's history; nothing else of an event may be used.
        ago: float32 [b, q, e]; how many events before the question, half its logarithm.
        place: int64 [b, q]; the question's place among those asked, -1 where a group has fewer questions.
        label, rating: float32 [b, q]; the answers, as `marks` has ratings but NaN where there is none.
    """

    item: Ints
    counts: Singles
    event: Ints
    marks: Singles
    seen: Bools
    ago: Singles
    place: Ints
    label: Singles
    rating: Singles


@dataclass(frozen=True)
class Blocks:
    """Questions in groups of neighbours, which read one stretch of a timeline, so that it is embedded once.

    Attributes:
        log: all events.
        rating: float64 [events]; scaled.
        asked: the questions in order of user and history.
        place: int64 [n]; where each of them was in the order given.
        counts: float32 [n, features].
        slots: int64 [groups, TOGETHER]; questions of each group, -1 after the last.
        begin, end: int64 [groups]; rows of the log that they read.
        window: events of a history that are read.
    """

    log: Log
    rating: Floats
    asked: Questions
    place: Ints
    counts: Singles
    slots: Ints
    begin: Ints
    end: Ints
    window: int

    @classmethod
    def of(cls, log: Log, asked: Questions, window: int, scale: RatingScale) -> Blocks:
        """Group questions: at most TOGETHER, of one user, whose histories end within TOGETHER events."""
        place = np.lexsort((asked.rows, asked.stops, log.user[asked.rows]))
        ordered = Questions(asked.rows[place], asked.stops[place])
        first = log.first[ordered.rows]
        stripe = np.maximum(ordered.stops - first - 1, 0) // TOGETHER
        here = np.arange(len(ordered))
        is_new = np.ones(len(ordered), dtype=bool)
        is_new[1:] = (first[1:] != first[:-1]) | (stripe[1:] != stripe[:-1])
        number = here - np.maximum.accumulate(np.where(is_new, here, 0))
        is_new |= number % TOGETHER == 0
        start = np.flatnonzero(is_new)
        group = np.cumsum(is_new) - 1
        slots = np.full((len(start), TOGETHER), -1)
        slots[group, here - start[group]] = here
        begin = np.maximum(first[start], first[start] + stripe[start] * TOGETHER + 1 - window)
        end = ordered.stops[np.append(start[1:], len(ordered)) - 1] if len(start) else start
        return cls(log, scale.apply(log.rating), ordered, place, counts_of(log, ordered), slots, begin, end, window)

    def batch(self, groups: Ints) -> Batch:
        """What the network sees of these groups."""
        log, slots = self.log, self.slots[groups]
        slots = slots[:, : int((slots >= 0).sum(axis=1).max())]
        mine = np.where(slots >= 0, slots, slots[:, :1])
        rows, stops = self.asked.rows[mine], self.asked.stops[mine]
        events = self.begin[groups][:, None] + np.arange(max(1, int((self.end - self.begin)[groups].max())))
        oldest = np.maximum(log.first[rows], stops - self.window)
        seen = (events[:, None] >= oldest[..., None]) & (events[:, None] < stops[..., None])
        events = np.minimum(events, len(log.item) - 1)
        count = np.where(seen, stops[..., None] - events[:, None], 1)
        marks = np.stack([2 * log.label[events] - 1, np.nan_to_num(self.rating[events])], axis=-1)
        return Batch(
            item=log.item[rows], counts=self.counts[mine], event=log.item[events], marks=marks.astype(np.float32),
            seen=seen, ago=(np.log(count) / 2).astype(np.float32),
            place=np.where(slots >= 0, self.place[mine], -1), label=log.label[rows].astype(np.float32),
            rating=self.rating[rows].astype(np.float32),
        )  # fmt: skip
