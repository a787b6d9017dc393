"""The split of labelled texts: at random with the seed, label by label, the rows of one text together."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import polars as pl

from rectune.data import columns as c
from rectune.errors import DataError

_LEAST = 3
"""Different texts that a class must have: one each for train, validation and test."""


def with_stratified_split(
    rows: pl.DataFrame, classes: Sequence[str], test_ratio: float, validation_ratio: float, seed: int
) -> pl.DataFrame:
    """Add the column `split`: of each class about `test_ratio` of the rows are test and `validation_ratio` validation.

    Texts are drawn one by one, each with all its rows, so that no text of train is in validation or test. A text that
    stands under several labels is drawn with those of its first row. The draw is by SHA-256 of seed, label and text
    number, and so does not change with the version of a library.

    Args:
        rows: item_id (the number of a text) and label of each row.
        classes: names of the labels.
        test_ratio, validation_ratio: shares of each class's rows; at least one text each.
        seed: of the draw.

    Raises:
        DataError: a class has fewer than three different texts.
    """
    texts = rows.group_by(c.ITEM_ID, maintain_order=True).agg(pl.col(c.LABEL).first(), pl.len().alias("rows"))
    splits: dict[str, str] = {}
    for label, name in enumerate(classes):
        own = texts.filter(pl.col(c.LABEL) == label)
        if own.height < _LEAST:
            raise DataError(
                f"labels: {own.height} different texts are {name!r}, but train, validation and test need one each; "
                "give more texts of this class, or leave it out"
            )
        drawn = sorted(own.select(c.ITEM_ID, "rows").iter_rows(), key=lambda text: _key(text[0], label, seed))
        whole = int(own["rows"].sum())
        wanted = [max(1, round(whole * ratio)) for ratio in (test_ratio, validation_ratio)]
        at = 0
        for split, size, after in ((c.TEST, wanted[0], 2), (c.VALIDATION, wanted[1], 1)):
            taken = 0
            while at < len(drawn) - after and taken < size:
                item, count = drawn[at]
                splits[item], taken, at = split, taken + count, at + 1
        splits |= {item: c.TRAIN for item, _ in drawn[at:]}
    found = rows[c.ITEM_ID].replace_strict(splits, return_dtype=pl.String)
    return rows.with_columns(found.alias(c.SPLIT))


def _key(item: str, label: int, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:split:{label}:{item}".encode()).digest()


def repeated_texts(rows: pl.DataFrame) -> tuple[int, int]:
    """How many texts stand in more than one row, and how many rows these are."""
    again = rows.group_by(c.ITEM_ID).len().filter(pl.col("len") > 1)
    return again.height, int(again["len"].sum())
