"""A file of pairs: what is read, what is refused and on which line, what is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from rectune.errors import ConfigError, DataError
from rectune.score.pair_file import Pairs, check_output, read_pairs, write_pairs

TWO = {"user_id": ["1", "2"], "item_id": ["03", "4"]}


def written(folder: Path, name: str, content: str | bytes) -> Path:
    file = folder / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def refused(file: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_pairs(file)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_ids_are_text_and_other_columns_stay_in_all_three_formats(tmp_path: Path) -> None:
    csv = read_pairs(written(tmp_path, "a.csv", 'note,user_id,item_id\n007,1,03\n"a,\nb",2,4\n'))
    assert csv.table.to_dict(as_series=False) == {"note": ["007", "a,\nb"], **TWO}
    lines = '{"user_id": 1, "item_id": "03", "rank": 7}\n{"user_id": "2", "item_id": 4, "late": [1.5]}\n'
    jsonl = read_pairs(written(tmp_path, "a.jsonl", lines))
    assert jsonl.table.to_dict(as_series=False) == {**TWO, "rank": [7, None], "late": [None, [1.5]]}
    pl.DataFrame({"user_id": [1, 2], "item_id": ["03", "4"], "at": [1.5, None]}).write_parquet(tmp_path / "a.parquet")
    parquet = read_pairs(tmp_path / "a.parquet")
    assert parquet.table.to_dict(as_series=False) == {**TWO, "at": [1.5, None]}


def test_spreadsheet_files_with_a_mark_carriage_returns_and_empty_lines_are_read(tmp_path: Path) -> None:
    pairs = read_pairs(written(tmp_path, "a.csv", b"\xef\xbb\xbfuser_id,item_id\r\n1,03\r\n\r\n2,4\r\n,\r\n\r\n"))
    assert pairs.table.to_dict(as_series=False) == TWO
    assert pairs.place(1) == "line 4"


def test_a_place_is_the_line_of_the_file_whatever_stands_before_it(tmp_path: Path) -> None:
    # The second record takes lines 3 and 4, line 5 is empty, so the third record stands on line 6.
    pairs = read_pairs(written(tmp_path, "a.csv", 'user_id,item_id,note\n1,2,x\n3,4,"a\nb"\n\n5,6,y\n'))
    assert [pairs.place(row) for row in range(3)] == ["line 2", "line 3", "line 6"]
    pairs = read_pairs(written(tmp_path, "a.jsonl", '\n{"user_id": 1, "item_id": 2}\n\n{"user_id": 1, "item_id": 3}\n'))
    assert [pairs.place(row) for row in range(2)] == ["line 2", "line 4"]
    assert Pairs(tmp_path / "a.parquet", pairs.table).place(1) == "row 2"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "user_id,film\n1,2\n", "the column item_id is missing; found: user_id, film"),
        ("a.jsonl", '{"item_id": 1}\n', "the column user_id is missing; found: item_id"),
        ("a.csv", "", "holds no pairs"),
        ("a.csv", "\n\n", "holds no pairs"),
        ("a.csv", "user_id,item_id\n", "holds no pairs"),
        ("a.jsonl", "\n \n", "holds no pairs"),
        ("a.csv", "user_id,item_id\n1,2\n1,2,3\n", "cannot be read as csv (line 3 has 3 fields, the header 2)"),
        ("a.csv", b"user_id,item_id\n\xff\xff,3\n", "cannot be read as csv ("),
        ("a.jsonl", '{"user_id": 1, "item_id": 2}\n\n{"user_id":\n', "cannot be read as jsonl (line 3 is no JSON"),
        ("a.jsonl", '[{"user_id": 1}]\n', "cannot be read as jsonl (line 1 is no JSON object)"),
        ("a.parquet", b"PAR1", "cannot be read as parquet ("),
        ("a.csv", "user_id,item_id\n1,2\n,2\n1,\n", "1 rows have no user_id, the first on line 3"),
        (
            "a.jsonl",
            '{"user_id": 1, "item_id": 2}\n{"user_id": 1, "item_id": null}\n',
            "no item_id, the first on line 2",
        ),
        ("a.csv", "user_id,item_id,score\n1,2,3\n", "has a column 'score' already"),
        ("a.txt", "user_id,item_id\n1,2\n", "allowed: .csv, .parquet, .jsonl"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_one_line(
    name: str, content: str | bytes, said: str, tmp_path: Path
) -> None:
    file = written(tmp_path, name, content)
    message = refused(file)
    assert said in message and str(file) in message


def test_a_missing_file_and_ids_that_are_fractions_are_refused(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "none.csv")
    (tmp_path / "folder.csv").mkdir()
    assert "no such file" in refused(tmp_path / "folder.csv")
    pl.DataFrame({"user_id": [1.0], "item_id": [2]}).write_parquet(tmp_path / "a.parquet")
    assert "user_id is Float64; ids are text or whole numbers" in refused(tmp_path / "a.parquet")


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_what_is_written_reads_back(suffix: str, tmp_path: Path) -> None:
    table = pl.DataFrame({**TWO, "score": [0.1 + 0.2, 1e-9]})
    write_pairs(table, tmp_path / "new" / f"a.{suffix}")
    read: dict[str, Any] = {"csv": pl.read_csv, "jsonl": pl.read_ndjson, "parquet": pl.read_parquet}
    back = read[suffix](tmp_path / "new" / f"a.{suffix}")
    assert back["score"].to_list() == table["score"].to_list()
    assert [file.name for file in (tmp_path / "new").iterdir()] == [f"a.{suffix}"]


def test_an_output_that_cannot_be_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    pairs = read_pairs(written(tmp_path, "a.jsonl", '{"user_id": 1, "item_id": 2, "tags": [1]}\n'))
    (tmp_path / "folder.csv").mkdir()
    for output, said in (
        ("a.xlsx", "allowed with --pairs: a file ending in .csv, .parquet, .jsonl"),
        ("folder.csv", "is a folder"),
        ("a.jsonl", "is the file of pairs itself"),
        ("b.csv", "the column tags cannot be written as CSV"),
    ):
        with pytest.raises(ConfigError) as caught:
            check_output(pairs, tmp_path / output)
        assert said in str(caught.value)
    check_output(pairs, tmp_path / "b.parquet")
