"""Orders of food as Delivery Hero publishes them (DHRD): cities in files of their own, what was ordered and no ratings.

Format: Assylbekov et al., "Delivery Hero Recommendation Dataset: a novel dataset for benchmarking recommendation
algorithms", RecSys 2023, and its repository github.com/deliveryhero/dh-reco-dataset. For each city (sg, se, tw):

- `orders_CITY_train.txt`, `orders_CITY_test.txt`: a line for each dish of an order;
- `vendors_CITY.txt`: a line for each vendor, with a cuisine; `products_CITY.txt`: one for each dish of a vendor.

All are CSV with a header, and before it the row's number in a column without a name, which is not read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import polars as pl

from rectune.config import Config
from rectune.data import columns as c
from rectune.data.clean import (
    DUPLICATE,
    MISSING_FIELD,
    NOT_UTF8,
    REJECTS_SCHEMA,
    Allowed,
    check_header,
    check_rejects,
)
from rectune.data.sources.source import Nouns, Source
from rectune.data.sources.table_file import open_table
from rectune.data.sources.table_values import ids, numbers, rows_of
from rectune.data.split import COLUMN
from rectune.errors import DataError

NOUNS = Nouns("ordered dishes", "dishes")
CITY = "city"
"""Column of the catalog: a dish is offered in one city."""
BAD_DAY = "order_day is not a number of days"
BAD_TIME = "order_time is not a time of the day"

ORDERS = ("customer_id", "order_id", "vendor_id", "product_id", "order_time", "order_day")
VENDORS = ("vendor_id", "primary_cuisine")
PRODUCTS = ("vendor_id", "product_id", "name", "unit_price")
_NAME = re.compile(r"(orders)_([a-z0-9]+)_(train|test)\.(?:txt|csv)|(vendors|products)_([a-z0-9]+)\.(?:txt|csv)")
# Hours from 24 on belong to the next day, as far as the end of that day.
_CLOCK = r"^(\d{1,2}):([0-5]\d):([0-5]\d)(?:\.\d+)?$"
_DAY = r"^(\d{1,6})(?: days?)?(?: 0?0:00:00)?$"
_LAST_HOUR = 47
_SECONDS = 86_400

Say = Callable[[str], None]


class City(NamedTuple):
    """The files of a city.

    Attributes:
        name: as in the files' names.
        orders: split, train or test, and file.
        vendors, products: files.
    """

    name: str
    orders: dict[str, Path]
    vendors: Path
    products: Path

    def files(self) -> list[Path]:
        """All of them, in the order in which they are read."""
        return [self.vendors, self.products, *self.orders.values()]


def _found(path: Path) -> dict[str, dict[str, Path]]:
    """Files by city and kind: orders_train, orders_test, vendors, products; of the folder and those in it."""
    found: dict[str, dict[str, Path]] = {}
    for file in sorted([*path.glob("*"), *path.glob("*/*")]):
        match = _NAME.fullmatch(file.name.lower())
        if match is not None and file.is_file():
            kind = f"{match[1]}_{match[3]}" if match[1] else match[4]
            kinds = found.setdefault(match[2] or match[5], {})
            if kind in kinds:
                raise DataError(f"{path}: holds {file.name} twice, in {kinds[kind].parent} and in {file.parent}")
            kinds[kind] = file
    return found


def is_delivery_hero(path: Path) -> bool:
    """Whether a folder, or a folder in it, holds orders under the names of this dataset."""
    if not path.is_dir():
        return False
    try:
        return any("orders_train" in kinds or "orders_test" in kinds for kinds in _found(path).values())
    except DataError:
        return True


def cities_of(path: Path) -> list[City]:
    """The cities of a folder, whose files lie in it or in folders of their own.

    Raises:
        DataError: there is none, or a city lacks a file.
    """
    cities = []
    for name, kinds in sorted((_found(path) if path.is_dir() else {}).items()):
        orders = {split: kinds[f"orders_{split}"] for split in (c.TRAIN, c.TEST) if f"orders_{split}" in kinds}
        missing = [f"{kind}_{name}.txt" for kind in ("vendors", "products") if kind not in kinds]
        missing += [] if orders else [f"orders_{name}_train.txt"]
        if missing:
            there = ", ".join(file.name for file in kinds.values())
            raise DataError(
                f"{path}: {missing[0]} is missing beside {there}; each city needs orders, vendors, products"
            )
        cities.append(City(name, orders, kinds["vendors"], kinds["products"]))
    if not cities:
        raise DataError(f"{path}: no orders here; expected orders_CITY_train.txt, vendors_CITY.txt, products_CITY.txt")
    return cities


def source_files(config: Config, path: Path) -> list[Path]:
    """All files of all cities.

    Raises:
        DataError: see `cities_of`.
    """
    return [file for city in cities_of(path) for file in city.files()]


def read_delivery_hero(config: Config, path: Path, say: Say) -> Source:
    """Read all cities of a folder; ids begin with the city's name, so that those of two cities never meet.

    Args:
        config: `max_rejects`, and with `split: column` the share of the training orders that are to be validation.
        path: the folder.
        say: prints one line.

    Returns:
        A dish of an order each, orders of the training files before those of the test files; null ratings. The split
        is that of the files, a city's last training orders in time being validation. A dish's categories are the
        cuisines of its vendors.

    Raises:
        DataError: a file is missing or empty, a column is missing, or more rows are unusable than allowed.
    """
    allowed = Allowed.of(config.max_rejects)
    events, catalogs, rejects = [], [], []
    for city in cities_of(path):
        if config.split == COLUMN and len(city.orders) < 2:
            lacking = next(split for split in (c.TRAIN, c.TEST) if split not in city.orders)
            raise DataError(
                f"{path}: split: column takes the published split, but orders_{city.name}_{lacking}.txt is missing; "
                "use split=timeline"
            )
        read = _read_city(city, allowed, say)
        bought = _with_validation(read.interactions, config.validation_ratio)
        events.append(bought)
        catalogs.append(read.catalog)
        rejects.append(read.rejects)
        say(f"{city.name}: {bought.height:,} ordered dishes of {bought[c.USER_ID].n_unique():,} customers")
    return Source(pl.concat(events), pl.concat(catalogs), pl.concat(rejects), NOUNS, CITY)


class _Rows(NamedTuple):
    """Rows of a file that can be used, and the rejects among them."""

    rows: pl.DataFrame
    rejects: pl.DataFrame


def _read(file: Path, wanted: Sequence[str], needed: Iterable[str], say: Say) -> pl.DataFrame:
    """The wanted columns of a file as text without white space around it, with line, text and reason."""
    table = open_table(file)
    if table.notes:
        say(f"{file.name}: {', '.join(table.notes)}")
    rows = rows_of(table, [table.names[place] for place in check_header(table.names, wanted, file.name)])
    rows = rows.with_columns(ids(rows[f"field_{place}"]).alias(name) for place, name in enumerate(wanted))
    empty = pl.any_horizontal(pl.col(name).is_null() for name in needed)
    odd = pl.any_horizontal(pl.col(name).str.contains("\ufffd", literal=True).fill_null(False) for name in wanted)
    return rows.with_columns(
        pl.when(pl.col(c.REASON).is_not_null()).then(c.REASON)
        .when(odd).then(pl.lit(NOT_UTF8)).when(empty).then(pl.lit(MISSING_FIELD)).alias(c.REASON)
    )  # fmt: skip


def _again(rows: pl.DataFrame, *keys: Sequence[str]) -> pl.DataFrame:
    """Rows that repeat an earlier usable one in all columns of any of the keys get that as their reason."""
    for key in keys:
        usable = pl.col(c.REASON).is_null() & pl.all_horizontal(pl.col(name).is_not_null() for name in key)
        again = usable & ~pl.struct(usable.alias("_usable"), *key).is_first_distinct()
        rows = rows.with_columns(pl.when(again).then(pl.lit(DUPLICATE)).otherwise(c.REASON).alias(c.REASON))
    return rows


def _checked(rows: pl.DataFrame, file: Path, expected: str, allowed: Allowed) -> _Rows:
    rejects = rows.filter(pl.col(c.REASON).is_not_null()).select(
        pl.lit(file.name).alias(c.FILE), c.LINE, c.REASON, pl.col(c.TEXT).fill_null("")
    ).cast(REJECTS_SCHEMA)  # type: ignore[arg-type]  # fmt: skip
    check_rejects(rejects, rows.height, file.name, expected, allowed)
    return _Rows(rows.filter(pl.col(c.REASON).is_null()), rejects)


def _named(city: City, column: str) -> pl.Expr:
    return pl.lit(f"{city.name}:") + pl.col(column)


def _read_city(city: City, allowed: Allowed, say: Say) -> Source:
    vendors = _again(_read(city.vendors, VENDORS, ["vendor_id"], say), ["vendor_id"])
    vendors, bad_vendors = _checked(vendors, city.vendors, "a vendor_id", allowed)
    products = _again(_read(city.products, PRODUCTS, ["vendor_id", "product_id"], say), ["vendor_id", "product_id"])
    products, bad_products = _checked(products, city.products, "a vendor_id and a product_id", allowed)
    bought: list[pl.DataFrame] = []
    rejects = [bad_vendors, bad_products]
    for split, file in city.orders.items():
        rows = _timed(_read(file, ORDERS, ["customer_id", "product_id", "order_time", "order_day"], say))
        moment = ["customer_id", "product_id", c.TIMESTAMP]
        rows = _again(rows, ["customer_id", "order_id", "product_id"], moment)
        if bought:  # an order of the training file stands in the test file again
            earlier = bought[0].select(*moment, pl.lit(True).alias("_met")).unique()
            rows = rows.join(earlier, on=moment, how="left", maintain_order="left").with_columns(
                pl.when(pl.col(c.REASON).is_null() & pl.col("_met")).then(pl.lit(DUPLICATE)).otherwise(c.REASON)
                .alias(c.REASON)
            ).drop("_met")  # fmt: skip
        expected = "customer_id, product_id, order_time such as 18:30:00, and order_day such as 11 days"
        used, bad = _checked(rows, file, expected, allowed)
        bought.append(used.with_columns(pl.lit(split).alias(c.SPLIT)))
        rejects.append(bad)
    orders = pl.concat(bought)
    if orders.is_empty():
        raise DataError(f"{city.products.parent}: the orders of {city.name} hold no row that can be used")
    interactions = orders.select(
        _named(city, "customer_id").alias(c.USER_ID), _named(city, "product_id").alias(c.ITEM_ID),
        pl.lit(None, dtype=pl.Float64).alias(c.RATING), c.TIMESTAMP, c.SPLIT,
    )  # fmt: skip
    return Source(interactions, _catalog(city, orders, vendors, products, say), pl.concat(rejects), NOUNS)


def _timed(rows: pl.DataFrame) -> pl.DataFrame:
    """Seconds from the first day's midnight: order_day is a day of the calendar, order_time the time on it."""
    clock = pl.col("order_time").str.extract_groups(_CLOCK).struct
    hour, minute, second = (clock.field(str(place)).cast(pl.Int64, strict=False) for place in (1, 2, 3))
    day = pl.col("order_day").str.to_lowercase().str.extract(_DAY).cast(pl.Int64, strict=False)
    rows = rows.with_columns(day.alias("_day"), (hour * 3600 + minute * 60 + second).alias("_clock"))
    bad_clock = pl.col("_clock").is_null() | (pl.col("_clock") >= (_LAST_HOUR + 1) * 3600)
    return rows.with_columns(
        (pl.col("_day") * _SECONDS + pl.col("_clock")).alias(c.TIMESTAMP),
        pl.when(pl.col(c.REASON).is_not_null()).then(c.REASON)
        .when(pl.col("_day").is_null()).then(pl.lit(BAD_DAY)).when(bad_clock).then(pl.lit(BAD_TIME)).alias(c.REASON),
    ).drop("_day", "_clock")  # fmt: skip


def _with_validation(bought: pl.DataFrame, ratio: float) -> pl.DataFrame:
    """Let the last training orders of a city be validation: those from the moment on that leaves `ratio` of them."""
    train = pl.col(c.SPLIT) == c.TRAIN
    times = bought.filter(train)[c.TIMESTAMP].sort()
    if times.is_empty():
        return bought
    cut = times[min(int(len(times) * (1 - ratio)), len(times) - 1)]
    # One moment is never cut in two, and the first is always training.
    late = train & (pl.col(c.TIMESTAMP) >= cut) & (pl.col(c.TIMESTAMP) > times[0])
    return bought.with_columns(pl.when(late).then(pl.lit(c.VALIDATION)).otherwise(c.SPLIT).alias(c.SPLIT))


def _catalog(city: City, orders: pl.DataFrame, vendors: pl.DataFrame, products: pl.DataFrame, say: Say) -> pl.DataFrame:
    """Every dish of the menus, and those that only orders tell of: title, genres and cuisine, price."""
    listed = products.select("product_id", "vendor_id", "name", numbers(products["unit_price"]).alias("price"))
    given = int(products["unit_price"].is_not_null().sum()) - int(listed["price"].is_not_null().sum())
    if given:
        say(f"{city.products.name}: {given:,} prices are no numbers and are left out")
    unlisted = orders.join(products, on="product_id", how="anti", maintain_order="left")
    rows = pl.concat(
        [listed, unlisted.select("product_id", "vendor_id").unique(maintain_order=True)], how="diagonal"
    ).join(vendors.select("vendor_id", cuisine="primary_cuisine"), on="vendor_id", how="left", maintain_order="left")
    # A dish that several vendors of a chain offer is one dish.
    dishes = rows.group_by("product_id", maintain_order=True).agg(
        pl.col("name").drop_nulls().first(), pl.col("price").drop_nulls().first(),
        pl.col("cuisine").drop_nulls().unique(maintain_order=True).str.join(", "),
    )  # fmt: skip
    nameless = dishes["name"].is_null().sum()
    lost = unlisted["product_id"].n_unique()
    if lost:
        say(f"{city.name}: {lost:,} dishes that were ordered are not in {city.products.name}")
    if nameless:
        say(f"{city.name}: {nameless:,} dishes have no name and are called by their ids")
    plain = dishes.filter(pl.col("cuisine") == "").height
    if plain:
        say(f"{city.name}: {plain:,} dishes have no cuisine")
    item = _named(city, "product_id")
    return dishes.select(
        item.alias(c.ITEM_ID), pl.coalesce("name", pl.lit("item ") + item).alias(c.TITLE),
        pl.col("cuisine").alias(c.GENRES), "cuisine", "price", pl.lit(city.name).alias(CITY),
    )  # fmt: skip
