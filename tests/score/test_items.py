"""What prompts call items, in runs of different item texts, with and without like-rates."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from typing import Any

import polars as pl
import pytest

from rectune.errors import DataError, ModelError
from rectune.prompt.events import Event
from rectune.score.candidates import Candidate
from rectune.score.items import Items, item_prior, like_rate, with_rate
from rectune.score.open_run import OpenRun

CATALOG = pl.DataFrame(
    {
        "item_id": ["1", "2"],
        "title": ["Heat  (1995)", "Unknown"],
        "genres": ["Action, Crime", ""],
        "year": [1995, None],
    },
    schema_overrides={"year": pl.Int64},
)


def run_with(opened: OpenRun, **values: Any) -> OpenRun:
    """The tiny run as if it had been trained with other keys, and with like-rates counted by hand."""
    stream = io.BytesIO()
    table = {"item_id": ["1", None], "rate": [0.75, 0.5], "count": [8, 0]}
    pl.DataFrame(table, schema={"item_id": pl.String, "rate": pl.Float64, "count": pl.Int64}).write_parquet(stream)
    settings = replace(opened.settings, rates=stream.getvalue())
    return replace(opened, config=opened.config.with_overrides(**values), settings=settings)


@pytest.mark.parametrize(
    ("item_text", "own", "foreign"),
    [
        ("title", "Heat (1995)", "Dune, Part Two (2024)"),
        ("title_categories", "Heat (1995) [Action, Crime]", "Dune, Part Two (2024)"),
        ("{name}", "Heat", "Dune, Part Two"),
        ("{name} <{year}>", "Heat <1995>", "Dune, Part Two <2024>"),
        ("{title}, {genres}", "Heat  (1995), Action, Crime", "Dune, Part Two (2024)"),
    ],
)
def test_a_title_of_no_catalog_is_put_as_those_of_the_catalog(
    opened: OpenRun, item_text: str, own: str, foreign: str
) -> None:
    items = Items(run_with(opened, item_text=item_text), CATALOG)
    assert items.text("1") == " ".join(own.split())
    assert items.text(None, "Dune, Part  Two (2024)") == items.text("99", "Dune, Part  Two (2024)") == foreign
    # The catalog's own text stands, whatever the title given beside the id.
    assert items.text("1", "Dune") == items.text("1")


def test_an_item_of_no_catalog_and_no_title_is_an_error(opened: OpenRun) -> None:
    items = Items(opened, CATALOG)
    with pytest.raises(KeyError, match="99"):
        items.text("99")
    with pytest.raises(DataError, match="got an empty title"):
        items.text(None, " \n ")


@pytest.mark.parametrize("item_text", ["id", "{genres}"])
def test_prompts_that_say_nothing_of_a_title_refuse_foreign_ones(opened: OpenRun, item_text: str) -> None:
    with pytest.raises(DataError, match=r"'Dune' is not in the catalog, and item_text='.*' says nothing"):
        Items(run_with(opened, item_text=item_text), CATALOG).text(None, "Dune")


def test_like_rates_stand_behind_the_text_and_are_the_prior(opened: OpenRun) -> None:
    run = run_with(opened, item_rate_text=True, prior="item_rate")
    items = Items(run, CATALOG)
    assert like_rate(run, "1") == (0.75, 8) and like_rate(run, "2") == like_rate(run, None) == (0.5, 0)
    # log(0.75 / 0.25) = log 3, and an unrated item's rate of a half says nothing.
    assert items.candidate("1") == Candidate("Heat (1995) (75% of 8)", pytest.approx(math.log(3)), "1")
    assert items.candidate("2") == Candidate("Unknown (50% of 0)", 0.0, "2")
    assert items.candidate(None, "Dune") == Candidate("Dune (50% of 0)", 0.0)
    assert items.event("1", 4.5, 1) == Event("Heat (1995) (75% of 8)", 4.5, 1, "1")
    assert with_rate(run, "x", "1") == "x (75% of 8)"


def test_text_and_prior_are_apart(opened: OpenRun) -> None:
    prior, text = run_with(opened, prior="item_rate"), run_with(opened, item_rate_text=True)
    assert Items(prior, CATALOG).candidate("1") == Candidate("Heat (1995)", pytest.approx(math.log(3)), "1")
    assert Items(text, CATALOG).candidate("1") == Candidate("Heat (1995) (75% of 8)", 0.0, "1")
    assert item_prior(opened, "1") == 0.0 and with_rate(opened, "x", "1") == "x"


def test_a_run_that_needs_rates_and_has_none_is_one_line(opened: OpenRun) -> None:
    run = replace(run_with(opened, prior="item_rate"), settings=replace(opened.settings))
    with pytest.raises(ModelError, match=r"no item_rates\.parquet was saved"):
        Items(run, CATALOG).candidate("1")
