"""Delivery Hero's and Amazon's files for the fuzz campaign, of the published shape and then changed."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import polars as pl
from fuzz_inputs import LostError, mutated, silent

from rectune.config import parse_config
from rectune.data.sources.formats import read_source

CUSTOMERS, DISHES = ["ann", "bob", "", "é"], ["p1", "p2", "p,3", "", "p9"]
CLOCKS = ["10:00:00", "24:10:00", "23:59:59", "9:1:1", "noon", ""]
DAYS = ["0 days", "1 days", "12 days", "soon", ""]
HEADERS = {
    "orders_sg_train.txt": ",customer_id,geohash,order_id,vendor_id,product_id,day_of_week,order_time,order_day",
    "orders_sg_test.txt": ",customer_id,geohash,order_id,vendor_id,product_id,day_of_week,order_time,order_day",
    "vendors_sg.txt": ",vendor_id,chain_id,geohash,primary_cuisine",
    "products_sg.txt": ",vendor_id,product_id,name,unit_price",
}


def cell(text: str) -> str:
    """A cell as CSV writes it."""
    return f'"{text}"' if "," in text else text


def city(draw: random.Random) -> dict[str, bytes]:
    """The four files of a city."""

    def orders() -> list[str]:
        return [
            f"{at},{draw.choice(CUSTOMERS)},w,{draw.randrange(4)},v{draw.randrange(3)},{cell(draw.choice(DISHES))},1,"
            f"{draw.choice(CLOCKS)},{draw.choice(DAYS)}"
            for at in range(draw.randrange(2, 20))
        ]

    lines = {
        "orders_sg_train.txt": orders(),
        "orders_sg_test.txt": orders(),
        "vendors_sg.txt": [f"{at},v{at},,w,{draw.choice(('thai', '', 'é'))}" for at in range(draw.randrange(1, 4))],
        "products_sg.txt": [
            f"{at},v{draw.randrange(3)},{cell(draw.choice(DISHES))},{draw.choice(('Soup', '', 'Rice'))},0.5"
            for at in range(draw.randrange(1, 6))
        ],
    }
    return {name: "\n".join([HEADERS[name], *rows, ""]).encode() for name, rows in lines.items()}


def fuzz_delivery_hero(draw: random.Random, folder: Path) -> None:
    """A city of orders, some of its files changed; rows are counted where none was."""
    files = city(draw)
    changed = draw.sample(list(files), draw.choice((0, 1, 1, 1, 2)))
    for name, data in files.items():
        data = mutated(draw, data) if name in changed else data
        packed = draw.random() < 0.1
        (folder / name).write_bytes(gzip.compress(data, 1, mtime=0) if packed else data)
    split = draw.choice(("timeline", "column"))
    values = {"dataset": str(folder), "label_from": "purchases", "split": split, "max_rejects": "100%"}
    found = read_source(parse_config({**values, "source_format": "delivery_hero"}, "fuzz"), silent)
    for name in files.keys() - set(changed):
        rows = files[name].count(b"\n") - 1
        lost = found.rejects.filter(pl.col("file") == name).height
        if name.startswith("orders"):
            test = pl.col("split") == "test"
            used = found.interactions.filter(test if "test" in name else ~test).height
            if used + lost != rows:
                raise LostError(f"{name}: {rows} rows, {used} used and {lost} rejected")
        elif lost > rows:
            raise LostError(f"{name}: {rows} rows and {lost} rejected")
    if not set(found.interactions["item_id"]) <= set(found.catalog["item_id"]):
        raise LostError("an order is of a dish that the catalog does not hold")


VALUES: list[Any] = [
    "A1",
    "B1",
    "B2",
    "",
    None,
    True,
    5,
    4.0,
    1.5,
    6,
    "4",
    "x",
    10**12,
    -1,
    [],
    {},
    ["a"],
    1e300,
    "\ud800",
]


def review(draw: random.Random, year: int) -> str:
    """A line of reviews, one value of it changed at times."""
    user, item = f"A{draw.randrange(3)}", f"B{draw.randrange(3)}"
    found: dict[str, Any] = {"overall": 5.0, "reviewerID": user, "asin": item, "unixReviewTime": 10**9}
    if year == 2023:
        found = {"rating": 4.0, "user_id": user, "parent_asin": item, "asin": item, "timestamp": 10**12}
    if draw.random() < 0.3:
        found[draw.choice(list(found))] = draw.choice(VALUES)
    if draw.random() < 0.1:
        del found[draw.choice(list(found))]
    return json.dumps(found)


def product(draw: random.Random, year: int) -> str:
    """A line of metadata of random values."""
    texts = ["Pens &amp; <b>more", ["A, B", "C"], ["</span>"], "$1.50", "$1 - $2", "from 3", 7.5, ".a-box{}"]
    keys = ["title", "category", "categories", "brand", "store", "price", "main_category"]
    found: dict[str, Any] = {"parent_asin" if year == 2023 else "asin": f"B{draw.randrange(4)}"}
    return json.dumps(found | {key: draw.choice([*texts, *VALUES]) for key in keys if draw.random() < 0.7})


def fuzz_amazon(draw: random.Random, folder: Path) -> None:
    """Reviews and metadata of a year, each changed or not, packed or not; reviews are counted line by line."""
    year = draw.choice((2018, 2023))
    reviews = "\n".join(review(draw, year) for _ in range(draw.randrange(1, 8))).encode() + b"\n"
    metas = "\n".join(product(draw, year) for _ in range(draw.randrange(6))).encode() + b"\n"
    reviews = mutated(draw, reviews) if draw.random() < 0.5 else reviews
    metas = mutated(draw, metas) if draw.random() < 0.5 else metas
    ending = draw.choice((".json", ".json.gz"))
    for name, data in (("Pens", reviews), ("meta_Pens", metas)):
        data = gzip.compress(data, 1, mtime=0) if ending.endswith("gz") else data
        data = mutated(draw, data) if ending.endswith("gz") and draw.random() < 0.2 else data
        (folder / (name + ending)).write_bytes(data)
    path = draw.choice((folder, folder / f"Pens{ending}"))
    found = read_source(
        parse_config({"dataset": str(path), "source_format": "amazon", "max_rejects": "100%"}, "fuzz"), silent
    )
    data = (folder / f"Pens{ending}").read_bytes()
    plain = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
    rows = sum(bool(line.decode("utf-8", "replace").removeprefix("\ufeff").strip()) for line in plain.split(b"\n"))
    lost = found.rejects.filter(pl.col("file") == f"Pens{ending}").height
    if found.interactions.height + lost != rows:
        raise LostError(f"{rows} lines, {found.interactions.height} used and {lost} rejected")
    if not set(found.interactions["item_id"]) <= set(found.catalog["item_id"]):
        raise LostError("a review is of a product that the catalog does not hold")
