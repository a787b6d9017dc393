"""Standard errors against simulation, and what scores say of themselves against hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rectune.measure.classification import auc, log_loss, probability
from rectune.measure.uncertainty import auc_standard_error, entropy, self_assessment


@pytest.mark.parametrize(("area", "positives", "negatives"), [(0.6, 20, 60), (0.75, 40, 40), (0.9, 80, 20)])
def test_the_error_of_an_auc_is_the_scatter_of_simulated_ones(area: float, positives: int, negatives: int) -> None:
    # Exponential scores of rate 1 for negatives and r for positives have AUC = 1 / (1 + r).
    draw, rate = np.random.default_rng(0), (1 - area) / area
    labels = np.repeat([1, 0], [positives, negatives])
    found = [
        auc(labels, np.concatenate([draw.exponential(1 / rate, positives), draw.exponential(1, negatives)]))
        for _ in range(2000)
    ]
    assert np.mean(np.array(found, dtype=float)) == pytest.approx(area, abs=0.005)
    assert auc_standard_error(area, positives, negatives) == pytest.approx(
        np.std(np.array(found, dtype=float)), rel=0.06
    )


def test_an_auc_without_one_class_has_no_error_and_a_perfect_one_has_none_left() -> None:
    assert math.isnan(auc_standard_error(0.5, 3, 0))
    assert auc_standard_error(1.0, 10, 10) == pytest.approx(0.0, abs=1e-9)


def test_calibrated_scores_have_the_loss_that_they_expect_and_sure_ones_a_larger() -> None:
    draw = np.random.default_rng(1)
    odds = draw.normal(0, 1.5, 40_000)
    labels = (draw.random(40_000) < probability(odds)).astype(int)
    found = self_assessment(labels, odds)
    assert abs(log_loss(labels, odds) - found["loss_expected"]) < 3 * found["loss_se"]
    assert found["score_mean"] == pytest.approx(labels.mean(), abs=0.01)
    assert found["log_odds_sd"] == pytest.approx(1.5, rel=0.02)
    sure = self_assessment(labels, 3 * odds)
    assert log_loss(labels, 3 * odds) - sure["loss_expected"] > 20 * sure["loss_se"]


def test_by_hand() -> None:
    # Losses are 0.3133 and 1.3133: mean 0.8133, standard deviation 0.7071, over sqrt(2) is 0.5.
    found = self_assessment(np.array([1, 0]), np.array([1.0, 1.0]))
    assert found["loss_se"] == pytest.approx(0.5)
    assert found["loss_expected"] == pytest.approx(entropy(1 / (1 + math.exp(-1))))
    assert found["score_mean"] == pytest.approx(0.7311, abs=1e-4)
    assert (found["log_odds_sd"], self_assessment(np.array([1]), np.array([5.0]))["loss_se"]) == (0.0, 0.0)
