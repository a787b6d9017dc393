"""Scale log-odds so that their probabilities come out right: temperature, Platt scaling, isotonic regression.

Each is fitted on validation rows and applied to others. Temperature and Platt scaling are straight lines with a slope
of at least zero, so they keep the order of the scores (AUC and UAUC stay); isotonic regression is a rising curve that
may tie neighbouring scores. `ece` and `log_loss` before and after tell what was gained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq

from rectune.measure.classification import check_both_classes, negative_log_likelihood, probability

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

PRIOR = 1e-9
"""Weight of half the squared slope, in units of the log-odds' spread, beside the mean loss.

It keeps the slope finite where a threshold parts the classes perfectly (the likelihood alone would grow for ever), and
moves the slope of data with a normal overlap by some 1e-8 of itself.
"""

FLATTEST = 1e-6
"""The smallest mean size of the log-odds after temperature scaling: every P(yes) is about 0.5 there."""

EQUAL = 1e-12
"""Log-odds that spread by less than this are the same: no slope that a float holds would part them."""


def fit_temperature(labels: Array, log_odds: Array) -> float:
    """The temperature T > 0 for which log_odds / T has the smallest log loss on these rows.

    Above 1 the model was too sure of itself, below 1 not sure enough. Where the log-odds are wrong more than right,
    the loss falls with every larger T; T then ends where the mean size of the scaled log-odds is FLATTEST.
    Where every log-odd is 0 (or within EQUAL of it), any T is as good and it is 1.

    Args:
        labels: [n] of 0 and 1.
        log_odds: [n], logit(yes token) - logit(no token).

    Raises:
        ValueError: one class only, lengths that differ, no rows, or values that are not allowed.

    Source: Guo et al., "On calibration of modern neural networks", ICML 2017, section 4.2.

    >>> labels = np.array([1, 1, 1, 0] * 2)
    >>> odds = np.array([4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0])
    >>> round(fit_temperature(labels, odds), 4)  # three in four are right: 4 / T = log(3)
    3.641
    """
    labels, odds = check_both_classes(labels, log_odds)
    scale = float(np.abs(odds).mean())
    if scale < EQUAL:
        return 1.0
    unit = odds / scale
    turned = np.where(labels == 1, -unit, unit)

    def loss_gradient(slope: float) -> float:
        return float(np.mean(turned * probability(slope * turned))) + PRIOR * slope

    if loss_gradient(FLATTEST) >= 0:
        return scale / FLATTEST
    # The loss is convex in the slope 1 / T. As the mean of |unit| is 1, the prior outweighs the loss at 1 / PRIOR.
    return scale / float(brentq(loss_gradient, FLATTEST, 1 / PRIOR, xtol=1e-14, maxiter=500))


def _newton(columns: Floats, labels: Array) -> Floats:
    """Coefficients of a logistic regression, [k], the first with PRIOR; Newton's method with halved steps.

    Args:
        columns: [n, k].
        labels: [n] of 0 and 1, both there.
    """
    ridge = np.zeros(columns.shape[1])
    ridge[0] = PRIOR
    sign = np.where(labels == 1, 1.0, -1.0)

    def loss(at: Floats) -> float:
        return float(negative_log_likelihood(labels, columns @ at).mean() + ridge @ at**2 / 2)

    at = np.zeros(columns.shape[1])
    for _ in range(200):
        margin = sign * (columns @ at)
        wrong = probability(-margin)
        gradient = columns.T @ (-sign * wrong) / len(labels) + ridge * at
        weight = wrong * probability(margin)
        hessian = (columns.T * weight) @ columns / len(labels) + np.diag(ridge)
        step = np.linalg.solve(hessian, gradient)
        gain = float(gradient @ step)
        size, now = 1.0, loss(at)
        # Below 1e-12 the gain drowns in the rounding of the loss, and Newton's steps are safe so near to the end.
        while gain > 1e-12 and loss(at - size * step) > now - 1e-4 * size * gain:
            size /= 2
        at = at - size * step
        if gain < 1e-20:
            return at
    raise ArithmeticError(f"Platt scaling of {len(labels)} rows did not settle in 200 steps of Newton's method")


def fit_platt(labels: Array, log_odds: Array) -> tuple[float, float]:
    """Slope and offset for which slope * log_odds + offset has the smallest log loss on these rows.

    The slope is at least 0, so that a ranking is never turned around: where the data ask for a negative one, it is 0
    and the offset is the log-odds of the positive rate, as where all log-odds are the same. Platt's smoothed labels
    are not used; PRIOR on the slope is what keeps separable rows finite.

    Args:
        labels: [n] of 0 and 1.
        log_odds: [n], logit(yes token) - logit(no token).

    Raises:
        ValueError: one class only, lengths that differ, no rows, or values that are not allowed.

    Source: Platt, "Probabilistic outputs for support vector machines", 1999.

    >>> labels, odds = np.array([1, 0, 0, 1, 1, 0]), np.array([0.0, 0.0, 0.0, 2.0, 2.0, 2.0])
    >>> slope, offset = fit_platt(labels, odds)  # 1 in 3 at 0, 2 in 3 at 2: from -log(2) to log(2)
    >>> round(slope, 6), round(offset, 6)
    (0.693147, -0.693147)
    """
    labels, odds = check_both_classes(labels, log_odds)
    rate = float(labels.mean())
    flat = (0.0, math.log(rate / (1 - rate)))
    centre = float(odds.mean())
    spread = float(np.abs(odds - centre).mean())
    if spread < EQUAL:
        return flat
    steepness, level = _newton(np.stack([(odds - centre) / spread, np.ones(len(odds))], axis=1), labels)
    if steepness <= 0:
        return flat
    slope = float(steepness) / spread
    return slope, float(level) - slope * centre


@dataclass(frozen=True)
class Isotonic:
    """A rising curve from log-odds to probability: straight between its knots, level beyond the first and the last.

    Both fields are plain numbers, so that the curve can be kept as JSON: `Isotonic(**json.loads(...))`.

    Attributes:
        knots: log-odds, rising.
        values: the probability at each knot, never falling, inside (0, 1).
    """

    knots: Sequence[float]
    values: Sequence[float]

    def apply(self, log_odds: Array) -> Floats:
        """Calibrated P(yes), [n], of log-odds [n]."""
        found: Floats = np.interp(np.asarray(log_odds, dtype=np.float64), self.knots, self.values)
        return found

    def apply_log_odds(self, log_odds: Array) -> Floats:
        """Calibrated log-odds, [n], of log-odds [n]: what the metrics take."""
        score = self.apply(log_odds)
        return np.log(score) - np.log1p(-score)


def fit_isotonic(labels: Array, log_odds: Array) -> Isotonic:
    """The never falling curve with the smallest squared error on these rows.

    Its values stay within 1 / (n + 2) and 1 - 1 / (n + 2) (the rule of succession): no number of rows shows that
    something never happens, and one such row afterwards would make the log loss infinite.

    Args:
        labels: [n] of 0 and 1.
        log_odds: [n], logit(yes token) - logit(no token).

    Raises:
        ValueError: one class only, lengths that differ, no rows, or values that are not allowed.

    Source: Zadrozny and Elkan, "Transforming classifier scores into accurate multiclass probability estimates",
    KDD 2002; scikit-learn's `IsotonicRegression`.

    >>> curve = fit_isotonic(np.array([0, 1, 0, 1]), np.array([-1.0, 0.0, 1.0, 2.0]))
    >>> curve.apply(np.array([-9.0, 0.0, 1.0, 1.5, 9.0])).round(4).tolist()
    [0.1667, 0.5, 0.5, 0.6667, 0.8333]
    """
    from sklearn.isotonic import IsotonicRegression

    labels, odds = check_both_classes(labels, log_odds)
    least = 1 / (len(labels) + 2)
    fitted = IsotonicRegression(y_min=least, y_max=1 - least, out_of_bounds="clip").fit(odds, labels)
    return Isotonic(tuple(fitted.X_thresholds_.tolist()), tuple(fitted.y_thresholds_.tolist()))
