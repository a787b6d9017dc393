"""`rectune prepare`: a configuration's dataset, or a table without any configuration."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from rectune.cli_options import Overrides, RayAddress, Workers, refuse_idle, say
from rectune.errors import ConfigError

PREPARE_EXAMPLE = (
    "Example: rectune prepare configs/qwen3_movielens_qlora.yaml dataset=ml-latest-small.zip   ·   "
    "rectune prepare configs/qwen3_movielens_qlora.yaml dataset=ml-32m.zip --workers 4   ·   "
    "rectune prepare orders.csv --user customer --item sku --time ordered_at --purchases --title name"
)
_CONFIGS = (".yaml", ".yml")

Column = typer.Option


def prepare(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG|FILE", help="A configuration; or a table (CSV, Parquet, JSON lines), which needs none."
        ),
    ],
    overrides: Overrides = None,
    user: Annotated[str | None, typer.Option(metavar="COLUMN", help="FILE: who.")] = None,
    item: Annotated[str | None, typer.Option(metavar="COLUMN", help="FILE: what.")] = None,
    time: Annotated[str | None, typer.Option(metavar="COLUMN", help="FILE: when.")] = None,
    rating: Annotated[str | None, typer.Option(metavar="COLUMN", help="FILE: how well it was rated.")] = None,
    label: Annotated[str | None, typer.Option(metavar="COLUMN", help="FILE: whether it was liked.")] = None,
    purchases: Annotated[bool, typer.Option("--purchases", help="FILE: each row is something chosen.")] = False,
    title: Annotated[str | None, typer.Option(metavar="COLUMN", help="FILE: what the item is called.")] = None,
    category: Annotated[str | None, typer.Option(metavar="COLUMN", help="FILE: the item's categories.")] = None,
    text: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="FILE: texts to be classified; --label has their classes.")
    ] = None,
    split: Annotated[str | None, typer.Option(metavar="COLUMN", help="FILE: a split of its own.")] = None,
    items: Annotated[Path | None, typer.Option(metavar="FILE", help="FILE: a second table, a row an item.")] = None,
    items_id: Annotated[str | None, typer.Option(metavar="COLUMN", help="The item ids in --items.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first row that cannot be used.")] = False,
    max_rejects: Annotated[
        str | None, typer.Option(metavar="SHARE", help="How many rows may be unusable: 1%, or a number; 50% as a rule.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Prepare again even where nothing has changed.")] = False,
    workers: Workers = None,
    ray: RayAddress = None,
) -> None:
    """Read, clean, label and split events into a dataset folder.

    From a table alone it also finds out what its columns are, says what the data looks like, and writes a
    configuration that trains on it.
    """
    if strict and max_rejects is not None:
        raise ConfigError("--strict: beside --max-rejects, but it is --max-rejects 0; give one of the two")
    if workers is None:
        refuse_idle({"--ray": ray}, "without --workers")
    extra = list(overrides or [])
    if strict or max_rejects is not None:
        extra.append(f"max_rejects={'0' if strict else max_rejects}")
    columns = {"user": user, "item": item, "time": time, "rating": rating, "label": label, "split": split,
               "title": title, "category": category}  # fmt: skip
    if is_config(source):
        from rectune.config import load_config
        from rectune.data.prepare import prepare as stage
        from rectune.shipped import find_config

        idle: dict[str, object] = {
            **columns,
            "text": text,
            "purchases": purchases,
            "items": items,
            "items-id": items_id,
        }
        named = [name for name, value in idle.items() if value]
        if named:
            raise ConfigError(
                f"--{named[0]}: is for a table without a configuration; in {source} set the key that says so"
            )
        start = None
        if workers is not None:
            from rectune.bulk.pool import check_pool, ray_pool

            check_pool(ray)
            start = partial(ray_pool, workers, ray, say)
        stage(load_config(find_config(source), extra), force=force, say=say, workers=start)
        return
    refuse_idle({"--workers": workers}, "for a table, which is held whole")
    if text is not None:
        from rectune.prepare_texts import prepare_texts

        others = {"item": item, "time": time, "rating": rating, "title": title, "category": category,
                  "purchases": purchases, "items": items, "items-id": items_id}  # fmt: skip
        named = [name for name, value in others.items() if value]
        if named:
            raise ConfigError(f"--{named[0]}: does nothing beside --text, since a text is no item of a user")
        prepare_texts(source, text, label, split, user, extra, force, say)
        return
    from rectune.prepare_file import Given, prepare_file

    prepare_file(source, Given(columns, purchases, items, items_id), extra, force, say)


def is_config(path: Path) -> bool:
    """Whether a path is meant as a configuration: by its ending, else whether it is no table."""
    if path.suffix.lower() in _CONFIGS or path.is_dir() or (not path.exists() and not _table_ending(path)):
        return True
    from rectune.data.sources.table_file import is_table

    return not _table_ending(path) and not is_table(path)


def _table_ending(path: Path) -> bool:
    from rectune.data.sources.table_file import SUFFIXES

    return path.name.lower().removesuffix(".gz").endswith(SUFFIXES)
