import doctest
import math
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from rectune.measure import classification as c

ROWS = st.lists(st.tuples(st.integers(0, 1), st.integers(-8, 8), st.sampled_from("abc")), min_size=1, max_size=60)


def some_rows(n: int = 500, users: int = 40, ties: bool = True, seed: int = 0):
    random = np.random.default_rng(seed)
    odds = random.normal(0, 2, n)
    labels = (random.normal(0, 2, n) + odds > 0).astype(np.int64)
    return labels, np.round(odds, 1) if ties else odds, [f"u{user}" for user in random.integers(0, users, n)]


def uauc_by_loop(users, labels, scores):
    users = np.asarray(users)
    values = [
        sk.roc_auc_score(labels[users == user], scores[users == user])
        for user in np.unique(users)
        if len(np.unique(labels[users == user])) == 2
    ]
    return (float(np.mean(values)) if values else None), len(values)


def test_every_metric_has_the_value_worked_out_by_hand():
    # P(yes) = 0.8, 0.6, 0.6, 0.2, 0.5; predicted yes, yes, yes, no, yes.
    odds = np.log([4.0, 1.5, 1.5, 0.25, 1.0])
    metrics = c.classification_metrics(np.array([1, 0, 1, 0, 0]), odds, ["a", "a", "b", "b", "c"])
    assert metrics["n"] == 5
    assert metrics["accuracy"] == pytest.approx(3 / 5)
    assert metrics["precision"] == pytest.approx(2 / 4)
    assert metrics["recall"] == 1.0
    assert metrics["f1"] == pytest.approx(2 / 3)
    assert metrics["auc"] == pytest.approx(5.5 / 6)  # one of six pairs is a tie
    assert (metrics["uauc"], metrics["uauc_users"]) == (1.0, 2)
    assert metrics["positive_rate"] == pytest.approx(2 / 5)
    assert metrics["predicted_positive_rate"] == pytest.approx(4 / 5)
    assert metrics["brier"] == pytest.approx((0.04 + 0.36 + 0.16 + 0.04 + 0.25) / 5)
    assert metrics["loss"] == pytest.approx(-sum(map(math.log, [0.8, 0.4, 0.6, 0.8, 0.5])) / 5)
    assert metrics["loss_positive"] == pytest.approx(-(math.log(0.8) + math.log(0.6)) / 2)
    assert metrics["loss_negative"] == pytest.approx(-(math.log(0.4) + math.log(0.8) + math.log(0.5)) / 3)


def test_the_examples_in_the_docstrings_run():
    found = doctest.testmod(c)
    assert found.attempted >= 15 and found.failed == 0


def test_the_keys_are_the_stable_ones():
    keys = (
        "loss accuracy precision recall f1 auc uauc uauc_users pr_auc brier ece predicted_positive_rate positive_rate"
    )
    assert " ".join(c.classification_metrics(*some_rows())) == f"{keys} loss_positive loss_negative n"


@pytest.mark.parametrize("ties", [True, False])
def test_metrics_equal_scikit_learn(ties):
    labels, odds, users = some_rows(ties=ties)
    scores, ours = c.probability(odds), c.classification_metrics(labels, odds, users)
    predicted = odds >= 0
    assert ours["auc"] == pytest.approx(sk.roc_auc_score(labels, odds), abs=1e-12)
    assert ours["pr_auc"] == pytest.approx(sk.average_precision_score(labels, odds), abs=1e-12)
    assert ours["loss"] == pytest.approx(sk.log_loss(labels, scores), abs=1e-12)
    assert ours["brier"] == pytest.approx(sk.brier_score_loss(labels, scores), abs=1e-12)
    assert ours["accuracy"] == pytest.approx(sk.accuracy_score(labels, predicted))
    assert ours["precision"] == pytest.approx(sk.precision_score(labels, predicted))
    assert ours["recall"] == pytest.approx(sk.recall_score(labels, predicted))
    assert ours["f1"] == pytest.approx(sk.f1_score(labels, predicted))
    assert list(c.confusion(labels, predicted)) == sk.confusion_matrix(labels, predicted).ravel().tolist()
    assert (ours["uauc"], ours["uauc_users"]) == pytest.approx(uauc_by_loop(users, labels, odds))


@settings(max_examples=80, deadline=None)
@given(ROWS)
def test_user_auc_equals_a_loop_over_users(rows):
    labels, scores, users = (np.array(column) for column in zip(*rows, strict=True))
    value, counted = c.user_auc(users.tolist(), labels, scores)
    expected, expected_counted = uauc_by_loop(users, labels, scores)
    assert counted == expected_counted
    assert value == (None if expected is None else pytest.approx(expected))


@settings(max_examples=80, deadline=None)
@given(ROWS)
def test_auc_keeps_under_a_monotone_transform_and_turns_with_the_sign(rows):
    labels, scores, _ = (np.array(column) for column in zip(*rows, strict=True))
    value = c.auc(labels, scores)
    assert c.auc(labels, np.exp(scores / 3.0) + 7) == value
    if value is None:
        assert c.auc(labels, -scores) is None
    else:
        assert c.auc(labels, -scores) == pytest.approx(1 - value)
        assert 0 <= value <= 1


@settings(max_examples=80, deadline=None)
@given(ROWS)
def test_every_metric_stays_within_its_range(rows):
    labels, odds, users = (np.array(column) for column in zip(*rows, strict=True))
    metrics = c.classification_metrics(labels, odds, users.tolist())
    for key in ("accuracy", "precision", "recall", "f1", "auc", "uauc", "pr_auc", "brier", "ece"):
        assert metrics[key] is None or 0 <= metrics[key] <= 1
    assert metrics["loss"] >= 0


def test_ten_thousand_users_take_less_than_a_second():
    labels, odds, users = some_rows(n=200_000, users=10_000)
    index = c.user_index(users)
    start = time.process_time()
    _, counted = c.user_auc(index, labels, odds)
    assert time.process_time() - start < 1
    assert counted > 9_900


def test_one_class_has_no_auc_and_no_loss_for_the_other():
    metrics = c.classification_metrics(np.ones(3, dtype=int), np.zeros(3), ["a", "a", "b"])
    assert [metrics[key] for key in ("auc", "uauc", "loss_negative", "uauc_users")] == [None, None, None, 0]
    assert metrics["pr_auc"] == 1.0
    assert c.classification_metrics(np.zeros(3, dtype=int), np.zeros(3), ["a", "a", "b"])["pr_auc"] is None


def test_a_model_that_never_says_yes_has_zero_precision_and_f1():
    metrics = c.classification_metrics(np.array([0, 1]), np.array([-3.0, -2.0]), ["a", "a"])
    assert (metrics["precision"], metrics["recall"], metrics["f1"]) == (0.0, 0.0, 0.0)


def test_huge_log_odds_give_a_finite_loss_and_no_warning():
    with np.errstate(all="raise", under="ignore"):
        assert c.log_loss(np.array([0, 1]), np.array([800.0, 800.0])) == 400.0
        assert c.probability(np.array([-800.0, 800.0])).tolist() == [0.0, 1.0]


def test_saturated_scores_keep_their_order_in_auc():
    assert c.classification_metrics(np.array([0, 1]), np.array([50.0, 60.0]), ["a", "a"])["auc"] == 1.0


def test_the_threshold_is_met_by_equality():
    assert c.predict(np.array([0.0, -1e-18])).tolist() == [True, False]
    assert c.predict(np.log([0.25, 0.24]), threshold=0.2).tolist() == [True, False]
    with pytest.raises(ValueError, match=r"threshold: got 1\.0"):
        c.predict(np.zeros(2), 1.0)


@pytest.mark.parametrize(
    ("labels", "odds", "users", "message"),
    [
        ([0, 1, 1], [0.0, math.nan, math.nan], ["a"] * 3, "2 of 3 log-odds are not finite"),
        ([0, 1], [0.0, math.inf], ["a"] * 2, "1 of 2 log-odds"),
        ([0, 2], [0.0, 1.0], ["a"] * 2, r"labels: got \[2\]"),
        ([0, 1], [0.0, 1.0], ["a"], "2 labels, 2 log-odds and 1 user ids"),
        ([], [], [], "no rows"),
    ],
)
def test_unusable_rows_are_refused_with_what_was_got(labels, odds, users, message):
    with pytest.raises(ValueError, match=message):
        c.classification_metrics(np.array(labels), np.array(odds), users)


def test_importing_the_room_loads_neither_torch_nor_matplotlib():
    code = (
        "import sys, rectune.measure.classification, rectune.measure.slices, rectune.measure.scaling;"
        "print([m for m in ('torch', 'matplotlib', 'sklearn', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
