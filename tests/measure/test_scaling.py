import doctest
import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from rectune.measure import scaling as s
from rectune.measure.calibration import ece
from rectune.measure.classification import auc, log_loss, probability

ROWS = st.lists(st.tuples(st.integers(0, 1), st.floats(-9, 9)), min_size=2, max_size=40).filter(
    lambda rows: len({label for label, _ in rows}) == 2
)


def some_rows(n=3000, slope=0.4, offset=-0.7, seed=0):
    """Log-odds that are too sure and too high: the true ones are slope * odds + offset."""
    random = np.random.default_rng(seed)
    odds = random.normal(1, 3, n)
    return (random.uniform(size=n) < probability(slope * odds + offset)).astype(int), odds


def columns(rows):
    return tuple(np.array(column) for column in zip(*rows, strict=True))


def logistic_regression(labels, odds, intercept):
    """Scikit-learn's, without a prior to speak of."""
    model = LogisticRegression(C=1e12, fit_intercept=intercept, tol=1e-12, max_iter=1000, solver="newton-cholesky")
    model.fit(odds[:, None], labels)
    return float(model.coef_[0, 0]), float(model.intercept_[0]) if intercept else 0.0


def test_the_examples_in_the_docstrings_run():
    found = doctest.testmod(s)
    assert found.attempted >= 8 and found.failed == 0


@pytest.mark.parametrize(
    ("n", "slope", "offset", "seed"),
    [(3000, 0.4, -0.7, 0), (200, 1.5, 0.0, 1), (40, 0.2, 1.0, 2), (5000, 0.05, 3.0, 3)],
)
def test_platt_scaling_and_temperature_equal_scikit_learns_logistic_regression(n, slope, offset, seed):
    labels, odds = some_rows(n, slope, offset, seed)
    assert s.fit_platt(labels, odds) == pytest.approx(logistic_regression(labels, odds, True), rel=1e-6, abs=1e-6)
    assert 1 / s.fit_temperature(labels, odds) == pytest.approx(logistic_regression(labels, odds, False)[0], rel=1e-6)


def test_no_temperature_of_a_fine_grid_has_a_smaller_loss():
    labels, odds = some_rows(400)
    found = s.fit_temperature(labels, odds)
    grid = np.r_[np.geomspace(0.05, 50, 2000), found * np.linspace(0.999, 1.001, 2001)]
    losses = np.array([log_loss(labels, odds / temperature) for temperature in grid])
    assert log_loss(labels, odds / found) <= losses.min() + 1e-15
    assert grid[losses.argmin()] == pytest.approx(found, rel=2e-6)


def test_no_slope_and_offset_of_a_grid_have_a_smaller_loss():
    labels, odds = some_rows(400)
    slope, offset = s.fit_platt(labels, odds)
    best = log_loss(labels, slope * odds + offset)
    for other_slope in np.r_[np.linspace(0, 2, 41), slope * np.linspace(0.99, 1.01, 21)]:
        for other_offset in np.r_[np.linspace(-2, 2, 41), offset * np.linspace(0.99, 1.01, 21)]:
            assert best <= log_loss(labels, other_slope * odds + other_offset) + 1e-15


def test_the_scales_that_made_the_labels_are_found_again():
    labels, odds = some_rows(200_000, slope=0.4, offset=-0.7)
    assert s.fit_platt(labels, odds) == pytest.approx((0.4, -0.7), abs=0.02)
    labels, odds = some_rows(200_000, slope=0.4, offset=0.0)
    assert s.fit_temperature(labels, odds) == pytest.approx(2.5, abs=0.05)


@pytest.mark.parametrize("fit", ["temperature", "platt", "isotonic"])
def test_what_is_fitted_on_some_rows_calibrates_others(fit):
    # The offset is for Platt scaling and the curve only: a temperature cannot move the even chance.
    labels, odds = some_rows(40_000, slope=0.3, offset=0.0 if fit == "temperature" else -0.7)
    seen, new = slice(0, 20_000), slice(20_000, None)
    if fit == "temperature":
        scores = probability(odds[new] / s.fit_temperature(labels[seen], odds[seen]))
    elif fit == "platt":
        slope, offset = s.fit_platt(labels[seen], odds[seen])
        scores = probability(slope * odds[new] + offset)
    else:
        scores = s.fit_isotonic(labels[seen], odds[seen]).apply(odds[new])
    assert ece(labels[new], probability(odds[new])) > 0.15
    assert ece(labels[new], scores) < 0.02


@settings(max_examples=150, deadline=None)
@given(ROWS)
def test_scaling_never_makes_the_loss_larger_and_never_turns_the_order(rows):
    labels, odds = columns(rows)
    temperature = s.fit_temperature(labels, odds)
    slope, offset = s.fit_platt(labels, odds)
    assert 0 < temperature < math.inf
    assert 0 <= slope < math.inf and math.isfinite(offset)
    size, spread = np.abs(odds).mean(), np.abs(odds - odds.mean()).mean()

    def penalised(other_slope, other_offset, unit):
        return log_loss(labels, other_slope * odds + other_offset) + s.PRIOR / 2 * (other_slope * unit) ** 2

    assert penalised(1 / temperature, 0, size) <= penalised(1, 0, size) + s.FLATTEST
    lined = penalised(slope, offset, spread)
    assert lined <= penalised(1 / temperature, 0, spread) + 1e-12
    rate = labels.mean()
    assert lined <= -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate)) + 1e-12


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_platt_scaling_finds_the_smallest_loss_that_a_bounded_search_finds(rows):
    labels, odds = columns(rows)
    slope, offset = s.fit_platt(labels, odds)
    other = minimize(
        lambda at: log_loss(labels, at[0] * odds + at[1]), [0.5, 0.0], bounds=[(0, 5), (-20, 20)], method="L-BFGS-B"
    )
    # The prior may cost what it weighs at the other's slope, at most 5, with a spread of at most 9.
    assert log_loss(labels, slope * odds + offset) <= other.fun + s.PRIOR / 2 * (5 * 9) ** 2 + 1e-12


@settings(max_examples=60, deadline=None)
@given(ROWS, st.sampled_from([1e-6, 0.01, 7.0, 1e6]))
def test_log_odds_in_other_units_need_a_temperature_in_those_units(rows, unit):
    labels, odds = columns(rows)
    if not np.abs(odds).mean() > 1e-3:
        return
    assert s.fit_temperature(labels, unit * odds) == pytest.approx(unit * s.fit_temperature(labels, odds), rel=1e-5)


def test_rows_that_a_threshold_parts_perfectly_have_finite_scales():
    labels, odds = np.array([0, 0, 1, 1]), np.array([-2.0, -1.0, 1.0, 2.0])
    slope, offset = s.fit_platt(labels, odds)
    temperature = s.fit_temperature(labels, odds)
    assert 5 < slope < 50 and offset == pytest.approx(0, abs=1e-6)
    assert 0.02 < temperature < 0.2
    assert ((probability(slope * odds + offset) > 0.5) == labels).all()


def test_a_ranking_that_is_wrong_way_round_is_flattened_and_not_turned():
    labels, odds = some_rows(500, slope=-1.0, offset=0.0)
    rate = labels.mean()
    assert s.fit_platt(labels, odds) == (0.0, pytest.approx(math.log(rate / (1 - rate))))
    assert s.fit_temperature(labels, odds) == pytest.approx(np.abs(odds).mean() / s.FLATTEST)
    assert auc(labels, odds / s.fit_temperature(labels, odds)) == auc(labels, odds) < 0.5


def test_log_odds_that_are_all_the_same_give_the_positive_rate():
    labels, odds = np.array([1, 0, 0, 0]), np.full(4, 0.1)
    assert s.fit_platt(labels, odds) == (0.0, pytest.approx(-math.log(3)))
    assert s.fit_temperature(labels, np.zeros(4)) == 1.0
    assert s.fit_isotonic(labels, odds).apply(np.array([-5.0, 0.1, 5.0])).tolist() == [0.25] * 3


def test_huge_log_odds_fit_without_a_warning():
    labels, odds = some_rows(300)
    with np.errstate(all="raise", under="ignore"):
        assert s.fit_temperature(labels, 1000 * odds) == pytest.approx(1000 * s.fit_temperature(labels, odds), rel=1e-6)
        slope, offset = s.fit_platt(labels, odds)
        assert s.fit_platt(labels, 1000 * odds) == pytest.approx((slope / 1000, offset), rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(ROWS, st.lists(st.floats(-20, 20), min_size=1, max_size=20))
def test_the_isotonic_curve_is_scikit_learns_kept_off_zero_and_one(rows, others):
    labels, odds = columns(rows)
    curve = s.fit_isotonic(labels, odds)
    least = 1 / (len(labels) + 2)
    reference = IsotonicRegression(out_of_bounds="clip").fit(odds, labels)
    for values in (odds, np.sort(others)):
        found = curve.apply(values)
        assert (np.diff(found[np.argsort(values)]) >= -1e-12).all()
        assert ((found >= least - 1e-12) & (found <= 1 - least + 1e-12)).all()
        np.testing.assert_allclose(probability(curve.apply_log_odds(values)), found, atol=1e-12)
    # The bounds change the values at the knots only; between two of them the straight line moves along.
    np.testing.assert_allclose(curve.apply(odds), np.clip(reference.predict(odds), least, 1 - least), atol=1e-9)


def test_the_isotonic_curve_by_hand():
    # 1, 0 stand the wrong way round at 1 and 2 and share 1/2; the first block is 0 and the last 1, kept 1/6 away.
    curve = s.fit_isotonic(np.array([0, 1, 0, 1]), np.array([0.0, 1.0, 2.0, 3.0]))
    assert curve.apply(np.array([0.0, 1.0, 2.0, 3.0])).tolist() == pytest.approx([1 / 6, 1 / 2, 1 / 2, 5 / 6])
    assert curve.apply(np.array([-1.0, 0.5, 2.5, 4.0])).tolist() == pytest.approx([1 / 6, 1 / 3, 2 / 3, 5 / 6])


def test_the_isotonic_curve_survives_json():
    curve = s.fit_isotonic(*some_rows(300))
    again = s.Isotonic(**json.loads(json.dumps(asdict(curve))))
    odds = np.linspace(-9, 9, 100)
    assert again.apply(odds).tolist() == curve.apply(odds).tolist()


@pytest.mark.parametrize("fit", [s.fit_temperature, s.fit_platt, s.fit_isotonic])
@pytest.mark.parametrize(
    ("labels", "odds", "message"),
    [
        ([1, 1], [0.0, 1.0], "all 2 rows are 1; fitting needs rows of both classes"),
        ([0, 1, 1], [0.0, math.nan, 1.0], "1 of 3 log-odds are not finite"),
        ([0, 1], [0.0, math.inf], "1 of 2 log-odds"),
        ([0, 1], [0.0], "2 labels and 1 log-odds"),
        ([0, 3], [0.0, 1.0], r"labels: got \[3\]"),
        ([], [], "no rows"),
    ],
)
def test_rows_that_cannot_be_fitted_are_refused_with_what_was_got(fit, labels, odds, message):
    with pytest.raises(ValueError, match=message):
        fit(np.array(labels), np.array(odds))
