"""Amazon reviews of 2018 and of 2023, with the metadata of the products, as JSON lines that are read through gzip.

Formats: Ni, Li and McAuley, "Justifying recommendations using distantly-labeled reviews and fine-grained aspects",
EMNLP 2019 (2018: nijianmo.github.io/amazon), and Hou et al., "Bridging language and items for retrieval and
recommendation", 2024 (2023: amazon-reviews-2023.github.io). A set is a review file such as `Electronics_5.json.gz` or
`All_Beauty.jsonl.gz`, with `meta_Electronics.json.gz` or `meta_All_Beauty.jsonl.gz` beside it.

Files are read line by line and only what is used of a line is kept, since texts of reviews are nearly all of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from rectune.config import Config
from rectune.data import columns as c
from rectune.data.clean import (
    BAD_RATING,
    BAD_TIMESTAMP,
    DUPLICATE,
    MISSING_FIELD,
    NOT_UTF8,
    Allowed,
    check_rejects,
)
from rectune.data.sources.amazon_products import Year, read_products
from rectune.data.sources.json_lines import lines_of, number_of, object_of, rejects_of, text_of
from rectune.data.sources.source import Nouns, Source
from rectune.data.sources.table_file import NOT_JSON
from rectune.errors import DataError

NOUNS = Nouns("reviews", "products")
LOWEST, HIGHEST = 1.0, 5.0
OUT_OF_RANGE = f"rating outside {LOWEST:g} to {HIGHEST:g}"

_ENDING = re.compile(r"\.jsonl?(\.gz)?$", re.IGNORECASE)
_CORE = re.compile(r"^reviews_|_\d+$")
"""What a review file's name has more than that of its metadata: the cores of 2018."""
_META = "meta_"
_BATCH = 50_000
_LOOK = 20
"""Lines that decide of which year a file is."""
_LATEST = 2**53

Say = Callable[[str], None]
Found = tuple[Any, ...]


_YEARS = (
    Year("2018", "reviewerID", ("asin",), "overall", "unixReviewTime", "brand", ("category", "main_cat")),
    Year("2023", "user_id", ("parent_asin", "asin"), "rating", "timestamp", "store", ("categories", "main_category")),
)


def _year_of(path: Path) -> Year | None:
    """Of which year a review file is; None where its beginning is not that of one."""
    found = [object_of(text) for _, text in islice(lines_of(path), _LOOK)]
    for one in found:
        for year in _YEARS:
            if one is not None and year.user in one and year.rating in one and any(key in one for key in year.item):
                return year
    return None


def _is_lines(path: Path) -> bool:
    return path.is_file() and _ENDING.search(path.name) is not None


def _review_files(path: Path) -> list[Path]:
    """The files at a path that may hold reviews, by their names."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [file for file in files if _is_lines(file) and not file.name.startswith(_META)]


def is_amazon(path: Path) -> bool:
    """Whether a file, or a file of a folder, begins with a review of either year."""
    for file in _review_files(path):
        try:
            if _year_of(file) is not None:
                return True
        except DataError:
            continue
    return False


def _meta_of(reviews: Path) -> Path | None:
    """The metadata beside a review file."""
    name = _ENDING.sub("", reviews.name)
    names = dict.fromkeys([name, _CORE.sub("", name)])
    endings = (".jsonl.gz", ".json.gz", ".jsonl", ".json")
    files = (reviews.with_name(f"{_META}{each}{ending}") for each in names for ending in endings)
    return next((file for file in files if file.is_file()), None)


class _Set(NamedTuple):
    """Review files of one year, and the metadata beside them, each file once."""

    year: Year
    reviews: list[Path]
    metas: list[Path]


def _set_of(path: Path) -> _Set:
    """What there is at a path.

    Raises:
        DataError: no reviews, or reviews of both years.
    """
    years = {file: _year_of(file) for file in _review_files(path)}
    reviews = [file for file, year in years.items() if year is not None]
    if not reviews:
        raise DataError(
            f"{path}: no reviews here; expected JSON lines with reviewerID, asin, overall and unixReviewTime (2018), "
            "or with user_id, parent_asin, rating and timestamp (2023)"
        )
    found = dict.fromkeys(year for year in years.values() if year is not None)
    if len(found) > 1:
        raise DataError(f"{path}: holds reviews of 2018 and of 2023, whose times differ; give one of the files")
    metas = dict.fromkeys(meta for meta in map(_meta_of, reviews) if meta is not None)
    return _Set(next(iter(found)), reviews, list(metas))


def source_files(config: Config, path: Path) -> list[Path]:
    """Review files and metadata.

    Raises:
        DataError: see `_set_of`.
    """
    found = _set_of(path)
    return [*found.reviews, *found.metas]


def read_amazon(config: Config, path: Path, say: Say) -> Source:
    """Read reviews and the metadata beside them.

    Args:
        config: `max_rejects` is read.
        path: a review file, or a folder with one or several of one year.
        say: prints one line.

    Returns:
        Reviews with their ratings, in seconds (2018, whole days) or milliseconds (2023). Of products that have a review
        title, categories as `genres`, brand (in 2023 the store) and price in dollars, the lower one of a range.

    Raises:
        DataError: a file is broken off, no line can be used, or more are unusable than allowed.
    """
    allowed, found = Allowed.of(config.max_rejects), _set_of(path)
    parts, rejects = [], []
    for file in found.reviews:
        rows, bad = _reviews(file, found.year, allowed)
        parts.append(rows)
        rejects.append(bad)
    reviews = pl.concat(parts)
    again = ~pl.struct(c.USER_ID, c.ITEM_ID, c.TIMESTAMP).is_first_distinct()
    reviews = reviews.with_columns(again.alias("_again"))
    rejects.append(_duplicates(reviews.filter("_again"), found.year))
    for file in found.reviews:
        bad = pl.concat(rejects).filter(pl.col(c.FILE) == file.name)
        total = reviews.filter(pl.col(c.FILE) == file.name, ~pl.col("_again")).height + bad.height
        check_rejects(bad.sort(c.LINE), total, file.name, _expected(found.year), allowed)
    reviews = reviews.filter(~pl.col("_again"))
    if reviews.is_empty():
        raise DataError(f"{path}: no review can be used")
    say(f"reviews: of {found.year.name}, in {', '.join(file.name for file in found.reviews)}")
    items = reviews[c.ITEM_ID].unique(maintain_order=True)
    for file in found.reviews:
        if _meta_of(file) is None:
            say(
                f"{file.name}: no metadata such as {_META}{_CORE.sub('', _ENDING.sub('', file.name))}.json.gz beside it"
            )
    catalog, bad_metas = read_products(found.metas, found.year, items, allowed, say)
    interactions = reviews.select(c.USER_ID, c.ITEM_ID, c.RATING, c.TIMESTAMP)
    return Source(interactions, catalog, pl.concat([*bad_metas, *rejects]).sort(c.FILE, c.LINE), NOUNS)


def _expected(year: Year) -> str:
    return f"a JSON object with {year.user}, {' or '.join(year.item)}, {year.rating} and {year.time}"


def _reviews(file: Path, year: Year, allowed: Allowed) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Usable reviews of a file with file and line, and its rejects, as yet without repeated ones."""
    schema = {
        c.LINE: pl.UInt32,
        c.USER_ID: pl.String,
        c.ITEM_ID: pl.String,
        c.RATING: pl.Float64,
        c.TIMESTAMP: pl.Int64,
    }
    bad: list[tuple[int, str, str]] = []

    def usable() -> Iterator[Found]:
        for line, text in lines_of(file):
            found = _review(text, year)
            if isinstance(found, str):
                bad.append((line, found, text))
                if allowed.rows is not None and len(bad) > allowed.rows:
                    return
            else:
                yield (line, *found)

    rows, frames = usable(), [pl.DataFrame(schema=schema)]
    while batch := list(islice(rows, _BATCH)):
        frames.append(pl.DataFrame(batch, schema=schema, orient="row"))
    found = pl.concat(frames).with_columns(pl.lit(file.name).alias(c.FILE))
    return found, rejects_of(file, bad)


def _review(text: str, year: Year) -> Found | str:
    """User, item, rating and time of a line; or the reason why it cannot be used."""
    one = object_of(text)
    if one is None:
        return NOT_JSON
    user, item = text_of(one.get(year.user)), next(filter(None, (text_of(one.get(key)) for key in year.item)), None)
    if user is None or item is None or one.get(year.rating) is None or one.get(year.time) is None:
        return MISSING_FIELD
    if "\ufffd" in user or "\ufffd" in item:
        return NOT_UTF8
    rating, time = number_of(one[year.rating]), number_of(one[year.time])
    if rating is None or rating != rating:
        return BAD_RATING
    if not LOWEST <= rating <= HIGHEST:
        return OUT_OF_RANGE
    if time is None or not abs(time) < _LATEST or time != int(time):
        return BAD_TIMESTAMP
    return user, item, rating, int(time)


def _duplicates(again: pl.DataFrame, year: Year) -> pl.DataFrame:
    """Rejects of repeated reviews, whose text is what was read of them."""
    names = (year.user, year.item[0], year.rating, year.time)
    texts = [
        json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False)
        for row in again.select(c.USER_ID, c.ITEM_ID, c.RATING, c.TIMESTAMP).iter_rows()
    ]
    return again.select(c.FILE, c.LINE, pl.lit(DUPLICATE).alias(c.REASON), pl.Series(c.TEXT, texts, dtype=pl.String))
