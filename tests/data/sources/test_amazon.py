"""Amazon reviews: small files of both years' published shapes, with all that is wrong with real ones."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rectune.config import Config
from rectune.data.prepare import load_catalog, load_meta, prepare
from rectune.data.sources.amazon import is_amazon, read_amazon
from rectune.data.sources.formats import format_of
from rectune.data.sources.source import Source
from rectune.errors import DataError


def review18(user: Any, item: Any, stars: Any, time: Any, **more: Any) -> dict[str, Any]:
    return {
        "overall": stars, "verified": True, "reviewTime": "01 1, 2018", "reviewerID": user, "asin": item,
        "reviewerName": "A. Name", "reviewText": "Liked it.\nA lot.", "summary": "Ok", "unixReviewTime": time, **more,
    }  # fmt: skip


def review23(user: Any, item: Any, stars: Any, time: Any, **more: Any) -> dict[str, Any]:
    return {
        "rating": stars, "title": "Ok", "text": "Fine", "images": [], "asin": f"{item}X", "parent_asin": item,
        "user_id": user, "timestamp": time, "helpful_vote": 0, "verified_purchase": True, **more,
    }  # fmt: skip


def write(path: Path, lines: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def read(path: Path, **keys: Any) -> tuple[Source, list[str]]:
    said: list[str] = []
    return read_amazon(Config(dataset=str(path), **{"max_rejects": "100%", **keys}), path, said.append), said


OF_2018 = [
    review18("A1", "B001", 5.0, 1514764800),
    review18("A1", "B002", 2.0, 1514764800),
    review18("A1", "B001", 4.0, 1514764800),  # the same person, product and day again
    "",
    review18("A2", "B001", 3.0, 1400000000, style={"Size:": "L"}, vote="3"),
    review18(None, "B001", 5.0, 1),
    review18("A2", "", 5.0, 1),
    review18("A2", "B003", 6.0, 1400000000),
    review18("A2", "B003", "many", 1400000000),
    review18("A2", "B003", 4, "yesterday"),
    '{"overall": 5.0, "reviewerID"',
    review18("A2", "B003", 4, 1400000001),
    {"asin": "B003", "overall": 1.0, "reviewerID": "A3"},
]
META_2018 = [
    {"asin": "B001", "title": "Pads &amp; Pens", "category": ["Office, Home &amp; More", "Pens", "</span></span>"],
     "brand": "Inky", "price": "$12.99 - $15.99", "also_buy": [], "main_cat": "Office Products"},
    {"asin": "B002", "title": "var aPageStart = (new Date()).getTime();", "category": [], "main_cat": "Books",
     "brand": "", "price": ".a-box-inner{background-color:#fff}#alohaBuyBoxWidget"},
    {"asin": "B999", "title": "Never reviewed"},
    {"asin": "B001", "title": "Again"},
    {"title": "Of nothing"},
    "not json",
]  # fmt: skip


def test_a_file_of_2018_with_its_metadata(tmp_path: Path) -> None:
    write(tmp_path / "meta_Pens.json.gz", META_2018)
    found, said = read(write(tmp_path / "Pens_5.json.gz", OF_2018))
    assert found.interactions.rows() == [
        ("A1", "B001", 5.0, 1514764800), ("A1", "B002", 2.0, 1514764800), ("A2", "B001", 3.0, 1400000000),
        ("A2", "B003", 4.0, 1400000001),
    ]  # fmt: skip
    assert found.catalog.rows() == [
        ("B001", "Pads & Pens", "Office Home & More, Pens", "Inky", 12.99),
        ("B002", "item B002", "Books", None, None),
        ("B003", "item B003", "", None, None),
    ]
    assert found.rejects.select("file", "line", "reason").rows() == [
        ("Pens_5.json.gz", 3, "duplicate of an earlier row"),
        ("Pens_5.json.gz", 6, "missing field"),
        ("Pens_5.json.gz", 7, "missing field"),
        ("Pens_5.json.gz", 8, "rating outside 1 to 5"),
        ("Pens_5.json.gz", 9, "rating is not a number"),
        ("Pens_5.json.gz", 10, "timestamp is not a whole number"),
        ("Pens_5.json.gz", 11, "not a JSON object"),
        ("Pens_5.json.gz", 13, "missing field"),
        ("meta_Pens.json.gz", 4, "duplicate of an earlier row"),
        ("meta_Pens.json.gz", 5, "missing field"),
        ("meta_Pens.json.gz", 6, "not a JSON object"),
    ]
    texts = found.rejects["text"].to_list()
    assert json.loads(texts[0]) == {"reviewerID": "A1", "asin": "B001", "overall": 4.0, "unixReviewTime": 1514764800}
    assert texts[6] == OF_2018[10] and json.loads(texts[1]) == OF_2018[5]
    assert "products: 1 lines of metadata are about products without a review and are not read further" in said
    assert "products: 1 of 3 that were reviewed have no metadata" in said
    assert "products: 2 have no title and are called by their ids" in said
    assert "products: 1 prices are none, such as pieces of a page, and are left out" in said


def test_a_file_of_2023_counts_variants_of_a_product_as_one(tmp_path: Path) -> None:
    reviews = [
        review23("AE1", "B1", 4.0, 1588615855070),
        review23("AE1", "B1", 5.0, 1588615855071, asin="B1Y"),
        review23("AE2", None, 1.0, 1588615855072, asin="B2"),
    ]
    meta = [
        {"main_category": "All Beauty", "title": "Soap", "price": 7.5, "store": "Suds", "categories": [],
         "parent_asin": "B1", "details": {}},
        {"main_category": None, "title": "Comb", "price": "from 3.00", "store": None, "categories": ["Hair", "Combs"],
         "parent_asin": "B2"},
    ]  # fmt: skip
    write(tmp_path / "meta_All_Beauty.jsonl.gz", meta)
    found, _ = read(write(tmp_path / "All_Beauty.jsonl.gz", reviews))
    assert found.interactions.rows() == [
        ("AE1", "B1", 4.0, 1588615855070), ("AE1", "B1", 5.0, 1588615855071), ("AE2", "B2", 1.0, 1588615855072),
    ]  # fmt: skip
    assert found.catalog.rows() == [("B1", "Soap", "All Beauty", "Suds", 7.5), ("B2", "Comb", "Hair, Combs", None, 3.0)]
    assert found.rejects.is_empty()


def test_reviews_without_metadata_are_called_by_their_ids_and_that_is_said(tmp_path: Path) -> None:
    found, said = read(write(tmp_path / "Toys.jsonl", [review23("u", "B1", 5, 1)]))
    assert found.catalog.rows() == [("B1", "item B1", "", None, None)]
    assert any("Toys.jsonl: no metadata such as meta_Toys" in line for line in said)


@pytest.mark.parametrize("name", ["Pens_5.json.gz", "meta_Pens.json.gz"])
def test_a_file_that_is_broken_off_is_one_error_that_says_where(tmp_path: Path, name: str) -> None:
    lines = [review18(f"A{at}", "B001", 5.0, at + 1, reviewText=str(hash(str(at))) * 9) for at in range(3000)]
    write(tmp_path / "Pens_5.json.gz", lines)
    write(tmp_path / "meta_Pens.json.gz", [{"asin": f"B{at}", "title": str(hash(str(at))) * 9} for at in range(3000)])
    file = tmp_path / name
    file.write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(DataError, match=rf"{name}: broken off behind line \d,\d\d\d \(.*\); fetch it again"):
        read(tmp_path / "Pens_5.json.gz")


def test_a_folder_is_read_whole_and_years_are_not_mixed(tmp_path: Path) -> None:
    write(tmp_path / "Pens_5.json.gz", [review18("A1", "B001", 5.0, 1)])
    write(tmp_path / "Toys_5.json.gz", [review18("A1", "B002", 5.0, 2), review18("A1", "B001", 5.0, 1)])
    write(tmp_path / "meta_Toys.json.gz", [{"asin": "B002", "title": "Top"}])
    assert is_amazon(tmp_path) and format_of(Config(dataset=str(tmp_path)), tmp_path).name == "amazon"
    found, _ = read(tmp_path)
    assert found.catalog["title"].to_list() == ["item B001", "Top"] and found.interactions.height == 2
    assert found.rejects.select("file", "line").rows() == [("Toys_5.json.gz", 2)]
    write(tmp_path / "All_Beauty.jsonl.gz", [review23("u", "B1", 5, 1)])
    with pytest.raises(DataError, match="holds reviews of 2018 and of 2023"):
        read(tmp_path)


def test_other_json_lines_are_no_reviews(tmp_path: Path) -> None:
    table = write(tmp_path / "log.jsonl", [{"user_id": "u", "item_id": "i", "rating": 4, "timestamp": 1}])
    assert not is_amazon(table) and format_of(Config(dataset=str(table)), table).name == "table"
    with pytest.raises(DataError, match="no reviews here; expected JSON lines with reviewerID"):
        read(table)
    with pytest.raises(DataError, match=r"8 of 12 rows cannot be used, 3 of them for: missing field \(first in line 6"):
        read(write(tmp_path / "Pens_5.json.gz", OF_2018), max_rejects="50%")
    with pytest.raises(DataError, match=r"Pens_5\.json\.gz: line 3 cannot be used: duplicate of an earlier row"):
        read(tmp_path / "Pens_5.json.gz", max_rejects=0)


def test_prepare_labels_reviews_by_their_stars(tmp_path: Path) -> None:
    reviews = [review23(f"u{at % 3}", f"B{at % 7}", 1 + at % 5, 1_588_615_855_000 + 1000 * at) for at in range(60)]
    write(tmp_path / "a" / "meta_Toys.jsonl.gz", [
        {"parent_asin": f"B{at}", "title": f"Toy {at}", "categories": ["Toys", f"Kind {at % 2}"], "price": at + 0.5}
        for at in range(7)
    ])  # fmt: skip
    write(tmp_path / "a" / "Toys.jsonl.gz", reviews)
    config = Config(
        dataset=str(tmp_path / "a" / "Toys.jsonl.gz"), dataset_dir=tmp_path / "data", history_len=3,
        item_text="{title} [{genres}], ${price:.2f}", prompt_domain="products",
    )  # fmt: skip
    prepare(config, say=lambda line: None)
    assert config.dataset_name() == "Toys" and load_catalog(tmp_path / "data").height == 7
    assert load_meta(tmp_path / "data")["protocol"]["rating_threshold"] == 4.0
    record = json.loads((tmp_path / "data" / "test_raw.jsonl").read_text().splitlines()[0])
    place = int(record["candidate_item_id"][1:])
    assert record["candidate_text"] == f"Toy {place} [Toys, Kind {place % 2}], ${place + 0.5:.2f}"


values = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 10), st.floats(), st.text(max_size=3), st.lists(st.integers(), max_size=1)
)
fuzzy = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(["reviewerID", "asin", "overall", "unixReviewTime"], values)
).map(json.dumps)  # fmt: skip


@settings(max_examples=60)
@given(st.lists(st.one_of(fuzzy, st.text(max_size=12).filter(lambda text: "\n" not in text)), max_size=10))
def test_no_line_is_neither_used_nor_rejected(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    first = json.dumps(review18("A1", "B001", 5.0, 1))
    file = tmp_path_factory.mktemp("amazon") / "Pens.json"
    file.write_bytes(("\n".join([first, *lines]) + "\n").encode("utf-8", "replace"))
    there = [line for line in file.read_bytes().split(b"\n") if line.decode().removeprefix("\ufeff").strip()]
    found, _ = read(file)
    assert found.interactions.height + found.rejects.height == len(there)
    assert set(found.interactions["item_id"]) <= set(found.catalog["item_id"])
