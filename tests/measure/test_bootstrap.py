import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rectune.measure import bootstrap as b
from rectune.measure.classification import classification_metrics, user_index


def some_rows(n=400, users=30, seed=0, digits=1):
    random = np.random.default_rng(seed)
    user = random.integers(0, users, n)
    odds = np.round(random.normal(0, 1.5, n) + random.normal(0, 1, users)[user], digits)
    labels = (random.normal(0, 2, n) + odds > 0).astype(np.int64)
    return labels, odds, user


def resample(counts, labels, odds, user):
    """Copy every user's rows as often as the user was drawn; each copy is a user of its own."""
    rows, copies = [], []
    for one, count in enumerate(counts.astype(int)):
        for copy in range(count):
            rows.append(np.flatnonzero(user == one))
            copies += [f"{one}/{copy}"] * len(rows[-1])
    taken = np.concatenate(rows)
    return labels[taken], odds[taken], copies


@pytest.mark.parametrize("digits", [1, 12], ids=["with ties", "without ties"])
def test_weighted_metrics_equal_those_of_explicitly_resampled_rows(digits):
    labels, odds, user = some_rows(digits=digits)
    model = b.WeightedMetrics(labels, odds, user, threshold=0.6)
    (counts,) = b.draw_counts(model.users, n=8, seed=3, block=8)
    weighted = {metric: model.compute(metric, counts) for metric in b.METRICS}
    for draw in range(8):
        expected = classification_metrics(*resample(counts[draw], labels, odds, user), threshold=0.6)
        for metric in b.METRICS:
            assert weighted[metric][draw] == pytest.approx(expected[metric], abs=1e-12), metric


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(-4, 4), st.sampled_from("abcd")), min_size=2, max_size=40))
def test_with_every_user_once_the_weighted_metric_is_the_plain_one(rows):
    labels, odds, names = (np.array(column) for column in zip(*rows, strict=True))
    model = b.WeightedMetrics(labels, odds.astype(float), user_index(names))
    plain = classification_metrics(labels, odds, names.tolist())
    for metric in b.METRICS:
        value = model.compute(metric, np.ones((1, model.users)))[0]
        expected = plain[metric]
        assert np.isnan(value) if expected is None else value == pytest.approx(expected, abs=1e-12)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    labels, odds, user = some_rows()
    first = b.bootstrap_intervals(labels, odds, user, n=200, seed=1)
    assert first == b.bootstrap_intervals(labels, odds, user, n=200, seed=1)
    assert first != b.bootstrap_intervals(labels, odds, user, n=200, seed=2)


def test_the_draws_do_not_depend_on_how_many_fit_in_memory(monkeypatch):
    labels, odds, user = some_rows()
    whole = b.bootstrap_intervals(labels, odds, user, n=50)
    monkeypatch.setattr(b, "_BLOCK_ELEMENTS", 3 * len(labels))
    for metric, interval in b.bootstrap_intervals(labels, odds, user, n=50).items():
        assert interval == pytest.approx(whole[metric])


def test_each_draw_holds_as_many_users_as_there_are():
    counts = np.concatenate(list(b.draw_counts(users=17, n=10, seed=0, block=4)))
    assert counts.shape == (10, 17)
    assert (counts.sum(axis=1) == 17).all()


def test_the_interval_holds_the_value_and_grows_with_its_level():
    labels, odds, user = some_rows(2000, 100)
    metrics = classification_metrics(labels, odds, user)
    wide = b.bootstrap_intervals(labels, odds, user, level=0.99)
    for metric, (low, high) in b.bootstrap_intervals(labels, odds, user, level=0.8).items():
        assert wide[metric][0] < low < metrics[metric] < high < wide[metric][1]


def test_rows_of_one_user_do_not_count_as_independent():
    # Ten users, each answering one way 100 times: drawing rows would give an interval ten times too narrow.
    user = np.repeat(np.arange(10), 100)
    labels, odds = np.ones(1000, dtype=int), np.where(user < 5, 1.0, -1.0)
    low, high = b.bootstrap_intervals(labels, odds, user, metrics=("accuracy",))["accuracy"]
    assert high - low > 0.5


def test_a_better_model_has_a_difference_above_zero_and_a_small_p_value():
    labels, odds, user = some_rows(2000, 100)
    noise = np.random.default_rng(5).normal(0, 1, len(odds))
    better = b.paired_bootstrap(labels, odds, noise, user, n=500)["auc"]
    worse = b.paired_bootstrap(labels, noise, odds, user, n=500)["auc"]
    assert 0 < better.low < better.difference < better.high
    assert better.p_value == pytest.approx(2 / 501)
    assert (worse.difference, worse.low) == pytest.approx((-better.difference, -better.high))


def test_a_model_does_not_differ_from_itself():
    labels, odds, user = some_rows()
    for difference in b.paired_bootstrap(labels, odds, odds, user, n=100).values():
        assert difference == b.Difference(0.0, 0.0, 0.0, 1.0)


def test_metrics_without_meaning_and_single_users_have_no_interval():
    odds = np.array([0.1, 0.2, 0.3])
    assert set(b.bootstrap_intervals(np.ones(3, dtype=int), odds, ["a", "b", "c"], n=20)) == {"accuracy", "f1"}
    assert b.bootstrap_intervals(np.array([0, 1, 1]), odds, ["a", "a", "a"], n=20) == {}
    assert b.paired_bootstrap(np.array([0, 1, 1]), odds, -odds, ["a", "a", "a"], n=20) == {}


def test_draws_with_one_class_only_are_left_out_without_a_warning():
    with np.errstate(all="raise"):
        intervals = b.bootstrap_intervals(np.array([0, 1]), np.array([0.0, 1.0]), ["a", "b"], b.METRICS, n=50)
    assert intervals["auc"] == (1.0, 1.0)
    assert "uauc" not in intervals


@pytest.mark.parametrize(
    ("settings_", "message"), [({"metrics": ("aux",)}, "'aux'"), ({"level": 95}, "level"), ({"n": 0}, "n: got 0")]
)
def test_settings_that_cannot_work_are_named(settings_, message):
    with pytest.raises(ValueError, match=message):
        b.bootstrap_intervals(*some_rows(), **settings_)


def test_a_thousand_draws_over_eight_thousand_rows_take_less_than_five_seconds():
    labels, odds, user = some_rows(8000, 900)
    start = time.perf_counter()
    b.bootstrap_intervals(labels, odds, user, b.METRICS, n=1000)
    assert time.perf_counter() - start < 5
