"""Delivery Hero's orders: small files of the published shape, with all that is wrong with real ones."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rectune.config import Config
from rectune.data.prepare import load_catalog, load_events, load_meta, prepare
from rectune.data.sources.delivery_hero import is_delivery_hero, read_delivery_hero
from rectune.data.sources.formats import format_of, read_source
from rectune.data.sources.source import Source
from rectune.errors import ConfigError, DataError
from rectune.wording import item_texts

ORDERS = ",customer_id,geohash,order_id,vendor_id,product_id,day_of_week,order_time,order_day"
VENDORS = ",vendor_id,chain_id,geohash,primary_cuisine"
PRODUCTS = ",vendor_id,product_id,name,unit_price"
DAY = 86_400
TRAIN = [
    "0,ann,w21z7,0,v1,p1,3,16:00:16,11 days",
    "1,ann,w21z7,0,v1,p2,3,16:00:16,11 days",  # the same order, so the same moment
    "2,ann,w21z7,0,v1,p2,3,16:00:16,11 days",  # the same dish of it again
    "3,ann,,1,v2,p3,3,23:59:50,11 days",  # no geohash, shortly before midnight
    "4,ann,w21z7,2,v1,p1,4,00:00:10,12 days",  # and shortly after it
    "5,bob,w21z7,3,,p9,4,24:10:00,12 days",  # on the next day; a dish of no menu, of no vendor
    "6,bob,w21z7,4,v2,p8,4,9:30:00,1 days",  # a dish of no menu
    "7,,w21z7,5,v1,p1,4,10:00:00,12 days",
    "8,bob,w21z7,6,v1,,4,10:00:00,12 days",
    "9,bob,w21z7,7,v1,p1,4,noon,12 days",
    "10,bob,w21z7,8,v1,p1,4,10:00:00,soon",
    "11,bob,w21z7,9,v1,p1,4,10:61:00,12 days",
    "12,bob,w21z7,10,v1,p4,4,10:00:00,",
    "13,bob,w21z7",
    "14,bob,w21z7,11,v1,p4,5,10:00:00,13 days",
    "15,bob,w21z7,12,v1,p4,5,10:00:00,13 days",  # another number, the same customer, dish and second
]
TEST = [
    "0,ann,w21z7,0,v2,p3,1,12:00:00,80 days",
    "1,ann,w21z7,2,v1,p1,4,00:00:10,12 days",  # stands in the training file already
    "2,bob,w21z7,1,v1,p1,1,12:00:00,81 days",
]
MENU = [
    '0,v1,p1,"Noodles, fried",0.496',
    "1,v1,p2,,0.3",  # no name
    "2,v2,p3,Räksmörgås,",  # no price
    "3,v1,p4,Soup,cheap",
    "4,v2,p1,Noodles again,0.9",  # another vendor's
    "5,v1,p1,Noodles,0.1",  # twice
    "6,,p7,Lost,1",
]
SHOPS = ["0,v1,,w21z9,thai", "1,v2,c1,w21z9,", "2,v1,,w21z9,indian", "3,,,w21z9,"]


def write_city(
    folder: Path,
    city: str = "sg",
    train: list[str] | None = TRAIN,
    test: list[str] | None = TEST,
    menu: list[str] = MENU,
    shops: list[str] = SHOPS,
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        f"orders_{city}_train.txt": (ORDERS, train), f"orders_{city}_test.txt": (ORDERS, test),
        f"products_{city}.txt": (PRODUCTS, menu), f"vendors_{city}.txt": (VENDORS, shops),
    }  # fmt: skip
    for name, (header, lines) in files.items():
        if lines is not None:
            (folder / name).write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return folder


def read(path: Path, **keys: Any) -> tuple[Source, list[str]]:
    said: list[str] = []
    config = Config(dataset=str(path), label_from="purchases", **{"max_rejects": "100%", **keys})
    return read_delivery_hero(config, path, said.append), said


def test_every_line_is_an_ordered_dish_or_rejected_with_its_reason(tmp_path: Path) -> None:
    found, said = read(write_city(tmp_path / "data_sg"))
    assert found.interactions.select("user_id", "item_id", "timestamp", "split").rows() == [
        ("sg:ann", "sg:p1", 11 * DAY + 57_616, "train"),
        ("sg:ann", "sg:p2", 11 * DAY + 57_616, "train"),
        ("sg:ann", "sg:p3", 11 * DAY + 86_390, "train"),
        ("sg:ann", "sg:p1", 12 * DAY + 10, "train"),
        ("sg:bob", "sg:p9", 13 * DAY + 600, "train"),
        ("sg:bob", "sg:p8", DAY + 34_200, "train"),
        ("sg:bob", "sg:p4", 13 * DAY + 36_000, "validation"),
        ("sg:ann", "sg:p3", 80 * DAY + 43_200, "test"),
        ("sg:bob", "sg:p1", 81 * DAY + 43_200, "test"),
    ]
    assert found.interactions["rating"].null_count() == 9
    lines = found.rejects.select("file", "line", "reason").rows()
    assert lines == [
        ("vendors_sg.txt", 4, "duplicate of an earlier row"),
        ("vendors_sg.txt", 5, "missing field"),
        ("products_sg.txt", 7, "duplicate of an earlier row"),
        ("products_sg.txt", 8, "missing field"),
        ("orders_sg_train.txt", 4, "duplicate of an earlier row"),
        ("orders_sg_train.txt", 9, "missing field"),
        ("orders_sg_train.txt", 10, "missing field"),
        ("orders_sg_train.txt", 11, "order_time is not a time of the day"),
        ("orders_sg_train.txt", 12, "order_day is not a number of days"),
        ("orders_sg_train.txt", 13, "order_time is not a time of the day"),
        ("orders_sg_train.txt", 14, "missing field"),
        ("orders_sg_train.txt", 15, "too few fields"),
        ("orders_sg_train.txt", 17, "duplicate of an earlier row"),
        ("orders_sg_test.txt", 3, "duplicate of an earlier row"),
    ]
    assert found.rejects["text"][4] == TRAIN[2]
    assert "sg: 9 ordered dishes of 2 customers" in said


def test_dishes_have_cuisine_and_price_and_those_of_no_menu_are_counted_and_called_by_their_ids(tmp_path: Path) -> None:
    found, said = read(write_city(tmp_path))
    assert found.catalog.rows() == [
        ("sg:p1", "Noodles, fried", "thai", "thai", 0.496, "sg"),
        ("sg:p2", "item sg:p2", "thai", "thai", 0.3, "sg"),
        ("sg:p3", "Räksmörgås", "", "", None, "sg"),
        ("sg:p4", "Soup", "thai", "thai", None, "sg"),
        ("sg:p9", "item sg:p9", "", "", None, "sg"),
        ("sg:p8", "item sg:p8", "", "", None, "sg"),
    ]
    assert "sg: 2 dishes that were ordered are not in products_sg.txt" in said
    assert "sg: 3 dishes have no name and are called by their ids" in said
    assert "products_sg.txt: 1 prices are no numbers and are left out" in said
    texts = item_texts(found.catalog, "{title}, {cuisine}, {price:.2f}")
    assert texts["sg:p1"] == "Noodles, fried, thai, 0.50" and texts["sg:p3"] == "Räksmörgås"
    assert texts["sg:p4"] == "Soup, thai"


def test_a_dish_of_several_vendors_has_the_cuisines_of_all(tmp_path: Path) -> None:
    menu = ["0,v1,p1,Curry,1", "1,v2,p1,Curry,2", "2,v3,p1,Curry,3"]
    shops = ["0,v1,,x,thai", "1,v2,,x,indian", "2,v3,,x,thai"]
    found, _ = read(write_city(tmp_path, train=["0,a,x,0,v1,p1,0,1:00:00,0 days"], menu=menu, shops=shops))
    assert found.catalog.row(0) == ("sg:p1", "Curry", "thai, indian", "thai, indian", 1.0, "sg")


def test_two_cities_in_one_folder_or_in_folders_of_their_own_never_share_ids(tmp_path: Path) -> None:
    few = ["0,ann,w,0,v1,p1,1,10:00:00,0 days", "1,ann,w,1,v1,p2,1,11:00:00,0 days"]
    write_city(tmp_path / "one", "sg", few, None)
    write_city(tmp_path / "one", "se", few, None)
    write_city(tmp_path / "two" / "data_sg", "sg", few, None)
    write_city(tmp_path / "two" / "data_se", "se", few, None)
    one, _ = read(tmp_path / "one")
    two, _ = read(tmp_path / "two")
    assert one.interactions.equals(two.interactions) and one.catalog.equals(two.catalog)
    assert Counter(one.interactions["user_id"]) == {"se:ann": 2, "sg:ann": 2}
    assert one.catalog["item_id"].n_unique() == one.catalog.height
    # Each city's last training order is its validation, though one is as late as the other.
    splits = one.interactions.select("user_id", "split").rows()
    assert splits == [("se:ann", "train"), ("se:ann", "validation"), ("sg:ann", "train"), ("sg:ann", "validation")]
    write_city(tmp_path / "two" / "copy", "sg", few, None)
    with pytest.raises(DataError, match=r"holds orders_sg_train\.txt twice, in .*copy and in .*data_sg"):
        read(tmp_path / "two")


def test_validation_is_cut_from_the_end_of_training_and_no_moment_in_two(tmp_path: Path) -> None:
    train = [f"{at},u{at % 3},w,{at},v1,p{at},1,10:{at // 2:02d}:00,{at // 40} days" for at in range(80)]
    found, _ = read(write_city(tmp_path, train=train), validation_ratio=0.1)
    of_split = dict(found.interactions.group_by("split").len().iter_rows())
    assert of_split == {"train": 72, "validation": 8, "test": 3}
    times = {split: found.interactions.filter(pl.col("split") == split)["timestamp"] for split in of_split}
    assert times["train"].max() < times["validation"].min()
    one = write_city(tmp_path / "one", train=["0,a,w,0,v1,p1,1,10:00:00,1 days"])
    assert read(one)[0].interactions["split"][0] == "train"


def test_a_folder_is_known_by_its_names_and_what_is_missing_is_named(tmp_path: Path) -> None:
    folder = write_city(tmp_path / "x")
    assert is_delivery_hero(folder) and is_delivery_hero(tmp_path)
    assert format_of(Config(dataset=str(folder)), folder).name == "delivery_hero"
    (folder / "products_sg.txt").unlink()
    with pytest.raises(
        DataError, match=r"products_sg\.txt is missing beside orders_sg_test\.txt, orders_sg_train\.txt"
    ):
        read(folder)
    write_city(tmp_path / "y", test=None)
    with pytest.raises(DataError, match=r"orders_sg_test\.txt is missing; use split=timeline"):
        read(tmp_path / "y", split="column")
    (tmp_path / "empty").mkdir()
    assert not is_delivery_hero(tmp_path / "empty")
    with pytest.raises(DataError, match=r"no orders here; expected orders_CITY_train\.txt"):
        read(tmp_path / "empty")
    renamed = write_city(tmp_path / "z")
    (renamed / "vendors_sg.txt").write_text("vendor,cuisine\nv1,thai\n")
    with pytest.raises(DataError, match=r"vendors_sg\.txt: missing columns vendor_id \(nearest: vendor\)"):
        read(renamed)
    quoted = write_city(tmp_path / "q", train=[ORDERS.replace("order_time", '"""order_time"""'), *TRAIN])
    lines = (quoted / "orders_sg_train.txt").read_text("utf-8").split("\n")[1:]
    (quoted / "orders_sg_train.txt").write_text("\n".join(lines), encoding="utf-8")
    assert read(quoted)[0].interactions.height == 9
    with pytest.raises(ConfigError, match="user_column: is for tables"):
        read_source(Config(dataset=str(tmp_path / "y"), user_column="customer_id"), lambda line: None)


def test_packed_files_and_other_encodings_are_read(tmp_path: Path) -> None:
    folder = write_city(tmp_path)
    plain, _ = read(folder)
    (folder / "products_sg.txt").write_bytes((folder / "products_sg.txt").read_text("utf-8").encode("latin-1"))
    (folder / "orders_sg_train.txt").write_bytes(gzip.compress((folder / "orders_sg_train.txt").read_bytes()))
    packed, said = read(folder)
    assert packed.interactions.equals(plain.interactions) and packed.catalog.equals(plain.catalog)
    assert "products_sg.txt: read as Windows-1252" in said
    (folder / "orders_sg_train.txt").write_bytes((folder / "orders_sg_train.txt").read_bytes()[:-30])
    with pytest.raises(DataError, match=r"orders_sg_train\.txt: cannot be read"):
        read(folder)


def test_too_many_bad_lines_stop_it_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"orders_sg_train\.txt: 9 of 16 rows cannot be used"):
        read(write_city(tmp_path), max_rejects="50%")


def test_prepare_gives_the_published_split_with_negatives_of_the_same_cuisine(tmp_path: Path) -> None:
    few = [f"{at},u{at % 4},w,{at},v{at % 2},p{at % 10},1,10:00:00,{at} days" for at in range(40)]
    late = [f"{at},u{at % 4},w,{at},v{at % 2},p{at % 7},1,10:00:00,{50 + at} days" for at in range(8)]
    menu = [f"{at},v{at % 2},p{at},Dish {at},{at / 10}" for at in range(10)]
    folder = write_city(tmp_path / "dh", "sg", few, late, menu, ["0,v0,,w,thai", "1,v1,,w,sushi"])
    config = Config(
        dataset=str(folder), dataset_dir=tmp_path / "data", label_from="purchases", split="column", history_len=3,
        negative_sampling="hard", item_text="{title}, {cuisine}, {price}", history_shows="label", prompt_domain="food",
    )  # fmt: skip
    said: list[str] = []
    prepare(config, say=said.append)
    events, catalog = load_events(tmp_path / "data"), load_catalog(tmp_path / "data")
    splits = dict(events.filter(pl.col("label") == 1).group_by("split").len().iter_rows())
    assert splits == {"train": 38, "validation": 2, "test": 8}
    cuisine = dict(catalog.select("item_id", "cuisine").iter_rows())
    sampled = events.filter(pl.col("label") == 0)
    assert sampled.height > 0 and load_meta(tmp_path / "data")["negatives"]["negatives"] == sampled.height
    own = {
        (user, position): item for user, position, item in events.select("user_id", "position", "item_id").iter_rows()
    }
    pairs = [(row["item_id"], own[row["user_id"], row["drawn_for"]]) for row in sampled.iter_rows(named=True)]
    other = sum(cuisine[drawn] != cuisine[bought] for drawn, bought in pairs)
    assert other == load_meta(tmp_path / "data")["negatives"]["from_other_categories"]
    record = (tmp_path / "data" / "test_raw.jsonl").read_text().splitlines()[0]
    assert '"candidate_text": "Dish ' in record and ", thai, 0." in record
    again = config.with_overrides(validation_ratio=0.2)
    prepare(again, say=said.append)
    assert any("prepared again" in line and "validation_ratio" in line for line in said)


@settings(max_examples=30)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b", ""]), st.sampled_from(["0", "1", ""]), st.sampled_from(["p1", "p2", "p,3", ""]),
            st.sampled_from(["10:00:00", "24:00:01", "48:00:00", "x", "", "9:9:9"]),
            st.sampled_from(["0 days", "1 day", "3", "-1 days", "", "2 days 00:00:00"]),
        ),
        min_size=1, max_size=12,
    )
)  # fmt: skip
def test_no_line_is_neither_used_nor_rejected(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, ...]]
) -> None:
    train = [
        f"{at},{user},w,{order},v1,{item},0,{time},{day}" for at, (user, order, item, time, day) in enumerate(rows)
    ]
    folder = write_city(tmp_path_factory.mktemp("dh"), train=train)
    found, _ = read(folder)
    of_file = Counter(found.rejects["file"])
    used = found.interactions.filter(pl.col("split") != "test").height
    assert used + of_file["orders_sg_train.txt"] == len(rows)
    assert set(found.interactions["item_id"]) <= set(found.catalog["item_id"])
