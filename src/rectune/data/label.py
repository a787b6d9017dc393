"""From what a source brings to labels."""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

from rectune.config import Config
from rectune.data import columns as c
from rectune.data.sources.source import Source
from rectune.errors import DataError


def add_label(interactions: pl.DataFrame, rating_threshold: float) -> pl.DataFrame:
    """Add the column `label` (UInt8): 1 when the rating is at least the threshold, else 0.

    >>> add_label(pl.DataFrame({"rating": [3.5, 4.0]}), 4.0)["label"].to_list()
    [0, 1]
    """
    return interactions.with_columns((pl.col(c.RATING) >= rating_threshold).cast(pl.UInt8).alias(c.LABEL))


def labelled(read: Source, config: Config, say: Callable[[str], None]) -> pl.DataFrame:
    """The interactions of a source with the column `label`, as `label_from` says.

    Raises:
        DataError: the source does not bring what labels are to be made from.
    """
    rows = read.interactions
    ratings = rows[c.RATING].count()
    if config.label_from == "rating":
        if not ratings:
            other = "column" if c.LABEL in rows.columns else "purchases"
            raise DataError(
                f"label_from: rating, but these {read.nouns.interactions} have no rating; set label_from={other}"
            )
        if ratings < rows.height:
            raise DataError(
                f"label_from: rating, but {rows.height - ratings:,} of {rows.height:,} {read.nouns.interactions} have "
                "no rating; leave them out of the file, or give labels of your own (label_from=column)"
            )
        return add_label(rows, config.rating_threshold)
    if config.label_from == "column":
        if c.LABEL not in rows.columns:
            raise DataError(
                f"label_from: column, but these {read.nouns.interactions} bring no labels; set label_from="
                + ("rating" if ratings else "purchases")
            )
        return rows
    say(
        f"labels: each of these {read.nouns.interactions} is one that the user chose, so all labels are 1; items that "
        "the user never chose are drawn beside them"
    )
    return rows.with_columns(pl.lit(1, dtype=pl.UInt8).alias(c.LABEL))
