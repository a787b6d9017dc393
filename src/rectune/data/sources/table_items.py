"""The items of a table: from columns beside its events, or from a file of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import polars as pl

from rectune.config import Config
from rectune.data import columns as c
from rectune.data.clean import DUPLICATE, MISSING_FIELD, REJECTS_SCHEMA, Allowed, check_rejects
from rectune.data.sources import table_columns as roles
from rectune.data.sources import table_values as values
from rectune.data.sources.table_columns import Choice
from rectune.data.sources.table_file import TableFile

_STEADY = 0.995
"""Share of the items with several rows in which a column says the same throughout, for it to tell of the item."""
_TAKEN = (c.ITEM_ID, c.TITLE, c.GENRES)

Say = Callable[[str], None]


def catalog_beside(
    events: pl.DataFrame, fields: dict[str, str], place: dict[str, str], config: Config, say: Say
) -> pl.DataFrame:
    """The catalog of a table whose rows tell what their items are.

    Args:
        events: usable rows: item_id, and the fields.
        fields: columns of `events` that may tell something of items, and how the table calls them.
        place: the column of `events` for each role; title and category are read where there are such.
        config: `attribute_columns` decides whether fields must prove steady.
        say: prints one line.
    """
    place = {role: place[role] for role in (roles.TITLE, roles.CATEGORY) if role in place}
    told = set(fields) if config.attribute_columns is not None else _steady(events, list(fields))
    kept = [(field, name) for field, name in fields.items() if field in told]
    by_item = events.group_by(c.ITEM_ID, maintain_order=True)
    # An empty text of one row is filled by another row of the item.
    first = [
        _filled(field).drop_nulls().first().alias(field)
        for field in dict.fromkeys([*place.values(), *(f for f, _ in kept)])
    ]
    rows = by_item.agg(*first)
    if roles.TITLE in place:
        several = by_item.agg(_filled(place[roles.TITLE]).drop_nulls().n_unique().alias("titles")).filter(
            pl.col("titles") > 1
        )
        if several.height:
            say(f"items: {several.height:,} have several titles; the first is taken")
    return _catalog(rows, place, kept, say)


def _filled(field: str) -> pl.Expr:
    return pl.when(pl.col(field).cast(pl.String, strict=False).str.strip_chars() != "").then(pl.col(field))


def _steady(events: pl.DataFrame, fields: Sequence[str]) -> set[str]:
    """Fields that say the same throughout an item's rows, as far as items with several rows can tell."""
    repeated = events.filter(pl.len().over(c.ITEM_ID) > 1)
    distinct = [_filled(field).drop_nulls().n_unique().alias(field) for field in fields]
    counts = repeated.group_by(c.ITEM_ID).agg(*distinct)
    if not counts.height:
        return set()
    return {field for field in fields if (counts[field] <= 1).mean() >= _STEADY}  # type: ignore[operator]


def catalog_of_file(
    table: TableFile, chosen: dict[str, Choice], asked: pl.Series, config: Config, allowed: Allowed, say: Say
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The catalog from a file with a row an item, and its rejects; items that it lacks are called by their ids.

    Args:
        table: the file.
        chosen: its columns: item, and where there are such title and category.
        asked: item ids of the events.
        config: `attribute_columns` is read.
        allowed: how many rows may be unusable.
        say: prints one line.
    """
    file, used = table.path.name, [choice.column for choice in chosen.values()]
    if config.attribute_columns is not None:
        extra = [roles.named(name, table.names, "attribute_columns", file).column for name in config.attribute_columns]
    else:
        extra = [name for name in table.names if name not in used]
    wanted = list(dict.fromkeys([*used, *extra]))
    rows = values.rows_of(table, wanted)
    place = {role: f"field_{wanted.index(choice.column)}" for role, choice in chosen.items()}
    rows = rows.with_columns(values.ids(rows[place[roles.ITEM]]).alias(c.ITEM_ID))
    rows = rows.with_columns(
        pl.when(pl.col(c.REASON).is_not_null()).then(c.REASON)
        .when(pl.col(c.ITEM_ID).is_null()).then(pl.lit(MISSING_FIELD)).alias(c.REASON)
    )  # fmt: skip
    good = rows.filter(pl.col(c.REASON).is_null())
    good = good.with_columns(pl.when(~pl.col(c.ITEM_ID).is_first_distinct()).then(pl.lit(DUPLICATE)).alias(c.REASON))
    bad = pl.concat([rows.filter(pl.col(c.REASON).is_not_null()), good.filter(pl.col(c.REASON).is_not_null())])
    rejects = bad.sort(c.LINE).select(
        pl.lit(file).alias(c.FILE), c.LINE, c.REASON, pl.col(c.TEXT).fill_null("")
    ).cast(REJECTS_SCHEMA)  # type: ignore[arg-type]  # fmt: skip
    check_rejects(rejects, rows.height, file, f"an item's id in {chosen[roles.ITEM].column!r}", allowed)
    good = good.filter(pl.col(c.REASON).is_null())
    for role, choice in chosen.items():
        say(f"column of the items' {'ids' if role == roles.ITEM else role}: {choice.column!r} ({choice.why})")
    lacking = (
        asked.unique(maintain_order=True)
        .to_frame()
        .join(good.select(c.ITEM_ID), on=c.ITEM_ID, how="anti", maintain_order="left")
    )
    if lacking.height:
        say(f"items: {lacking.height:,} that events are about are not in {file}")
    fields = [f"field_{number}" for number in range(len(wanted))]
    rows = pl.concat([good.select(c.ITEM_ID, *fields), lacking], how="diagonal")
    kept = [(f"field_{wanted.index(name)}", name) for name in extra]
    return _catalog(rows, {role: at for role, at in place.items() if role != roles.ITEM}, kept, say), rejects


def _catalog(rows: pl.DataFrame, place: dict[str, str], kept: Sequence[tuple[str, str]], say: Say) -> pl.DataFrame:
    """item_id, title, genres where there are categories, and attributes with types that any file can hold."""
    ids = rows[c.ITEM_ID]
    titles = values.as_text(rows[place[roles.TITLE]]).str.strip_chars() if roles.TITLE in place else None
    called = "item " + ids
    if titles is None:
        say("items: no column of titles was named or found, so items are called by their ids")
        titles = called
    else:
        nameless = (titles.is_null() | (titles.str.len_bytes() == 0)).fill_null(True)
        if nameless.any():
            say(f"items: {int(nameless.sum()):,} have no title and are called by their ids")
        titles = titles.set(nameless, None).fill_null(called)
    catalog = pl.DataFrame({c.ITEM_ID: ids, c.TITLE: titles.cast(pl.String)})
    if roles.CATEGORY in place:
        catalog = catalog.with_columns(_categories(rows[place[roles.CATEGORY]]).alias(c.GENRES))
    for field, name in kept:
        attribute = _attribute(rows[field])
        no_year = name == c.YEAR and not attribute.dtype.is_numeric()
        while name in _TAKEN or name in catalog.columns or (no_year and name == c.YEAR):
            name = f"{name}_"
        if no_year:
            say(f"items: {c.YEAR!r} holds more than numbers, so item_text calls it {{{name}}}")
        catalog = catalog.with_columns(attribute.alias(name))
    return catalog


def _categories(column: pl.Series) -> pl.Series:
    """Categories joined by ", ", as the catalog has them, whether a list or divided by |, ; or commas."""
    texts = values.as_text(column).fill_null("")
    parts = texts.str.replace_all(r"\s*[|;,]\s*", ", ")
    return parts.str.strip_chars(" ,")


def _attribute(column: pl.Series) -> pl.Series:
    """A column as whole numbers, numbers or text: numbers where all its values are."""
    if column.dtype.is_integer():
        return column.cast(pl.Int64, strict=False)
    if column.dtype.is_float() or isinstance(column.dtype, pl.Decimal):
        return column.cast(pl.Float64).fill_nan(None)
    texts = values.as_text(column).str.strip_chars()
    texts = texts.set((texts.str.len_bytes() == 0).fill_null(False), None)
    known = texts.drop_nulls()
    if not len(known):
        return texts
    # Codes such as 007 are no numbers.
    if not known.str.contains(r"^[+-]?0\d").any():
        for dtype in (pl.Int64, pl.Float64):
            found = texts.cast(dtype, strict=False)
            finite = found.is_not_null() if dtype == pl.Int64 else found.is_finite().fill_null(False)
            if finite.filter(texts.is_not_null()).all():
                return found
    return texts
