from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from rectune.data.clean import check_header, line_blocks
from rectune.data.sources.movielens import read_movielens
from rectune.data.sources.source import Source
from rectune.errors import DataError

Write = Callable[..., Path]
HEADER = "userId,movieId,rating,timestamp"


def rejected(read: Source) -> list[tuple[str, int, str, str]]:
    return read.rejects.rows()


def with_ratings(write_set: Write, *extra: str) -> Source:
    return read_movielens(write_set(more_ratings=extra))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("x,1,4.0,1000000000", "user id is not a whole number"),
        ("1.5,1,4.0,1000000000", "user id is not a whole number"),
        ("1,one,4.0,1000000000", "item id is not a whole number"),
        ("1,1,good,1000000000", "rating is not a number"),
        ("1,1,nan,1000000000", "rating is not a number"),
        ("1,1,4.0,yesterday", "timestamp is not a whole number"),
        ("1,,4.0,1000000000", "missing field"),
        ("1,1,4.0", "too few fields"),
        ("1,1,4.0,1000000000,9", "too many fields"),
        ("1,1,5.5,1000000000", "rating outside 0.5 to 5"),
        ("1,1,0,1000000000", "rating outside 0.5 to 5"),
        ("1,99,4.0,1000000000", "unknown movie"),
        ("10,1,4.0,1000000100", "duplicate of an earlier row"),
        ("10,1,2.0,1000000100", "duplicate of an earlier row"),
    ],
)
def test_an_unusable_rating_is_rejected_with_its_line_reason_and_text(write_set: Write, row: str, reason: str) -> None:
    read = with_ratings(write_set, row)
    assert rejected(read) == [("ratings.csv", 16, reason, row)]
    assert read.interactions.height == 14


def test_the_same_film_rated_again_later_is_kept(write_set: Write) -> None:
    read = with_ratings(write_set, "10,1,3.0,1000000700")
    assert read.interactions.height == 15
    assert read.rejects.is_empty()


def test_line_numbers_count_blank_lines_and_survive_windows_line_ends(write_set: Write) -> None:
    lines = ["\ufeff" + HEADER, "10,1,4.0,1000000100", "", "x,1,4.0,1", "10,2,3.5,1000000200", ""]
    read = read_movielens(write_set(ratings="\r\n".join(lines).encode()))
    assert rejected(read) == [("ratings.csv", 4, "user id is not a whole number", "x,1,4.0,1")]
    assert read.interactions["item_id"].to_list() == ["1", "2"]


def test_a_last_line_cut_before_its_last_field_is_rejected(write_set: Write) -> None:
    folder = write_set(more_ratings=("3,4,3.",), end="")
    assert rejected(read_movielens(folder)) == [("ratings.csv", 16, "cut last line", "3,4,3.")]


def test_a_last_line_cut_within_its_timestamp_is_rejected(write_set: Write) -> None:
    folder = write_set(more_ratings=("3,4,3.0,10000003",), end="")
    assert [row[2] for row in rejected(read_movielens(folder))] == ["cut last line"]


def test_a_whole_last_line_without_line_end_is_kept(write_set: Write) -> None:
    read = read_movielens(write_set(end=""))
    assert read.rejects.is_empty()
    assert read.interactions.height == 14


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("6, ,Drama", "empty title"),
        ("six,Alien (1979),Horror", "item id is not a whole number"),
        ("6,Alien (1979)", "too few fields"),
        ("6,Good, Bad and Ugly (1966),Western", "too many fields"),
        ('6,"Alien (1979),Horror', "broken quotes"),
        ("5,Heat again (1995),Action", "duplicate of an earlier row"),
    ],
)
def test_an_unusable_film_is_rejected_and_costs_no_other_film(write_set: Write, row: str, reason: str) -> None:
    read = read_movielens(write_set(more_movies=(row, "7,Fargo (1996),Crime")))
    assert rejected(read) == [("movies.csv", 7, reason, row)]
    assert read.catalog["item_id"].to_list() == ["1", "2", "3", "4", "5", "7"]


def test_a_movies_file_cut_within_a_quoted_title_loses_that_film_only(write_set: Write) -> None:
    read = read_movielens(write_set(more_movies=('6,"Good, the Ba',), end=""))
    assert rejected(read) == [("movies.csv", 7, "cut last line", '6,"Good, the Ba')]


def test_a_film_that_is_not_utf8_is_rejected(write_set: Write) -> None:
    films = b"movieId,title,genres\n1,Heat,\n2,Shine,\n6,Am\xe9lie (2001),Comedy\n"
    read = read_movielens(write_set(movies=films, ratings=[HEADER, "1,1,4.0,1000000000"]))
    assert [row[:3] for row in rejected(read)] == [("movies.csv", 4, "not UTF-8 text")]


def test_a_title_with_a_role_marker_is_kept_as_text(write_set: Write) -> None:
    read = read_movielens(write_set(more_movies=("6,Trick <|im_end|> (1999),Drama",)))
    assert read.catalog["title"][-1] == "Trick <|im_end|> (1999)"


def test_a_renamed_column_is_named_with_the_nearest_and_the_found_ones(write_set: Write) -> None:
    rows = ["userId,movieId,ratings,timestamp", "1,1,4.0,1000000000"]
    with pytest.raises(DataError, match=r"missing column rating \(nearest: ratings\); found userId, movieId, ratings"):
        read_movielens(write_set(ratings=rows))


def test_two_missing_columns_are_named_at_once() -> None:
    with pytest.raises(DataError, match="missing columns title, genres; found movieId"):
        check_header(["movieId"], ("movieId", "title", "genres"), "movies.csv")


def test_columns_may_come_in_any_order_beside_others(write_set: Write) -> None:
    rows = ["timestamp,source,rating,movieId,userId", "1000000100,web,4.0,5,10"]
    assert read_movielens(write_set(ratings=rows)).interactions.rows() == [("10", "5", 4.0, 1000000100)]


@pytest.mark.parametrize("data", [b"", b"\n\n", HEADER.encode() + b"\n"])
def test_an_empty_ratings_file_is_an_error(write_set: Write, data: bytes) -> None:
    with pytest.raises(DataError, match=r"ratings\.csv: the file is empty"):
        read_movielens(write_set(ratings=data))


def test_an_empty_movies_file_is_an_error(write_set: Write) -> None:
    with pytest.raises(DataError, match=r"movies\.csv: the file is empty"):
        read_movielens(write_set(movies=b""))


def test_mostly_unusable_rows_are_an_error_with_the_commonest_reason(write_set: Write) -> None:
    bad = [f"{user},1,9.0,1000000000" for user in range(13)] + ["x,1,4.0,1000000000"] * 2
    with pytest.raises(DataError, match=r"15 of 29 rows cannot be used, 13 of them for: rating outside 0\.5 to 5"):
        with_ratings(write_set, *bad)


def test_exactly_half_unusable_rows_are_still_read(write_set: Write) -> None:
    bad = [f"{user},1,9.0,1000000000" for user in range(14)]
    assert with_ratings(write_set, *bad).rejects.height == 14


@pytest.mark.parametrize("block", [1, 2, 7, 1000])
def test_reading_in_blocks_gives_the_same_lines(block: int) -> None:
    data = b"ab\r\n\ncd\nef gh\n\nij"
    lines = pl.concat(line_blocks(io.BytesIO(data), block=block))
    assert lines.rows() == [(1, "ab", True), (3, "cd", True), (4, "ef gh", True), (6, "ij", False)]
