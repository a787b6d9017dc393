"""The score from which on an answer is Yes, chosen on validation rows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from rectune.measure.classification import check_both_classes, probability

Array = npt.NDArray[Any]

METRICS = ("accuracy", "f1")
"""What a threshold can be chosen for."""


def choose_threshold(labels: Array, log_odds: Array, metric: str = "accuracy") -> float:
    """The threshold on P(yes) with the best accuracy or F1 on these rows, as `predict` applies it.

    Every way to part the rows by their score is tried, in O(n log n). A threshold lies half-way between two
    neighbouring scores (0 and 1 stand beside the lowest and the highest); of equally good ones it is the one nearest
    to 0.5, and of two as near the lower.

    Args:
        labels: [n] of 0 and 1.
        log_odds: [n], logit(yes token) - logit(no token).
        metric: one of METRICS.

    Returns:
        A number above 0 and below 1.

    Raises:
        ValueError: an unknown metric, one class only, lengths that differ, no rows, or values that are not allowed.

    >>> odds = np.log([1 / 9, 3 / 7, 1.0, 9.0])  # scores 0.1, 0.3, 0.5, 0.9
    >>> round(choose_threshold(np.array([0, 1, 0, 1]), odds), 4)
    0.7
    >>> round(choose_threshold(np.array([0, 1, 0, 1]), odds, "f1"), 4)
    0.2
    """
    if metric not in METRICS:
        raise ValueError(f"metric: got {metric!r}, allowed: {', '.join(METRICS)}")
    labels, odds = check_both_classes(labels, log_odds)
    scores = np.r_[0.0, probability(np.unique(odds)), 1.0]
    low, high = scores[:-1], scores[1:]
    middles = (low + high) / 2
    # Of scores one rounding apart the upper one parts them; those that round to 0 or 1 leave no room beyond them.
    middles = np.where(middles > low, middles, high)
    middles = middles[(middles > 0) & (middles < 1)]
    order = np.argsort(odds, kind="stable")
    # The cut is counted where `predict` makes it, so that rounding cannot part what was measured from what is done.
    cuts = np.array([math.log(middle / (1 - middle)) for middle in middles])
    below = np.searchsorted(odds[order], cuts, side="left")
    positives_below = np.r_[0, np.cumsum(labels[order])][below]
    found, chosen = labels.sum() - positives_below, len(labels) - below
    # Ratios of whole numbers: equal values are equal floats, so that ties are exact.
    right = found + below - positives_below
    value = right / len(labels) if metric == "accuracy" else 2 * found / (chosen + labels.sum())
    best = middles[value == value.max()]
    return float(best[np.argmin(np.abs(best - 0.5))])
