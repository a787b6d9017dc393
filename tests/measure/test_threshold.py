import doctest
import math
import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from rectune.measure import threshold as t
from rectune.measure.classification import accuracy, confusion, f1, predict, probability

MEASURES = {"accuracy": accuracy, "f1": f1}
ROWS = st.lists(st.tuples(st.integers(0, 1), st.integers(-6, 6)), min_size=2, max_size=25).filter(
    lambda rows: len({label for label, _ in rows}) == 2
)
metrics = pytest.mark.parametrize("metric", t.METRICS)


def reached(labels, odds, threshold, metric):
    return MEASURES[metric](confusion(labels, predict(odds, threshold)))


def brute_force(labels, odds, metric):
    """Every way to part the rows, one at a time, measured by scikit-learn."""
    measure = accuracy_score if metric == "accuracy" else lambda *rows: f1_score(*rows, zero_division=0)
    scores = [0.0, *sorted(set(probability(odds).tolist())), 1.0]
    tried = []
    for low, high in pairwise(scores):
        middle = (low + high) / 2
        value = measure(labels, (probability(odds) > middle).astype(int))
        tried.append((-round(value, 12), abs(middle - 0.5), middle))
    return min(tried)[2], -min(tried)[0]


def test_the_examples_in_the_docstrings_run():
    found = doctest.testmod(t)
    assert found.attempted == 3 and found.failed == 0


@metrics
@settings(max_examples=60, deadline=None)
@given(rows=ROWS)
def test_the_threshold_is_the_one_found_by_trying_all_of_them(metric, rows):
    labels, odds = (np.array(column) for column in zip(*rows, strict=True))
    odds = odds / 2 + 0.1
    found = t.choose_threshold(labels, odds, metric)
    expected, value = brute_force(labels, odds, metric)
    assert found == pytest.approx(expected, abs=1e-12)
    assert reached(labels, odds, found, metric) == pytest.approx(value, abs=1e-12)


@metrics
@settings(max_examples=150, deadline=None)
@given(rows=st.lists(st.tuples(st.integers(0, 1), st.integers(-3600, 3600)), min_size=2, max_size=25), data=st.data())
def test_no_other_threshold_is_better(metric, rows, data):
    labels, odds = (np.array(column) for column in zip(*rows, strict=True))
    if labels.min() == labels.max():
        return
    odds = odds / 4
    found = t.choose_threshold(labels, odds, metric)
    assert 0 < found < 1
    other = data.draw(st.floats(1e-12, 1 - 1e-12))
    assert reached(labels, odds, found, metric) >= reached(labels, odds, other, metric)
    assert reached(labels, odds, found, metric) >= reached(labels, odds, 0.5, metric)


def test_values_worked_out_by_hand():
    odds = np.log([0.25, 2 / 3, 1.5, 4.0])  # scores 0.2, 0.4, 0.6, 0.8
    labels = np.array([0, 1, 0, 1])
    # Accuracy: from 0.4 on 3 of 4 (cut 0.3), from 0.8 on 3 of 4 (cut 0.7): equally near to 0.5, so the lower.
    assert t.choose_threshold(labels, odds, "accuracy") == pytest.approx(0.3)
    # F1: from 0.4 on 2 * 2 / (3 + 2) = 0.8, all 2 * 2 / (4 + 2), from 0.8 on 2 / (1 + 2).
    assert t.choose_threshold(labels, odds, "f1") == pytest.approx(0.3)


def test_of_equally_good_thresholds_the_nearest_to_a_half_is_taken():
    # Three of four are right from 0.2 on (cut 0.15) and from 0.9 on (cut 0.8), which is nearer to 0.5.
    odds = np.log([1 / 9, 1 / 4, 7 / 3, 9.0])  # scores 0.1, 0.2, 0.7, 0.9
    assert t.choose_threshold(np.array([0, 1, 0, 1]), odds) == pytest.approx(0.8)


def test_answering_always_the_same_can_be_best():
    odds = np.log([3 / 2, 4.0, 9.0])  # scores 0.6, 0.8, 0.9
    # 2 of 3 are Yes, and the No has the highest score: all Yes, half-way between 0 and 0.6.
    assert t.choose_threshold(np.array([1, 1, 0]), odds) == pytest.approx(0.3)
    # 2 of 3 are No, and the Yes has the lowest score: all No, half-way between 0.9 and 1.
    assert t.choose_threshold(np.array([1, 0, 0]), odds) == pytest.approx(0.95)


def test_scores_that_round_to_zero_or_one_still_have_a_threshold():
    labels = np.array([0, 1])
    assert t.choose_threshold(labels, np.array([-800.0, 800.0])) == 0.5
    for odds in (np.array([50.0, 60.0]), np.array([-900.0, -800.0])):
        found = t.choose_threshold(labels, odds)
        assert 0 < found < 1
        assert reached(labels, odds, found, "accuracy") == 0.5


def test_log_odds_that_share_a_score_are_parted_where_predicting_can_part_them():
    labels, odds = np.array([1, 0, 1, 1]), np.array([-2.0, -1e-200, 0.0, 0.0])
    assert probability(odds[1:]).tolist() == [0.5, 0.5, 0.5]
    found = t.choose_threshold(labels, odds)
    assert found == 0.5  # as right as all Yes, and nearer to a half
    assert predict(odds, found).tolist() == [False, False, True, True]


@metrics
def test_scores_one_rounding_apart_are_parted_by_the_upper_one(metric):
    # Half-way between them rounds to the lower one, at which both would be Yes.
    odds = np.array([0.0, 5e-16])
    low, high = probability(odds)
    assert np.nextafter(low, 1) == high and (low + high) / 2 == low
    assert t.choose_threshold(np.array([0, 1]), odds, metric) == high
    assert predict(odds, high).tolist() == [False, True]


def test_two_hundred_thousand_rows_take_less_than_two_seconds():
    random = np.random.default_rng(0)
    odds = random.normal(size=200_000)
    labels = (random.uniform(size=200_000) < probability(odds - 0.5)).astype(int)
    start = time.process_time()
    found = t.choose_threshold(labels, odds, "accuracy")
    assert time.process_time() - start < 2
    assert found == pytest.approx(probability(np.array(0.5)), abs=0.03)


@pytest.mark.parametrize(
    ("labels", "odds", "metric", "message"),
    [
        ([0, 1], [0.0, 1.0], "auc", "metric: got 'auc', allowed: accuracy, f1"),
        ([0, 0], [0.0, 1.0], "f1", "all 2 rows are 0"),
        ([0, 1], [0.0, math.nan], "f1", "1 of 2 log-odds"),
        ([0, 1], [0.0], "f1", "2 labels and 1 log-odds"),
        ([], [], "f1", "no rows"),
    ],
)
def test_what_cannot_be_used_is_named(labels, odds, metric, message):
    with pytest.raises(ValueError, match=message):
        t.choose_threshold(np.array(labels), np.array(odds), metric)
