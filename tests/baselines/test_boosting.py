"""Boosted trees: base rates worked out by hand, steps found, the same seed the same trees."""

from __future__ import annotations

import numpy as np
import pytest

from rectune.baselines.boosting import _PATIENCE, boost, boosted_log_odds
from rectune.baselines.questions import Floats
from rectune.measure.classification import log_loss, probability


def steps(rows: int, seed: int, features: int = 3) -> tuple[Floats, Floats]:
    """Four in five are liked where the first feature is above 0, one in five elsewhere; the others say nothing."""
    draw = np.random.default_rng(seed)
    inputs = draw.normal(size=(rows, features))
    return inputs, (draw.random(rows) < np.where(inputs[:, 0] > 0, 0.8, 0.2)).astype(np.float64)


def test_too_few_rows_to_split_give_the_log_odds_of_the_base_rate() -> None:
    inputs, labels = np.random.default_rng(0).normal(size=(150, 3)), np.repeat([1.0, 0.0], [90, 60])
    found = boosted_log_odds(boost(inputs, labels, 7, 0, trees=5), inputs)
    np.testing.assert_allclose(found, np.log(90 / 60), rtol=1e-6)
    assert found.dtype == np.float64


def test_a_step_is_found_and_answers_are_log_odds() -> None:
    inputs, labels = steps(4000, 0)
    found = boosted_log_odds(boost(inputs, labels, 7, 0, steps(1000, 1)), np.array([[1.0, 0, 0], [-1.0, 0, 0]]))
    np.testing.assert_allclose(probability(found), [0.8, 0.2], atol=0.06)


def test_as_many_trees_are_kept_as_have_the_smallest_held_out_loss() -> None:
    train, held_out = steps(2000, 0), steps(1000, 1)
    kept = boost(*train, 15, 0, held_out)
    assert 1 < kept.num_trees() < 1500
    all_of_them = boost(*train, 15, 0, trees=kept.num_trees() + _PATIENCE)
    counts = range(1, all_of_them.num_trees() + 1)
    answers = {count: np.asarray(all_of_them.predict(held_out[0], 0, count, raw_score=True)) for count in counts}
    losses = [log_loss(held_out[1], answers[count]) for count in counts]
    assert counts[int(np.argmin(losses))] == kept.num_trees()
    np.testing.assert_array_equal(boosted_log_odds(kept, held_out[0]), answers[kept.num_trees()])


def test_what_is_missing_has_a_side_of_its_own() -> None:
    inputs, labels = steps(4000, 0)
    inputs[labels == 1, 1] = np.nan
    found = boosted_log_odds(boost(inputs, labels, 7, 0, trees=200), np.array([[0, np.nan, 0], [0, 0, 0]]))
    assert found[0] > 2 and found[1] < -2


@pytest.mark.parametrize("held_out", [None, steps(500, 1)])
def test_the_same_seed_gives_the_same_trees(held_out: tuple[Floats, Floats] | None) -> None:
    train = steps(1000, 0)
    one, again, other = (boost(*train, 7, seed, held_out, 30).model_to_string() for seed in (0, 0, 1))
    assert one == again and one != other


def test_labels_that_all_agree_give_finite_log_odds() -> None:
    inputs, _ = steps(500, 0)
    for label in (0.0, 1.0):
        found = boosted_log_odds(boost(inputs, np.full(500, label), 7, 0, trees=5), inputs)
        assert np.isfinite(found).all() and ((found > 0) == (label == 1)).all()
