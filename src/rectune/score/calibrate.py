"""Make a tuned model's scores probabilities: what is fitted on validation is saved with the adapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from rectune.baselines.served import Served
from rectune.config_classify import CLASSIFY
from rectune.measure.blending import fit_blend
from rectune.measure.scaling import fit_platt
from rectune.measure.threshold import choose_threshold
from rectune.score.settings import MODEL, OFFSET, AdapterSettings, Floats

LEAST, RARER = 200, 20
"""Validation events there must be, and those of the rarer label among them; of fewer, nothing is fitted."""

Labels = npt.NDArray[np.integer[Any]]


def too_few(labels: Labels) -> bool:
    """Whether nothing can be fitted on events with these labels, [n] of 0 and 1."""
    likes = int(labels.sum())
    return len(labels) < LEAST or min(likes, len(labels) - likes) < RARER


def calibrate(
    settings: AdapterSettings,
    labels: Labels,
    log_odds: Floats,
    served: Mapping[str, Served] | None = None,
    joined: Mapping[str, Floats] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> AdapterSettings:
    """Settings with weights, temperature and offset of the least log loss, and the threshold of the best accuracy.

    For texts it is the threshold of the best F1 of the positive class.

    Args:
        settings: of the run; what they hold of these is replaced.
        labels: [n] of 0 and 1, of validation.
        log_odds: float64 [n]; the model's own, prior added.
        served: the baselines that are to join the answer; those that do are held by the settings returned.
        joined: their log-odds, name → float64 [n].
        say: prints one line, where something asked for is left out.

    Returns:
        The settings, with nothing fitted (1, one half, no blend, and as offset only what takes class weights' effect
        off) where the events are too few. A model whose
        log-odds order the events no better than the other way round keeps them as they are, but may be blended: its
        weight is then 0, as it is where it adds nothing to the baselines.
    """
    kept = {name for name in settings.baselines if name == settings.prompt.get("prior")}
    plain = replace(
        settings, temperature=1.0, offset=0.0 - settings.loss_shift, threshold=0.5, blend={},
        baselines={name: told for name, told in settings.baselines.items() if name in kept},
        fitted={name: content for name, content in settings.fitted.items() if name in kept},
    )  # fmt: skip
    joined = joined or {}
    if too_few(labels):
        if joined:
            say(
                f"blend: {len(labels):,} validation events are too few to weigh baselines by ({LEAST} are needed, "
                f"{RARER} of the rarer label), so none joins; raise max_eval_samples"
            )
        return plain
    slope, offset = fit_platt(labels, log_odds)
    found = replace(plain, temperature=1.0 / slope, offset=offset) if slope > 0 else plain
    if joined:
        found = _blended(found, labels, log_odds, joined, say).with_baselines(served or {})
    elif slope <= 0:
        return plain
    final = found.calibrated(log_odds, joined)
    # Of texts one looks for the positive class, which may be so rare that never saying it is right most often.
    metric = "f1" if settings.prompt.get("task") == CLASSIFY else "accuracy"
    return replace(found, threshold=choose_threshold(labels, final, metric))


def _blended(
    alone: AdapterSettings, labels: Labels, log_odds: Floats, joined: Mapping[str, Floats], say: Callable[[str], None]
) -> AdapterSettings:
    """Settings with the baselines weighed in."""
    weights, offset = fit_blend(labels, np.column_stack([log_odds, *joined.values()]))
    blend = {name: float(weight) for name, weight in zip((MODEL, *joined), weights, strict=True)}
    shares = ", ".join(f"{name} {weight:.3f}" for name, weight in blend.items())
    say(f"blend: weights of the log-odds on {len(labels):,} validation events: {shares}")
    if not blend[MODEL]:
        names = " and ".join(joined)
        say(f"blend: the language model adds nothing to {names} on validation, so answers are theirs alone")
    return replace(alone, blend={**blend, OFFSET: offset})
