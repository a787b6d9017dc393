"""A history as plain text, for clients that know only a query: one event a line, oldest first.

    Toy Story (1995): 4.5
    Heat (1995) = no
    id:187 = 5

A line is a title or an item id, then `:` or `=`, then a rating or a label. Where what follows is neither, the whole
line is a title, so `2001: A Space Odyssey` is one; a title that ends like a rating is written with its own behind it.
"""

from __future__ import annotations

import re
from collections.abc import Collection

LABELS = ("yes", "no", "like", "liked", "dislike", "disliked", "true", "false")
_NUMBER = re.compile(r"[+-]?(\d{1,9}(\.\d{0,9})?|\.\d{1,9})", re.ASCII)


def events_of(text: str, words: Collection[str] = ()) -> list[list[str | float]]:
    r"""Events as `Recommender` takes them; empty lines say nothing.

    Args:
        text: a line an event, oldest first.
        words: the run's own label words, beside LABELS.

    >>> events_of("Heat (1995): 4.5\n\n2001: A Space Odyssey\nE=mc2 = No")
    [['Heat (1995)', 4.5], ['2001: A Space Odyssey'], ['E=mc2', 'No']]
    >>> events_of("Alien=5\r\n The Matrix: liked \nid:187\nid:187: 5")
    [['Alien', 5.0], ['The Matrix', 'liked'], ['id:187'], ['id:187', 5.0]]
    """
    known = {*LABELS, *(word.strip().casefold() for word in words)}
    return [_event(line.strip(), known) for line in text.split("\n") if line.strip()]


def _event(line: str, known: set[str]) -> list[str | float]:
    at = max(line.rfind(":"), line.rfind("="))
    title, value = line[:at].strip(), line[at + 1 :].strip()
    if at < 0 or title in ("", "id"):  # `id:187` is an item without a rating
        return [line]
    if _NUMBER.fullmatch(value):
        return [title, float(value)]
    return [title, value] if value.casefold() in known else [line]
