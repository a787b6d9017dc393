"""Make a tuned model's scores probabilities: what is fitted on validation is saved with the adapter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from rectune.measure.scaling import fit_platt
from rectune.measure.threshold import choose_threshold
from rectune.score.settings import AdapterSettings

LEAST, RARER = 200, 20
"""Validation events there must be, and those of the rarer label among them; of fewer, nothing is fitted."""


def calibrate(
    settings: AdapterSettings, labels: npt.NDArray[np.integer[Any]], log_odds: npt.NDArray[np.float64]
) -> AdapterSettings:
    """Settings with temperature, offset and threshold of the best log loss and accuracy on validation.

    Args:
        settings: of the run; what they hold of the three is replaced.
        labels: [n] of 0 and 1.
        log_odds: float64 [n]; the model's own, prior added.

    Returns:
        The settings, with nothing fitted (1, 0 and one half) where the events are too few, or where the log-odds
        order them no better than the other way round.
    """
    plain = replace(settings, temperature=1.0, offset=0.0, threshold=0.5)
    likes = int(labels.sum())
    if len(labels) < LEAST or min(likes, len(labels) - likes) < RARER:
        return plain
    slope, offset = fit_platt(labels, log_odds)
    if slope <= 0:
        return plain
    found = replace(plain, temperature=1.0 / slope, offset=offset)
    return replace(found, threshold=choose_threshold(labels, found.calibrated(log_odds), "accuracy"))
