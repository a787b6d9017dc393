"""Ids, times, ratings, labels and splits, each read by hand."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rectune.data.sources.table_values import as_text, ids, label_words, numbers, split_words, times, uses_commas, words
from rectune.errors import DataError

# 2024-05-31 08:30:00 UTC
MOMENT = 1717144200


@pytest.mark.parametrize(
    ("value", "expected", "said"),
    [
        (str(MOMENT), MOMENT, "seconds since 1970"),
        (f"{MOMENT}000", MOMENT * 10**3, "milliseconds since 1970"),
        (f"{MOMENT}000000", MOMENT * 10**6, "microseconds since 1970"),
        (f"{MOMENT}000000001", MOMENT * 10**9 + 1, "nanoseconds since 1970"),
        (f"{MOMENT}.0", MOMENT, "seconds since 1970"),
        (f"{MOMENT}.25", MOMENT * 10**6 + 250_000, "seconds since 1970 with fractions, kept in microseconds"),
        ("17", 17, "whole numbers that order events, no dates"),
        ("2024-05-31T08:30:00Z", MOMENT, "by their zones, kept in seconds"),
        ("2024-05-31T08:30:00+00:00", MOMENT, "by their zones, kept in seconds"),
        ("2024-05-31 10:30:00+02:00", MOMENT, "by their zones, kept in seconds"),
        ("2024-05-31T04:00:00-0430", MOMENT, "by their zones, kept in seconds"),
        ("2024-05-31 08:30", MOMENT, "taken as UTC, kept in seconds"),
        ("2024-05-31 08:30:00.5", MOMENT * 10**6 + 500_000, "taken as UTC, kept in microseconds"),
        ("2024-05-31", MOMENT - 30_600, "year-month-day dates, kept in seconds"),
        ("20240531", MOMENT - 30_600, "year-month-day dates, kept in seconds"),
        ("2024/5/31", MOMENT - 30_600, "year-month-day dates, kept in seconds"),
        ("31.05.2024", MOMENT - 30_600, "day.month.year dates, kept in seconds"),
        ("31/05/2024 08:30", MOMENT, "day/month/year dates with times of the day, taken as UTC"),
        ("5/31/2024", MOMENT - 30_600, "month/day/year dates, kept in seconds"),
    ],
)
def test_a_time_is_read_in_the_form_that_it_has(value: str, expected: int, said: str) -> None:
    found = times(pl.Series([value, None, ""]), "when")
    assert found.values.to_list() == [expected, None, None] and found.values.dtype == pl.Int64
    assert said in found.said


def test_dates_that_could_be_read_in_two_ways_are_refused_and_one_day_above_twelve_decides() -> None:
    with pytest.raises(DataError, match=r"when: dates such as '05/06/2024' could be day/month or month/day"):
        times(pl.Series(["05/06/2024", "07/08/2024"]), "when")
    assert times(pl.Series(["05/06/2024", "13/06/2024"]), "when").values[0] == int(
        datetime(2024, 6, 5, tzinfo=UTC).timestamp()
    )


def test_what_is_no_time_is_null_and_a_column_of_nothing_else_is_refused() -> None:
    found = times(pl.Series([str(MOMENT), str(MOMENT + 1), "soon", "2024-13-01"]), "when")
    assert found.values.to_list() == [MOMENT, MOMENT + 1, None, None]
    found = times(pl.Series(["2024-05-31", "2024-02-30", "2024-05-31T25:00:00"]), "when")
    assert found.values.to_list() == [MOMENT - 30_600, None, None]
    with pytest.raises(DataError, match="when: no value is a time, such as 'soon'; write seconds since 1970"):
        times(pl.Series(["soon", "later"]), "when")
    with pytest.raises(DataError, match="when: holds nothing"):
        times(pl.Series([None, ""], dtype=pl.String), "when")


def test_times_of_a_parquet_file_keep_their_types_meaning() -> None:
    stamp = datetime(2024, 5, 31, 8, 30)
    assert times(pl.Series([stamp, None]), "when").values.to_list() == [MOMENT, None]
    assert times(pl.Series([stamp.replace(tzinfo=UTC)]), "when").values.to_list() == [MOMENT]
    assert times(pl.Series([date(2024, 5, 31)]), "when").values.to_list() == [MOMENT - 30_600]
    assert times(pl.Series([MOMENT, None]), "when").values.to_list() == [MOMENT, None]
    assert times(pl.Series([float(MOMENT), None]), "when").values.to_list() == [MOMENT, None]
    assert times(pl.Series([stamp]).dt.cast_time_unit("ns"), "when").values.to_list() == [MOMENT]


@settings(max_examples=60, deadline=None)
@given(
    st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30)).map(lambda moment: moment.replace(microsecond=0)),
    st.integers(-23, 23),
)
def test_a_date_in_any_zone_is_the_same_moment_that_python_reads(moment: datetime, hours: int) -> None:
    zoned = moment.replace(tzinfo=timezone(timedelta(hours=hours)))
    expected = round((zoned - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds())
    assert times(pl.Series([zoned.isoformat()]), "when").values.to_list() == [expected]


def test_numbers_take_a_decimal_point_or_comma_and_nothing_that_is_not_finite() -> None:
    found = numbers(pl.Series(["4.5", " 4,5 ", ",5", "-1", "1e3", "1.234,5", "nan", "inf", "", None, "1e99"]))
    assert found.to_list() == [4.5, 4.5, 0.5, -1.0, 1000.0, None, None, None, None, None, None]
    assert uses_commas(pl.Series(["4", "4,5"])) and not uses_commas(pl.Series(["4.5", "a,b"]))
    assert numbers(pl.Series([4, None])).to_list() == [4.0, None]
    assert numbers(pl.Series([float("nan"), 2.5])).to_list() == [None, 2.5]


def test_ids_are_text_without_space_and_pandas_floats_are_whole_numbers() -> None:
    assert ids(pl.Series([" 007 ", "7", "", " "])).to_list() == ["007", "7", None, None]
    assert ids(pl.Series([5.0, 5.5, None, float("nan")])).to_list() == ["5", "5.5", None, None]
    assert ids(pl.Series([5, 6])).to_list() == ["5", "6"]
    assert ids(pl.Series(["a"], dtype=pl.Categorical)).to_list() == ["a"]


def test_words_of_labels_and_splits_are_known_without_regard_to_case() -> None:
    known = label_words("Bought", "Left")
    found = words(pl.Series(["Yes", "0", " TRUE", "bought", "left", "maybe", None, "-1"]), known, pl.UInt8)
    assert found.to_list() == [1, 0, 1, 1, 0, None, None, 0] and found.dtype == pl.UInt8
    assert words(pl.Series([True, False]), known, pl.UInt8).to_list() == [1, 0]
    assert words(pl.Series([1.0, 0.0]), known, pl.UInt8).to_list() == [1, 0]
    found = words(pl.Series(["Train", "dev", "VAL", "valid", "test", "other"]), split_words(), pl.String)
    assert found.to_list() == ["train", "validation", "validation", "validation", "test", None]


def test_any_column_can_be_text() -> None:
    assert as_text(pl.Series([["a", None, "b"], [], None])).to_list() == ["a, b", "", None]
    assert as_text(pl.Series([[1, 2]])).to_list() == ["1, 2"]
    assert as_text(pl.Series([True, None])).to_list() == ["true", None]
    assert as_text(pl.Series([{"a": 1}])).to_list() == ['{"a":1}']
    assert as_text(pl.Series([b"x"])).to_list() == ["b'x'"]
    assert as_text(pl.Series([[["a"], ["b"]]])).to_list() == ["[['a'], ['b']]"]


def test_columns_of_unfit_types_hold_no_times_and_no_numbers() -> None:
    nested = pl.Series([["a"], ["b"]])
    assert numbers(nested).to_list() == [None, None]
    with pytest.raises(DataError, match="when: no value is a time, such as 'a'"):
        times(nested, "when")
    assert times(pl.Series([MOMENT * 10**9 + 1, None]), "when").values.to_list() == [MOMENT * 10**9 + 1, None]
