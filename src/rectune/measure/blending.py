"""Several models' log-odds as one: the weighted sum that fits validation rows best."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from rectune.measure.classification import check_both_classes, negative_log_likelihood, probability
from rectune.measure.scaling import EQUAL

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


def fit_blend(labels: Array, log_odds: Array) -> tuple[Floats, float]:
    """Weights of at least 0, and an offset, for which the weighted sum has the smallest log loss on these rows.

    A model that adds nothing, or whose log-odds are all the same, has weight 0. With one model this is Platt scaling.

    Args:
        labels: [n] of 0 and 1.
        log_odds: [n, models].

    Returns:
        float64 [models], and the offset.

    Raises:
        ValueError: one class only, lengths that differ, no rows, or values that are not allowed.

    Source: Wolpert, "Stacked generalization", Neural Networks 5(2), 1992, with the non-negative weights of Breiman,
    "Stacked regressions", Machine Learning 24, 1996.

    >>> labels = np.array([1, 0, 0, 1, 1, 0])
    >>> one, twice = np.array([0.0, 0, 0, 2, 2, 2]), np.array([4.0, 4, 4, 0, 0, 0])
    >>> weights, offset = fit_blend(labels, np.column_stack([one, twice]))  # the second speaks against the labels
    >>> weights.round(4).tolist(), round(offset, 4)
    ([0.6931, 0.0], -0.6931)
    """
    labels, _ = check_both_classes(labels, np.asarray(log_odds)[:, 0] if np.ndim(log_odds) == 2 else log_odds)
    columns = np.asarray(log_odds, dtype=np.float64)
    if columns.ndim != 2 or not np.isfinite(columns).all():
        raise ValueError(f"log_odds: expected finite numbers in two dimensions, got shape {columns.shape}")
    centre = columns.mean(axis=0)
    spread = np.abs(columns - centre).mean(axis=0)
    varies = spread > EQUAL
    scaled = (columns - centre) / np.where(varies, spread, 1.0) * varies
    with_one = np.column_stack([scaled, np.ones(len(labels))])

    def loss(at: Floats) -> tuple[float, Floats]:
        sums = with_one @ at
        slope: Floats = with_one.T @ (probability(sums) - labels) / len(labels)
        # As small a penalty as `scaling.PRIOR`, for rows that a sum of models parts perfectly.
        return float(negative_log_likelihood(labels, sums).mean()) + 5e-10 * float(
            at[:-1] @ at[:-1]
        ), slope + np.append(1e-9 * at[:-1], 0.0)

    rate = float(labels.mean())
    start = np.append(np.zeros(columns.shape[1]), np.log(rate) - np.log1p(-rate))
    bounds = [(0.0, None)] * columns.shape[1] + [(None, None)]
    options = {"maxiter": 1000, "ftol": 1e-15, "gtol": 1e-10}
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    weights = np.where(varies, found[:-1] / np.where(varies, spread, 1.0), 0.0)
    return weights, float(found[-1] - weights @ centre)
