"""A table of one's own, from a file to a source: its form, its columns, its items and its rejects."""

from __future__ import annotations

import contextlib
import gzip
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rectune.config import Config, parse_config
from rectune.data.sources.formats import read_source, source_of
from rectune.data.sources.source import Nouns, Source
from rectune.errors import ConfigError, DataError

ROWS = [
    ("u1", "i1", "4.5", "1600000001", "Mug", "7.5"),
    ("u1", "i2", "2", "1600000002", "Bowl", "3"),
    ("u2", "i1", "5", "1600000003", "Mug", "7.5"),
    ("u2", "i2", "1.5", "1600000004", "Bowl", "3"),
]
NAMES = ("user_id", "item_id", "rating", "timestamp", "title", "price")
EVENTS = [("u1", "i1", 4.5, 1600000001), ("u1", "i2", 2.0, 1600000002), ("u2", "i1", 5.0, 1600000003),
          ("u2", "i2", 1.5, 1600000004)]  # fmt: skip

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write lines, or bytes as they are, into a file."""

    def go(data: list[str] | bytes, name: str = "log.csv", encoding: str = "utf-8") -> Path:
        path = tmp_path / name
        path.write_bytes(data if isinstance(data, bytes) else ("\n".join(data) + "\n").encode(encoding))
        return path

    return go


def lines(separator: str = ",", rows: list[tuple[str, ...]] = ROWS) -> list[str]:
    return [separator.join(row) for row in [NAMES, *rows]]


def read(path: Path, **values: Any) -> tuple[Source, list[str]]:
    said: list[str] = []
    return read_source(parse_config({"dataset": str(path), **values}, "test"), said.append), said


def test_a_csv_file_is_read_by_its_columns_names(write: Write) -> None:
    found, said = read(write(lines()))
    assert found.interactions.rows() == EVENTS
    assert found.catalog.rows(named=True) == [
        {"item_id": "i1", "title": "Mug", "price": 7.5}, {"item_id": "i2", "title": "Bowl", "price": 3.0},
    ]  # fmt: skip
    assert found.rejects.height == 0 and found.nouns == Nouns("ratings")
    assert "column of the time: 'timestamp' (by its name, seconds since 1970)" in said


@pytest.mark.parametrize(
    ("name", "make", "said"),
    [
        ("log.tsv", lambda: ("\n".join(lines("\t")) + "\n").encode(), "log.tsv: columns divided by tabs"),
        ("log.csv", lambda: "\ufeff".encode() + "\r\n".join(lines(";")).encode(),
         "log.csv: read as UTF-8 with a byte order mark, columns divided by semicolons"),
        ("log.txt", lambda: "\n".join(lines("|")).encode("utf-16"),
         "log.txt: read as UTF-16, columns divided by vertical bars"),
        ("log.csv", lambda: "\n".join(lines()).encode("utf-16-le"), "log.csv: read as UTF-16 without a byte order"),
        ("log.csv.gz", lambda: gzip.compress("\n".join(lines()).encode()), "source: "),
        ("log.csv", lambda: "\r".join(lines()).encode(), "source: "),
        ("log.jsonl", lambda: "\n".join(json.dumps(dict(zip(NAMES, row, strict=True))) for row in ROWS).encode(),
         "source: "),
        ("log.jsonl.gz", lambda: gzip.compress("\n".join(
            json.dumps({"user_id": row[0], "item_id": row[1], "rating": float(row[2]), "timestamp": int(row[3]),
                        "title": row[4], "price": float(row[5])}) for row in ROWS).encode()), "source: "),
    ],
)  # fmt: skip
def test_every_form_of_file_gives_the_same_events_and_says_what_is_odd_about_it(
    write: Write, name: str, make: Callable[[], bytes], said: str
) -> None:
    found, lines_said = read(write(make(), name))
    assert found.interactions.rows() == EVENTS
    assert found.catalog["title"].to_list() == ["Mug", "Bowl"] and found.catalog["price"].to_list() == [7.5, 3.0]
    assert any(line.startswith(said) for line in lines_said), lines_said


def test_a_parquet_file_keeps_its_types(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "userId": [1.0, 1.0, 2.0],
            "product": ["a", "b", "a"],
            "stars": [4, 2, 5],
            "when": [datetime(2024, 5, 31, 8, 30), datetime(2024, 5, 31, 8, 31), None],
            "tags": [["x", "y"], [], ["x", "y"]],
        }
    )
    frame.write_parquet(tmp_path / "log.parquet")
    found, _ = read(tmp_path / "log.parquet", time_column="when", attribute_columns=["tags"])
    assert found.interactions.rows() == [("1", "a", 4.0, 1717144200), ("1", "b", 2.0, 1717144260)]
    assert found.catalog["tags"].to_list() == ["x, y", None]
    assert found.rejects.rows() == [("log.parquet", 3, "time is neither a number nor a date", "2.0,a,5,")]


@pytest.mark.parametrize(("encoding", "said"), [("cp1252", "Windows-1252"), ("utf-8", "")])
def test_letters_of_western_encodings_are_read_and_said(write: Write, encoding: str, said: str) -> None:
    rows = [("u1", "i1", "4", "1600000001", "Café “crème”", "1")]
    found, lines_said = read(write(lines(rows=rows), encoding=encoding))
    assert found.catalog["title"].to_list() == ["Café “crème”"]
    assert (f"log.csv: read as {said}" in lines_said) == bool(said)


def test_a_damaged_letter_in_utf_8_costs_its_row(write: Write) -> None:
    data = "\n".join(lines(rows=[(*row[:4], "Schüssel", row[5]) for row in ROWS])).encode()
    data = data.replace("ü".encode(), b"\xc3", 1)
    found, _ = read(write(data))
    assert found.rejects.select("line", "reason").rows() == [(2, "text is not in the file's encoding")]
    assert found.interactions.height == 3


def test_every_bad_row_is_rejected_with_its_line_reason_and_text(write: Write) -> None:
    bad = [
        "u3,i1,4,soon,Mug,7.5",
        "u3,i1,good,1600000009,Mug,7.5",
        ",i1,4,1600000009,Mug,7.5",
        "u3,i1",
        "u3,i1,4,1600000009,Mug,7.5,more",
        'u3,i1,4,1600000009,"Mug,7.5',
        "u1,i1,4.5,1600000001,Mug,7.5",
    ]
    found, _ = read(write([*lines(), *(line for row in bad for line in (row, ""))]), max_rejects="70%")
    assert found.interactions.rows() == EVENTS
    assert found.rejects.rows() == [
        ("log.csv", 6, "time is neither a number nor a date", bad[0]),
        ("log.csv", 8, "rating is not a number", bad[1]),
        ("log.csv", 10, "missing field", bad[2]),
        ("log.csv", 12, "too few fields", bad[3]),
        ("log.csv", 14, "too many fields", bad[4]),
        ("log.csv", 16, "broken quotes", bad[5]),
        ("log.csv", 18, "duplicate of an earlier row", bad[6]),
    ]


def test_too_many_bad_rows_stop_with_the_first_of_the_commonest_kind(write: Write) -> None:
    path = write([*lines(), "u3,i1,4,soon,Mug,1"])
    with pytest.raises(DataError, match=r"1 of 5 rows.*first in line 6: 'u3,i1,4,soon,Mug,1'.*max_rejects=1% allows"):
        read(path, max_rejects="1%")
    with pytest.raises(DataError, match=r"log\.csv: line 6 cannot be used: time is neither.*\(--strict\)"):
        read(path, max_rejects=0)
    assert read(path, max_rejects=1)[0].rejects.height == 1
    assert read(path, max_rejects="20%")[0].rejects.height == 1


@pytest.mark.parametrize("value", ["1.5", "x", "101%", -1, "%"])
def test_a_number_of_rejects_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"max_rejects: got .*allowed: a share of the rows such as 1%"):
        parse_config({"max_rejects": value}, "test")


def test_a_column_that_is_not_there_is_named_with_the_nearest_and_all_that_are(write: Write) -> None:
    with pytest.raises(DataError, match=r"user_column: no column 'userid' \(nearest: 'user_id'\); found user_id,"):
        read(write(lines()), user_column="userid")
    with pytest.raises(DataError, match=r"no column name says that it holds the users; found Wer, item.*--user COLUMN"):
        read(write(["Wer,item,rating", "a,b,1"]))
    with pytest.raises(DataError, match=r"first line seems to hold values"):
        read(write(["196,242,3,881250949", "186,302,3,891717742"]))


def test_names_that_would_do_alike_are_asked_about(write: Write) -> None:
    with pytest.raises(DataError, match=r"user_column: could be 'customer_id' or 'clientId'; name one \(--user COLUMN"):
        read(write(["customer_id,clientId,item_id,rating", "a,b,c,1"]))


def test_a_column_that_is_named_for_one_thing_is_not_found_for_another(write: Write) -> None:
    found, _ = read(write(["user,product,sku,rating", "a,Mug,7,1"]), title_column="product")
    assert found.interactions["item_id"].to_list() == ["7"] and found.catalog["title"].to_list() == ["Mug"]
    with pytest.raises(DataError, match="no column name says that it holds the items"):
        read(write(["user,product,code,rating", "a,Mug,7,1"]), title_column="product")


def test_without_a_column_of_times_the_rows_order_stands_in_and_that_is_said(write: Write) -> None:
    found, said = read(write(["user,item,rating", "b,x,4", "a,x,4", "b,x,4"]))
    assert found.interactions.rows() == [("b", "x", 4.0, 0), ("a", "x", 4.0, 1), ("b", "x", 4.0, 2)]
    assert "no column of times was named or found: the order of the rows stands in for time" in said


def test_a_column_of_times_can_be_switched_off(write: Write) -> None:
    rows = ["user_id,item_id,timestamp,rating", "a,1,20,5", "a,2,10,4"]
    found, said = read(write(rows), time_column="none")
    assert found.interactions["timestamp"].to_list() == [0, 1]
    assert any("the order of the rows stands in for time" in line for line in said)
    named = [rows[0].replace("timestamp", "none"), *rows[1:]]
    assert read(write(named), time_column="none")[0].interactions["timestamp"].to_list() == [20, 10]


def test_labels_of_ones_own_are_read_and_ratings_beside_them_are_kept_only_when_named(write: Write) -> None:
    path = write(["user,item,ts,liked,rating", "a,x,1,yes,3", "a,y,2,No,", "a,z,3,maybe,5"])
    found, _ = read(path, label_from="column")
    assert found.interactions.rows() == [("a", "x", None, 1, 1), ("a", "y", None, 2, 0)]
    assert found.interactions.columns == ["user_id", "item_id", "rating", "timestamp", "label"]
    assert found.rejects["reason"].to_list() == ["label is neither yes nor no"]
    found, _ = read(path, label_from="column", rating_column="rating")
    assert found.interactions["rating"].to_list() == [3.0, None]


def test_a_split_of_ones_own_is_read_with_its_synonyms_said(write: Write) -> None:
    path = write(["user,item,ts,rating,split", "a,x,1,5,train", "a,y,2,5,dev", "a,z,3,5,Test", "a,w,4,5,other"])
    found, said = read(path, split="column")
    assert found.interactions["split"].to_list() == ["train", "validation", "test"]
    assert found.rejects["reason"].to_list() == ["unknown split"]
    assert any("'dev' taken for validation" in line for line in said)
    assert "split" not in read(path)[0].interactions.columns


def test_items_of_a_second_file_bring_titles_categories_and_attributes(write: Write) -> None:
    events = write(["user,sku,ts,rating", "a,x,1,5", "a,y,2,4", "a,q,3,4"])
    items = write(
        ["code;name;category;size;weight", "x;Mug;Kitchen|Gifts;L;1,5", ";No id;;;", "x;Twice;;;", "z;;Garden;;2"],
        "items.csv",
    )
    found, said = read(events, items=str(items), items_id_column="code", max_rejects=3)
    assert found.catalog.columns == ["item_id", "title", "genres", "size", "weight"]
    assert found.catalog.rows() == [
        ("x", "Mug", "Kitchen, Gifts", "L", "1,5"),
        ("z", "item z", "Garden", None, "2"),
        ("y", "item y", "", None, None),
        ("q", "item q", "", None, None),
    ]
    assert [row[:3] for row in found.rejects.rows()] == [
        ("items.csv", 3, "missing field"), ("items.csv", 4, "duplicate of an earlier row"),
    ]  # fmt: skip
    assert "items: 2 that events are about are not in items.csv" in said
    assert "items: 3 have no title and are called by their ids" in said


def test_what_differs_between_an_items_rows_is_no_attribute_of_it(write: Write) -> None:
    rows = ["user,item,ts,rating,maker,mood,only", "a,x,1,5,Acme,good,", "b,x,2,5,Acme,bad,1", "b,y,3,1,Best,good,2",
            "a,y,4,1,,sad,3"]  # fmt: skip
    found, _ = read(write(rows))
    assert found.catalog.columns == ["item_id", "title", "maker"]
    assert found.catalog["maker"].to_list() == ["Acme", "Best"]
    # Whoever names it has it: of several values the first.
    found, _ = read(write(rows), attribute_columns=["mood"])
    assert found.catalog["mood"].to_list() == ["good", "good"]


def test_codes_are_text_and_names_of_the_catalogs_own_columns_are_not_taken_twice(write: Write) -> None:
    rows = ["user_id,product_id,ts,rating,name,item_id,code,n", "a,1,1,5,Mug,77,007,1", "b,1,2,5,Mug,77,007,1"]
    found, _ = read(write(rows), item_column="product_id")
    assert found.catalog.rows(named=True) == [{"item_id": "1", "title": "Mug", "item_id_": 77, "code": "007", "n": 1}]


def test_an_attribute_called_year_that_is_not_all_numbers_is_not_the_year(write: Write) -> None:
    rows = ["user_id,item_id,ts,rating,year,year_", "a,1,1,5,1994,x", "b,2,2,5,c. 1920,y"]
    found, said = read(write(rows), attribute_columns=["year_", "year"])
    assert found.catalog["year__"].to_list() == ["1994", "c. 1920"] and found.catalog["year_"].to_list() == ["x", "y"]
    assert any("'year' holds more than numbers" in line for line in said)
    assert "year" not in found.catalog.columns
    found, _ = read(write([*rows[:2], "b,2,2,5,1920,y"]), attribute_columns=["year"])
    assert found.catalog["year"].to_list() == [1994, 1920]


def test_several_titles_of_one_item_are_said(write: Write) -> None:
    found, said = read(write(["user,item,ts,rating,title", "a,x,1,5,", "b,x,2,5,Mug", "b,x,3,5,Cup"]))
    assert found.catalog["title"].to_list() == ["Mug"]
    assert "items: 1 have several titles; the first is taken" in said


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "the file is empty"),
        (b"\n \n", "nothing but blank lines"),
        (b"user,item,rating,ts\n", "names of columns and no row"),
        (b"just words\nand more\n", "is not divided by commas, semicolons, tabs or vertical bars"),
        (b'[{"user": 1}]', "is not divided by|a JSON list"),
        (b"PAR1 no parquet", "cannot be read as Parquet"),
        (b"\x1f\x8b not gzip", "cannot be read"),
        (b"user,item,rating,ts\na,b,4,soon\n", "no value is a time"),
    ],
)
def test_a_file_that_holds_no_table_is_refused_in_one_line(write: Write, data: bytes, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        read(write(data))
    assert len(str(caught.value).splitlines()) == 1


def test_names_and_notes_of_a_parquet_file_that_are_no_text_end_in_no_stack(tmp_path: Path, capfd: Any) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    columns = {"user": ["a"], "item": ["x"], "ts": [1], "rating": [4.0]}
    noted = pa.table(columns).replace_schema_metadata({b"\x9c": b"\xff"})
    parquet.write_table(noted, tmp_path / "noted.parquet", store_schema=False)
    assert read(tmp_path / "noted.parquet")[0].interactions.height == 1
    parquet.write_table(pa.table(columns), tmp_path / "log.parquet", compression="none")
    whole = (tmp_path / "log.parquet").read_bytes()
    for at in range(4, len(whole) - 8, 7):
        (tmp_path / "log.parquet").write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
        with contextlib.suppress(DataError):
            read(tmp_path / "log.parquet", max_rejects="100%")
    assert "panicked" not in capfd.readouterr().err


def test_a_cut_gzip_file_is_refused(write: Write) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read(write(gzip.compress("\n".join(lines() * 50).encode())[:-30], "log.csv.gz"))


def test_keys_for_tables_are_refused_elsewhere() -> None:
    with pytest.raises(ConfigError, match="user_column: is for tables, and dataset: ml-1m is none"):
        read_source(Config(dataset="ml-1m", user_column="x"), print)
    for values, words in (
        ({"label_column": "x"}, "label_column: does nothing beside label_from: rating"),
        ({"split_column": "x"}, "split_column: does nothing beside split: timeline"),
        ({"items_id_column": "x"}, "items_id_column: does nothing without items"),
    ):
        with pytest.raises(ConfigError, match=words):
            parse_config(values, "test")


def test_a_tables_source_changes_with_either_of_its_files(write: Write) -> None:
    path, items = write(lines()), write(["item_id,title", "i1,Mug"], "items.csv")
    config = Config(dataset=str(path), items=items)
    first = source_of(config)
    assert first["name"] == "log"
    items.write_text("item_id,title\ni1,Cup\n")
    assert source_of(config) != first
    assert Config(dataset="a/log.2024.jsonl.gz").dataset_name() == "log.2024"


cells = st.sampled_from(
    ["u1", "u2", "i1", "4", "4,5", "1600000001", "", " ", '"', '"q', "é", "\ufffd", "nan", "x\ty", "-1"]
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.lists(cells, min_size=1, max_size=6), min_size=1, max_size=30),
    st.sampled_from([",", ";", "\t"]),
    st.sampled_from(["rating", "purchases"]),
)
def test_every_row_is_used_or_rejected(tmp_path: Path, rows: list[list[str]], separator: str, label_from: str) -> None:
    path = tmp_path / "log.csv"
    good = separator.join(("u9", "i9", "3", "1600000009"))
    text = [separator.join(NAMES[:4]), good, *(separator.join(row) for row in rows)]
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    found, _ = read(path, label_from=label_from, max_rejects="100%")
    used, lost = found.interactions.height, found.rejects
    # A record may run over several lines; what it took is in the rejects, or its lines hold a quoted field.
    assert lost["line"].is_sorted() and lost["line"].is_unique().all()
    if not any('"' in cell for row in rows for cell in row):
        assert used + lost.height == 1 + sum(bool(line.strip()) for line in text[2:])
    else:
        assert used + lost.height <= 1 + sum(bool(line.strip()) for line in text[2:])
    assert used >= 1 and lost["reason"].is_not_null().all()
