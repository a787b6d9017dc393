"""What a run's passes look like: rows, lengths, answers, from tokenised events or from the keys' upper bounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from rectune.config import Config
from rectune.data.columns import TRAIN
from rectune.errors import DataError
from rectune.model.footprint import Rows
from rectune.prompt.packs import pack
from rectune.prompt.tree import Trees

Say = Callable[[str], None]

_EVENT = 12
"""Tokens of an event in a stream, where nothing is tokenised yet: short titles have some 12, long ones 20."""


@dataclass(frozen=True)
class Side:
    """Rows of training, or of validation.

    Attributes:
        rows: how many; 0 where it is not known.
        longest, mean: tokens of a row.
        answers: most answers of a row.
        mean_answers: answers of a row.
        mean_pairs: (query, key) pairs of a row that attend to each other.
        masked: whether rows need a mask.
    """

    rows: int
    longest: int
    mean: float
    answers: int
    mean_answers: float
    mean_pairs: float
    masked: bool

    def batch(self, size: int) -> Rows:
        """The largest batch of this many rows."""
        count = min(size, self.rows) if self.rows else size
        return Rows(count, self.longest, count * self.answers, self.masked)

    def cut(self, length: int) -> Side:
        """The same with rows of at most this many tokens, for a configuration with a lower cutoff_len."""
        if length >= self.longest:
            return self
        share = length / self.longest
        mean = min(self.mean, float(length))
        return replace(
            self, longest=length, mean=mean, answers=max(1, round(self.answers * share)),
            mean_answers=self.mean_answers * mean / self.mean, mean_pairs=self.mean_pairs * (mean / self.mean) ** 2,
        )  # fmt: skip


@dataclass(frozen=True)
class Workload:
    """Training and validation rows, and where the lengths come from."""

    training: Side
    validation: Side
    source: str


def _side(trees: Trees, rows: list[list[int]], tail: int) -> Side:
    """What these trees are, laid into rows, with `tail` tokens behind each."""
    lengths = trees.lengths + tail
    answers = np.diff(trees.answer_offsets)
    pairs = lengths * (lengths + 1) / 2

    def of_rows(values: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
        return np.array([values[row].sum() for row in rows], dtype=np.float64)

    long, many, seen = map(of_rows, (lengths, answers, pairs))
    masked = trees.branching or any(len(row) > 1 for row in rows)
    return Side(
        len(long), int(long.max()), float(long.mean()), int(many.max()), float(many.mean()), float(seen.mean()), masked
    )


def pack_rows(config: Config, trees: Trees) -> list[list[int]]:
    """Which trees share a row in training; without packing, each has its own."""
    if not config.packing:
        return [[index] for index in range(len(trees))]
    return pack(trees.lengths + (2 if config.ends_answers else 0), config.cutoff_len, config.seed)


def workload_of(config: Config, trees: Trees, held_out: Trees, packs: list[list[int]]) -> Workload:
    """The workload of tokenised events.

    Args:
        config: the layout is read.
        trees: what is trained on.
        held_out: what evaluation scores.
        packs: which of `trees` share a row.
    """
    training = _side(trees, packs, 2 if config.ends_answers else 0)
    return Workload(
        training,
        _side(held_out, [[index] for index in range(len(held_out))], 0),
        f"the tokenised events ({len(trees.labels):,} for training)",
    )


def bounded_workload(config: Config) -> Workload:
    """The most that a configuration allows, for a dataset that is not there yet: every row as long as cutoff_len."""
    length = config.cutoff_len
    stream = config.layout == "stream"
    answers = max(1, length // _EVENT) if stream else (max(1, length // 64) if config.packing else 1)
    pairs = length * (length + 1) / 2
    side = Side(0, length, float(length), answers, float(answers), pairs, stream or config.packing)
    alone = replace(side, answers=answers if stream else 1, masked=stream)
    return Workload(side, alone, f"cutoff_len={length}, an upper bound, since the dataset is not prepared")


def packs_of(config: Config, trees: Trees, say: Say, rehearsal: bool) -> list[list[int]]:
    """Which trees share a row; in a rehearsal only the longest rows, as many as its steps take."""
    packs = pack_rows(config, trees)
    if config.packing:
        say(
            f"packing: {len(trees):,} trees in {len(packs):,} sequences of at most {config.cutoff_len} tokens, "
            "none lost"
        )
    if rehearsal:
        rows = config.max_steps * config.per_device_train_batch_size * config.gradient_accumulation_steps
        packs = sorted(packs, key=lambda row: -int(trees.lengths[row].sum()))[:rows]
    return packs


def check_classes(trees: Trees) -> None:
    """Of training events that all have one label nothing can be learnt but that label.

    Raises:
        DataError: they have.
    """
    if trees.labels.min() == trees.labels.max():
        which, other = ("positive", "negative") if trees.labels[0] else ("negative", "positive")
        raise DataError(
            f"{TRAIN}: all {len(trees.labels):,} training events are {which}, so there is nothing to tell apart; give "
            f"{other} events too (ratings or labels in place of purchases, another rating_threshold, more "
            "max_train_samples)"
        )
