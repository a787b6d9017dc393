"""Top-K metrics of one user's ranked items, and their means over users with intervals.

Every user weighs the same. Items with equal scores have no order, so a metric is its expected value over all orders
of the tied items, which is exact, needs no random draw, and cannot favour an item by where it was listed.
Source: McSherry and Najork, "Computing information retrieval performance measures efficiently in the presence of
tied scores", ECIR 2008; scikit-learn's `ndcg_score` does the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from rectune.measure.bootstrap import Difference, draw_counts, drawn_difference, percentile_interval

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

CUTOFFS = (1, 5, 10, 20)
KINDS = ("hr", "ndcg", "mrr", "recall")
METRICS = tuple(f"{kind}@{cutoff}" for kind in KINDS for cutoff in CUTOFFS)
"""Keys of `ranking_metrics`."""

PerUser = Mapping[str, Floats]
"""Metric → [users]; the same users in the same order for every model that is compared."""

FUSION_K = 60.0
"""The constant of reciprocal rank fusion, from its paper."""

_BLOCK_ELEMENTS = 2_000_000
"""Draws x users held at once: 16 MB an array."""


def _checked(relevant: Array, scores: Array, missed: int) -> tuple[Floats, Floats]:
    relevant, scores = np.asarray(relevant), np.asarray(scores, dtype=np.float64)
    if relevant.shape != scores.shape or relevant.ndim != 1:
        raise ValueError(f"got {relevant.shape} relevant and {scores.shape} scores; need one each for every item")
    if not np.isin(relevant, (0, 1)).all():
        raise ValueError("relevant: allowed are 0 and 1 (or False and True)")
    broken = int(np.sum(~np.isfinite(scores)))
    if broken:
        raise ValueError(f"{broken} of {len(scores)} scores are not finite numbers (NaN or infinite)")
    if missed < 0 or not (missed or relevant.any()):
        raise ValueError(f"no relevant item (missed: {missed}): a ranking metric has no meaning; leave this user out")
    return relevant.astype(np.float64), scores


def ranking_metrics(
    relevant: Array, scores: Array, missed: int = 0, cutoffs: Sequence[int] = CUTOFFS
) -> dict[str, float]:
    """Metrics of one user's items, best score first, each at every cutoff K.

    With R relevant items in all (`missed` included) and rel(j) = 1 where the item at rank j = 1, 2, ... is relevant:

    - `hr@K`, hit rate: 1 when any of the first K is relevant, else 0;
    - `recall@K`: sum of rel(j) over j <= K, divided by R;
    - `mrr@K`, reciprocal rank: 1 / (rank of the first relevant item), 0 when that rank is beyond K;
    - `ndcg@K`: sum over j <= K of rel(j) / log2(j + 1), divided by the same sum for a perfect order, which has
      min(R, K) relevant items first.

    Tied items: the expected value over all their orders. Sources: Järvelin and Kekäläinen, ACM TOIS 20, 2002 (NDCG);
    Voorhees, TREC-8, 1999 (reciprocal rank).

    Args:
        relevant: [items] of 0 and 1.
        scores: [items], finite; higher is ranked first, only their order matters.
        missed: relevant items that are not among these, such as those a retriever has not found; they count as
            ranked after everything.
        cutoffs: values of K, each at least 1.

    Returns:
        `hr@K`, `ndcg@K`, `mrr@K` and `recall@K`, all between 0 and 1.

    Raises:
        ValueError: lengths that differ, a value not allowed, or no relevant item at all.

    >>> found = ranking_metrics(np.array([0, 1, 0, 1]), np.array([0.9, 0.8, 0.7, 0.6]), cutoffs=(1, 3))
    >>> {key: round(value, 4) for key, value in found.items()}  # doctest: +NORMALIZE_WHITESPACE
    {'hr@1': 0.0, 'ndcg@1': 0.0, 'mrr@1': 0.0, 'recall@1': 0.0,
     'hr@3': 1.0, 'ndcg@3': 0.3869, 'mrr@3': 0.5, 'recall@3': 0.5}
    >>> ranking_metrics(np.array([1, 0]), np.array([0.5, 0.5]), cutoffs=(1,))["hr@1"]
    0.5
    """
    if not cutoffs or min(cutoffs) < 1:
        raise ValueError(f"cutoffs: got {tuple(cutoffs)}, allowed: numbers of at least 1")
    gain, scores = _checked(relevant, scores, missed)
    order = np.argsort(-scores, kind="stable")
    gain, ordered = gain[order], scores[order]
    total = gain.sum() + missed
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(ordered) else np.empty(0, dtype=np.int64)
    sizes = np.diff(np.r_[starts, len(ordered)])
    found = np.add.reduceat(gain, starts) if len(starts) else np.empty(0)
    deepest = max(cutoffs)
    # The chance that the item at each rank is relevant, under a random order of the tied ones.
    chance = np.zeros(deepest)
    spread = np.repeat(found / sizes, sizes)[:deepest]
    chance[: len(spread)] = spread
    # The chance that the first relevant item stands at each rank.
    first = np.zeros(deepest)
    hits = np.flatnonzero(found)
    if len(hits) and starts[hits[0]] < deepest:
        before, size, among = int(starts[hits[0]]), int(sizes[hits[0]]), found[hits[0]]
        place = np.arange(min(size, deepest - before))
        none_yet = np.cumprod(np.maximum(size - among - place, 0.0) / (size - place))
        first[before : before + len(place)] = -np.diff(none_yet, prepend=1.0)
    rank = np.arange(1, deepest + 1)
    discount = 1.0 / np.log2(rank + 1)
    metrics: dict[str, float] = {}
    for cutoff in cutoffs:
        ideal = discount[: min(int(total), cutoff)].sum()
        metrics[f"hr@{cutoff}"] = float(min(first[:cutoff].sum(), 1.0))
        metrics[f"ndcg@{cutoff}"] = float(min((chance * discount)[:cutoff].sum() / ideal, 1.0))
        metrics[f"mrr@{cutoff}"] = float(min((first / rank)[:cutoff].sum(), 1.0))
        metrics[f"recall@{cutoff}"] = float(min(chance[:cutoff].sum() / total, 1.0))
    return metrics


def by_user(users: Sequence[Mapping[str, float]]) -> dict[str, Floats]:
    """One array per metric out of one mapping per user, [users].

    >>> by_user([{"hr@1": 1.0}, {"hr@1": 0.0}])["hr@1"].tolist()
    [1.0, 0.0]
    """
    return {metric: np.array([user[metric] for user in users], dtype=np.float64) for metric in users[0]}


def _drawn_means(values: Floats, n: int, seed: int) -> Floats:
    """Mean over the users of each draw, [n, columns], of [users, columns] values."""
    users = len(values)
    blocks = draw_counts(users, n, seed, max(1, _BLOCK_ELEMENTS // users))
    return np.concatenate([counts @ values for counts in blocks]) / users


def mean_intervals(
    per_user: PerUser, n: int = 1000, level: float = 0.95, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of each metric's mean over users, by drawing users with replacement.

    Args:
        per_user: metric → [users].
        n: number of draws.
        level: share of the draws inside the interval.
        seed: of the draws; the same seed and number of users give the same draws for every model.

    Returns:
        (low, high) per metric; none at all for a single user, who says nothing about the next.
    """
    names = list(per_user)
    if not names or len(per_user[names[0]]) < 2:
        return {}
    drawn = _drawn_means(np.stack([per_user[name] for name in names], axis=1), n, seed)
    return {name: percentile_interval(drawn[:, column], level) for column, name in enumerate(names)}


def paired_means(a: PerUser, b: PerUser, n: int = 1000, level: float = 0.95, seed: int = 0) -> dict[str, Difference]:
    """Mean of A minus mean of B over the same users, who are the same in every draw for both.

    Args:
        a, b: metric → [users], the same users in the same order; metrics that only one has are left out.
        n, level, seed: as for `mean_intervals`.

    Returns:
        One `Difference` per metric; none at all for a single user.

    Raises:
        ValueError: different numbers of users.
    """
    names = [name for name in a if name in b]
    if not names:
        return {}
    if len(a[names[0]]) != len(b[names[0]]):
        raise ValueError(f"got {len(a[names[0]])} and {len(b[names[0]])} users; need the same ones")
    gaps = np.stack([a[name] - b[name] for name in names], axis=1)
    if len(gaps) < 2:
        return {}
    drawn = _drawn_means(gaps, n, seed)
    return {
        name: drawn_difference(float(gaps[:, column].mean()), drawn[:, column], level)
        for column, name in enumerate(names)
    }


def reciprocal_rank_fusion(*scores: Array, k: float = FUSION_K) -> Floats:
    """Scores of items fused from several rankings of the same items: sum over rankings of 1 / (k + rank), [items].

    It needs ranks only, so scores of different kinds can be put together without scaling them. Tied items share the
    mean of their ranks. Source: Cormack, Clarke and Büttcher, "Reciprocal rank fusion outperforms Condorcet and
    individual rank learning methods", SIGIR 2009, with k = 60.

    Args:
        scores: one array [items] per ranking, in the same order of items; higher is better.
        k: the larger, the less the first ranks stand out.

    >>> fused = reciprocal_rank_fusion(np.array([3.0, 2.0, 1.0]), np.array([0.1, 0.9, 0.5]))
    >>> np.argsort(-fused).tolist()
    [1, 0, 2]
    """
    fused: Floats = np.sum([1.0 / (k + rankdata(-np.asarray(each, dtype=np.float64))) for each in scores], axis=0)
    return fused
