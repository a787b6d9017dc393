"""What `meta.json` says of the events, counted a part at a time: the same whether there is one part or many."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from rectune.data import columns as c
from rectune.data.folder import history_slices
from rectune.data.leak import Cold, Leak, OwnLeak, own_leak


@dataclass
class Tally:
    """Counts over events; every part holds whole timelines, in the order of `load_events`.

    Attributes:
        history_len: the longest history.
        warmup: events of a user that are not usable.
        users: how many.
        rows: of each split.
        written, positives: rows of each split with sampled negatives, and those of them that are liked.
        shown, short, empty: events in the histories of what is asked about; histories shorter than `history_len`, and
            empty ones.
        early: of each split the events that are not usable.
    """

    history_len: int
    warmup: int
    users: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    written: dict[str, int] = field(default_factory=dict)
    positives: dict[str, int] = field(default_factory=dict)
    shown: int = 0
    short: int = 0
    empty: int = 0
    early: dict[str, int] = field(default_factory=dict)
    _own: OwnLeak = field(default_factory=lambda: OwnLeak(0, 0))
    _cold_users: int = 0
    _known: pl.Series = field(default_factory=lambda: pl.Series(c.ITEM_ID, [], pl.String))
    _seen: pl.Series = field(default_factory=lambda: pl.Series(c.ITEM_ID, [], pl.String))
    _tests: pl.DataFrame = field(
        default_factory=lambda: pl.DataFrame(schema={c.ITEM_ID: pl.String, "len": pl.get_index_type()})
    )
    _last_train: int | None = None
    _test_times: list[np.ndarray] = field(default_factory=list)

    def add(self, events: pl.DataFrame) -> None:
        """Count a part."""
        self.users += events[c.USER_ID].n_unique()
        for name, rows, likes in events.group_by(c.SPLIT).agg(pl.len(), pl.col(c.LABEL).sum()).iter_rows():
            self.rows[name] = self.written[name] = self.rows.get(name, 0) + rows
            self.positives[name] = self.positives.get(name, 0) + likes
        for name, rows in events.filter(pl.col(c.POSITION) < self.warmup).group_by(c.SPLIT).len().iter_rows():
            self.early[name] = self.early.get(name, 0) + rows
        starts, stops = history_slices(events, self.history_len)
        lengths = (stops - starts)[(events[c.SPLIT] != c.WARMUP).to_numpy()]
        self.shown += int(lengths.sum())
        self.short += int((lengths < self.history_len).sum())
        self.empty += int((lengths == 0).sum())
        self._add_leak(events)

    def count_written(self, events: pl.DataFrame) -> None:
        """Take rows and labels from all events, sampled negatives among them."""
        counts = events.group_by(c.SPLIT).agg(pl.len(), pl.col(c.LABEL).sum()).rows()
        self.written = {name: rows for name, rows, _ in counts}
        self.positives = {name: likes for name, _, likes in counts}

    def _add_leak(self, events: pl.DataFrame) -> None:
        test = events.filter(pl.col(c.SPLIT) == c.TEST)
        known = events.filter(pl.col(c.SPLIT).is_in([c.WARMUP, c.TRAIN]))
        self._cold_users += test.join(known, on=c.USER_ID, how="anti").height
        self._known = pl.concat([self._known, known[c.ITEM_ID]]).unique()
        self._seen = pl.concat([self._seen, events[c.ITEM_ID]]).unique()
        counted = pl.concat([self._tests, test.group_by(c.ITEM_ID).len()])
        self._tests = counted.group_by(c.ITEM_ID).agg(pl.col("len").sum())
        self._test_times.append(test[c.TIMESTAMP].to_numpy())
        last = events.filter(pl.col(c.SPLIT) == c.TRAIN)[c.TIMESTAMP].max()
        if isinstance(last, int):
            self._last_train = last if self._last_train is None else max(last, self._last_train)
        own = own_leak(events)
        self._own = OwnLeak(self._own.before + own.before, self._own.shown + own.shown)

    @property
    def items(self) -> int:
        """How many items the events are about."""
        return len(self._seen)

    def leak(self) -> Leak:
        """What the split lets the training see of the future, and how cold its test is."""
        tests = self.rows.get(c.TEST, 0)
        share = None
        if tests and self._last_train is not None:
            share = sum(int((times < self._last_train).sum()) for times in self._test_times) / tests
        cold_items = self._tests.filter(~pl.col(c.ITEM_ID).is_in(self._known.implode()))["len"].sum()
        return Leak(share, Cold(tests, self._cold_users, int(cold_items)), self._own, self.rows.get(c.TRAIN, 0))

    def history(self) -> dict[str, Any]:
        """How long histories are, as `meta.json` has it."""
        asked = sum(rows for split, rows in self.rows.items() if split != c.WARMUP)
        return {
            "mean": round(self.shown / asked, 4) if asked else float("nan"),
            "shorter_than_history_len": self.short,
            "empty": self.empty,
        }

    def balance(self, split: str) -> dict[str, Any]:
        """Rows of a split, and how many of them are liked."""
        rows, positives = self.written.get(split, 0), self.positives.get(split, 0)
        return {"rows": rows, "positive": positives, "positive_rate": round(positives / rows, 6) if rows else None}
