"""Gradient boosting over features, with LightGBM.

Source: Ke et al., "LightGBM: a highly efficient gradient boosting decision tree", NeurIPS 2017.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rectune.baselines.questions import Floats

if TYPE_CHECKING:
    from lightgbm import Booster

_SETTINGS: dict[str, Any] = {
    "objective": "binary",
    "learning_rate": 0.03,
    "min_data_in_leaf": 100,
    "feature_fraction": 0.7,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
    "lambda_l2": 5.0,
    "verbose": -1,
    "deterministic": True,
    "force_row_wise": True,
}
_MOST_TREES, _PATIENCE = 1500, 60


def boost(
    features: Floats,
    labels: Floats,
    leaves: int,
    seed: int,
    held_out: tuple[Floats, Floats] | None = None,
    trees: int = _MOST_TREES,
) -> Booster:
    """Fit boosted trees.

    Args:
        features: [rows, features]; NaN is a missing value.
        labels: [rows] of 0 and 1.
        leaves: of a tree, at most.
        seed: of the draws of rows and features; the same input gives the same trees.
        held_out: features and labels whose log loss decides how many trees are kept; without them all of `trees`.
        trees: how many to grow at most.
    """
    import lightgbm

    data = lightgbm.Dataset(features, labels)
    settings = {**_SETTINGS, "num_leaves": leaves, "seed": seed}
    if held_out is None:
        return lightgbm.train(settings, data, trees)
    watched = lightgbm.Dataset(*held_out, reference=data)
    stop = lightgbm.early_stopping(_PATIENCE, verbose=False)
    return lightgbm.train(settings, data, trees, [watched], callbacks=[stop])


def boosted_log_odds(model: Booster, features: Floats) -> Floats:
    """Log-odds of each row, float64 [rows]."""
    found: Floats = np.asarray(model.predict(features, raw_score=True), dtype=np.float64)
    return found
