"""Columns of a table as values: ids, times, ratings, labels and splits, each null where it cannot be read."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import polars as pl

from rectune.data import columns as c
from rectune.data.sources.table_file import TableFile
from rectune.errors import DataError

_UNITS = (("seconds", 1e11), ("milliseconds", 1e14), ("microseconds", 1e17), ("nanoseconds", float("inf")))
"""Units of times since 1970, and below which size a time is in them: 1e11 seconds are in the year 5138."""
_PER_SECOND = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
_EARLIEST = 10**8
"""Smaller numbers (before 1973, in seconds) are taken for numbers that only order events."""
_CLOCK = r"(?:[T ]+(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2})(?:[.,](?P<part>\d{1,9})\d*)?)?)?"
_ZONE = r"\s*(?P<zone>Z|UTC|GMT|[+-]\d{2}:?\d{2}|[+-]\d{2})?$"
_DATES = {
    "year-month-day": r"^(?P<year>\d{4})[-/.]?(?P<month>\d{1,2})[-/.]?(?P<day>\d{1,2})",
    "day.month.year": r"^(?P<day>\d{1,2})\.(?P<month>\d{1,2})\.(?P<year>\d{4})",
    "day/month/year": r"^(?P<day>\d{1,2})[/-](?P<month>\d{1,2})[/-](?P<year>\d{4})",
    "month/day/year": r"^(?P<month>\d{1,2})[/-](?P<day>\d{1,2})[/-](?P<year>\d{4})",
}
_COMPACT = r"^(19|20)\d{2}(0\d|1[0-2])([0-2]\d|3[01])$"
_LARGEST = 10.0**15

LABEL_WORDS = {
    1: ("1", "1.0", "true", "t", "yes", "y", "like", "liked", "positive", "pos", "good", "up", "click", "clicked"),
    0: ("0", "0.0", "-1", "-1.0", "false", "f", "no", "n", "dislike", "disliked", "negative", "neg", "bad", "down",
        "skip", "skipped"),
}  # fmt: skip
"""What a label may be called, in small letters."""
SPLIT_WORDS = {
    c.WARMUP: ("warmup", "warm-up", "warm_up", "history"),
    c.TRAIN: ("train", "training"),
    c.VALIDATION: ("validation", "valid", "val", "dev", "development"),
    c.TEST: ("test", "testing", "holdout"),
}
"""What a split may be called, in small letters."""


class Times(NamedTuple):
    """Times as whole numbers, and how they were read.

    Attributes:
        values: Int64; null where a value is no time.
        unit: seconds, milliseconds, microseconds or nanoseconds since 1970; empty where they only order events.
        said: the same for a person.
    """

    values: pl.Series
    unit: str
    said: str


def rows_of(table: TableFile, wanted: Sequence[str]) -> pl.DataFrame:
    """All rows of a table, see `TableFile.blocks`; columns that are neither numbers nor times are text.

    Raises:
        DataError: there are none.
    """
    frames = list(table.blocks(wanted))
    if not frames or not any(frame.height for frame in frames):
        raise DataError(f"{table.path.name}: the file holds names of columns and no row")
    rows = pl.concat(frames)
    kept = (pl.String, pl.Boolean)
    odd = [name for name, kind in rows.schema.items() if not (kind.is_numeric() or kind.is_temporal() or kind in kept)]
    return rows.with_columns(as_text(rows[name]).alias(name) for name in odd)


def ids(values: pl.Series) -> pl.Series:
    """Ids as text without white space around it; null where empty. 5.0 is 5, which pandas makes of a column with gaps.

    >>> ids(pl.Series([" a ", "", None])).to_list(), ids(pl.Series([5.0, None])).to_list()
    (['a', None, None], ['5', None])
    """
    if values.dtype.is_float():
        whole = values.cast(pl.Int64, strict=False)
        exact = (whole.cast(pl.Float64) == values.cast(pl.Float64)).fill_null(False)
        texts = values.fill_nan(None).cast(pl.String).zip_with(~exact, whole.cast(pl.String))
    else:
        texts = as_text(values)
    texts = texts.str.strip_chars()
    return texts.set(texts.str.len_bytes() == 0, None)


def as_text(values: pl.Series) -> pl.Series:
    """Any column as text; lists are joined by ", "; null stays null."""
    if values.dtype == pl.String:
        return values
    if isinstance(values.dtype, (pl.List, pl.Array)):
        inner = values.dtype.inner
        listed = values.cast(pl.List(inner))
        if isinstance(inner, (pl.List, pl.Array, pl.Struct, pl.Binary, pl.Object)):
            return pl.Series(values.name, [None if one is None else str(one) for one in values.to_list()], pl.String)
        return listed.list.eval(pl.element().cast(pl.String).drop_nulls()).list.join(", ")
    if isinstance(values.dtype, pl.Struct):
        return values.struct.json_encode()
    if isinstance(values.dtype, (pl.Binary, pl.Object)):
        return pl.Series(values.name, [None if one is None else str(one) for one in values.to_list()], pl.String)
    return values.cast(pl.String)


def numbers(values: pl.Series, largest: float = _LARGEST) -> pl.Series:
    """Numbers as Float64, with a decimal point or a decimal comma; null where a value is none, or not finite.

    >>> numbers(pl.Series(["4.5", " 4,5", "1,234.5", "much", "inf"])).to_list()
    [4.5, 4.5, None, None, None]
    """
    if not values.dtype.is_numeric() and values.dtype != pl.Boolean:
        texts = as_text(values).str.strip_chars()
        values = pl.select(
            pl.when(texts.str.contains(r"^[+-]?\d*,\d+$"))
            .then(texts.str.replace(",", ".", literal=True))
            .otherwise(texts)
        ).to_series()
    found = values.cast(pl.Float64, strict=False)
    return found.set((~(found.abs() < largest)).fill_null(True), None)


def uses_commas(values: pl.Series) -> bool:
    """Whether numbers are written with a decimal comma."""
    return values.dtype == pl.String and bool(values.str.contains(r"^\s*[+-]?\d*,\d+\s*$").any())


def words(values: pl.Series, known: dict[str, int] | dict[str, str], dtype: type[pl.DataType]) -> pl.Series:
    """Values by their words, without regard to case; null where a word is not known."""
    texts = as_text(values).str.strip_chars().str.to_lowercase()
    return texts.replace_strict(known, default=None, return_dtype=dtype)


def label_words(positive: str, negative: str) -> dict[str, int]:
    """0 or 1 by what a label may be called, the configuration's own two words among them."""
    known = {word: label for label, all_words in LABEL_WORDS.items() for word in all_words}
    return known | {positive.strip().lower(): 1, negative.strip().lower(): 0}


def split_words() -> dict[str, str]:
    """The splits by what they may be called."""
    return {word: split for split, all_words in SPLIT_WORDS.items() for word in all_words}


def times(values: pl.Series, column: str) -> Times:
    """Times of a column, whatever it holds: numbers since 1970 in any unit, numbers that only order, or dates.

    Raises:
        DataError: dates could be read in two ways, or nothing in the column is a time.
    """
    if isinstance(values.dtype, (pl.Datetime, pl.Date)):
        micro = (
            values.cast(pl.Datetime("us"), strict=False) if values.dtype == pl.Date else values.dt.cast_time_unit("us")
        )
        return _coarsest(micro.dt.epoch("us"), "dates, as the file has them")
    number = numbers(values, 2.0**63)
    if values.dtype.is_numeric() or values.dtype == pl.Boolean:
        return _of_numbers(values, number)
    values = as_text(values)
    filled = values.str.strip_chars()
    filled = filled.filter(filled != "")
    compact = bool(filled.str.contains(_COMPACT).all())
    if number.count() * 2 >= max(len(filled), 1) and not compact:
        return _of_numbers(values, number)
    return _of_texts(values, column, number)


def _of_numbers(values: pl.Series, number: pl.Series) -> Times:
    exact = values.str.strip_chars().cast(pl.Int64, strict=False) if values.dtype == pl.String else values
    if exact.dtype.is_float() or exact.dtype == pl.Boolean or isinstance(exact.dtype, pl.Decimal):
        exact = pl.Series([None] * len(values), dtype=pl.Int64)
    # A number of nanoseconds is beyond what a float holds to the last digit, and beyond what `numbers` takes.
    exact = exact.cast(pl.Int64, strict=False)
    size = exact.cast(pl.Float64).fill_null(number).abs().median()
    unit = next(name for name, below in _UNITS if (size if isinstance(size, (int, float)) else 0.0) < below)
    if not isinstance(size, (int, float)) or (unit == "seconds" and size < _EARLIEST):
        unit = ""
    fractional = number.filter(exact.is_null()).drop_nulls()
    if not len(fractional):
        return Times(exact, unit, f"{unit} since 1970" if unit else "whole numbers that order events, no dates")
    scale = 1 if (fractional == fractional.floor()).all() else 10**6
    found = (number * scale).round().cast(pl.Int64, strict=False)
    if scale == 1:
        return Times(
            exact.fill_null(found), unit, f"{unit} since 1970" if unit else "numbers that order events, no dates"
        )
    if unit == "seconds":
        return Times(found, "microseconds", "seconds since 1970 with fractions, kept in microseconds")
    return Times(found, "", "numbers that order events, no dates")


def _of_texts(values: pl.Series, column: str, number: pl.Series) -> Times:
    texts = values.str.strip_chars()
    best: tuple[int, str, pl.Series] | None = None
    found = {}
    for name, date in _DATES.items():
        micro = _dates(texts, date)
        found[name] = micro
        if best is None or micro.count() > best[0]:
            best = (micro.count(), name, micro)
    assert best is not None
    count, name, micro = best
    if count < number.count():
        return _of_numbers(values, number)
    day_first, month_first = found["day/month/year"], found["month/day/year"]
    slashed = name in ("day/month/year", "month/day/year")
    if slashed and day_first.count() == month_first.count() and bool((day_first != month_first).any()):
        raise DataError(
            f"{column}: dates such as {texts.drop_nulls()[0][:40]!r} could be day/month or month/day; write them as "
            "year-month-day"
        )
    if not count:
        shown = texts.drop_nulls().filter(texts.drop_nulls() != "")
        what = f"no value is a time, such as {shown[0][:60]!r}" if len(shown) else "holds nothing"
        raise DataError(
            f"{column}: {what}; write seconds since 1970, or dates such as 2024-05-31 or 2024-05-31T08:30:00+02:00"
        )
    zoned = bool(texts.str.contains(r"(Z|UTC|GMT|\d[+-]\d{2}:?\d{2})$").any())
    clock = bool(texts.str.contains(":").any())
    how = f"{name} dates" + (
        f" with times of the day, {'by their zones' if zoned else 'taken as UTC'}" if clock else ""
    )
    return _coarsest(micro, how)


def _dates(texts: pl.Series, date: str) -> pl.Series:
    """Microseconds since 1970 of texts that hold a date in this form; null where they do not."""
    parts = texts.str.extract_groups(date + _CLOCK + _ZONE).struct.unnest()
    number = {
        name: parts[name].cast(pl.Int32, strict=False) for name in ("year", "month", "day", "hour", "minute", "second")
    }
    written = pl.select(
        pl.concat_str(
            pl.lit(number["year"]).cast(pl.String).str.zfill(4),
            *(pl.lit(number[name].fill_null(1 if name in ("month", "day") else 0)).cast(pl.String).str.zfill(2)
              for name in ("month", "day", "hour", "minute", "second")),
            separator=" ",
        )
    ).to_series()  # fmt: skip
    whole = written.str.to_datetime("%Y %m %d %H %M %S", strict=False, time_unit="us").dt.epoch("us")
    part = (parts["part"].fill_null("") + "000000").str.slice(0, 6).cast(pl.Int64, strict=False).fill_null(0)
    zone = parts["zone"].fill_null("").str.replace(":", "", literal=True)
    sign = pl.select(pl.when(zone.str.starts_with("-")).then(-1).otherwise(1)).to_series()
    hours = zone.str.extract(r"[+-](\d{2})").cast(pl.Int64, strict=False).fill_null(0)
    minutes = zone.str.extract(r"[+-]\d{2}(\d{2})").cast(pl.Int64, strict=False).fill_null(0)
    return whole + part - sign * (hours * 3600 + minutes * 60) * 10**6


def _coarsest(micro: pl.Series, how: str) -> Times:
    """Microseconds as seconds where that loses nothing."""
    known = micro.drop_nulls()
    if bool((known % 10**6 == 0).all()):
        return Times(micro // 10**6, "seconds", f"{how}, kept in seconds since 1970")
    return Times(micro, "microseconds", f"{how}, kept in microseconds since 1970")


def moment(timestamp: int) -> str:
    """A timestamp with its date where its size is that of a time since 1970.

    >>> moment(891349532), moment(-7)
    ('timestamp 891349532 (1998-03-31 13:05:32 UTC)', 'timestamp -7')
    >>> moment(891349532000)
    'timestamp 891349532000 (1998-03-31 13:05:32 UTC)'
    """
    date = _date(timestamp)
    return f"timestamp {timestamp}" if date is None else f"timestamp {timestamp} ({date:%Y-%m-%d %H:%M:%S} UTC)"


def date_of(timestamp: int) -> str:
    """A timestamp's day, or itself where it is no time since 1970.

    >>> date_of(891349532), date_of(17)
    ('1998-03-31', '17')
    """
    date = _date(timestamp)
    return str(timestamp) if date is None else f"{date:%Y-%m-%d}"


def _date(timestamp: int) -> datetime | None:
    unit = next(name for name, below in _UNITS if timestamp < below)
    seconds = timestamp / _PER_SECOND[unit]
    if not 0 < seconds < 2**32 or (unit == "seconds" and timestamp < _EARLIEST):
        return None
    return datetime.fromtimestamp(seconds, UTC)
