"""Intervals and paired differences by bootstrap over users.

A user's rows are not independent, so whole users are drawn with replacement, never rows. A draw is a count per user;
every metric is computed from those counts as weights, without copying a row:

- sums over rows (accuracy, F1, loss, Brier, ECE bins) are counts @ sums per user;
- UAUC is the mean of per-user AUCs weighted by the counts;
- AUC and average precision weigh the rows of one global sort.

Source: Efron and Tibshirani, "An introduction to the bootstrap", 1993 (percentile interval, chapter 13).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rectune.measure import classification
from rectune.measure.calibration import BINS, bin_index

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

METRICS = (
    "auc",
    "uauc",
    "pr_auc",
    "accuracy",
    "precision",
    "recall",
    "f1",
    "loss",
    "brier",
    "ece",
    "predicted_positive_rate",
)
"""Metrics that have an interval, under the keys of `classification_metrics`."""

_BLOCK_ELEMENTS = 2_000_000
"""Draws x rows held at once: 16 MB an array."""


@dataclass(frozen=True)
class Difference:
    """Metric of A minus metric of B on the same rows, its interval and two-sided p-value."""

    difference: float
    low: float
    high: float
    p_value: float


def draw_counts(users: int, n: int, seed: int, block: int) -> Iterator[Floats]:
    """Yield [up to block, users] arrays: how often each user was drawn. The draws do not depend on `block`."""
    random = np.random.default_rng(seed)
    for start in range(0, n, block):
        rows = [np.bincount(random.integers(0, users, users), minlength=users) for _ in range(min(block, n - start))]
        yield np.array(rows, dtype=np.float64)


def _ratio(above: Floats, below: Floats) -> Floats:
    """above / below, with 0 / 0 undefined (NaN)."""
    result = np.full(above.shape, np.nan)
    np.divide(above, below, out=result, where=below > 0)
    return result


class WeightedMetrics:
    """Metrics of one model's rows as functions of how often each user counts.

    Args:
        labels: [n] of 0 and 1.
        log_odds: [n], finite.
        users: [n], each row's user as a number 0 .. users - 1 (see `user_index`).
        threshold: scores at least this high are predicted positive.
    """

    def __init__(self, labels: Array, log_odds: Floats, users: Array, threshold: float = 0.5) -> None:
        self.users = int(users.max()) + 1
        scores = classification.probability(log_odds)
        cell = 2 * labels + classification.predict(log_odds, threshold)
        self._cells = np.stack([self._per_user(users, cell == kind) for kind in range(4)], axis=1)
        self._loss = self._per_user(users, classification.negative_log_likelihood(labels, log_odds))
        self._brier = self._per_user(users, (scores - labels) ** 2)
        gap = np.bincount(users * BINS + bin_index(scores), weights=scores - labels, minlength=self.users * BINS)
        self._gap = gap.reshape(self.users, BINS)
        per_user = classification.auc_by_user(users, labels, log_odds)
        self._auc_counted = (~np.isnan(per_user)).astype(np.float64)
        self._auc_value = np.nan_to_num(per_user, nan=0.0)
        order = np.argsort(log_odds, kind="stable")
        self._user, self._positive = users[order], labels[order].astype(np.float64)
        ordered = log_odds[order]
        self._starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])

    def _per_user(self, users: Array, values: Array) -> Floats:
        sums: Floats = np.bincount(users, weights=values, minlength=self.users).astype(np.float64)
        return sums

    def _blocks(self, counts: Floats) -> tuple[Floats, Floats]:
        """Weight of positives and of negatives in each run of tied log-odds, both [draws, runs], ascending."""
        weight = counts[:, self._user]
        positive = weight * self._positive
        weight -= positive
        if len(self._starts) == len(self._user):
            return positive, weight
        return np.add.reduceat(positive, self._starts, axis=1), np.add.reduceat(weight, self._starts, axis=1)

    def auc(self, counts: Floats) -> Floats:
        """Weighted Mann-Whitney U over weighted pairs, [draws]; NaN where a draw holds one class only."""
        positive, negative = self._blocks(counts)
        below = np.cumsum(negative, axis=1)
        pairs = positive.sum(axis=1) * below[:, -1]
        below -= negative / 2
        return _ratio(np.einsum("dr,dr->d", positive, below), pairs)

    def pr_auc(self, counts: Floats) -> Floats:
        """Weighted average precision, [draws]; NaN where a draw has no positive."""
        positive, negative = (part[:, ::-1] for part in self._blocks(counts))
        found = np.cumsum(positive, axis=1)
        precision = np.nan_to_num(_ratio(found, found + np.cumsum(negative, axis=1)), nan=0.0)
        return _ratio(np.einsum("dr,dr->d", positive, precision), found[:, -1])

    def compute(self, metric: str, counts: Floats) -> Floats:
        """One value per draw, [draws].

        Args:
            metric: one of METRICS.
            counts: [draws, users], how often each user counts.
        """
        if metric == "auc":
            return self.auc(counts)
        if metric == "pr_auc":
            return self.pr_auc(counts)
        if metric == "uauc":
            return _ratio(counts @ self._auc_value, counts @ self._auc_counted)
        tn, fp, fn, tp = (counts @ self._cells).T
        n = tn + fp + fn + tp
        values: Floats
        match metric:
            case "accuracy":
                values = (tp + tn) / n
            case "precision":
                values = tp / np.maximum(tp + fp, 1)
            case "recall":
                values = tp / np.maximum(tp + fn, 1)
            case "f1":
                values = 2 * tp / np.maximum(2 * tp + fp + fn, 1)
            case "predicted_positive_rate":
                values = (tp + fp) / n
            case "loss":
                values = (counts @ self._loss) / n
            case "brier":
                values = (counts @ self._brier) / n
            case "ece":
                values = np.abs(counts @ self._gap).sum(axis=1) / n
            case _:
                raise ValueError(f"metrics: got {metric!r}, allowed: {', '.join(METRICS)}")
        return values


def _draws(models: Sequence[WeightedMetrics], rows: int, metrics: Sequence[str], n: int, seed: int) -> list[Floats]:
    """For each model [metrics, n] values; the users drawn are the same for all models."""
    users, block = models[0].users, max(1, _BLOCK_ELEMENTS // rows)
    parts: list[list[Floats]] = [[] for _ in models]
    for counts in draw_counts(users, n, seed, block):
        for model, values in zip(models, parts, strict=True):
            values.append(np.stack([model.compute(metric, counts) for metric in metrics]))
    return [np.concatenate(values, axis=1) for values in parts]


def percentile_interval(values: Floats, level: float) -> tuple[float, float]:
    """The middle `level` share of the draws."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def drawn_difference(point: float, values: Floats, level: float) -> Difference:
    """A difference with what its draws say of it: the interval, and twice their smaller tail around zero as p-value.

    One is added to both counts of the p-value, so that it is never zero (Davison and Hinkley 1997, 4.2).
    """
    smaller = min(int(np.sum(values <= 0)), int(np.sum(values >= 0)))
    p_value = min(1.0, 2 * (smaller + 1) / (len(values) + 1))
    return Difference(point, *percentile_interval(values, level), p_value)


def _check(n: int, level: float, metrics: Sequence[str]) -> None:
    if n < 1:
        raise ValueError(f"n: got {n}, allowed: at least 1 draw")
    if not 0 < level < 1:
        raise ValueError(f"level: got {level}, allowed: a number between 0 and 1")
    unknown = [metric for metric in metrics if metric not in METRICS]
    if unknown:
        raise ValueError(f"metrics: got {unknown[0]!r}, allowed: {', '.join(METRICS)}")


def bootstrap_intervals(
    labels: Array,
    log_odds: Array,
    user_ids: classification.UserIds,
    metrics: Sequence[str] = ("auc", "uauc", "accuracy", "f1"),
    n: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    threshold: float = 0.5,
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of metrics, by drawing users with replacement.

    Args:
        labels, log_odds, user_ids: [n], as for `classification_metrics`.
        metrics: some of METRICS.
        n: number of draws.
        level: share of the draws inside the interval.
        seed: of the draws; the same seed and users give the same draws for every model.
        threshold: scores at least this high are predicted positive.

    Returns:
        (low, high) per metric. A metric without meaning for these rows is left out, and so are all of them when there
        is one user only: one user says nothing about the next. Draws in which a metric is undefined (one class only)
        are left out of its interval. ECE is a sum of absolute values, so draws lie above the estimate and its
        interval need not hold it.

    Raises:
        ValueError: rows or settings that cannot be used, see `check_rows`.
    """
    _check(n, level, metrics)
    labels, odds = classification.check_rows(labels, log_odds, user_ids)
    users = classification.user_index(user_ids)
    if users.max() == 0:
        return {}
    model = WeightedMetrics(labels, odds, users, threshold)
    (drawn,) = _draws([model], len(labels), metrics, n, seed)
    once = np.ones((1, model.users))
    intervals = {}
    for metric, values in zip(metrics, drawn, strict=True):
        values = values[~np.isnan(values)]
        if len(values) and not np.isnan(model.compute(metric, once)[0]):
            intervals[metric] = percentile_interval(values, level)
    return intervals


def bootstrap_standard_error(
    labels: Array, log_odds: Array, user_ids: classification.UserIds, metric: str, n: int = 1000, seed: int = 0
) -> float | None:
    """Standard error of a metric: the standard deviation of its values over draws of users with replacement.

    Args and errors as for `bootstrap_intervals`; None where the metric has no meaning for these rows, or there is one
    user only.
    """
    _check(n, 0.5, [metric])
    labels, odds = classification.check_rows(labels, log_odds, user_ids)
    users = classification.user_index(user_ids)
    if users.max() == 0:
        return None
    (drawn,) = _draws([WeightedMetrics(labels, odds, users)], len(labels), [metric], n, seed)
    values = drawn[0][~np.isnan(drawn[0])]
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def paired_bootstrap(
    labels: Array,
    log_odds_a: Array,
    log_odds_b: Array,
    user_ids: classification.UserIds,
    metrics: Sequence[str] = ("auc", "uauc", "accuracy", "f1"),
    n: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    threshold: float = 0.5,
) -> dict[str, Difference]:
    """Differences A - B of two models on the same rows; both are measured on the same users in every draw.

    The p-value is two-sided: twice the smaller of the shares of draws at or below and at or above zero, with one
    added to both counts so that it is never 0 (Davison and Hinkley, "Bootstrap methods and their application", 1997,
    section 4.2). With 1,000 draws it cannot be smaller than 0.002.

    Args and errors as for `bootstrap_intervals`; a metric without meaning for these rows is left out.
    """
    _check(n, level, metrics)
    labels, odds_a = classification.check_rows(labels, log_odds_a, user_ids)
    _, odds_b = classification.check_rows(labels, log_odds_b, user_ids)
    users = classification.user_index(user_ids)
    if users.max() == 0:
        return {}
    model_a = WeightedMetrics(labels, odds_a, users, threshold)
    model_b = WeightedMetrics(labels, odds_b, users, threshold)
    drawn_a, drawn_b = _draws([model_a, model_b], len(labels), metrics, n, seed)
    once = np.ones((1, model_a.users))
    differences = {}
    for metric, values in zip(metrics, drawn_a - drawn_b, strict=True):
        point = float(model_a.compute(metric, once)[0] - model_b.compute(metric, once)[0])
        values = values[~np.isnan(values)]
        if not len(values) or np.isnan(point):
            continue
        differences[metric] = drawn_difference(point, values, level)
    return differences
