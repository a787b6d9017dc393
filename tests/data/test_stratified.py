"""The split of labelled texts: shares of each class, texts that come twice, and the draw."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rectune.data.stratified import repeated_texts, with_stratified_split
from rectune.errors import DataError


def rows_of(labels: list[int], items: list[int] | None = None) -> pl.DataFrame:
    items = items if items is not None else list(range(len(labels)))
    return pl.DataFrame({"item_id": [str(item) for item in items], "label": pl.Series(labels, dtype=pl.UInt8)})


def test_each_class_gives_its_share() -> None:
    found = with_stratified_split(rows_of([0] * 90 + [1] * 10), ["a", "b"], 0.2, 0.1, seed=3)
    counts = {(split, label): n for split, label, n in found.group_by("split", "label").len().iter_rows()}
    assert counts == {
        ("test", 0): 18, ("validation", 0): 9, ("train", 0): 63, ("test", 1): 2, ("validation", 1): 1, ("train", 1): 7,
    }  # fmt: skip


def test_the_draw_is_the_seeds_and_changes_with_it() -> None:
    rows = rows_of([0] * 40 + [1] * 20)
    one, again, other = (with_stratified_split(rows, ["a", "b"], 0.2, 0.2, seed)["split"] for seed in (1, 1, 2))
    assert one.equals(again) and not one.equals(other)


def test_a_class_of_two_texts_is_refused() -> None:
    with pytest.raises(DataError, match="labels: 2 different texts are 'b', but train, validation and test need one"):
        with_stratified_split(rows_of([0, 0, 0, 1, 1, 1], [0, 1, 2, 3, 4, 4]), ["a", "b"], 0.3, 0.3, seed=0)


@given(
    st.lists(st.tuples(st.integers(0, 15), st.integers(0, 1)), min_size=1, max_size=80),
    st.floats(0.05, 0.45), st.floats(0.05, 0.45), st.integers(0, 99),
)  # fmt: skip
def test_no_text_is_in_two_splits_and_none_is_lost(
    given_rows: list[tuple[int, int]], test: float, validation: float, seed: int
) -> None:
    sure = [(100 + at, at % 2) for at in range(6)]  # three texts of each class at least
    items, labels = zip(*[*given_rows, *sure], strict=True)
    rows = rows_of(list(labels), list(items))
    found = with_stratified_split(rows, ["a", "b"], test, validation, seed)
    assert found.drop("split").equals(rows)
    per_text = found.group_by("item_id").agg(pl.col("split").n_unique())
    assert per_text["split"].max() == 1
    assert {"train", "validation", "test"} <= set(found["split"])


def test_repeated_texts_are_counted() -> None:
    assert repeated_texts(rows_of([0, 0, 0, 1, 1], [1, 1, 1, 2, 3])) == (1, 3)
