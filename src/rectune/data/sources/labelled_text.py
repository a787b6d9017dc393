"""Texts with labels, out of any table that `table_file.py` opens: a row a text, each an item that one user saw once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import polars as pl

from rectune.config import Config
from rectune.data import columns as c
from rectune.data.clean import MISSING_FIELD, REJECTS_SCHEMA, Allowed, check_rejects
from rectune.data.sources import table_columns as roles
from rectune.data.sources import table_values as values
from rectune.data.sources.source import Nouns, Source
from rectune.data.sources.table import BAD_SPLIT, BAD_TEXT
from rectune.data.sources.table_file import TableFile, open_table
from rectune.errors import DataError

BAD_LABEL = "label is none of the classes"
STRADDLES = "the same text is in a later split"
"""Of a split of the data's own: validation and test keep a text, and what is trained on gives it up."""
_TEXT_NAMES = (
    ("text", "texts"),
    ("reviewtext", "review", "post", "body", "message", "comment", "content", "document", "sentence", "tweet"),
)
_LABEL_NAMES = (("label", "class"), ("category", "target", "labels"))
_SHOWN = 12

Say = Callable[[str], None]


class Columns(NamedTuple):
    """Which column is what, and what its labels are called where the file calls them otherwise than the classes."""

    text: str
    label: str
    aliases: Mapping[str, str]


def _column(config: Config, key: str, names: tuple[tuple[str, ...], ...], table: TableFile) -> str:
    """A column named by the configuration, or found by its name.

    Raises:
        DataError: there is none, or several would do.
    """
    given = getattr(config, key)
    if given is not None:
        return roles.named(given, table.names, key, table.path.name).column
    for group in names:
        found = [name for name in table.names if "".join(filter(str.isalnum, name.casefold())) in group]
        if len(found) > 1:
            raise DataError(f"{table.path.name}: {key}: could be {' or '.join(map(repr, found))}; name one")
        if found:
            return found[0]
    raise DataError(
        f"{table.path.name}: {key}: no column's name says so; found {roles.listed(table.names)}; set {key} to one"
    )


def text_column(config: Config, table: TableFile, also: Sequence[str] = ()) -> str:
    """The column of texts of a table: the configuration's, one of these, or one found by its name.

    Raises:
        DataError: there is none, or several would do.
    """
    if config.text_column is None or config.text_column not in table.names:
        for name in also:
            if name in table.names:
                return name
    return _column(config, "text_column", _TEXT_NAMES, table)


def label_column(config: Config, table: TableFile) -> str:
    """The column of labels of a table: the configuration's, or one found by its name.

    Raises:
        DataError: there is none, or several would do.
    """
    return _column(config, "label_column", _LABEL_NAMES, table)


def as_lines(texts: pl.Series) -> pl.Series:
    """Texts on one line each, as prompts have them; null where nothing is left.

    >>> as_lines(pl.Series([" a\\n b ", "  ", None])).to_list()
    ['a b', None, None]
    """
    found = (
        values.as_text(texts).str.replace_all(r"[\s\x1c-\x1f]+", " ").str.strip_chars()
    )  # \x1c to \x1f: as Python has it
    return found.set((found.str.len_bytes() == 0).fill_null(False), None)


def labels_of(texts: pl.Series, names: Sequence[str], aliases: Mapping[str, str]) -> pl.Series:
    """Labels 0, 1, ... (UInt8) of what a column says, without regard to case; null where it is none of the classes."""
    place = {name.strip().casefold(): at for at, name in enumerate(names)}
    known = place | {said.casefold(): place[name.casefold()] for said, name in aliases.items() if name in names}
    lowered = values.ids(texts).str.to_lowercase()
    return lowered.replace_strict(known, default=None, return_dtype=pl.UInt8)


def _found(labels: pl.Series) -> str:
    """What a column of labels holds, in words."""
    counts = labels.drop_nulls().value_counts(sort=True)
    shown = ", ".join(f"{name[:40]!r} ({rows:,})" for name, rows in counts.head(_SHOWN).iter_rows())
    return shown + (f" and {counts.height - _SHOWN:,} more" if counts.height > _SHOWN else "")


def _check_classes(config: Config, column: str, said: pl.Series, labels: pl.Series) -> None:
    """Every class must be there, and there must be some.

    Raises:
        DataError: the configuration names none, or one that the column does not hold.
    """
    if not config.labels:
        raise DataError(
            f"labels: not given; the column {column!r} holds {_found(said)}; write for each its name and a short word, "
            "labels: {NAME: WORD, ...}"
        )
    absent = [name for at, name in enumerate(config.classes) if not (labels == at).any()]
    if absent:
        raise DataError(f"labels: no row is {absent[0]!r}; the column {column!r} holds {_found(said)}")


def _later(numbers: pl.Series, splits: pl.Series) -> pl.Series:
    """Whether a text stands in a later split too: of train, validation and test the last one keeps it."""
    order = {c.WARMUP: 0, c.TRAIN: 0, c.VALIDATION: 1, c.TEST: 2}
    frame = pl.DataFrame({"number": numbers, "place": splits.replace_strict(order, default=None, return_dtype=pl.Int8)})
    return frame.select((pl.col("place") < pl.col("place").max().over("number")).fill_null(False)).to_series()


def read_labelled_text(config: Config, path: Path, say: Say, columns: Columns | None = None) -> Source:
    """Read a table of texts and labels.

    The same text again, whatever its case and spacing, is the same item, so that a split can keep its rows together.
    A text is a user of its own, unless `user_column` says whose it is.

    Args:
        config: `labels`, `text_column`, `label_column`, `split_column`, `user_column` and `max_rejects` are read.
        path: the file.
        say: prints one line.
        columns: which column is what, where the file is a known one.

    Raises:
        DataError: the file is unreadable or empty, a column or a class is missing, or more rows are unusable than
            allowed.
    """
    table = open_table(path)
    if table.notes:
        say(f"{path.name}: {', '.join(table.notes)}")
    text = columns.text if columns else _column(config, "text_column", _TEXT_NAMES, table)
    label = columns.label if columns else label_column(config, table)
    aliases = columns.aliases if columns else {}
    if text == label:
        raise DataError(f"{path.name}: text_column and label_column are both {text!r}; name two columns")
    wanted = {"text": text, "label": label}
    for key, needed in (("split", config.split == "column"), ("user", config.user_column is not None)):
        if needed:
            name = getattr(config, f"{key}_column")
            choice = roles.named(name, table.names, f"{key}_column", path.name) if name else None
            choice = choice or roles.guessed(roles.SPLIT, table.names, path.name)
            if choice is None:
                raise roles.missing(roles.SPLIT, table.names, path.name)
            wanted[key] = choice.column
    say(f"{path.name}: " + ", ".join(f"{role} in {name!r}" for role, name in wanted.items()))
    names = list(dict.fromkeys(wanted.values()))
    rows = values.rows_of(table, names)
    column = {role: rows[f"field_{names.index(name)}"] for role, name in wanted.items()}
    texts, labels = as_lines(column["text"]), labels_of(column["label"], config.classes, aliases)
    said = values.ids(column["label"])
    _check_classes(config, label, said.replace(aliases) if aliases else said, labels)
    number = texts.str.to_lowercase().rank("dense").cast(pl.Int64)
    checks = [
        (rows[c.TEXT].str.contains("\ufffd", literal=True).fill_null(False), BAD_TEXT),
        (texts.is_null() | said.is_null(), MISSING_FIELD), (labels.is_null(), BAD_LABEL),
    ]  # fmt: skip
    typed = {c.TITLE: texts, c.LABEL: labels, "_number": number, c.TIMESTAMP: pl.int_range(rows.height, eager=True)}
    if "user" in column:
        typed[c.USER_ID] = values.ids(column["user"])
        checks.append((typed[c.USER_ID].is_null(), MISSING_FIELD))
    if "split" in column:
        typed[c.SPLIT] = values.words(column["split"], values.split_words(), pl.String)
        checks.append((typed[c.SPLIT].is_null(), BAD_SPLIT))
    frame = rows.select(c.LINE, c.TEXT, c.REASON).with_columns(series.alias(name) for name, series in typed.items())
    for wrong, why in checks:
        reason = pl.when(pl.lit(wrong)).then(pl.lit(why))
        frame = frame.with_columns(pl.coalesce(pl.col(c.REASON), reason).alias(c.REASON))
    if "split" in column:
        good = frame.filter(pl.col(c.REASON).is_null())
        straddling = good.filter(_later(good["_number"], good[c.SPLIT]))[c.LINE]
        late = pl.when(pl.col(c.LINE).is_in(straddling.implode()) & pl.col(c.REASON).is_null()).then(pl.lit(STRADDLES))
        frame = frame.with_columns(pl.coalesce(pl.col(c.REASON), late).alias(c.REASON))
    return _source(config, frame, path.name, wanted)


def _source(config: Config, frame: pl.DataFrame, file: str, wanted: Mapping[str, str]) -> Source:
    """The usable rows as interactions of texts, numbered in the order of the file, and the others as rejects."""
    bad = frame.filter(pl.col(c.REASON).is_not_null()).sort(c.LINE)
    rejects = bad.select(pl.lit(file).alias(c.FILE), c.LINE, c.REASON, pl.col(c.TEXT).fill_null("")).cast(
        REJECTS_SCHEMA  # type: ignore[arg-type]
    )
    expected = f"a text in {wanted['text']!r} and one of {', '.join(config.classes)} in {wanted['label']!r}"
    check_rejects(rejects, frame.height, file, expected, Allowed.of(config.max_rejects))
    kept = frame.filter(pl.col(c.REASON).is_null())
    if not kept.height:
        raise DataError(f"{file}: no row can be used; expected {expected}")
    order = kept.select("_number").unique(maintain_order=True).with_row_index("_place", offset=1)
    kept = kept.join(order, on="_number", how="left", maintain_order="left")
    kept = kept.with_columns(pl.col("_place").cast(pl.String).alias(c.ITEM_ID))
    if c.USER_ID not in kept.columns:
        kept = kept.with_columns(pl.col(c.ITEM_ID).alias(c.USER_ID))
    catalog = kept.select(c.ITEM_ID, c.TITLE).unique(subset=c.ITEM_ID, keep="first", maintain_order=True)
    extra = [c.SPLIT] if c.SPLIT in kept.columns else []
    rated = kept.with_columns(pl.lit(None, dtype=pl.Float64).alias(c.RATING))
    interactions = rated.select(c.USER_ID, c.ITEM_ID, c.RATING, c.TIMESTAMP, c.LABEL, *extra)
    return Source(interactions, catalog, rejects, Nouns("texts", "different texts"))
