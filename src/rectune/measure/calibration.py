"""How far a score can be taken as a probability."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

BINS = 15
"""Equal-width bins of [0, 1], as in Guo et al. (2017)."""


@dataclass(frozen=True)
class ReliabilityCurve:
    """One point per bin that holds at least one row, in order of the score; three arrays of one length."""

    mean_score: npt.NDArray[np.float64]
    positive_share: npt.NDArray[np.float64]
    count: npt.NDArray[np.int64]


def bin_index(scores: npt.NDArray[Any], bins: int = BINS) -> npt.NDArray[np.int64]:
    """The equal-width bin of each score, [n] of 0 .. bins - 1; a score of exactly 1 falls into the last bin.

    >>> bin_index(np.array([0.0, 0.49, 0.5, 1.0]), bins=2).tolist()
    [0, 0, 1, 1]
    """
    return np.minimum((np.asarray(scores, dtype=np.float64) * bins).astype(np.int64), bins - 1)


def reliability_curve(labels: npt.NDArray[Any], scores: npt.NDArray[Any], bins: int = BINS) -> ReliabilityCurve:
    """Mean score, share of positives and number of rows of each equal-width bin; empty bins are left out.

    Args:
        labels: [n] of 0 and 1.
        scores: [n] probabilities in [0, 1].
        bins: how many equal-width bins [0, 1] is cut into.

    Source: DeGroot and Fienberg, "The comparison and evaluation of forecasters", 1983.

    >>> curve = reliability_curve(np.array([0, 1, 1]), np.array([0.1, 0.3, 0.8]), bins=2)
    >>> curve.mean_score.round(3).tolist(), curve.positive_share.tolist(), curve.count.tolist()
    ([0.2, 0.8], [0.5, 1.0], [2, 1])
    """
    scores = np.asarray(scores, dtype=np.float64)
    index = bin_index(scores, bins)
    count = np.bincount(index, minlength=bins)
    kept = count > 0
    score_sum = np.bincount(index, weights=scores, minlength=bins)
    label_sum = np.bincount(index, weights=np.asarray(labels, dtype=np.float64), minlength=bins)
    return ReliabilityCurve(score_sum[kept] / count[kept], label_sum[kept] / count[kept], count[kept])


def ece(labels: npt.NDArray[Any], scores: npt.NDArray[Any], bins: int = BINS) -> float:
    """Expected calibration error over 15 equal-width bins: sum over bins of (rows / n) * |positive share - mean score|.

    The score is P(yes), not the confidence in the winning label, so that both classes count alike.

    Source: Naeini et al., "Obtaining well calibrated probabilities using Bayesian binning", AAAI 2015; bins and
    widths as in Guo et al., "On calibration of modern neural networks", ICML 2017.

    >>> round(ece(np.array([0, 1, 1]), np.array([0.1, 0.3, 0.8]), bins=2), 4)
    0.2667
    """
    curve = reliability_curve(labels, scores, bins)
    return float(np.sum(curve.count * np.abs(curve.positive_share - curve.mean_score)) / curve.count.sum())
