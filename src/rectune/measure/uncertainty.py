"""How sure one may be of an AUC or a log loss, and how sure a model is of itself."""

from __future__ import annotations

import math

import numpy as np

from rectune.measure.classification import Array, negative_log_likelihood, probability


def auc_standard_error(area: float, positives: int, negatives: int) -> float:
    """Standard error of an AUC from the number of rows of each class; NaN without one of them.

    sqrt((A(1-A) + (n+ - 1)(Q1 - A^2) + (n- - 1)(Q2 - A^2)) / (n+ n-)) with Q1 = A / (2 - A), Q2 = 2A^2 / (1 + A).
    Rows are taken as independent: where many belong to one user, the truth is larger.

    Source: Hanley and McNeil, Radiology 143, 1982; Q1 and Q2 are those of exponentially distributed scores.

    >>> round(auc_standard_error(0.5, 1, 1), 3), round(auc_standard_error(0.7, 300, 300), 3)
    (0.5, 0.021)
    >>> auc_standard_error(0.7, 0, 9)
    nan
    """
    if positives < 1 or negatives < 1:
        return math.nan
    square = area * area
    spread = area * (1 - area)
    spread += (positives - 1) * (area / (2 - area) - square) + (negatives - 1) * (2 * square / (1 + area) - square)
    return math.sqrt(max(spread, 0.0) / (positives * negatives))


def entropy(rate: float) -> float:
    """Log loss of always answering the share of positives, in nats: the least that a constant answer can have.

    >>> round(entropy(0.5), 4), entropy(1.0)
    (0.6931, 0.0)
    """
    return sum(part * math.log(1 / part) for part in (rate, 1 - rate) if part > 0)


def self_assessment(labels: Array, log_odds: Array) -> dict[str, float]:
    """What the scores say of themselves.

    Args:
        labels: [n] of 0 and 1.
        log_odds: [n], finite.

    Returns:
        loss_se: standard error of the log loss, the rows taken as independent (0 for one row).
        loss_expected: the log loss that the scores would have if they were right about themselves, which is their mean
            entropy. The loss lies above it where a model is surer than it is right (Seillier-Moiseiwitsch and Dawid,
            JASA 88, 1993, test the difference of the two).
        score_mean: mean of the scores; that of a calibrated model is the share of positives.
        log_odds_sd: standard deviation of the log-odds.

    >>> self_assessment(np.array([0, 1]), np.array([0.0, 0.0]))["log_odds_sd"]
    0.0
    """
    losses, scores = negative_log_likelihood(labels, log_odds), probability(log_odds)
    own = scores * negative_log_likelihood(np.ones_like(scores), log_odds)
    own += (1 - scores) * negative_log_likelihood(np.zeros_like(scores), log_odds)
    return {
        "loss_se": float(losses.std(ddof=1) / math.sqrt(len(losses))) if len(losses) > 1 else 0.0,
        "loss_expected": float(own.mean()),
        "score_mean": float(scores.mean()),
        "log_odds_sd": float(np.std(log_odds)),
    }
