"""A table of one's own: a row an event, in a file that `table_file.py` opens, with items beside or in a second file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import polars as pl

from rectune.config import Config
from rectune.data import columns as c
from rectune.data.clean import DUPLICATE, MISSING_FIELD, REJECTS_SCHEMA, Allowed, check_rejects
from rectune.data.sources import table_columns as roles
from rectune.data.sources import table_values as values
from rectune.data.sources.source import Nouns, Source
from rectune.data.sources.table_columns import Choice
from rectune.data.sources.table_file import TableFile, open_table
from rectune.data.sources.table_items import catalog_beside, catalog_of_file
from rectune.errors import DataError

BAD_TEXT = "text is not in the file's encoding"
NO_TIME = "none"
"""As `time_column`: no column is looked for, whatever their names say."""
BAD_TIME = "time is neither a number nor a date"
BAD_RATING = "rating is not a number"
BAD_LABEL = "label is neither yes nor no"
BAD_SPLIT = "unknown split"
_NOUNS = {"rating": Nouns("ratings"), "column": Nouns("events"), "purchases": Nouns("purchases")}

Say = Callable[[str], None]


class Columns(NamedTuple):
    """The column of each role that there is one for; keys are those of `table_columns.ROLES`."""

    events: dict[str, Choice]
    items: dict[str, Choice]


def table_files(config: Config, path: Path) -> list[Path]:
    """The files that a table is read from.

    Raises:
        DataError: `items` names none.
    """
    if config.items is None:
        return [path]
    items = config.items.expanduser()
    if not items.is_file():
        raise DataError(f"items: {config.items}: no such file")
    return [path, items]


def choose_columns(config: Config, events: TableFile, items: TableFile | None) -> Columns:
    """Which column is what: named by the configuration, or found by its name.

    Raises:
        DataError: a named column is not there, one that is needed is not found, or several names would do.
    """
    needed = {roles.USER, roles.ITEM}
    needed |= {roles.RATING} if config.label_from == "rating" else set()
    needed |= {roles.LABEL} if config.label_from == "column" else set()
    needed |= {roles.SPLIT} if config.split == "column" else set()
    # A rating that labels do not come from is shown in histories, so it is not looked for: it may tell the label.
    sought = needed | {roles.TIME}
    of_items = {roles.TITLE, roles.CATEGORY}
    file = events.path.name
    found: dict[str, Choice] = {}
    spoken_for = {getattr(config, f"{role}_column") for role in roles.ROLES}
    for role in roles.ROLES:
        if items is not None and role in of_items:
            continue
        key = f"{role}_column"
        name = getattr(config, key)
        if role == roles.TIME and name == NO_TIME and NO_TIME not in events.names:
            continue
        if name is not None:
            found[role] = roles.named(name, events.names, key, file)
        elif role in sought or role in of_items:
            taken = spoken_for | {one.column for one in found.values()}
            free = [each for each in events.names if each not in taken]
            choice = roles.guessed(role, free, file)
            if choice is not None:
                found[role] = choice
        if role in needed and role not in found:
            raise roles.missing(role, events.names, file)
    if len({found[role].column for role in (roles.USER, roles.ITEM)}) < 2:
        raise DataError(f"{file}: user_column and item_column are both {found[roles.USER].column!r}; name two columns")
    of_file: dict[str, Choice] = {}
    if items is not None:
        file = items.path.name
        if config.items_id_column is not None:
            of_file[roles.ITEM] = roles.named(config.items_id_column, items.names, "items_id_column", file)
        elif found[roles.ITEM].column in items.names:
            of_file[roles.ITEM] = Choice(found[roles.ITEM].column, "named as in the other file")
        else:
            choice = roles.guessed(roles.ITEM, items.names, file)
            if choice is None:
                raise DataError(
                    f"{file}: no column name says that it holds the items; found {roles.listed(items.names)}; name it "
                    "(--items-id COLUMN, or items_id_column in the configuration)"
                )
            of_file[roles.ITEM] = choice
        for role in (roles.TITLE, roles.CATEGORY):
            name = getattr(config, f"{role}_column")
            free = [each for each in items.names if each not in {one.column for one in of_file.values()}]
            choice = roles.named(name, items.names, f"{role}_column", file) if name else roles.guessed(role, free, file)
            if choice is not None:
                of_file[role] = choice
    return Columns(found, of_file)


def read_table(config: Config, path: Path, say: Say) -> Source:
    """Read a table of events, and its items.

    Args:
        config: the keys for tables, `label_from`, the label words and `max_rejects` are read.
        path: the file.
        say: prints one line.

    Raises:
        DataError: a file is unreadable or empty, a column is missing, or more rows are unusable than allowed.
    """
    files = table_files(config, path)
    events = open_table(files[0])
    items = open_table(files[1]) if len(files) > 1 else None
    columns = choose_columns(config, events, items)
    for table in (events, items):
        if table is not None and table.notes:
            say(f"{table.path.name}: {', '.join(table.notes)}")
    chosen = {role: choice.column for role, choice in columns.events.items()}
    beside = _beside(config, events, items, chosen)
    allowed = Allowed.of(config.max_rejects)
    wanted = [name for name in events.names if name in {*chosen.values(), *beside}]
    rows = values.rows_of(events, wanted)
    place = {role: f"field_{wanted.index(name)}" for role, name in chosen.items()}
    parsed, notes = _parsed(config, rows, place, chosen)
    for role, choice in columns.events.items():
        note = f", {notes[role]}" if role in notes else ""
        say(f"column of the {role}: {choice.column!r} ({choice.why}{note})")
    if roles.TIME not in chosen:
        say("no column of times was named or found: the order of the rows stands in for time")
    usable = pl.col(c.REASON).is_null()
    # Without times the same pair twice is two events.
    again = ~pl.struct(c.USER_ID, c.ITEM_ID, c.TIMESTAMP).is_first_distinct()
    good = parsed.filter(usable).with_columns(pl.when(again).then(pl.lit(DUPLICATE)).alias(c.REASON))
    bad = pl.concat([parsed.filter(~usable), good.filter(~usable)]).sort(c.LINE)
    rejects = _rejects(bad, path.name)
    check_rejects(rejects, parsed.height, path.name, f"{_expected(chosen)} in every row", allowed)
    kept = good.filter(usable)
    if not kept.height:
        raise DataError(f"{path.name}: no row can be used; see the columns named above")
    if items is None:
        fields = {f"field_{wanted.index(name)}": name for name in beside}
        catalog = catalog_beside(kept, fields, place, config, say)
    else:
        catalog, bad_items = catalog_of_file(items, columns.items, kept[c.ITEM_ID], config, allowed, say)
        rejects = pl.concat([bad_items, rejects])
    extra = [name for name in (c.LABEL, c.SPLIT) if name in kept.columns]
    interactions = kept.select(c.USER_ID, c.ITEM_ID, c.RATING, c.TIMESTAMP, *extra)
    return Source(interactions, catalog, rejects, _NOUNS[config.label_from])


def _beside(config: Config, events: TableFile, items: TableFile | None, chosen: dict[str, str]) -> list[str]:
    """Columns of the table of events that may tell something of its items."""
    if items is not None:
        return []
    if config.attribute_columns is not None:
        return [roles.named(name, events.names, "attribute_columns", events.path.name).column
                for name in config.attribute_columns]  # fmt: skip
    return [name for name in events.names if name not in chosen.values()]


def _expected(chosen: dict[str, str]) -> str:
    shown = [f"{role} in {name!r}" for role, name in chosen.items() if role not in (roles.TITLE, roles.CATEGORY)]
    return ", ".join(shown)


def _rejects(bad: pl.DataFrame, file: str) -> pl.DataFrame:
    return bad.select(
        pl.lit(file).alias(c.FILE), c.LINE, c.REASON, pl.col(c.TEXT).fill_null("")
    ).cast(REJECTS_SCHEMA)  # type: ignore[arg-type]  # fmt: skip


def _parsed(
    config: Config, rows: pl.DataFrame, place: dict[str, str], chosen: dict[str, str]
) -> tuple[pl.DataFrame, dict[str, str]]:
    """Typed columns and the reason where a row is unusable, and what a person should know of each role's column."""
    column = {role: rows[field] for role, field in place.items()}
    notes: dict[str, str] = {}
    unbroken = rows[c.REASON].is_null()
    checks: list[tuple[pl.Series, str]] = []
    typed = {c.USER_ID: values.ids(column[roles.USER]), c.ITEM_ID: values.ids(column[roles.ITEM])}
    checks += [(typed[c.USER_ID].is_null(), MISSING_FIELD), (typed[c.ITEM_ID].is_null(), MISSING_FIELD)]
    checks.append((rows[c.TEXT].str.contains("\ufffd", literal=True).fill_null(False), BAD_TEXT))
    if roles.TIME in column:
        read = values.times(column[roles.TIME].set(~unbroken, None), chosen[roles.TIME])
        typed[c.TIMESTAMP], notes[roles.TIME] = read.values, read.said
        checks.append((read.values.is_null(), BAD_TIME))
    else:
        typed[c.TIMESTAMP] = pl.int_range(rows.height, eager=True, dtype=pl.Int64)
    typed[c.RATING] = pl.Series([None] * rows.height, dtype=pl.Float64)
    if roles.RATING in column:
        typed[c.RATING] = values.numbers(column[roles.RATING])
        if config.label_from == "rating":
            checks.append((typed[c.RATING].is_null(), BAD_RATING))
        else:
            given = values.ids(column[roles.RATING]).is_not_null()
            checks.append((typed[c.RATING].is_null() & given, BAD_RATING))
        if values.uses_commas(column[roles.RATING]):
            notes[roles.RATING] = "decimal commas"
    if roles.LABEL in column:
        known = values.label_words(config.positive_label, config.negative_label)
        typed[c.LABEL] = values.words(column[roles.LABEL], known, pl.UInt8)
        checks.append((typed[c.LABEL].is_null(), BAD_LABEL))
    if roles.SPLIT in column:
        typed[c.SPLIT] = values.words(column[roles.SPLIT], values.split_words(), pl.String)
        checks.append((typed[c.SPLIT].is_null(), BAD_SPLIT))
        notes[roles.SPLIT] = _split_note(column[roles.SPLIT], typed[c.SPLIT])
    reason = pl.col(c.REASON)
    frame = rows.with_columns(series.alias(name) for name, series in typed.items())
    for number, (wrong, _) in enumerate(checks):
        frame = frame.with_columns(wrong.alias(f"_check_{number}"))
    whys = [pl.when(f"_check_{number}").then(pl.lit(why)) for number, (_, why) in enumerate(checks)]
    frame = frame.with_columns(pl.coalesce(reason, *whys).alias(c.REASON))
    return frame.drop([f"_check_{number}" for number in range(len(checks))]), notes


def _split_note(texts: pl.Series, splits: pl.Series) -> str:
    """Which of its words were taken for which split."""
    pairs = pl.DataFrame({"word": values.as_text(texts).str.strip_chars(), "split": splits}).drop_nulls().unique()
    other = pairs.filter(pl.col("word") != pl.col("split")).sort("word").head(6)
    return ", ".join(f"{word!r} taken for {split}" for word, split in other.iter_rows()) or "words as they are"
