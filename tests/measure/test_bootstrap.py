import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from rectune.measure import bootstrap as b
from rectune.measure.classification import auc_by_user, classification_metrics, probability, user_index


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


def drawn_by_copying_rows(labels, models, user, n, seed):
    """Every metric of every model in every draw, [n, models, metrics]: users drawn, their rows copied, and
    scikit-learn asked, without the code under test.
    """
    random = np.random.default_rng(seed)
    names = np.unique(user)
    drawn = []
    for _ in range(n):
        chosen = random.integers(0, len(names), len(names))
        rows = np.concatenate([np.flatnonzero(user == names[one]) for one in chosen])
        label = labels[rows]
        values = []
        for odds in models:
            score = 1 / (1 + np.exp(-odds[rows]))
            bins = np.minimum((score * 15).astype(int), 14)
            gaps = [abs(label[bins == one].mean() - score[bins == one].mean()) * (bins == one).mean()
                    for one in np.unique(bins)]  # fmt: skip
            found = [sk.roc_auc_score(label, score), sk.accuracy_score(label, score >= 0.5), sk.log_loss(label, score)]
            values.append([*found, sum(gaps)])
        drawn.append(values)
    return np.array(drawn)


COPIED = ("auc", "accuracy", "loss", "ece")


def test_the_interval_is_that_of_a_slow_bootstrap_that_copies_rows():
    labels, odds, user = some_rows()
    slow = drawn_by_copying_rows(labels, [odds], user, n=80, seed=7)[:, 0]
    fast = b.bootstrap_intervals(labels, odds, user, COPIED, n=80, level=0.9, seed=7)
    for column, metric in enumerate(COPIED):
        assert fast[metric] == pytest.approx(tuple(np.percentile(slow[:, column], [5, 95])), abs=1e-9), metric


def test_the_paired_difference_is_that_of_a_slow_bootstrap_that_copies_rows():
    labels, odds, user = some_rows()
    other = odds + np.random.default_rng(3).normal(0, 1.5, len(odds))
    slow = drawn_by_copying_rows(labels, [odds, other], user, n=80, seed=7)
    fast = b.paired_bootstrap(labels, odds, other, user, COPIED, n=80, seed=7)
    for column, metric in enumerate(COPIED):
        gaps = slow[:, 0, column] - slow[:, 1, column]
        assert (fast[metric].low, fast[metric].high) == pytest.approx(tuple(np.percentile(gaps, [2.5, 97.5])), abs=1e-9)
        tail = min((gaps <= 0).sum(), (gaps >= 0).sum())
        assert fast[metric].p_value == pytest.approx(min(1.0, 2 * (tail + 1) / 81)), metric


def by_scipy(values):
    found = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", batch=2_000, random_state=1)
    return found.confidence_interval, found.standard_error


def test_a_mean_over_users_has_the_interval_of_scipys_bootstrap():
    # UAUC is a mean over users; so is the loss where every user has as many rows.
    random = np.random.default_rng(0)
    user = np.repeat(np.arange(150), 8)
    odds = random.normal(0, 1, 1200) + random.normal(0, 1, 150)[user]
    labels = np.where(np.arange(1200) % 8 == 0, 1, (random.normal(0, 2, 1200) + odds > 0).astype(int))
    labels[1::8] = 0
    found = b.bootstrap_intervals(labels, odds, user, ("uauc", "loss"), n=20_000, seed=5)
    score = probability(odds)
    losses = -np.log(np.where(labels == 1, score, 1 - score)).reshape(150, 8).mean(axis=1)
    for metric, values in (("uauc", auc_by_user(user, labels, odds)), ("loss", losses)):
        expected, error = by_scipy(values)
        # A fifteenth of a standard error is about four times what 20,000 draws leave to chance at these ends.
        assert found[metric] == pytest.approx((expected.low, expected.high), abs=error / 15), metric


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
    start = time.process_time()
    b.bootstrap_intervals(labels, odds, user, b.METRICS, n=1000)
    assert time.process_time() - start < 5


def test_a_standard_error_is_the_spread_of_the_metric_over_draws_of_users():
    # Each user has one row; the accuracy of a draw is a mean of 100 coins with p = 0.8, so its error is sqrt(p q / n).
    labels = np.array([1] * 80 + [0] * 20)
    error = b.bootstrap_standard_error(labels, np.ones(100), [str(user) for user in range(100)], "accuracy", n=4000)
    assert error == pytest.approx(np.sqrt(0.8 * 0.2 / 100), rel=0.03)
    # Ten rows of each user that agree are worth no more than one row.
    ids = [str(user) for user in range(100) for _ in range(10)]
    assert b.bootstrap_standard_error(labels.repeat(10), np.ones(1000), ids, "accuracy", n=4000) == error
    assert b.bootstrap_standard_error(labels, np.ones(100), ["one"] * 100, "accuracy") is None
