"""Which evaluation of a run was the best, from its log alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rectune.measure.classification import LOWER_IS_BETTER

Log = dict[str, Any]


def _better(value: float, best: float, metric: str) -> bool:
    return value < best if metric in LOWER_IS_BETTER else value > best


def best_evaluation(history: Sequence[Log], metric: str) -> tuple[int, float] | None:
    """Step and value of the best evaluation by a metric; the earliest wins a tie; None without any.

    >>> best_evaluation([{"step": 5, "eval_auc": 0.6}, {"step": 9, "eval_auc": 0.7}], "auc")
    (9, 0.7)
    """
    best: tuple[int, float] | None = None
    for log in history:
        value = log.get(f"eval_{metric}")
        if value is not None and (best is None or _better(value, best[1], metric)):
            best = (int(log["step"]), float(value))
    return best
