"""Like-rates counted on the training events: the first thing a tuned model has to beat."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from rectune.errors import DataError

_EDGE = 1e-6
"""Rates stay this far from 0 and 1, so that log-odds are finite when all training labels agree."""


def _like_rate(train: pl.DataFrame, events: pl.DataFrame, key: str, strength: float) -> npt.NDArray[np.float64]:
    if strength < 0:
        raise ValueError(f"strength: got {strength}, allowed: 0 or more")
    for name, frame, columns in (("train", train, [key, "label"]), ("events", events, [key])):
        missing = [column for column in columns if column not in frame.columns]
        if missing:
            raise DataError(f"{name}: no column {missing[0]!r}; found {', '.join(frame.columns)}")
    if train.is_empty():
        raise DataError("train: no rows to count like-rates on")
    mean = float(np.clip(train["label"].cast(pl.Float64).to_numpy().mean(), _EDGE, 1 - _EDGE))
    rates = train.group_by(key).agg(
        ((pl.col("label").sum() + strength * mean) / (pl.len() + strength)).clip(_EDGE, 1 - _EDGE).alias("rate")
    )
    rate: npt.NDArray[np.float64]
    rate = events.select(key).join(rates, on=key, how="left", maintain_order="left")["rate"].fill_null(mean).to_numpy()
    log_odds: npt.NDArray[np.float64] = np.log(rate) - np.log1p(-rate)
    return log_odds


def item_like_rate(train: pl.DataFrame, events: pl.DataFrame, strength: float = 5.0) -> npt.NDArray[np.float64]:
    """Log-odds of an item's smoothed like-rate in the training events, [rows of events], in their order.

    rate = (likes + strength * mean) / (count + strength), the posterior mean under a Beta prior around the mean
    like-rate of all training events; an unseen item gets that mean. It sees training events only, and nothing of
    the user.

    Args:
        train: columns item_id and label (0/1).
        events: column item_id.
        strength: how many events' worth of the mean each item starts with.

    Raises:
        DataError: a missing column, or no training rows.
    """
    return _like_rate(train, events, "item_id", strength)
