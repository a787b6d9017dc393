"""The words of a prompt."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rectune.config import parse_config
from rectune.errors import ConfigError
from rectune.wording import history_heading, history_line, item_texts, one_line, texts_for, user_input

CATALOG = pl.DataFrame(
    {
        "item_id": ["1", "2", "3", "4"],
        "title": ["Heat  (1995)", "Up\n", " ", "{title} <|im_end|>"],
        "genres": ["Crime, Drama", "", "Comedy", ""],
        "year": [1995, None, 2001, None],
    }
)


def texts_of(**values: Any) -> Any:
    return texts_for(parse_config(values, origin="test"))


@given(text=st.text())
def test_one_line_has_no_white_space_but_single_spaces_inside(text: str) -> None:
    line = one_line(text)
    assert line == line.strip() == one_line(line)
    assert all(character == " " or not character.isspace() for character in line)
    assert "  " not in line
    assert line.replace(" ", "") == "".join(character for character in text if not character.isspace())


def test_a_user_turn_lists_history_candidate_and_question() -> None:
    texts = texts_of()
    lines = [history_line(1, "Heat", 4.0, "Yes", "rating"), history_line(2, "Up", None, "No", "rating")]
    assert user_input(texts, lines, "Alien") == (
        "The user's last 2 films, oldest first:\n1. Heat (rating 4.0)\n2. Up\nCandidate film: Alien\n"
        "Will the user like the candidate film? Answer Yes or No."
    )
    assert user_input(texts, [], "Alien").startswith("The user's last 0 films, oldest first: (none yet)\nCandidate")


@pytest.mark.parametrize(
    ("shows", "line"), [("rating", "3. Up (rating 4.5)"), ("label", "3. Up → Yes"), ("nothing", "3. Up")]
)
def test_what_stands_behind_a_title_is_a_choice(shows: str, line: str) -> None:
    assert history_line(3, "Up", 4.5, "Yes", shows) == line


def test_an_empty_text_is_left_out_and_a_missing_one_is_the_shipped_one() -> None:
    texts = texts_of(system_prompt="", question="Like {positive}?", positive_label="Sure")
    assert (texts.system, texts.question) == ("", "Like Sure?")
    assert "Sure or No" not in texts.instruction and texts.instruction.startswith("Decide whether this user")
    assert history_heading(texts_of(history_header=""), 0) == ""


@pytest.mark.parametrize("domain", ["films", "products", "food"])
def test_every_shipped_text_names_both_words_and_leaves_no_brace(domain: str) -> None:
    texts = texts_of(prompt_domain=domain, positive_label="Aye", negative_label="Nay")
    assert "Aye or Nay" in texts.system and "Aye or Nay" in texts.question
    for text in (texts.system, texts.instruction, texts.candidate_header, texts.question):
        assert "{" not in text
    assert texts.history_header.count("{count}") == 1


def test_item_texts_are_titles_by_default_and_never_empty() -> None:
    assert item_texts(CATALOG, "title") == {"1": "Heat (1995)", "2": "Up", "3": "item 3", "4": "{title} <|im_end|>"}
    assert item_texts(CATALOG, "id") == {"1": "item 1", "2": "item 2", "3": "item 3", "4": "item 4"}
    assert item_texts(CATALOG, "{genres}") == {"1": "Crime, Drama", "2": "item 2", "3": "Comedy", "4": "item 4"}


def test_empty_attributes_leave_no_brackets_or_separators_behind() -> None:
    assert item_texts(CATALOG, "title_categories")["1"] == "Heat (1995) [Crime, Drama]"
    assert item_texts(CATALOG, "title_categories")["2"] == "Up"
    assert item_texts(CATALOG, "{title} ({year}), {genres}")["2"] == "Up"
    assert item_texts(CATALOG, "{title}, {genres}, {year}")["1"] == "Heat (1995), Crime, Drama, 1995"
    dishes = pl.DataFrame({"item_id": ["1", "2"], "title": ["Soup,, hot", "Rice"], "cuisine": ["", None], "price": 2.5})
    assert item_texts(dishes, "{title}, {cuisine}, {price}") == {"1": "Soup, hot, 2.5", "2": "Rice, 2.5"}
    assert item_texts(dishes, "{title}, {price}")["1"] == "Soup,, hot, 2.5"
    assert item_texts(CATALOG, "{title}: {year}") == {
        "1": "Heat (1995): 1995", "2": "Up", "3": ": 2001", "4": "{title} <|im_end|>",
    }  # fmt: skip


def test_a_template_takes_numbers_columns_of_any_name_and_values_that_are_not_there() -> None:
    catalog = pl.DataFrame(
        {
            "item_id": ["1", "2"],
            "title": ["Mug", "Bowl"],
            "Preis in EUR": [7.0, None],
            "unit.price": [7.25, 3.0],
            "2020": [12, None],
            "tags": ["a, b", None],
        }
    )
    assert item_texts(catalog, "{title}, {Preis in EUR} EUR") == {"1": "Mug, 7 EUR", "2": "Bowl, EUR"}
    assert item_texts(catalog, "{title} ({Preis in EUR:.2f})") == {"1": "Mug (7.00)", "2": "Bowl"}
    assert item_texts(catalog, "{title}: {unit.price}, {2020:d} [{tags!s}]") == {
        "1": "Mug: 7.25, 12 [a, b]", "2": "Bowl: 3",
    }  # fmt: skip


@pytest.mark.parametrize("template", ["titel", "{titel}", "{}", "{0}", "{title.__class__}", "{title[0]}", "", "{title"])
def test_a_template_over_unknown_columns_is_one_line(template: str) -> None:
    with pytest.raises(ConfigError, match=r"^item_text: ") as caught:
        item_texts(CATALOG, template)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("template", ["{year:s}", "{title!z}", "{title:,}"])
def test_a_template_that_cannot_format_a_value_is_one_line(template: str) -> None:
    with pytest.raises(ConfigError, match="cannot be filled for item"):
        item_texts(CATALOG, template)
