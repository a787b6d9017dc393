"""Metrics by kind of row: short and long histories, items nobody knows and items everybody knows.

A slice is a name that every row has. Names tell where their edges lie, so that a table needs no legend.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rectune.measure.bootstrap import METRICS, bootstrap_intervals, paired_bootstrap
from rectune.measure.classification import UserIds, check_rows, classification_metrics

Array = npt.NDArray[Any]
Names = npt.NDArray[np.str_]

SLICE_METRICS = ("auc", "uauc", "loss", "ece")
"""What is measured in each slice unless told otherwise."""

HISTORY_EDGES = (0, 15, 50, 150)
"""History lengths: none, 1-15 (the seeds' prompts), 16-50, 51-150 and 151+ events."""


class Cut(NamedTuple):
    """A numeric column cut into slices: the name of each row's slice, [n], and the names of all slices in order."""

    rows: Names
    order: tuple[str, ...]


def _counts(values: Array) -> npt.NDArray[np.int64]:
    values = np.asarray(values)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"values: got the shape {values.shape}; need one count for every row")
    if not np.isfinite(values).all() or (values < 0).any() or (values != np.floor(values)).any():
        raise ValueError("values: allowed are whole numbers of at least 0")
    return values.astype(np.int64)


def _span(low: int, high: int | None) -> str:
    if high is None:
        return f"{low}+"
    return str(low) if low == high else f"{low}-{high}"


def _cut(values: npt.NDArray[np.int64], edges: Sequence[int], names: Sequence[str]) -> Cut:
    """Rows by the first edge that is not below their value; slices without a row are left out of the order."""
    place = np.searchsorted(np.asarray(edges), values, side="left")
    there = set(place.tolist())
    return Cut(np.array(names)[place], tuple(name for at, name in enumerate(names) if at in there))


def cut_by_edges(values: Array, edges: Sequence[int] = HISTORY_EDGES) -> Cut:
    """Slices with fixed edges, such as history lengths: `none`, `1-15`, `16-50`, `51-150`, `151+`.

    Args:
        values: [n], whole numbers of at least 0.
        edges: the largest number of each slice but the last, which has no end; rising, the first at least 0.

    Raises:
        ValueError: values that are not counts, or edges that do not rise from at least 0.

    >>> cut_by_edges(np.array([0, 200, 15, 16])).rows.tolist()
    ['none', '151+', '1-15', '16-50']
    >>> cut_by_edges(np.array([0, 200, 15, 16])).order
    ('none', '1-15', '16-50', '151+')
    """
    edges = list(edges)
    if not edges or edges[0] < 0 or any(low >= high for low, high in pairwise(edges)):
        raise ValueError(f"edges: got {edges}, allowed: rising whole numbers of at least 0")
    starts = [0, *(edge + 1 for edge in edges)]
    names = [_span(low, high) for low, high in zip(starts, [*edges, None], strict=True)]
    if edges[0] == 0:
        names[0] = "none"
    return _cut(_counts(values), edges, names)


def cut_by_known_events(known: Array) -> Cut:
    """Slices by how much is known: `cold (0)`, then terciles such as `low (1-23)`, `middle (24-118)`, `high (119+)`.

    For item popularity, `known` is the number of known events of the row's item; for user activity, of its user. The
    terciles are those of the rows with at least one known event, so that the three hold about as many rows each.
    Equal counts are never parted: where many rows share one, slices differ in size and one may be missing.

    Args:
        known: [n], whole numbers of at least 0.

    Raises:
        ValueError: values that are not counts.

    >>> cut_by_known_events(np.array([0, 5, 30, 200, 23, 118, 900])).order
    ('cold (0)', 'low (1-23)', 'middle (24-118)', 'high (119+)')
    """
    counts = _counts(known)
    warm = counts[counts > 0]
    if len(warm) == 0:
        return _cut(counts, [0], ["cold (0)", "high (1+)"])
    first, second = (int(edge) for edge in np.quantile(warm, [1 / 3, 2 / 3], method="inverted_cdf"))
    names = ["cold (0)", f"low ({_span(1, first)})", f"middle ({_span(first + 1, second)})"]
    return _cut(counts, [0, first, second], [*names, f"high ({_span(second + 1, None)})"])


def _measure_model(
    rows: tuple[Array, Array, Array], metrics: Sequence[str], n: int, level: float, seed: int
) -> dict[str, Any]:
    values = classification_metrics(*rows)
    intervals = bootstrap_intervals(*rows, metrics, n, level, seed)
    return {
        "metrics": {metric: values[metric] for metric in metrics},
        "intervals": {metric: list(intervals[metric]) if metric in intervals else None for metric in metrics},
    }


def measure_slices(
    slices: Sequence[str] | Names,
    labels: Array,
    log_odds: Mapping[str, Array],
    user_ids: UserIds,
    compare: tuple[str, str] | None = None,
    order: Sequence[str] | None = None,
    metrics: Sequence[str] = SLICE_METRICS,
    n: int = 300,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Metrics of several models in each slice, with intervals by bootstrap over the users of the slice.

    Args:
        slices: [rows], the name of each row's slice.
        labels: [rows] of 0 and 1.
        log_odds: model → [rows]; at least one model.
        user_ids: [rows], whose event each row is.
        compare: models A and B whose difference A - B is measured, on the same users in every draw.
        order: names of the slices as they are to come out, such as `Cut.order`; sorted by name when not given.
        metrics: some of `bootstrap.METRICS`.
        n: number of draws.
        level: share of the draws inside an interval.
        seed: of the draws; the same users are drawn for every model.

    Returns:
        For each slice that has rows, ready for JSON: `n`, `users`, `positive_rate`; `models`, for each of them
        `metrics` (metric → value) and `intervals` (metric → [low, high]); `difference`, None without `compare`, else
        metric → difference, low, high and p_value as in `bootstrap.Difference`. A value is None where it has no
        meaning: AUC of one class, UAUC without a user who has both, an interval or a difference of one user, who says
        nothing about the next.

    Raises:
        ValueError: no model, unknown models or metrics, an order that leaves out a slice, or rows that cannot be
            used, see `check_rows`.

    >>> found = measure_slices(["cold", "warm"], np.array([1, 0]), {"ours": np.array([2.0, 0.0])}, ["a", "a"])
    >>> found["cold"]["n"], found["cold"]["positive_rate"], found["cold"]["models"]["ours"]["metrics"]["auc"]
    (1, 1.0, None)
    """
    names, labels, users = np.asarray(slices), np.asarray(labels), np.asarray(user_ids)
    if not log_odds:
        raise ValueError("log_odds: got no model; need at least one")
    if len(names) != len(labels):
        raise ValueError(f"got {len(names)} names of slices and {len(labels)} labels; need as many")
    unknown = [metric for metric in metrics if metric not in METRICS]
    if unknown:
        raise ValueError(f"metrics: got {unknown[0]!r}, allowed: {', '.join(METRICS)}")
    strangers = [model for model in compare or () if model not in log_odds]
    if strangers:
        raise ValueError(f"compare: got {strangers[0]!r}, allowed: {', '.join(log_odds)}")
    models = {model: check_rows(labels, odds, users)[1] for model, odds in log_odds.items()}
    there = np.unique(names).tolist()
    left_out = [name for name in there if order is not None and name not in order]
    if left_out:
        raise ValueError(f"order: leaves out {left_out[0]!r}, which some rows have")
    found: dict[str, dict[str, Any]] = {}
    for name in there if order is None else (name for name in order if name in there):
        rows = names == name
        label, user = labels[rows], users[rows]
        difference = None
        if compare is not None:
            a, b = (models[model][rows] for model in compare)
            measured = paired_bootstrap(label, a, b, user, metrics, n, level, seed)
            difference = {metric: asdict(measured[metric]) if metric in measured else None for metric in metrics}
        found[name] = {
            "n": len(label),
            "users": len(np.unique(user)),
            "positive_rate": float(label.mean()),
            "models": {
                model: _measure_model((label, odds[rows], user), metrics, n, level, seed)
                for model, odds in models.items()
            },
            "difference": difference,
        }
    return found
