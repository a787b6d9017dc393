"""Oversampling: texts of the rarest class are seen more often in training, and scores allow for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rectune.config import Config

Say = Callable[[str], None]
Rows = npt.NDArray[np.int64]


class Oversampled(NamedTuple):
    """Which answers are trained on, and what that does to scores.

    Attributes:
        rarest: the label that is repeated, or would be.
        rows: int64; indices of the answers, those of the rarest class several times.
        shift: float64 [classes]; what it adds to each class's log-probability, up to a constant: log of how often an
            answer of the class is seen.
    """

    rarest: int
    rows: Rows
    shift: npt.NDArray[np.float64]

    @property
    def log_odds(self) -> float:
        """What it adds to the log-odds of label 1 against label 0."""
        return float(self.shift[1] - self.shift[0])


def oversample(labels: npt.NDArray[np.integer[Any]], share: float | str, classes: int, seed: int) -> Oversampled:
    """Repeat the answers of the rarest class until they are this share of all.

    The number of answers comes as near to the share as whole numbers can. Each is repeated as often as any other, or
    once more, which is drawn with the seed. Where the rarest class has the share already, nothing is repeated.

    Args:
        labels: [n] of 0 .. classes - 1.
        share: of the rarest class, or `none`.
        classes: how many there are.
        seed: of the draw.

    >>> found = oversample(np.array([1, 0, 0, 0]), 0.5, 2, seed=0)
    >>> found.rows.tolist(), round(found.log_odds, 4)
    ([0, 1, 2, 3, 0, 0], 1.0986)
    """
    counts = np.bincount(labels, minlength=classes)
    everything, nothing = np.arange(len(labels), dtype=np.int64), np.zeros(classes)
    rarest = int(np.argmin(np.where(counts > 0, counts, np.iinfo(np.int64).max)))
    if isinstance(share, str):
        return Oversampled(rarest, everything, nothing)
    wanted = round((len(labels) - int(counts[rarest])) * share / (1 - share))
    more = wanted - int(counts[rarest])
    if more <= 0:
        return Oversampled(rarest, everything, nothing)
    own = np.flatnonzero(labels == rarest)
    times, rest = divmod(more, len(own))
    drawn = np.sort(np.random.default_rng(seed).permutation(own)[:rest])
    shift = nothing.copy()
    shift[rarest] = math.log(wanted / int(counts[rarest]))
    return Oversampled(rarest, np.concatenate([everything, np.tile(own, times), drawn]), shift)


def oversampled(config: Config, labels: npt.NDArray[np.integer[Any]], say: Say) -> Oversampled:
    """What `oversample` of a configuration makes of these training answers, said in a line."""
    names: Sequence[str] = config.classes
    found = oversample(labels, config.oversample, len(names), config.seed)
    if config.oversample == "none":
        return found
    rarest = found.rarest
    before = int((labels == rarest).sum())
    after = int((labels[found.rows] == rarest).sum())
    if after == before:
        say(
            f"oversample: {names[rarest]} is {before / len(labels):.1%} of the training texts already, so none is "
            "repeated"
        )
    else:
        say(
            f"oversample: {before:,} texts of {names[rarest]} are seen {after:,} times, {after / len(found.rows):.1%} "
            f"of {len(found.rows):,} in place of {before / len(labels):.1%}, which moves their log-odds by "
            f"{found.shift[rarest]:+.3g}; scores have it taken off"
        )
    return found
