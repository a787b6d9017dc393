"""From rating to label."""

from __future__ import annotations

import polars as pl

from rectune.data import columns as c


def add_label(interactions: pl.DataFrame, rating_threshold: float) -> pl.DataFrame:
    """Add the column `label` (UInt8): 1 when the rating is at least the threshold, else 0.

    >>> add_label(pl.DataFrame({"rating": [3.5, 4.0]}), 4.0)["label"].to_list()
    [0, 1]
    """
    return interactions.with_columns((pl.col(c.RATING) >= rating_threshold).cast(pl.UInt8).alias(c.LABEL))
