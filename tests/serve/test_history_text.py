"""A history as text."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rectune.serve import history_text
from rectune.serve.history_text import events_of


def test_the_examples_hold() -> None:
    assert doctest.testmod(history_text).failed == 0
    assert doctest.testmod(history_text).attempted == 2


@pytest.mark.parametrize(
    ("line", "event"),
    [
        ("Heat (1995)=5", ["Heat (1995)", 5.0]),
        ("Heat (1995) :  .5", ["Heat (1995)", 0.5]),
        ("Star Wars: Episode IV: 4", ["Star Wars: Episode IV", 4.0]),
        ("Star Wars: Episode IV", ["Star Wars: Episode IV"]),
        ("E=mc2", ["E=mc2"]),
        ("E=mc2: YES", ["E=mc2", "YES"]),
        ("Mission: Impossible = Rather not", ["Mission: Impossible", "Rather not"]),  # the run's own word
        ("id:187", ["id:187"]),
        ("id:187=2", ["id:187", 2.0]),
        ("Heat: 1e5", ["Heat: 1e5"]),
        ("Heat: ٣", ["Heat: ٣"]),
        (": 5", [": 5"]),
        ("Two\u2028lines: 5", ["Two\u2028lines", 5.0]),
        ("Heat:", ["Heat:"]),
    ],
)
def test_a_line_is_a_title_and_what_became_of_it(line: str, event: list[str | float]) -> None:
    assert events_of(f"\n  {line}\t\r\n", ["Rather not", "Yes"]) == [event]


@given(st.lists(st.tuples(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=3), st.integers(0, 10))))
def test_what_is_written_is_what_is_read(events: list[tuple[str, int]]) -> None:
    text = "\n".join(f"{title}: {half / 2:g}" for title, half in events)
    assert events_of(text) == [[title, half / 2] for title, half in events]
