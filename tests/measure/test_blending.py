"""Blends: Platt scaling with one model, scikit-learn's regression with several, no model turned round."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rectune.measure.blending import fit_blend
from rectune.measure.classification import log_loss
from rectune.measure.scaling import fit_platt


def drawn(seed: int, rows: int = 400, models: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and log-odds of models that see the truth through noise of their own."""
    draw = np.random.default_rng(seed)
    truth = draw.normal(0.0, 1.5, rows)
    labels = (draw.random(rows) < 1 / (1 + np.exp(-truth))).astype(int)
    return labels, truth[:, None] + draw.normal(0.0, 1.0 + np.arange(models), (rows, models))


@pytest.mark.parametrize("seed", range(5))
def test_with_one_model_it_is_platt_scaling(seed: int) -> None:
    labels, odds = drawn(seed, models=1)
    (weight,), offset = fit_blend(labels, odds)
    assert (weight, offset) == pytest.approx(fit_platt(labels, odds[:, 0]), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_weights_are_those_of_an_unpenalised_logistic_regression_where_all_are_positive(seed: int) -> None:
    from sklearn.linear_model import LogisticRegression

    labels, odds = drawn(seed)
    reference = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(odds, labels)
    assert (reference.coef_ > 0).all()
    weights, offset = fit_blend(labels, odds)
    np.testing.assert_allclose(weights, reference.coef_[0], rtol=1e-3)
    assert offset == pytest.approx(reference.intercept_[0], abs=1e-3)


@given(seed=st.integers(0, 10_000), models=st.integers(1, 4), scale=st.sampled_from([1e-3, 1.0, 1e3]))
@settings(max_examples=60, deadline=None)
def test_no_weight_is_negative_and_none_does_better_alone(seed: int, models: int, scale: float) -> None:
    labels, odds = drawn(seed, 60, models)
    if labels.min() == labels.max():
        return
    odds[:, -1] *= -1.0
    weights, offset = fit_blend(labels, odds * scale)
    assert (weights >= 0).all()
    best = log_loss(labels, odds * scale @ weights + offset)
    for column in (odds * scale).T:
        slope, level = fit_platt(labels, column)
        assert best <= log_loss(labels, slope * column + level) + 1e-6


def test_a_model_that_says_the_same_of_all_has_no_weight() -> None:
    labels, odds = drawn(0)
    odds[:, 1] = 3.0
    weights, offset = fit_blend(labels, odds)
    others, same = fit_blend(labels, odds[:, [0, 2]])
    assert weights[1] == 0 and weights[[0, 2]] == pytest.approx(others) and offset == pytest.approx(same)


def test_models_that_part_the_rows_perfectly_get_finite_weights() -> None:
    weights, offset = fit_blend(np.array([0, 0, 1, 1]), np.array([[-2.0, 1], [-1, 0], [1, 0], [2, 1]]))
    assert np.isfinite([*weights, offset]).all() and weights[0] > 1


@pytest.mark.parametrize(
    ("labels", "odds", "message"),
    [
        ([0, 0], [[1.0], [2.0]], "class"),
        ([0, 1], [[1.0]], "got 2 labels and 1 log-odds"),
        ([0, 1], [[1.0, np.nan], [2.0, 0.0]], "finite"),
        ([0, 1], [1.0, 2.0], "two dimensions"),
    ],
)
def test_rows_that_cannot_be_fitted_are_errors(labels: list[int], odds: list[list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_blend(np.array(labels), np.array(odds))
