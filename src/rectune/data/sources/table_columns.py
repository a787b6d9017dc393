"""Which column of a table is what: as the configuration says, or by its name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import NamedTuple

from rectune.errors import DataError

USER, ITEM, TIME, RATING, LABEL, SPLIT, TITLE, CATEGORY = (
    "user", "item", "time", "rating", "label", "split", "title", "category"
)  # fmt: skip
ROLES = (USER, ITEM, TIME, RATING, LABEL, SPLIT, TITLE, CATEGORY)
"""What a column can be; the configuration's key is the role with `_column` behind it."""

_NAMES: dict[str, tuple[tuple[str, ...], ...]] = {
    USER: (
        ("userid", "uid"),
        ("customerid", "clientid", "memberid", "accountid", "visitorid", "personid", "reviewerid", "buyerid"),
        ("user", "username", "customer", "client", "member", "account", "visitor", "person", "reviewer", "buyer"),
    ),
    ITEM: (
        ("itemid", "iid"),
        ("productid", "movieid", "filmid", "bookid", "articleid", "asin", "parentasin", "sku", "isbn", "trackid",
         "songid", "gameid", "recipeid", "businessid", "dishid", "videoid", "contentid", "newsid"),
        ("item", "product", "movie", "film", "book", "article", "track", "song", "game", "recipe", "dish", "video"),
    ),
    TIME: (
        ("timestamp", "ts", "unixtime", "unixtimestamp", "unixreviewtime", "datetime", "eventtime"),
        ("createdat", "orderedat", "ratedat", "purchasedat", "viewedat", "submittedat", "orderdate", "purchasedate",
         "ratingdate", "reviewdate", "ordertime", "reviewtime", "created"),
        ("time", "date", "day"),
    ),
    RATING: (("rating", "ratings"), ("stars", "star", "score", "overall", "grade", "reviewscore", "userrating")),
    LABEL: (("label", "liked", "islike", "isliked"), ("like", "clicked", "click", "target", "recommended")),
    SPLIT: (("split",), ("subset", "datasplit")),
    TITLE: (
        ("title", "itemtitle", "producttitle", "movietitle", "filmtitle", "booktitle", "itemname", "productname",
         "moviename", "trackname", "dishname"),
        ("name", "titel"),
        ("description", "text"),
    ),
    CATEGORY: (("genres", "genre"), ("categories", "category", "cuisine", "primarycuisine", "maincategory")),
}  # fmt: skip
"""Names in small letters without any sign, those of a group before those of the next."""


class Choice(NamedTuple):
    """A column and why it was taken."""

    column: str
    why: str


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())


def named(column: str, names: Sequence[str], key: str, file: str) -> Choice:
    """A column that the configuration names.

    Raises:
        DataError: the table has none of that name; the nearest and all that were found are named.
    """
    if column in names:
        return Choice(column, "named")
    near = difflib.get_close_matches(_plain(column), [_plain(name) for name in names], n=1, cutoff=0.5)
    nearest = next((name for name in names if near and _plain(name) == near[0]), None)
    hint = f" (nearest: {nearest!r})" if nearest is not None else ""
    raise DataError(f"{file}: {key}: no column {column!r}{hint}; found {listed(names)}")


def guessed(role: str, names: Sequence[str], file: str) -> Choice | None:
    """The one column whose name says that it is this; None where no name does.

    Raises:
        DataError: several names say so alike.
    """
    for group in _NAMES[role]:
        found = [name for name in names if _plain(name) in group]
        if len(found) > 1:
            raise DataError(
                f"{file}: {role}_column: could be {' or '.join(map(repr, found))}; name one ({option(role)} COLUMN, or "
                f"{role}_column in the configuration)"
            )
        if found:
            return Choice(found[0], "by its name")
    return None


def option(role: str) -> str:
    """The option of `rectune prepare FILE` that names a role's column."""
    return f"--{role}"


def missing(role: str, names: Sequence[str], file: str) -> DataError:
    """The error where nothing tells which column is this."""
    hint = ""
    if names and sum(bool(re.fullmatch(r"[-+\d.,:]+", name)) for name in names) * 2 >= len(names):
        hint = "; the first line seems to hold values, put the columns' names above it"
    what = {USER: "the users", ITEM: "the items", RATING: "the ratings", LABEL: "the labels", SPLIT: "the split"}
    return DataError(
        f"{file}: no column name says that it holds {what.get(role, role)}; found {listed(names)}; name it "
        f"({option(role)} COLUMN, or {role}_column in the configuration){hint}"
    )


def listed(names: Sequence[str], most: int = 24) -> str:
    """Column names for a message."""
    shown = ", ".join(name[:60] for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
