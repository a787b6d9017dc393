import doctest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

from rectune.measure import calibration
from rectune.measure.calibration import bin_index, ece, reliability_curve


def test_the_curve_equals_scikit_learns_where_no_score_lies_on_an_edge():
    random = np.random.default_rng(0)
    scores = random.uniform(0.001, 0.999, 3000)
    labels = (random.uniform(size=3000) < scores**2).astype(int)
    share, mean = calibration_curve(labels, scores, n_bins=15)
    curve = reliability_curve(labels, scores)
    np.testing.assert_allclose(curve.mean_score, mean)
    np.testing.assert_allclose(curve.positive_share, share)
    assert curve.count.sum() == 3000


def test_ece_is_the_gap_of_scikit_learns_curve_weighted_by_the_rows_of_each_bin():
    random = np.random.default_rng(1)
    scores = random.beta(2, 5, 2000)
    labels = (random.uniform(size=2000) < scores**0.7).astype(int)
    share, mean = calibration_curve(labels, scores, n_bins=15)
    rows = np.histogram(scores, bins=np.linspace(0, 1, 16))[0]
    assert ece(labels, scores) == pytest.approx(np.sum(rows[rows > 0] / 2000 * np.abs(share - mean)), abs=1e-12)
    assert ece(labels, scores) > 0.05


def test_the_examples_in_the_docstrings_run():
    found = doctest.testmod(calibration)
    assert found.attempted >= 4 and found.failed == 0


def test_ece_has_the_value_worked_out_by_hand():
    # Bins of 1/15: 0.50 and 0.52 share bin 7 (mean 0.51, share 0.5); 0.9 lies alone in bin 13.
    assert ece(np.array([1, 0, 0]), np.array([0.50, 0.52, 0.9])) == pytest.approx(2 / 3 * 0.01 + 1 / 3 * 0.9)


def test_scores_of_zero_and_one_have_a_bin():
    assert bin_index(np.array([0.0, 1.0])).tolist() == [0, 14]
    assert ece(np.array([0, 1]), np.array([0.0, 1.0])) == 0.0
    assert ece(np.array([1, 0]), np.array([0.0, 1.0])) == 1.0


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.floats(0, 1)), min_size=1, max_size=50))
def test_ece_lies_between_the_gap_of_the_means_and_one(rows):
    labels, scores = (np.array(column) for column in zip(*rows, strict=True))
    assert abs(labels.mean() - scores.mean()) - 1e-9 <= ece(labels, scores) <= 1
