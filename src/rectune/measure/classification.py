"""Metrics of yes/no answers, from two numbers an example: the label and the log-odds.

`log_odds` is logit(yes token) - logit(no token); the score is P(yes) = sigmoid(log_odds). Ranking metrics are read
from the log-odds, which do not saturate. An event is predicted positive when its score is at least the threshold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rectune.measure.calibration import ece

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
UserIds = Sequence[str] | Array

LOWER_IS_BETTER = ("loss", "brier", "ece")
"""Metrics of which less is better; of all others more is."""

__all__ = [
    "LOWER_IS_BETTER",
    "Confusion",
    "accuracy",
    "auc",
    "auc_by_user",
    "brier",
    "check_answers",
    "check_both_classes",
    "check_rows",
    "classification_metrics",
    "confusion",
    "ece",
    "f1",
    "log_loss",
    "loss_by_class",
    "negative_log_likelihood",
    "positive_rate",
    "pr_auc",
    "precision",
    "predict",
    "predicted_positive_rate",
    "probability",
    "recall",
    "user_auc",
    "user_index",
]


class Confusion(NamedTuple):
    """Rows by label and prediction, in scikit-learn's order."""

    tn: int
    fp: int
    fn: int
    tp: int


def probability(log_odds: Array) -> Floats:
    """P(yes) = 1 / (1 + exp(-log_odds)), [n], exact in both tails.

    >>> probability(np.array([-1000.0, 0.0, 1000.0])).tolist()
    [0.0, 0.5, 1.0]
    """
    odds = np.asarray(log_odds, dtype=np.float64)
    small = np.exp(-np.abs(odds))
    return np.where(odds >= 0, 1.0, small) / (1.0 + small)


def predict(log_odds: Array, threshold: float = 0.5) -> npt.NDArray[np.bool_]:
    """Whether the score is at least `threshold`, [n]; decided on the log-odds, so that rounding cannot flip a row.

    Raises:
        ValueError: the threshold lies outside (0, 1).

    >>> predict(np.array([-0.1, 0.0, 2.0])).tolist()
    [False, True, True]
    """
    if not 0.0 < threshold < 1.0:
        raise ValueError(f"threshold: got {threshold}, allowed: a number between 0 and 1")
    return np.asarray(log_odds, dtype=np.float64) >= math.log(threshold / (1.0 - threshold))


def user_index(user_ids: UserIds) -> npt.NDArray[np.int64]:
    """Number the users 0 .. users - 1 in sorted order, [n].

    >>> user_index(["b", "a", "b"]).tolist()
    [1, 0, 1]
    """
    return np.unique(np.asarray(user_ids), return_inverse=True)[1].astype(np.int64).reshape(-1)


def _auc_by_group(group: Array, labels: Array, scores: Array) -> Floats:
    """AUC inside each group, [groups]; NaN where a group has one class only.

    Every positive counts the negatives of its group below it, and half of those beside it: Mann-Whitney's U. One
    sort by (group, score) serves all groups.
    """
    order = np.lexsort((scores, group))
    group, scores = np.asarray(group)[order], np.asarray(scores)[order]
    positive: Floats = np.asarray(labels)[order].astype(np.float64)
    negative = 1.0 - positive
    groups = int(group[-1]) + 1
    # A block is a run of tied scores of one group.
    starts = np.flatnonzero(np.r_[True, (group[1:] != group[:-1]) | (scores[1:] != scores[:-1])])
    block_group = group[starts]
    block_positive, block_negative = np.add.reduceat(positive, starts), np.add.reduceat(negative, starts)
    positives = np.bincount(block_group, weights=block_positive, minlength=groups)
    negatives = np.bincount(block_group, weights=block_negative, minlength=groups)
    before_block = np.cumsum(block_negative) - block_negative
    before_group = np.cumsum(negatives) - negatives
    wins = block_positive * (before_block - before_group[block_group] + block_negative / 2)
    pairs = positives * negatives
    result = np.full(groups, np.nan)
    np.divide(np.bincount(block_group, weights=wins, minlength=groups), pairs, out=result, where=pairs > 0)
    return result


def auc(labels: Array, scores: Array) -> float | None:
    """Area under the ROC curve: the chance that a positive is scored above a negative, a tie counting half.

    Args:
        labels: [n] of 0 and 1.
        scores: [n], higher means more likely yes; only their order matters.

    Returns:
        The area, or None when there is one class only.

    Source: Hanley and McNeil, Radiology 143, 1982; Mann and Whitney's U divided by positives * negatives.

    >>> auc(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8]))
    0.75
    >>> auc(np.array([1, 1]), np.array([0.1, 0.4])) is None
    True
    """
    if len(labels) == 0:
        return None
    value = float(_auc_by_group(np.zeros(len(labels), dtype=np.int64), labels, scores)[0])
    return None if math.isnan(value) else value


def auc_by_user(user_ids: UserIds, labels: Array, scores: Array) -> Floats:
    """AUC within each user, [users] in the order of `user_index`; NaN for a user with one class only.

    >>> auc_by_user(["a", "a", "b"], np.array([0, 1, 1]), np.array([0.2, 0.7, 0.1])).tolist()
    [1.0, nan]
    """
    if len(labels) == 0:
        return np.empty(0)
    return _auc_by_group(user_index(user_ids), labels, scores)


def user_auc(user_ids: UserIds, labels: Array, scores: Array) -> tuple[float | None, int]:
    """UAUC: AUC within each user that has both classes, then the plain mean over those users.

    Unlike AUC it gives no credit for knowing which users like much, only for ranking a user's items.

    Returns:
        The mean, or None when no user has both classes, and the number of users counted.

    Source: as in CoLLM (Zhang et al., arXiv 2310.19488), with every user weighing the same.

    >>> user_auc(["a", "a", "b", "b", "c"], np.array([0, 1, 1, 0, 1]), np.array([0.2, 0.7, 0.1, 0.4, 0.9]))
    (0.5, 2)
    """
    values = auc_by_user(user_ids, labels, scores)
    values = values[~np.isnan(values)]
    return (float(values.mean()) if len(values) else None), len(values)


def pr_auc(labels: Array, scores: Array) -> float | None:
    """Average precision: sum over thresholds of (recall gained) * precision; None without a positive row.

    Source: scikit-learn's `average_precision_score`, which does not interpolate.

    >>> round(pr_auc(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8])), 4)
    0.8333
    """
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(labels, scores)) if np.any(np.asarray(labels) == 1) else None


def negative_log_likelihood(labels: Array, log_odds: Array) -> Floats:
    """Loss of each row, [n]: log(1 + exp(-log_odds)) for a positive, log(1 + exp(log_odds)) for a negative.

    >>> negative_log_likelihood(np.array([1, 0]), np.array([0.0, -1000.0])).round(4).tolist()
    [0.6931, 0.0]
    """
    odds = np.asarray(log_odds, dtype=np.float64)
    return np.logaddexp(0.0, np.where(np.asarray(labels) == 1, -odds, odds))


def log_loss(labels: Array, log_odds: Array) -> float:
    """Mean binary negative log-likelihood in nats, computed from the log-odds, so never infinite by rounding.

    >>> round(log_loss(np.array([1, 0]), np.array([0.0, 0.0])), 4)
    0.6931
    """
    return float(negative_log_likelihood(labels, log_odds).mean())


def loss_by_class(labels: Array, log_odds: Array) -> tuple[float | None, float | None]:
    """Mean loss of the positive rows and of the negative rows; None for a class without rows.

    >>> loss_by_class(np.array([1, 1]), np.array([0.0, 0.0]))[1] is None
    True
    """
    loss, positive = negative_log_likelihood(labels, log_odds), np.asarray(labels) == 1
    of_class = [float(loss[rows].mean()) if rows.any() else None for rows in (positive, ~positive)]
    return of_class[0], of_class[1]


def brier(labels: Array, scores: Array) -> float:
    """Brier score: mean of (score - label) squared. Source: Brier, Monthly Weather Review 78, 1950.

    >>> round(brier(np.array([1, 0]), np.array([0.8, 0.4])), 4)
    0.1
    """
    return float(np.mean((np.asarray(scores, dtype=np.float64) - np.asarray(labels)) ** 2))


def confusion(labels: Array, predictions: Array) -> Confusion:
    """Counts (tn, fp, fn, tp) of 0/1 labels against 0/1 or boolean predictions, both [n].

    >>> confusion(np.array([0, 0, 1, 1, 1]), np.array([0, 1, 0, 1, 1]))
    Confusion(tn=1, fp=1, fn=1, tp=2)
    """
    cell = 2 * np.asarray(labels, dtype=np.int64) + np.asarray(predictions, dtype=np.int64)
    return Confusion(*(int(count) for count in np.bincount(cell, minlength=4)))


def accuracy(cells: Confusion) -> float:
    """(tp + tn) / n.

    >>> accuracy(Confusion(tn=1, fp=1, fn=1, tp=2))
    0.6
    """
    return (cells.tp + cells.tn) / sum(cells)


def precision(cells: Confusion) -> float:
    """tp / (tp + fp); 0 when nothing is predicted positive.

    >>> round(precision(Confusion(tn=1, fp=1, fn=1, tp=2)), 4)
    0.6667
    """
    return cells.tp / max(cells.tp + cells.fp, 1)


def recall(cells: Confusion) -> float:
    """tp / (tp + fn); 0 when nothing is positive.

    >>> recall(Confusion(tn=1, fp=1, fn=2, tp=2))
    0.5
    """
    return cells.tp / max(cells.tp + cells.fn, 1)


def f1(cells: Confusion) -> float:
    """Harmonic mean of precision and recall, 2 tp / (2 tp + fp + fn); 0 when there is no true positive.

    >>> round(f1(Confusion(tn=1, fp=1, fn=1, tp=2)), 4)
    0.6667
    """
    return 2 * cells.tp / max(2 * cells.tp + cells.fp + cells.fn, 1)


def positive_rate(cells: Confusion) -> float:
    """Share of rows with label 1.

    >>> positive_rate(Confusion(tn=1, fp=1, fn=1, tp=2))
    0.6
    """
    return (cells.tp + cells.fn) / sum(cells)


def predicted_positive_rate(cells: Confusion) -> float:
    """Share of rows predicted 1; near 0 or 1 it tells of a model that has collapsed to one answer.

    >>> predicted_positive_rate(Confusion(tn=1, fp=1, fn=1, tp=2))
    0.6
    """
    return (cells.tp + cells.fp) / sum(cells)


def check_answers(labels: Array, log_odds: Array) -> tuple[Array, Floats]:
    """Labels as int64 and log-odds as float64, both [n], after the checks that need no user.

    Raises:
        ValueError: no rows, lengths that differ, a label other than 0 and 1, or log-odds that are not finite.
    """
    labels, odds = np.asarray(labels), np.asarray(log_odds, dtype=np.float64)
    if len(labels) != len(odds):
        raise ValueError(f"got {len(labels)} labels and {len(odds)} log-odds; need as many")
    if len(labels) == 0:
        raise ValueError("no rows to measure")
    strange = np.unique(labels[(labels != 0) & (labels != 1)])
    if len(strange):
        raise ValueError(f"labels: got {strange[:3].tolist()}, allowed: 0 and 1")
    broken = int(np.sum(~np.isfinite(odds)))
    if broken:
        raise ValueError(f"{broken} of {len(odds)} log-odds are not finite numbers (NaN or infinite)")
    return labels.astype(np.int64), odds


def check_both_classes(labels: Array, log_odds: Array) -> tuple[Array, Floats]:
    """As `check_answers`, for whatever is fitted on rows: one class alone says nothing about the other.

    Raises:
        ValueError: as `check_answers`, or all labels are the same.
    """
    labels, odds = check_answers(labels, log_odds)
    if labels.min() == labels.max():
        raise ValueError(f"labels: all {len(labels)} rows are {labels[0]}; fitting needs rows of both classes")
    return labels, odds


def check_rows(labels: Array, log_odds: Array, user_ids: UserIds) -> tuple[Array, Floats]:
    """Labels as int64 and log-odds as float64, both [n], after the checks every metric relies on.

    Raises:
        ValueError: as `check_answers`, or another number of user ids.
    """
    if not len(labels) == len(log_odds) == len(user_ids):
        raise ValueError(
            f"got {len(labels)} labels, {len(log_odds)} log-odds and {len(user_ids)} user ids; need as many"
        )
    return check_answers(labels, log_odds)


def classification_metrics(
    labels: Array, log_odds: Array, user_ids: UserIds, threshold: float = 0.5
) -> dict[str, float | int | None]:
    """Every metric of this module under its stable key.

    Args:
        labels: [n] of 0 and 1.
        log_odds: [n], logit(yes token) - logit(no token).
        user_ids: [n], whose event each row is.
        threshold: scores at least this high are predicted positive.

    Returns:
        loss, accuracy, precision, recall, f1, auc, uauc, uauc_users, pr_auc, brier, ece, predicted_positive_rate,
        positive_rate, loss_positive, loss_negative, n. None where a metric has no meaning for these rows.

    Raises:
        ValueError: no rows, lengths that differ, labels other than 0 and 1, or log-odds that are not finite.

    >>> metrics = classification_metrics(np.array([0, 1]), np.array([-1.0, 2.0]), ["a", "a"])
    >>> metrics["auc"], metrics["accuracy"], metrics["n"]
    (1.0, 1.0, 2)
    """
    labels, odds = check_rows(labels, log_odds, user_ids)
    scores, cells = probability(odds), confusion(labels, predict(odds, threshold))
    loss_positive, loss_negative = loss_by_class(labels, odds)
    uauc, uauc_users = user_auc(user_ids, labels, odds)
    return {
        "loss": log_loss(labels, odds),
        "accuracy": accuracy(cells),
        "precision": precision(cells),
        "recall": recall(cells),
        "f1": f1(cells),
        "auc": auc(labels, odds),
        "uauc": uauc,
        "uauc_users": uauc_users,
        "pr_auc": pr_auc(labels, odds),
        "brier": brier(labels, scores),
        "ece": ece(labels, scores),
        "predicted_positive_rate": predicted_positive_rate(cells),
        "positive_rate": positive_rate(cells),
        "loss_positive": loss_positive,
        "loss_negative": loss_negative,
        "n": len(labels),
    }
