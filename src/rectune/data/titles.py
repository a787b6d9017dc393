"""Find an item of a catalog by its id or its title, as a person writes it, with suggestions for near misses."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import cached_property

import polars as pl

from rectune.data.columns import ITEM_ID, TITLE
from rectune.errors import DataError

_YEAR = re.compile(r"\s*\((\d{4})(?:\s*[-–]\s*\d{0,4})?\s*\)\s*$")
_ARTICLES = {
    "the", "a", "an", "la", "le", "les", "l'", "il", "lo", "i", "gli", "un", "une", "uno", "una", "el", "los", "las",
    "der", "die", "das", "ein", "eine", "o", "os", "as",
}  # fmt: skip
_ID = "id:"
"""Before an item id that is some other item's title."""
_LISTED = 4
"""Items that an error names at most."""
_CLOSE, _FAR = 80, 60
"""Likeness of names, 0 to 100: above the first a typo is likely, below the second nothing is suggested."""


def split_year(title: str) -> tuple[str, int | None]:
    """A title without the year in brackets at its end, and that year.

    >>> split_year("Heat (1995)"), split_year("Babylon 5")
    (('Heat', 1995), ('Babylon 5', None))
    """
    found = _YEAR.search(title)
    return (title, None) if found is None else (title[: found.start()], int(found[1]))


def folded(text: str) -> str:
    """A text without differences of case and white space."""
    return " ".join(unicodedata.normalize("NFKC", text).split()).casefold()


def plain_name(title: str) -> str:
    """A folded title without year and accents, its article in front.

    >>> plain_name("Matrix, The (1999)"), plain_name("The  matrix"), plain_name("Cité, La (The City) (1995)")
    ('the matrix', 'the matrix', 'la cite (the city)')
    """
    name = split_year(folded(title))[0]
    if not name.isascii():
        name = "".join(sign for sign in unicodedata.normalize("NFKD", name) if not unicodedata.combining(sign))
        name = name.replace("’", "'")
    # "cité, la (the city)": the article stands before a second name in brackets.
    main, bracket, rest = name.partition(" (")
    body, _, article = main.rpartition(", ")
    if not body or article not in _ARTICLES:
        return name
    return article + ("" if article.endswith("'") else " ") + body + bracket + rest


class _Names:
    """Rows by name. Most names have one row, so a list of rows is kept only for the others: half the memory."""

    def __init__(self, names: Iterable[str]) -> None:
        self.first: dict[str, int] = {}
        self.all: dict[str, list[int]] = {}
        for row, name in enumerate(names):
            other = self.first.setdefault(name, row)
            if other != row:
                self.all.setdefault(name, [other]).append(row)

    def rows(self, name: str) -> list[int]:
        """Rows of this name; an empty name has none."""
        if not name or name not in self.first:
            return []
        return self.all.get(name, [self.first[name]])


class Titles:
    """The titles of a catalog, indexed once; an index is made when it is first needed.

    Args:
        catalog: item_id, title (String).
    """

    def __init__(self, catalog: pl.DataFrame) -> None:
        self._ids: list[str] = catalog[ITEM_ID].to_list()
        self._titles: list[str] = catalog[TITLE].fill_null("").to_list()
        self._rows = {item: row for row, item in enumerate(self._ids)}

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, item: object) -> bool:
        return item in self._rows

    def title(self, item: str) -> str:
        """The title of an item.

        Raises:
            KeyError: the catalog does not hold it.
        """
        return self._titles[self._rows[item]]

    @cached_property
    def _exact(self) -> _Names:
        return _Names(self._titles)

    @cached_property
    def _folded(self) -> _Names:
        return _Names(map(folded, self._titles))

    @cached_property
    def _plain(self) -> _Names:
        return _Names(map(plain_name, self._titles))

    def _by_name(self, text: str) -> list[int]:
        """Rows of the plain name; where the text brings a year, those of that year or of none."""
        year = split_year(folded(text))[1]
        rows = self._plain.rows(plain_name(text))
        return [row for row in rows if year is None or split_year(folded(self._titles[row]))[1] in (year, None)]

    def matches(self, text: str) -> list[str]:
        """Ids of the items that a text may mean; empty when there is none.

        The title exactly; else without regard to case and white space; else without regard to accents, to a missing
        year, and to whether an article stands in front ("The Matrix") or behind ("Matrix, The"). The first of these
        steps that finds items decides. A text that is an item's id means that item, and the items of that title too;
        `id:187` means the item 187 only.
        """
        if text.startswith(_ID) and text.removeprefix(_ID) in self._rows:
            return [text.removeprefix(_ID)]
        rows = self._exact.rows(text) or self._folded.rows(folded(text)) or self._by_name(text)
        named = [self._ids[row] for row in rows]
        return [text, *(item for item in named if item != text)] if text in self._rows else named

    def find(self, text: str, where: str) -> str:
        """The id of the one item that a text means: an item id, or a title (see `matches`).

        Args:
            text: as a person wrote it.
            where: what it stands for, for the error.

        Raises:
            DataError: no item or several are meant; the nearest are named.
        """
        found = self.matches(text)
        if len(found) == 1:
            return found[0]
        shown = f"{where}: {text[:80]!r}"
        if found:
            more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
            raise DataError(
                f"{shown} could be {self._listed(found[:_LISTED])}{more}; give the title in full with its year, or "
                f"the item id as {_ID}{found[0]}"
            )
        if not text.strip():
            raise DataError(f"{where}: got an empty title; give a title as it stands in the catalog, or an item id")
        near = self.nearest(text)
        hint = f"did you mean {self._listed(near)}? " if near else ""
        raise DataError(
            f"{where}: no item is called {text[:80]!r}; {hint}give a title as it stands in the catalog, or an item id"
        )

    def _listed(self, items: list[str]) -> str:
        shown = [f"{self.title(item)!r} ({item})" for item in items]
        return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} or {shown[-1]}"

    def nearest(self, text: str, limit: int = 3) -> list[str]:
        """Ids of the items whose names are most like a text, best first.

        Names that differ by a few letters (edit distance, from rapidfuzz), then those that hold the text as a part,
        the shortest first; names that differ by more only where there are none of these.
        """
        from rapidfuzz import fuzz, process

        name = plain_name(text)
        if not name:
            return []
        names = self._plain.first
        like = process.extract(name, names.keys(), scorer=fuzz.ratio, limit=limit, score_cutoff=_FAR)
        inside = sorted((other for other in names if name in other), key=len)[:limit] if len(name) > 1 else []
        close = [other for other, likeness, _ in like if likeness >= _CLOSE]
        ordered = dict.fromkeys([*close, *inside] or [other for other, _, _ in like])
        return [self._ids[row] for other in ordered for row in self._plain.rows(other)][:limit]
