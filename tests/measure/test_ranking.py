import doctest
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import ndcg_score

from rectune.measure import ranking as r

lists = st.lists(st.tuples(st.integers(0, 1), st.integers(-3, 3)), min_size=1, max_size=30).filter(
    lambda items: any(relevant for relevant, _ in items)
)


def measured(items, **options):
    relevant, scores = (np.array(column) for column in zip(*items, strict=True))
    return r.ranking_metrics(relevant, scores, **options)


def plain(relevant, cutoff, missed=0):
    """The four metrics of relevance in rank order, straight from their definitions."""
    total = sum(relevant) + missed
    first = [rank for rank, hit in enumerate(relevant, start=1) if hit]
    top = relevant[:cutoff]
    dcg = sum(hit / math.log2(rank + 1) for rank, hit in enumerate(top, start=1))
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(total, cutoff) + 1))
    reciprocal = 1 / first[0] if first and first[0] <= cutoff else 0.0
    return {
        f"hr@{cutoff}": float(any(top)), f"ndcg@{cutoff}": dcg / ideal, f"mrr@{cutoff}": reciprocal,
        f"recall@{cutoff}": sum(top) / total,
    }  # fmt: skip


def test_the_examples_in_the_docstrings_run():
    found = doctest.testmod(r)
    assert found.attempted == 6 and found.failed == 0


def test_values_worked_out_by_hand():
    # Relevant at ranks 2 and 6 of 7; two relevant in all.
    found = r.ranking_metrics(np.array([0, 1, 0, 0, 0, 1, 0]), -np.arange(7.0))
    ideal = 1 + 1 / math.log2(3)
    assert found["hr@1"] == found["ndcg@1"] == found["mrr@1"] == found["recall@1"] == 0.0
    assert (found["hr@5"], found["mrr@5"], found["recall@5"]) == (1.0, 0.5, 0.5)
    assert found["ndcg@5"] == pytest.approx((1 / math.log2(3)) / ideal)
    assert found["recall@10"] == 1.0
    assert found["ndcg@10"] == pytest.approx((1 / math.log2(3) + 1 / math.log2(7)) / ideal)
    assert found["ndcg@20"] == found["ndcg@10"]
    assert tuple(sorted(found)) == tuple(sorted(r.METRICS))


def test_items_that_were_not_found_count_as_relevant_and_never_as_ranked():
    found = r.ranking_metrics(np.array([1, 0]), np.array([2.0, 1.0]), missed=3)
    assert found["recall@20"] == 0.25
    assert found["ndcg@1"] == 1.0
    assert found["ndcg@5"] == pytest.approx(1 / sum(1 / math.log2(rank + 1) for rank in (1, 2, 3, 4)))
    nothing = r.ranking_metrics(np.array([0, 0]), np.array([2.0, 1.0]), missed=1)
    assert set(nothing.values()) == {0.0}
    assert set(r.ranking_metrics(np.empty(0), np.empty(0), missed=1).values()) == {0.0}


def test_a_perfect_order_scores_one_and_recall_stops_at_the_cutoff():
    found = r.ranking_metrics(np.array([1] * 8 + [0] * 30), -np.arange(38.0))
    assert found["ndcg@5"] == found["ndcg@10"] == found["mrr@1"] == 1.0
    assert found["recall@5"] == 5 / 8


def test_a_tie_of_one_relevant_among_four_by_hand():
    # Each rank is as likely: hr@1 = 1/4; mrr@5 = (1 + 1/2 + 1/3 + 1/4) / 4; recall as hr, one relevant item.
    found = r.ranking_metrics(np.array([0, 0, 1, 0]), np.zeros(4))
    assert found["hr@1"] == pytest.approx(0.25)
    assert found["mrr@5"] == pytest.approx(25 / 48)
    assert found["ndcg@5"] == pytest.approx(np.mean([1 / math.log2(rank + 1) for rank in (1, 2, 3, 4)]))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=5),
    st.integers(0, 2),
    st.integers(1, 7),
)
def test_tied_items_get_the_mean_over_every_order_of_them(items, missed, cutoff):
    if not missed and not any(relevant for relevant, _ in items):
        return
    orders = []
    for order in itertools.permutations(range(len(items))):
        scores = [items[at][1] for at in order]
        if scores == sorted(scores, reverse=True):
            orders.append(plain([items[at][0] for at in order], cutoff, missed))
    found = measured(items, missed=missed, cutoffs=(cutoff,))
    for metric, value in found.items():
        assert value == pytest.approx(np.mean([order[metric] for order in orders]), abs=1e-12), metric


@settings(max_examples=100, deadline=None)
@given(lists)
def test_ndcg_is_that_of_scikit_learn_with_and_without_ties(items):
    if len(items) < 2:
        return
    relevant, scores = (np.array(column, dtype=float) for column in zip(*items, strict=True))
    for values in (scores, scores + np.linspace(0, 0.5, len(scores))):
        found = r.ranking_metrics(relevant, values)
        for cutoff in r.CUTOFFS:
            assert found[f"ndcg@{cutoff}"] == pytest.approx(ndcg_score([relevant], [values], k=cutoff), abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(lists, st.integers(0, 3), st.randoms(use_true_random=False))
def test_metrics_are_bounded_grow_with_k_and_do_not_see_the_order_of_the_list(items, missed, random):
    found = measured(items, missed=missed)
    assert all(0.0 <= value <= 1.0 for value in found.values())
    for kind in ("hr", "mrr", "recall"):
        values = [found[f"{kind}@{cutoff}"] for cutoff in r.CUTOFFS]
        assert all(low <= high + 1e-12 for low, high in itertools.pairwise(values))
    assert all(found[f"hr@{cutoff}"] >= found[f"mrr@{cutoff}"] - 1e-12 for cutoff in r.CUTOFFS)
    shuffled = list(items)
    random.shuffle(shuffled)
    assert measured(shuffled, missed=missed) == pytest.approx(found, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(lists, st.data())
def test_lifting_a_relevant_item_never_lowers_a_metric(items, data):
    relevant, scores = (np.array(column, dtype=float) for column in zip(*items, strict=True))
    at = data.draw(st.sampled_from(np.flatnonzero(relevant).tolist()))
    lifted = scores.copy()
    lifted[at] += data.draw(st.integers(1, 5)) / 2
    before, after = r.ranking_metrics(relevant, scores), r.ranking_metrics(relevant, lifted)
    assert all(after[metric] >= before[metric] - 1e-12 for metric in before)


@pytest.mark.parametrize(
    ("relevant", "scores", "options", "message"),
    [
        ([0, 0], [1.0, 2.0], {}, "leave this user out"),
        ([1, 2], [1.0, 2.0], {}, "allowed are 0 and 1"),
        ([1], [1.0, 2.0], {}, "one each for every item"),
        ([1, 0], [1.0, np.nan], {}, "1 of 2 scores are not finite"),
        ([1], [1.0], {"cutoffs": (0,)}, r"cutoffs: got \(0,\)"),
        ([1], [1.0], {"missed": -1}, "missed: -1"),
    ],
)
def test_what_cannot_be_measured_is_named(relevant, scores, options, message):
    with pytest.raises(ValueError, match=message):
        r.ranking_metrics(np.array(relevant), np.array(scores), **options)


@pytest.fixture
def two_models():
    random = np.random.default_rng(1)
    base = random.uniform(size=300)
    better = np.clip(base + random.normal(0.05, 0.1, 300), 0, 1)
    return {"ndcg@10": better, "hr@10": base}, {"ndcg@10": base, "hr@10": base, "mrr@10": base}


def test_intervals_of_means_match_the_normal_ones_for_many_users(two_models):
    values = two_models[0]["ndcg@10"]
    low, high = r.mean_intervals(two_models[0])["ndcg@10"]
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.005)
    assert high == pytest.approx(values.mean() + half, abs=0.005)
    assert low < values.mean() < high


def test_intervals_of_means_and_of_their_differences_are_those_of_scipys_bootstrap(two_models):
    a, b = two_models
    single, paired = r.mean_intervals(a, n=20_000), r.paired_means(a, b, n=20_000)["ndcg@10"]
    gaps = a["ndcg@10"] - b["ndcg@10"]
    for values, found in ((a["ndcg@10"], single["ndcg@10"]), (gaps, (paired.low, paired.high))):
        by_scipy = stats.bootstrap(
            (values,), np.mean, n_resamples=20_000, method="percentile", batch=2_000, random_state=1
        )
        interval = by_scipy.confidence_interval
        assert found == pytest.approx((interval.low, interval.high), abs=by_scipy.standard_error / 15)


def test_paired_differences_are_narrower_than_the_intervals_of_either_model(two_models):
    a, b = two_models
    found = r.paired_means(a, b)
    assert set(found) == {"ndcg@10", "hr@10"}
    gap = found["ndcg@10"]
    assert gap.difference == pytest.approx(a["ndcg@10"].mean() - b["ndcg@10"].mean())
    assert 0 < gap.low < gap.difference < gap.high
    assert gap.p_value == pytest.approx(2 / 1001)
    low, high = r.mean_intervals(a)["ndcg@10"]
    assert gap.high - gap.low < (high - low) / 2
    assert (found["hr@10"].difference, found["hr@10"].low, found["hr@10"].p_value) == (0.0, 0.0, 1.0)


def test_the_draws_depend_on_the_seed_only(two_models, monkeypatch):
    whole = r.mean_intervals(two_models[0])
    assert r.mean_intervals(two_models[0]) == whole != r.mean_intervals(two_models[0], seed=1)
    monkeypatch.setattr(r, "_BLOCK_ELEMENTS", 700)
    assert r.mean_intervals(two_models[0])["ndcg@10"] == pytest.approx(whole["ndcg@10"])


def test_one_user_has_no_interval_and_different_users_are_refused():
    one = {"hr@1": np.array([1.0])}
    assert r.mean_intervals(one) == {} == r.paired_means(one, one)
    with pytest.raises(ValueError, match="got 1 and 2 users"):
        r.paired_means(one, {"hr@1": np.array([1.0, 0.0])})


def test_fusion_by_hand_and_ties_share_their_rank():
    fused = r.reciprocal_rank_fusion(np.array([9.0, 5.0, 5.0]), np.array([0.0, 1.0, 2.0]))
    assert fused.tolist() == pytest.approx([1 / 61 + 1 / 63, 1 / 62.5 + 1 / 62, 1 / 62.5 + 1 / 61])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=1, max_size=20))
def test_fusion_sees_ranks_only_and_both_rankings_alike(pairs):
    a, b = (np.array(column, dtype=float) for column in zip(*pairs, strict=True))
    fused = r.reciprocal_rank_fusion(a, b)
    np.testing.assert_allclose(fused, r.reciprocal_rank_fusion(b, 7 * a**3 + 2))
    best = (a == a.max()) & (b == b.max())
    assert not best.any() or fused[best].min() >= fused.max() - 1e-15
