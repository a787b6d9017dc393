"""Delimited text taken apart: every record is used or has a reason, with the line it begins in."""

from __future__ import annotations

import csv
import io
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rectune.data.sources import records
from rectune.data.sources.records import read_records, separator_of


def read(text: str, separator: str = ",") -> tuple[list[str], list[tuple[Any, ...]]]:
    names, *frames = read_records(io.StringIO(text), separator)
    rows = [row for frame in frames if isinstance(frame, pl.DataFrame) for row in frame.rows()]
    assert isinstance(names, list)
    return names, rows


def test_plain_lines_are_divided_and_counted_from_the_files_first_line() -> None:
    names, rows = read("\na,b\n\n1,x\n2,\n")
    assert names == ["a", "b"]
    assert rows == [(4, "1,x", None, "1", "x"), (5, "2,", None, "2", "")]


def test_a_quoted_field_may_hold_separators_quotes_and_line_ends() -> None:
    _, rows = read('a,b\n1,"x, ""y""\nand more"\n2,z\n')
    assert rows == [(2, '1,"x, ""y""\nand more"', None, "1", 'x, "y"\nand more'), (4, "2,z", None, "2", "z")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("1", "too few fields"),
        ("1,2,3", "too many fields"),
        ('"1","2","3"', "too many fields"),
        ('1,"x', "broken quotes"),
        ('1,"x"y', "broken quotes"),
    ],
)
def test_a_bad_line_costs_one_row(line: str, reason: str) -> None:
    _, rows = read(f"a,b\n{line}\n2,z\n3,w\n")
    assert [row[:3] for row in rows] == [(2, line, reason), (3, "2,z", None), (4, "3,w", None)]


def test_a_quote_that_is_never_closed_costs_one_row_and_not_the_rest_of_the_file() -> None:
    lines = "".join(f"{number},x\n" for number in range(500))
    _, rows = read('a,b\n1,"open\n' + lines)
    assert len(rows) == 501 and rows[0][2] == "broken quotes" and all(row[2] is None for row in rows[1:])


def test_many_quotes_that_are_never_closed_take_no_longer_than_as_many_lines() -> None:
    # Each could go on in any of the lines behind it: reading them anew for each would take minutes.
    _, rows = read("a,b\n" + '1,"open\n1,x\n' * 20_000)
    assert len(rows) + sum("\n" in row[1] for row in rows) + sum(row[1].count("\n") > 1 for row in rows) >= 20_000


def test_a_last_line_without_its_end_and_fields_is_cut() -> None:
    for last in ("3", '3,"x'):
        _, rows = read(f"a,b\n1,x\n{last}")
        assert rows[-1][:3] == (3, last, "cut last line")
    assert read("a,b\n1,x\n3,y")[1][-1][2] is None


def test_records_do_not_depend_on_where_blocks_end(monkeypatch: pytest.MonkeyPatch) -> None:
    text = 'a,b\n1,"x\ny"\n\n2,z\n"3","w"\n4,"o\n5,p\n'
    whole = read(text)
    for size in range(6, len(text)):
        monkeypatch.setattr(records, "_BLOCK", size)
        assert read(text) == whole, size


@pytest.mark.parametrize(
    ("lines", "sign"),
    [
        (["a,b", "1,2"], ","),
        (["a;b;c", "1;2,5;x, y", "2;3,0;z, w"], ";"),
        (["a\tb", "1\tx,y"], "\t"),
        (["a|b|c", "1|x,y|2"], "|"),
        (["a,b;c", "1,2;3", "1,2,4;3"], ";"),
        (["word", "other"], None),
    ],
)
def test_the_separator_is_the_sign_that_gives_lines_the_headers_number_of_fields(lines: list[str], sign: str) -> None:
    assert separator_of(lines) == sign


cells = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from(['"', ",", "\n", ";"]), max_size=8)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(cells, cells, cells), max_size=12), st.sampled_from(",;\t|"))
def test_what_a_csv_writer_wrote_is_read_back(rows: list[tuple[str, str, str]], separator: str) -> None:
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter=separator, quoting=csv.QUOTE_MINIMAL, lineterminator="\n")
    writer.writerow(["a", "b", "c"])
    writer.writerows(rows)
    _, found = read(stream.getvalue(), separator)
    # A line of white space alone is a blank line; a writer makes none of three fields but with tabs.
    expected = [row for row in rows if separator != "\t" or any(field.strip() for field in row)]
    assert [row[3:] for row in found] == expected and all(row[2] is None for row in found)


@settings(max_examples=150, deadline=None)
@given(st.text(st.sampled_from('a1",;\n\r\t| é\x00'), max_size=120))
def test_every_line_with_text_is_in_exactly_one_record(text: str) -> None:
    stream = io.StringIO("a,b\n" + text, newline=None)
    body = stream.getvalue()[4:]
    _, *frames = read_records(stream, ",")
    rows = [row for frame in frames if isinstance(frame, pl.DataFrame) for row in frame.rows()]
    taken = [row[0] + extra for row in rows for extra in range(row[1].count("\n") + 1)]
    lines = body.split("\n")
    assert len(set(taken)) == len(taken)
    inside = [line for line in range(2, len(lines) + 2) if lines[line - 2].strip()]
    assert set(inside) <= set(taken) <= set(range(2, len(lines) + 2))
    assert all((row[2] is None) == (row[3] is not None) for row in rows)
