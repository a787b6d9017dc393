"""Labels from ratings, from the source's own column, and of purchases."""

from __future__ import annotations

import polars as pl
import pytest

from rectune.config import Config
from rectune.data.clean import CATALOG_SCHEMA, REJECTS_SCHEMA
from rectune.data.label import labelled
from rectune.data.sources.source import Nouns, Source
from rectune.errors import DataError


def source(**columns: object) -> Source:
    rows = pl.DataFrame(
        {"user_id": ["1", "1"], "item_id": ["a", "b"], "rating": [None, None], "timestamp": [1, 2], **columns},
        schema_overrides={"rating": pl.Float64, "label": pl.UInt8} if "label" in columns else {"rating": pl.Float64},
    )
    return Source(rows, pl.DataFrame(schema=CATALOG_SCHEMA), pl.DataFrame(schema=REJECTS_SCHEMA), Nouns("orders"))


def silent(_line: str) -> None:
    """Say nothing."""


def test_labels_of_ratings_come_from_the_threshold() -> None:
    rows = labelled(source(rating=[3.0, 4.0]), Config(rating_threshold=3.5), silent)
    assert rows["label"].to_list() == [0, 1] and rows["label"].dtype == pl.UInt8


def test_labels_of_the_source_stay_as_they_are() -> None:
    rows = labelled(source(label=[1, 0], rating=[1.0, 5.0]), Config(label_from="column"), silent)
    assert rows["label"].to_list() == [1, 0]


def test_every_purchase_is_liked_and_that_is_said() -> None:
    said: list[str] = []
    assert labelled(source(), Config(label_from="purchases"), said.append)["label"].to_list() == [1, 1]
    assert said == [
        "labels: each of these orders is one that the user chose, so all labels are 1; items that the user never chose "
        "are drawn beside them"
    ]


@pytest.mark.parametrize(
    ("columns", "label_from", "words"),
    [
        ({}, "rating", "these orders have no rating; set label_from=purchases"),
        ({"label": [1, 0]}, "rating", "have no rating; set label_from=column"),
        ({"rating": [4.0, None]}, "rating", "1 of 2 orders have no rating"),
        ({}, "column", "bring no labels; set label_from=purchases"),
        ({"rating": [4.0, 1.0]}, "column", "bring no labels; set label_from=rating"),
    ],
)
def test_labels_that_cannot_be_made_are_refused_with_what_can(columns: dict, label_from: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        labelled(source(**columns), Config(label_from=label_from), silent)
