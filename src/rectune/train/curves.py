"""What a diagnosis looks at: a run's history as curves, and what is known of it beforehand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rectune.measure.uncertainty import auc_standard_error
from rectune.train.not_finite import BROKEN

Log = Mapping[str, Any]
Floats = npt.NDArray[np.float64]
DROWNED = 0.01
"""Standard deviation of log-odds under which the prompt no longer matters: untrained models have a tenth and more, and
one that learns no more than the share of positives keeps that."""


@dataclass(frozen=True)
class Facts:
    """What is known of a run before its first step.

    Attributes:
        training_events, validation_events: answers trained on and evaluated.
        training_rate, validation_rate: share of the positive ones.
        validation_users: users in validation.
        steps: optimiser steps planned.
        warmup_steps: over which the learning rate rises.
        epochs: passes planned.
        by_steps: whether max_steps decides the length, and not num_train_epochs.
        learning_rate: its peak.
        max_grad_norm: gradients are clipped to it; 0 is no clipping.
        metric: decides which adapter is the best.
        plain_loss: whether the training loss is plain cross-entropy, without weights, smoothing or focus.
        prior_loss, prior_auc: those of the prior's log-odds alone on the validation events; None without a prior.
    """

    training_events: int
    validation_events: int
    training_rate: float
    validation_rate: float
    validation_users: int
    steps: int
    warmup_steps: int
    epochs: float
    by_steps: bool
    learning_rate: float
    max_grad_norm: float
    metric: str
    plain_loss: bool = True
    prior_loss: float | None = None
    prior_auc: float | None = None


@dataclass(frozen=True)
class Curves:
    """A history, or its beginning, by what was measured.

    Attributes:
        steps: int64 [lines]; of the lines that tell the training loss.
        losses: float64 [lines].
        epochs: float64 [lines]; passes until then.
        norms: float64 [norms]; gradient norms before clipping, those of skipped float16 steps left out.
        evaluations: the entries of evaluations, oldest first.
        step: the last one.
        finished: whether the run has come to its end.
        broken: the entry that tells where numbers stopped being numbers, or None.
    """

    steps: npt.NDArray[np.int64]
    losses: Floats
    epochs: Floats
    norms: Floats
    evaluations: Sequence[Log]
    step: int
    finished: bool
    broken: Log | None = None

    @classmethod
    def of(cls, history: Sequence[Log]) -> Curves:
        """The curves of a history."""
        lines = [log for log in history if "loss" in log]
        norms = np.array([log["grad_norm"] for log in lines if "grad_norm" in log], dtype=np.float64)
        return cls(
            steps=np.array([log["step"] for log in lines], dtype=np.int64),
            losses=np.array([log["loss"] for log in lines], dtype=np.float64),
            epochs=np.array([log.get("epoch") or 0.0 for log in lines], dtype=np.float64),
            norms=norms[np.isfinite(norms)],
            evaluations=[log for log in history if "eval_loss" in log],
            step=max((int(log["step"]) for log in history), default=0),
            finished=any("train_runtime" in log for log in history),
            broken=next((log for log in history if BROKEN in log), None),
        )

    def settled(self, facts: Facts) -> Sequence[Log]:
        """The latest evaluations that may be judged: two after warm-up and the first tenth of the run, or, at its end,
        the last. One evaluation early in a run shows a model on its way.
        """
        first = max(facts.warmup_steps, facts.steps // 10)
        late = [log for log in self.evaluations if log["step"] > first]
        if self.finished:
            return self.evaluations[-1:]
        return late[-2:] if len(late) > 1 else []

    def best(self) -> int:
        """Index of the evaluation with the lowest loss, the earliest of several."""
        return min(range(len(self.evaluations)), key=lambda at: float(self.evaluations[at]["eval_loss"]))


def noise(values: Floats) -> float:
    """Standard deviation of single values about a slowly moving mean; NaN for fewer than three.

    1.4826 times the median absolute deviation of the successive differences, over sqrt(2): differences take a trend
    out (von Neumann, Annals of Mathematical Statistics 12, 1941), the median takes out single jumps.

    >>> noise(np.array([1.0, 2.0, 3.0, 4.0])), round(noise(np.array([1.0, 3.0, 1.0, 3.0, 1.0])), 2)
    (0.0, 2.1)
    """
    if len(values) < 3:
        return math.nan
    steps = np.diff(values)
    return float(1.4826 * np.median(np.abs(steps - np.median(steps))) / math.sqrt(2))


def auc_noise(log: Log) -> float:
    """Standard error of an evaluation's AUC; NaN where it has none."""
    positives = round(log["eval_n"] * log["eval_positive_rate"])
    return auc_standard_error(log.get("eval_auc", 0.5), positives, log["eval_n"] - positives)


def ranks(log: Log) -> bool:
    """Whether an evaluation's AUC lies above one half by more than two standard errors."""
    return "eval_auc" in log and log["eval_auc"] > 0.5 + 2 * auc_noise(log)
