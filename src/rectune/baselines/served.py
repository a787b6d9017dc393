"""Baselines that answer requests: a history that somebody sends, and candidates, in place of events of a dataset."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from rectune.baselines.questions import Floats, Log, Questions


class Met(NamedTuple):
    """An event of a request's history: item id, label, and the rating where it is known.

    An id that the catalog does not hold, or None, is an item of which nothing is known.
    """

    item: str | None
    label: int
    rating: float | None = None


class Served(ABC):
    """A fitted baseline that is saved with an adapter and scores any history.

    Attributes:
        items: item ids of the catalog.
        genres, year: of the catalog's items, as a Log has them.
    """

    items: list[str]
    genres: Floats
    year: Floats

    @abstractmethod
    def score(self, log: Log, asked: Questions) -> Floats:
        """Log-odds of questions about a log of the same catalog, float64 [n]."""

    @abstractmethod
    def to_bytes(self) -> bytes:
        """The baseline as a safetensors file; the same one gives the same bytes."""

    @cached_property
    def _place(self) -> dict[str, int]:
        return {item: place for place, item in enumerate(self.items)}

    def of_log(self, log: Log, asked: Questions) -> Floats:
        """`score` for a log of any catalog: items are found by their ids, others are items that nobody knows.

        Genres and years are those that the baseline was fitted with, however the log's were read.
        """
        if log.items == self.items:
            return self.score(replace(log, genres=self.genres, year=self.year), asked)
        place = np.array([self._place.get(item, len(self.items)) for item in log.items] + [len(self.items)])
        return self.score(
            replace(log, item=place[log.item], items=self.items, genres=self.genres, year=self.year), asked
        )

    def answer(self, history: Sequence[Met], candidates: Sequence[str | None]) -> Floats:
        """Log-odds of candidates, by their item ids, after a history, oldest first: float64 [candidates]."""
        if not candidates:
            return np.zeros(0)
        names = [each.item for each in history] + list(candidates)
        item = [len(self.items) if name is None else self._place.get(name, len(self.items)) for name in names]
        shown, size = len(history), len(names)
        ratings = [np.nan if each.rating is None else each.rating for each in history]
        nothing = np.zeros(size, dtype=np.int64)
        log = Log(
            user=nothing, item=np.array(item, dtype=np.int64),
            label=np.array([float(each.label) for each in history] + [0.0] * len(candidates)),
            rating=np.array(ratings + [np.nan] * len(candidates)), timestamp=nothing, first=nothing,
            stop=np.full(size, shown), known=nothing.astype(bool), asked=nothing.astype(bool), items=self.items,
            genres=self.genres, year=self.year,
        )  # fmt: skip
        return self.score(log, Questions(np.arange(shown, size), np.full(len(candidates), shown)))
