import doctest
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rectune.measure import slices as s
from rectune.measure.bootstrap import bootstrap_intervals, paired_bootstrap
from rectune.measure.classification import classification_metrics

counts = st.lists(st.integers(0, 60), min_size=1, max_size=80)


def some_rows(n=600, users=40, seed=0):
    random = np.random.default_rng(seed)
    user = random.integers(0, users, n)
    odds = random.normal(0, 1.5, n)
    labels = (random.normal(0, 2, n) + odds > 0).astype(np.int64)
    models = {"ours": odds, "rates": odds + random.normal(0, 2, n)}
    return np.array(["cold", "warm", "hot"])[random.integers(0, 3, n)], labels, models, [f"u{one}" for one in user]


def test_the_examples_in_the_docstrings_run():
    found = doctest.testmod(s)
    assert found.attempted == 5 and found.failed == 0


def test_history_lengths_fall_into_the_slices_that_their_names_say():
    cut = s.cut_by_edges(np.array([0, 1, 15, 16, 50, 51, 150, 151, 4000]))
    assert cut.rows.tolist() == ["none", "1-15", "1-15", "16-50", "16-50", "51-150", "51-150", "151+", "151+"]
    assert cut.order == ("none", "1-15", "16-50", "51-150", "151+")


def test_other_edges_name_themselves_too():
    assert s.cut_by_edges(np.array([0, 3, 4, 5, 9]), (3, 4)).rows.tolist() == ["0-3", "0-3", "4", "5+", "5+"]
    assert s.cut_by_edges(np.array([0, 1, 2]), (0, 1)).order == ("none", "1", "2+")


def test_slices_without_a_row_are_not_in_the_order():
    assert s.cut_by_edges(np.array([200, 0])).order == ("none", "151+")


def test_popularity_terciles_by_hand():
    # Nine rows are known: 1 2 3 | 10 10 12 | 40 50 60. The first third ends at 3, the second at 12.
    known = np.array([0, 1, 2, 3, 10, 10, 12, 40, 50, 60, 0])
    cut = s.cut_by_known_events(known)
    assert cut.order == ("cold (0)", "low (1-3)", "middle (4-12)", "high (13+)")
    low, middle, high = (["low (1-3)"] * 3, ["middle (4-12)"] * 3, ["high (13+)"] * 3)
    assert cut.rows.tolist() == ["cold (0)", *low, *middle, *high, "cold (0)"]


def test_equal_counts_are_never_parted():
    assert s.cut_by_known_events(np.array([0, 5, 5, 5])).order == ("cold (0)", "low (1-5)")
    assert s.cut_by_known_events(np.array([2, 2, 2, 9])).order == ("low (1-2)", "high (3+)")
    assert s.cut_by_known_events(np.array([1, 1, 2, 2, 7])).order == ("low (1)", "middle (2)", "high (3+)")
    assert s.cut_by_known_events(np.zeros(3)).rows.tolist() == ["cold (0)"] * 3


def test_terciles_of_different_counts_hold_as_many_rows_each():
    cut = s.cut_by_known_events(np.random.default_rng(0).permutation(np.arange(1, 301)))
    assert [int((cut.rows == name).sum()) for name in cut.order] == [100, 100, 100]


@settings(max_examples=100, deadline=None)
@given(counts)
def test_every_row_lies_within_the_edges_of_its_name(values):
    for cut in (s.cut_by_edges(np.array(values)), s.cut_by_known_events(np.array(values))):
        assert set(cut.rows.tolist()) == set(cut.order)
        for value, name in zip(values, cut.rows.tolist(), strict=True):
            span = name.split("(")[-1].rstrip(")").replace("none", "0")
            low, _, high = span.rstrip("+").partition("-")
            assert int(low) <= value
            assert span.endswith("+") or value <= int(high or low)
        # Slices come out in the order of their numbers.
        means = [np.mean([v for v, row in zip(values, cut.rows, strict=True) if row == name]) for name in cut.order]
        assert means == sorted(means)


@pytest.mark.parametrize(
    ("values", "edges", "message"),
    [
        ([1, -1], (0, 15), "whole numbers of at least 0"),
        ([1.5], (0, 15), "whole numbers"),
        ([np.nan], (0, 15), "whole numbers"),
        ([], (0, 15), r"shape \(0,\)"),
        ([1], (), r"edges: got \[\]"),
        ([1], (15, 15), r"edges: got \[15, 15\]"),
        ([1], (-1, 15), r"edges: got \[-1, 15\]"),
    ],
)
def test_what_cannot_be_cut_is_named(values, edges, message):
    with pytest.raises(ValueError, match=message):
        s.cut_by_edges(np.array(values), edges)


def test_a_slice_is_measured_as_if_its_rows_were_all_there_are():
    slices, labels, models, users = some_rows()
    found = s.measure_slices(slices, labels, models, users, ("ours", "rates"), n=50, seed=4)
    assert list(found) == ["cold", "hot", "warm"]
    for name, slice_ in found.items():
        rows = slices == name
        user = np.array(users)[rows]
        assert (slice_["n"], slice_["users"]) == (rows.sum(), len(set(user.tolist())))
        assert slice_["positive_rate"] == pytest.approx(labels[rows].mean())
        for model, odds in models.items():
            expected = classification_metrics(labels[rows], odds[rows], user)
            intervals = bootstrap_intervals(labels[rows], odds[rows], user, s.SLICE_METRICS, 50, seed=4)
            for metric in s.SLICE_METRICS:
                assert slice_["models"][model]["metrics"][metric] == expected[metric]
                assert slice_["models"][model]["intervals"][metric] == list(intervals[metric])
        gaps = paired_bootstrap(
            labels[rows], models["ours"][rows], models["rates"][rows], user, s.SLICE_METRICS, 50, seed=4
        )
        for metric in s.SLICE_METRICS:
            measured = slice_["difference"][metric]
            assert measured == vars(gaps[metric])
            ours, rates = (slice_["models"][model]["metrics"][metric] for model in ("ours", "rates"))
            assert measured["difference"] == pytest.approx(ours - rates)
    assert found["warm"]["difference"]["auc"]["low"] > 0
    assert sum(slice_["n"] for slice_ in found.values()) == len(labels)


def test_one_slice_of_everything_is_the_whole():
    _, labels, models, users = some_rows()
    found = s.measure_slices(["all"] * len(labels), labels, models, users, n=20)
    whole = classification_metrics(labels, models["ours"], users)
    assert found["all"]["models"]["ours"]["metrics"] == {metric: whole[metric] for metric in s.SLICE_METRICS}
    assert found["all"]["difference"] is None


def test_values_without_meaning_are_none():
    # "one class": two users who like everything; "one user": both classes; "split": each user has one class.
    slices = ["one class"] * 2 + ["one user"] * 2 + ["split"] * 2
    labels, odds = np.array([1, 1, 0, 1, 0, 1]), np.array([0.0, 0.0, -1.0, 1.0, -2.0, 2.0])
    users = ["a", "b", "a", "a", "a", "b"]
    found = s.measure_slices(slices, labels, {"m": odds, "k": odds}, users, ("m", "k"), n=30)
    one_class, one_user, split = (found[name] for name in ("one class", "one user", "split"))
    metrics, intervals = one_class["models"]["m"]["metrics"], one_class["models"]["m"]["intervals"]
    assert (metrics["auc"], metrics["uauc"], metrics["loss"]) == (None, None, pytest.approx(np.log(2)))
    assert (intervals["auc"], intervals["uauc"], intervals["loss"]) == (None, None, pytest.approx([np.log(2)] * 2))
    assert one_class["difference"]["auc"] is None and one_class["difference"]["loss"]["difference"] == 0.0
    assert one_user["models"]["m"]["metrics"]["auc"] == one_user["models"]["m"]["metrics"]["uauc"] == 1.0
    assert set(one_user["models"]["m"]["intervals"].values()) == set(one_user["difference"].values()) == {None}
    assert (split["models"]["m"]["metrics"]["auc"], split["models"]["m"]["metrics"]["uauc"]) == (1.0, None)
    assert split["difference"]["uauc"] is None


def test_what_is_measured_goes_into_json():
    slices, labels, models, users = some_rows()
    found = s.measure_slices(slices, labels, models, users, ("ours", "rates"), n=20)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_slices_come_out_in_the_order_asked_for():
    slices, labels, models, users = some_rows()
    order = ("cold", "lukewarm", "warm", "hot")
    found = s.measure_slices(slices, labels, models, users, order=order, metrics=("auc",), n=10)
    assert list(found) == ["cold", "warm", "hot"]
    assert list(found["cold"]["models"]["ours"]["metrics"]) == ["auc"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"log_odds": {}}, "got no model"),
        ({"compare": ("ours", "theirs")}, "compare: got 'theirs', allowed: ours, rates"),
        ({"metrics": ("aux",)}, "metrics: got 'aux'"),
        ({"order": ("cold", "warm")}, "order: leaves out 'hot'"),
        ({"slices": ["cold"]}, "got 1 names of slices and 600 labels"),
        ({"log_odds": {"ours": np.full(600, np.nan)}}, "600 of 600 log-odds"),
        ({"user_ids": ["u"]}, "1 user ids"),
    ],
)
def test_what_cannot_be_measured_is_named(changes, message):
    slices, labels, models, users = some_rows()
    given_ = {"slices": slices, "labels": labels, "log_odds": models, "user_ids": users, **changes}
    with pytest.raises(ValueError, match=message):
        s.measure_slices(**given_)
