"""Products of Amazon's metadata: title, categories, brand and price, of whatever is left of the pages."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from rectune.data import columns as c
from rectune.data.clean import DUPLICATE, MISSING_FIELD, Allowed, check_rejects
from rectune.data.sources.json_lines import lines_of, number_of, object_of, rejects_of, text_of
from rectune.data.sources.table_file import NOT_JSON

_PRICE = re.compile(r"(?:from\s+)?\$?\s*(\d[\d,]*(?:\.\d+)?)(?:\s*-\s*\$?\s*\d[\d,]*(?:\.\d+)?)?", re.IGNORECASE)
_TAG = re.compile(r"<[^<>]*>")
_LONGEST_CATEGORY = 80
"""Longer ones are pieces of the page that the list was taken from."""
_DEAREST = 1e9

Say = Callable[[str], None]


class Year(NamedTuple):
    """How the files of a year call what is read of them, the first of several names that is there."""

    name: str
    user: str
    item: tuple[str, ...]
    rating: str
    time: str
    brand: str
    categories: tuple[str, ...]


def read_products(
    files: list[Path], year: Year, items: pl.Series, allowed: Allowed, say: Say
) -> tuple[pl.DataFrame, list[pl.DataFrame]]:
    """The products that have a review: item_id, title, genres, brand, price; and the rejects of each file.

    Args:
        files: of metadata.
        year: how they call what is read.
        items: ids of the products that have a review, each once.
        allowed: how many lines may be unusable.
        say: prints one line.

    Raises:
        DataError: a file is broken off, or more lines are unusable than allowed.
    """
    kept: dict[str, tuple[Any, ...]] = {}
    asked = set(items.to_list())
    rejects, unread, no_price = [], 0, 0
    for file in files:
        bad: list[tuple[int, str, str]] = []
        total = 0
        for line, text in lines_of(file):
            total += 1
            one = object_of(text)
            item = None if one is None else next(filter(None, (text_of(one.get(key)) for key in year.item)), None)
            if one is None or item is None:
                bad.append((line, NOT_JSON if one is None else MISSING_FIELD, text))
            elif item in kept:
                bad.append((line, DUPLICATE, text))
            elif item not in asked:
                unread += 1
            else:
                price = price_of(one.get("price"))
                no_price += price is None and text_of(one.get("price")) is not None
                categories = next(filter(None, (categories_of(one.get(key)) for key in year.categories)), "")
                kept[item] = (title_of(one.get("title")), categories, title_of(one.get(year.brand)), price)
        rejects.append(rejects_of(file, bad))
        check_rejects(rejects[-1], total, file.name, f"a JSON object with {' or '.join(year.item)}", allowed)
    if unread:
        say(f"products: {unread:,} lines of metadata are about products without a review and are not read further")
    lacking = len(asked) - len(kept)
    if lacking:
        say(f"products: {lacking:,} of {len(asked):,} that were reviewed have no metadata")
    rows = [(item, *kept.get(item, (None, "", None, None))) for item in items.to_list()]
    schema = {c.ITEM_ID: pl.String, c.TITLE: pl.String, c.GENRES: pl.String, "brand": pl.String, "price": pl.Float64}
    catalog = pl.DataFrame(rows, schema=schema, orient="row")
    nameless = catalog[c.TITLE].null_count()
    if nameless:
        say(f"products: {nameless:,} have no title and are called by their ids")
    if no_price:
        say(f"products: {no_price:,} prices are none, such as pieces of a page, and are left out")
    return catalog.with_columns(pl.coalesce(c.TITLE, pl.lit("item ") + pl.col(c.ITEM_ID)).alias(c.TITLE)), rejects


def _plain(value: str) -> str:
    """Text without the HTML that is left in some metadata."""
    return " ".join(html.unescape(_TAG.sub(" ", value)).split())


def title_of(value: Any) -> str | None:
    """A title or brand as text; None where there is none, or a script of the page stands in its place.

    >>> title_of("Pads &amp; <b>pens</b>"), title_of("var aPageStart = (new Date()).getTime();"), title_of("")
    ('Pads & pens', None, None)
    """
    text = text_of(value) if isinstance(value, str) else None
    if text is None or "getTime()" in text:
        return None
    return _plain(text) or None


def categories_of(value: Any) -> str:
    """Categories joined by ", ", each once; commas within one are left out, and so are pieces of the page.

    >>> categories_of(["Clothing, Shoes &amp; Jewelry", "Women", "Women", "</span></span>"]), categories_of("Books")
    ('Clothing Shoes & Jewelry, Women', 'Books')
    """
    values = value if isinstance(value, list) else [value]
    names = [" ".join(_plain(text_of(each) or "").replace(",", " ").split()) for each in values]
    return ", ".join(dict.fromkeys(name for name in names if 0 < len(name) <= _LONGEST_CATEGORY))


def price_of(value: Any) -> float | None:
    """A price in dollars; of a range the lower; None where it is none.

    >>> price_of("$1,012.99 - $1,500.00"), price_of(7), price_of("from 3.50"), price_of(".a-box{color:#fff}")
    (1012.99, 7.0, 3.5, None)
    """
    if isinstance(value, str):
        match = _PRICE.fullmatch(value.strip())
        value = match[1].replace(",", "") if match is not None and len(match[1]) < 16 else None
    number = number_of(value)
    return number if number is not None and 0 <= number < _DEAREST else None
