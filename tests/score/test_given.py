"""Histories and candidates in every form that is taken, and each mistake as one line."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest

from rectune.data.titles import Titles
from rectune.errors import ConfigError, DataError
from rectune.prompt.events import Event
from rectune.prompt.layouts import prompts_for
from rectune.prompt.pieces import Pieces
from rectune.score.given import Given, Named
from rectune.score.items import Items
from rectune.score.open_run import OpenRun

CATALOG = pl.DataFrame(
    {
        "item_id": ["1", "2", "3"],
        "title": ["Toy Story (1995)", "Heat (1995)", "Heat (1986)"],
        "genres": ["", "", ""],
        "year": [1995, 1995, 1986],
    }
)
TOY, HEAT = "Toy Story (1995)", "Heat (1995)"


def given_to(opened: OpenRun, said: list[str] | None = None, catalog: pl.DataFrame = CATALOG, **values: Any) -> Given:
    config = opened.config.with_overrides(**values)
    run = replace(opened, config=config, prompts=prompts_for(config, Pieces(opened.loaded.tokenizer)))
    return Given(run, Items(run, catalog), Titles(catalog), (0.5, 5.0), (said if said is not None else []).append)


def events(given: Given, *entries: Any) -> list[Event]:
    return list(given.ask(entries, [], "error").request.history)


def refused(given: Given, history: Any, candidates: Any = (), where: str = "") -> str:
    with pytest.raises(DataError) as caught:
        given.ask(history, candidates, "error", where)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_form_of_an_event_is_the_same_event(opened: OpenRun) -> None:
    forms: list[Any] = [
        (TOY, 4),
        [" toy story", 4.0],
        ("1", np.float64(4.0)),
        (1, np.int64(4)),
        (np.int64(1), 4),
        ({"item_id": 1}, 4),
        ({"title": "TOY STORY (1995)", "item_id": "1"}, 4),
        {"title": TOY, "rating": 4},
        {"item_id": "1", "rating": 4.0, "label": None},
        {"item_id": "1", "rating": 4.0, "label": "Yes"},
    ]
    found = events(given_to(opened), *forms)
    assert found == [Event(TOY, 4.0, 1, "1")] * len(forms)


def test_ratings_become_labels_at_the_threshold(opened: OpenRun) -> None:
    given = given_to(opened, rating_threshold=3.5, history_shows="label")
    found = events(given, (TOY, 3.4), (TOY, 3.5), {"title": TOY, "rating": 5, "label": 0})
    assert [(event.rating, event.label) for event in found] == [(3.4, 0), (3.5, 1), (5.0, 0)]


def test_every_form_of_a_label_is_a_label(opened: OpenRun) -> None:
    given = given_to(opened, history_shows="label", positive_label="R", negative_label="O")
    likes = [True, np.True_, "R", " r ", "yes", "LIKE", "liked", "true"]
    dislikes = [False, np.False_, "O", "no", "dislike", "Disliked", "false"]
    assert [event.label for event in events(given, *((TOY, each) for each in likes))] == [1] * len(likes)
    assert [event.label for event in events(given, *((TOY, each) for each in dislikes))] == [0] * len(dislikes)
    assert events(given, {"title": TOY, "label": 1}, {"title": TOY, "label": 0}) == [
        Event(TOY, None, 1, "1"),
        Event(TOY, None, 0, "1"),
    ]


def test_candidates_are_named_by_title_or_id(opened: OpenRun) -> None:
    asked = given_to(opened).ask([], ["heat (1995)", 3, {"item_id": "1"}, {"title": TOY}], "error")
    assert asked.names == [Named("2", HEAT), Named("3", "Heat (1986)"), Named("1", TOY), Named("1", TOY)]
    assert [each.text for each in asked.request.candidates] == [HEAT, "Heat (1986)", TOY, TOY]
    assert asked.request.user is None


def test_a_run_that_shows_ratings_needs_them(opened: OpenRun) -> None:
    told = "has no rating, but this run's prompts show each title with its rating; give one (liked is 4 or more)"
    given = given_to(opened)
    for entry in ((TOY, True), (TOY, "No"), {"title": TOY, "label": 1}, TOY, (TOY,), (TOY, None)):
        assert refused(given, [(HEAT, 5), entry]) == f"history, event 2: {TOY!r} {told}"


def test_a_run_that_shows_labels_needs_a_rating_or_a_label(opened: OpenRun) -> None:
    given = given_to(opened, history_shows="label")
    assert "'Heat (1995)' has neither rating nor label" in refused(given, [HEAT])
    assert events(given, (HEAT, 2), (HEAT, True)) == [Event(HEAT, 2.0, 0, "2"), Event(HEAT, None, 1, "2")]


def test_a_run_with_baselines_needs_labels_whatever_it_shows(opened: OpenRun) -> None:
    settings = replace(opened.settings, baselines={"stack": {"file": "stack.safetensors", "sha256": ""}})
    given = given_to(replace(opened, settings=settings), history_shows="nothing")
    assert "'Heat (1995)' has neither rating nor label, but this run's baselines look at what was liked" in refused(
        given, [HEAT]
    )
    assert events(given, (HEAT, False)) == [Event(HEAT, None, 0, "2")]


def test_a_run_that_shows_nothing_takes_titles_alone(opened: OpenRun) -> None:
    given = given_to(opened, history_shows="nothing")
    assert [event.title for event in events(given, HEAT, 1, {"title": TOY}, (TOY, 3))] == [HEAT, TOY, TOY, TOY]


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ((HEAT, 10), "rating is 10, but this dataset's go from 0.5 to 5"),
        ((HEAT, float("nan")), "rating is 'nan'; give a number"),
        ((HEAT, 10**400), "; give a number"),
        ({"title": HEAT, "rating": True}, "rating is 'True'; give a number"),
        ({"title": HEAT, "rating": "5"}, "rating is '5'; give a number"),
        ((HEAT, "perhaps"), "'perhaps' is neither a rating nor a label; give a number, yes or no"),
        ({"title": HEAT, "label": 2}, "'2' is neither a rating nor a label"),
        ((HEAT, [1]), "rating is '[1]'; give a number"),
        ((HEAT, 1, 2), "give (item, rating) or (item, True or False)"),
        ((), "give (item, rating) or (item, True or False)"),
        ((None, 4), "got 'None'; give a title, an item id, or {title, item_id}"),
        ((True, 4), "got 'True'; give a title"),
        (4.5, "got '4.5'; give a title"),
        (("Heat", 4), "'Heat' could be 'Heat (1995)' (2) or 'Heat (1986)' (3)"),
        (("Toy Stori", 4), "no item is called 'Toy Stori'; did you mean 'Toy Story (1995)' (1)?"),
        ((99, 4), "no item has the id '99' (the catalog holds 3 items)"),
        ({"item_id": "99", "title": HEAT, "rating": 4}, "no item has the id '99'"),
        ({"item_id": "1", "title": HEAT, "rating": 4}, "item_id 1 is 'Toy Story (1995)' in this catalog, not 'Heat"),
        ({"titel": HEAT, "rating": 4}, "unknown key 'titel'; allowed: title, item_id, rating, label"),
        ({"rating": 4}, "neither title nor item_id is given"),
        ({"title": 5, "rating": 4}, "title is '5'; give a text"),
        ({"item_id": 1.5, "rating": 4}, "item_id is '1.5'; give a text or a whole number"),
        ({"item_id": True, "rating": 4}, "item_id is 'True'; give a text or a whole number"),
    ],
)
def test_a_mistake_is_one_line_that_says_where(opened: OpenRun, entry: Any, told: str) -> None:
    message = refused(given_to(opened), [(TOY, 4), entry], where="line 7, ")
    assert message.startswith("line 7, history, event 2: ") and told in message


def test_a_mistake_among_candidates_says_where(opened: OpenRun) -> None:
    given = given_to(opened)
    assert refused(given, [], [TOY, "Toy Stori"]).startswith("candidates, item 2: no item is called 'Toy Stori'")
    assert refused(given, [], [{"title": TOY, "rating": 4}]) == (
        "candidates, item 1: unknown key 'rating'; allowed: title, item_id"
    )
    assert refused(given, [], [(TOY, 4)]).startswith("candidates, item 1: got ")
    assert refused(given, [], TOY) == "candidates: got 'Toy Story (1995)'; give a list"
    assert refused(given, {"title": TOY}, []).startswith("history: got ")
    assert refused(given, 5, []) == "history: got '5'; give a list"
    with pytest.raises(ConfigError, match="unknown: got 'guess', allowed: error, text"):
        given.ask([], [], "guess")  # type: ignore[arg-type]


def test_foreign_titles_are_taken_as_text_where_asked_and_said_once(opened: OpenRun) -> None:
    said: list[str] = []
    given = given_to(opened, said, item_text="{name}")
    asked = given.ask([("Dune (2021)", 4)], ["Dune (2021)", {"item_id": "77", "title": "Alien"}, "toy story"], "text")
    assert asked.request.history == [Event("Dune", 4.0, 1)]
    assert asked.names == [Named(None, "Dune (2021)"), Named("77", "Alien"), Named("1", TOY)]
    assert [each.text for each in asked.request.candidates] == ["Dune", "Alien", "Toy Story"]
    assert said == [
        "history, event 1: 'Dune (2021)' is not in the catalog; the model is asked about it as 'Dune'",
        "candidates, item 2: 'Alien' is not in the catalog; the model is asked about it as 'Alien'",
    ]
    with pytest.raises(DataError, match="'Heat' could be"):  # several are meant: no text of a prompt
        given.ask([], ["Heat"], "text")
    with pytest.raises(DataError, match="candidates, item 1: got an empty title"):
        given.ask([], [" "], "text")


def test_without_a_catalog_ids_mean_nothing(opened: OpenRun) -> None:
    said: list[str] = []
    given = given_to(opened, said, CATALOG.clear())
    assert given.ask([("Dune", 4)], ["Dune"], "text").names == [Named(None, "Dune")] and not said
    with pytest.raises(DataError, match=r"no item has the id '5' \(there is no catalog\)"):
        given.ask([], [5], "text")
