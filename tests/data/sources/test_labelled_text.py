"""Texts with labels out of tables: columns, classes, repeated texts, and what becomes of rows that cannot be used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rectune.config import Config, parse_config
from rectune.data.sources.labelled_text import Columns, as_lines, labels_of, read_labelled_text
from rectune.errors import DataError
from rectune.wording import one_line

LABELS = {"Rules Question": "RQ", "Other": "O"}


def silent(_line: str) -> None:
    """Say nothing."""


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Config]:
    def build(**values: Any) -> Config:
        base = {"task": "classify", "dataset": str(tmp_path / "a.csv"), "labels": LABELS}
        return parse_config({**base, **values}, "test")

    return build


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def go(text: str, name: str = "a.csv", encoding: str = "utf-8") -> Path:
        (tmp_path / name).write_bytes(text.encode(encoding))
        return tmp_path / name

    return go


def test_of_two_classes_the_first_named_is_label_one(make: Callable[..., Config], write: Any) -> None:
    path = write("text,label\nmay I?,rules question \nnice,Other\nlook,OTHER\n")
    found = read_labelled_text(make(), path, silent)
    assert found.interactions["label"].to_list() == [1, 0, 0]
    assert found.catalog["title"].to_list() == ["may I?", "nice", "look"]
    assert found.interactions["user_id"].to_list() == found.interactions["item_id"].to_list() == ["1", "2", "3"]


def test_the_same_text_is_one_item_whatever_its_case_and_spacing(make: Callable[..., Config], write: Any) -> None:
    path = write('text,label\n"May  I\nmove?",Other\nnice,Rules Question\nmay i move?,Other\n')
    found = read_labelled_text(make(), path, silent)
    assert found.interactions["item_id"].to_list() == ["1", "2", "1"]
    assert found.catalog["title"].to_list() == ["May I move?", "nice"]


def test_rows_that_cannot_be_used_are_kept_with_line_and_reason(make: Callable[..., Config], write: Any) -> None:
    path = write("text;label\nmay I?;Rules Question\n  ;Other\nwhat;\nhm;Perhaps\nnice;Other\nfine;Other\nyes;Other\n")
    found = read_labelled_text(make(), path, silent)
    assert found.rejects.select("line", "reason").rows() == [
        (3, "missing field"), (4, "missing field"), (5, "label is none of the classes"),
    ]  # fmt: skip
    assert found.interactions.height + found.rejects.height == 7
    with pytest.raises(DataError, match=r"line 3 cannot be used: missing field .*max_rejects=0"):
        read_labelled_text(make(max_rejects=0), path, silent)


def test_without_classes_the_error_lists_what_the_column_holds(make: Callable[..., Config], write: Any) -> None:
    path = write("body,kind\na,x\nb,x\nc,y\n")
    config = make(labels={}, text_column="body", label_column="kind")
    with pytest.raises(DataError, match=r"labels: not given; the column 'kind' holds 'x' \(2\), 'y' \(1\); write"):
        read_labelled_text(config, path, silent)
    other = make(text_column="body", label_column="kind", labels={"x": "A", "z": "B"})
    with pytest.raises(DataError, match=r"labels: no row is 'z'; the column 'kind' holds 'x'"):
        read_labelled_text(other, path, silent)


def test_a_column_that_no_name_tells_must_be_named(make: Callable[..., Config], write: Any) -> None:
    path = write("words,label\na,Other\n")
    with pytest.raises(DataError, match=r"text_column: no column's name says so; found words, label"):
        read_labelled_text(make(), path, silent)
    with pytest.raises(DataError, match=r"text_column: no column 'word' \(nearest: 'words'\)"):
        read_labelled_text(make(text_column="word"), path, silent)
    with pytest.raises(DataError, match="text_column and label_column are both 'label'"):
        read_labelled_text(make(text_column="label"), path, silent)


def test_a_text_of_a_later_split_is_taken_out_of_the_earlier_one(make: Callable[..., Config], write: Any) -> None:
    rows = [
        ("a", "Other", "train"), ("A", "Other", "test"), ("b", "Other", "train"), ("b", "Other", "train"),
        ("c", "Rules Question", "dev"), ("c", "Rules Question", "test"), ("d", "Other", "someday"),
    ]  # fmt: skip
    path = write("text,label,part\n" + "".join(f"{','.join(row)}\n" for row in rows))
    found = read_labelled_text(make(split_column="part"), path, silent)
    assert found.rejects.select("line", "reason").rows() == [
        (2, "the same text is in a later split"), (6, "the same text is in a later split"), (8, "unknown split"),
    ]  # fmt: skip
    assert found.interactions["split"].to_list() == ["test", "train", "train", "test"]


def test_a_column_of_users_makes_them_the_units(make: Callable[..., Config], write: Any) -> None:
    path = write("text,label,author\na,Other,u1\nb,Rules Question,u1\nc,Other,\nd,Other,u2\n")
    found = read_labelled_text(make(user_column="author"), path, silent)
    assert found.interactions["user_id"].to_list() == ["u1", "u1", "u2"]
    assert found.rejects["line"].to_list() == [4]


def test_encodings_and_separators_are_those_of_every_table(make: Callable[..., Config], write: Any) -> None:
    path = write("text;label\nschöne Grüße;Other\ndürfen wir?;Rules Question\n", encoding="cp1252")
    said: list[str] = []
    assert read_labelled_text(make(), path, said.append).catalog["title"][0] == "schöne Grüße"
    assert said[0] == "a.csv: read as Windows-1252, columns divided by semicolons"


def test_a_known_file_may_say_its_labels_otherwise(make: Callable[..., Config], write: Any) -> None:
    path = write("Review Text,Recommended IND\nfine,1\nbad,0\n")
    columns = Columns("Review Text", "Recommended IND", {"1": "Good", "0": "Bad"})
    found = read_labelled_text(make(labels={"Bad": "No", "Good": "Yes"}), path, silent, columns)
    assert found.interactions["label"].to_list() == [0, 1]


def test_numbers_are_classes_too(make: Callable[..., Config], tmp_path: Path) -> None:
    pl.DataFrame({"text": ["a", "b", "c"], "label": [0, 1, None]}).write_parquet(tmp_path / "a.parquet")
    config = make(labels={1: "B", 0: "A"})
    assert config.labels == {"1": "B", "0": "A"}
    found = read_labelled_text(config, tmp_path / "a.parquet", silent)
    assert found.interactions["label"].to_list() == [0, 1] and found.rejects.height == 1


@given(st.lists(st.text(), max_size=20))
def test_texts_are_put_on_one_line_as_prompts_have_them(texts: list[str]) -> None:
    clean = [text.encode("utf-8", "ignore").decode() for text in texts]
    found = as_lines(pl.Series(clean, dtype=pl.String)).to_list()
    assert [one_line(one or "") for one in found] == [one_line(text) for text in clean]
    assert all(one is None or one.strip() for one in found)


@given(st.lists(st.sampled_from(["a", " A", "b", "B ", "c", "", None]), min_size=1, max_size=20))
def test_a_label_is_a_class_or_none(said: list[str | None]) -> None:
    found = labels_of(pl.Series(said, dtype=pl.String), ("a", "b"), {}).to_list()
    wanted = {"a": 0, "b": 1}
    assert found == [wanted.get((one or "").strip().lower()) for one in said]
