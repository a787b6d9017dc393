"""Candidate sets for top-K evaluation, drawn once and frozen to disk, so that figures of any two runs compare.

Drawing negatives anew at every evaluation gives every model other questions. Here they are drawn when first asked
for, with a fixed seed, and every later evaluation of the same data reads the same file.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from rectune.data.columns import (
    HISTORY_END,
    ITEM_ID,
    LABEL,
    POSITION,
    SPLIT,
    SPLITS,
    TEST,
    USER_ID,
    VALIDATION,
)
from rectune.data.folder import own_events
from rectune.errors import ConfigError, DataError
from rectune.files import atomic_path, hash_file, hash_text, write_json

NEGATIVES, SEED = 100, 0
"""Fixed, not taken from a run's configuration: runs with other seeds must be asked the same."""
RELEVANT, NEGATIVE = "relevant", "negative"
SCHEMA = {USER_ID: pl.String, ITEM_ID: pl.String, RELEVANT: pl.Boolean, NEGATIVE: pl.Boolean}
RULE = (
    "all items of the user's events in the split, relevant where one of these events is a like; and `negatives` items "
    "drawn uniformly without replacement from the catalog's items that the user has no event of in any split, fewer "
    "where there are fewer"
)

Say = Callable[[str], None]


def _check_split(split: str) -> None:
    if split not in (TEST, VALIDATION):
        raise ConfigError(f"--split: got {split!r}, allowed: {TEST}, {VALIDATION}")


def events_until(events: pl.DataFrame, split: str) -> pl.DataFrame:
    """The events of all splits before this one: what a user is known to have seen when the split begins.

    Sampled negatives of purchases are none: nobody has seen them.

    Raises:
        ConfigError: the split is neither test nor validation.
    """
    _check_split(split)
    return own_events(events).filter(pl.col(SPLIT).is_in(SPLITS[: SPLITS.index(split)]))


def history_at(events: pl.DataFrame, split: str) -> pl.DataFrame:
    """Each user's history frozen at a split: the events that are strictly earlier than the user's first one in it.

    An event of the same moment as that first one is left out, although its split is an earlier one: events of one
    moment never see each other. Users without an event in the split keep all that `events_until` gives.

    Args:
        events: whole timelines, as `load_events` returns them.
        split: `test` or `validation`.

    Returns:
        Rows of `events`, in their order.

    Raises:
        ConfigError: the split is neither test nor validation.
    """
    first = events.filter(pl.col(SPLIT) == split).group_by(USER_ID).agg(pl.col(HISTORY_END).min().alias("_stop"))
    return (
        events_until(events, split)
        .join(first, on=USER_ID, how="left", maintain_order="left")
        .filter(pl.col("_stop").is_null() | (pl.col(POSITION) < pl.col("_stop")))
        .drop("_stop")
    )


def later_items(events: pl.DataFrame, split: str) -> pl.DataFrame:
    """The items of each user's events in a split: user_id, item_id, relevant; users and items in order of time.

    An item met several times is there once, and relevant when it was liked at any of them.
    """
    _check_split(split)
    later = own_events(events).filter(pl.col(SPLIT) == split)
    liked = (pl.col(LABEL) == 1).any().alias(RELEVANT)
    return later.group_by(USER_ID, ITEM_ID, maintain_order=True).agg(liked)


def draw_negatives(user: str, items: list[str], seen: set[str], n: int, seed: int) -> list[str]:
    """Items that a user has not seen, drawn uniformly without replacement.

    The draw depends on the user's id and the seed only, not on the other users. The first n unseen items of a random
    order of all items are such a draw, and only as many of that order as may be needed are made.

    Args:
        user: their id.
        items: the whole catalog.
        seen: items left out.
        n: how many; fewer where there are fewer.
        seed: of the draw.
    """
    random = np.random.default_rng(int(hash_text(str(seed), user), 16))
    order = random.choice(len(items), size=min(len(items), n + len(seen)), replace=False)
    return [items[place] for place in order if items[place] not in seen][:n]


def draw(events: pl.DataFrame, catalog: pl.DataFrame, split: str, n: int = NEGATIVES, seed: int = SEED) -> pl.DataFrame:
    """Candidate sets by `RULE`: user_id, item_id, relevant, negative; each user's later items before the negatives.

    Args:
        events: whole timelines of all users.
        catalog: item_id of every item.
        split: `test` or `validation`.
        n: negatives for each user.
        seed: of the draw.
    """
    items = catalog[ITEM_ID].to_list()
    later = later_items(events, split).with_columns(pl.lit(False).alias(NEGATIVE))
    users = later.select(pl.col(USER_ID).unique(maintain_order=True)).with_row_index("_user")
    drawn: list[list[str]] = []
    # One user's items at a time: those of millions of events would not fit as Python objects.
    timelines = (
        own_events(events)
        .join(users, on=USER_ID, how="inner", maintain_order="left")
        .sort("_user", maintain_order=True)
    )
    for (user,), group in timelines.group_by(USER_ID, maintain_order=True):
        drawn.append(draw_negatives(str(user), items, set(group[ITEM_ID].unique().to_list()), n, seed))
    negatives = users.select(
        USER_ID,
        pl.Series(ITEM_ID, drawn, dtype=pl.List(pl.String)),
        pl.lit(False).alias(RELEVANT),
        pl.lit(True).alias(NEGATIVE),
    ).explode(ITEM_ID)
    return (
        pl.concat([later.select(*SCHEMA), negatives.filter(pl.col(ITEM_ID).is_not_null()).select(*SCHEMA)])
        .join(users, on=USER_ID, how="left", maintain_order="left")
        .sort("_user", maintain_order=True)
        .drop("_user")
    )


def files_of(folder: Path, split: str) -> tuple[Path, Path]:
    """The table of a split's candidate sets in a dataset folder, and the JSON that says how it was drawn."""
    return folder / f"candidates_{split}.parquet", folder / f"candidates_{split}.json"


def _read(table: Path, about: dict[str, Any]) -> pl.DataFrame:
    """A table that was written before.

    Raises:
        DataError: it is not what was written.
    """
    advice = "remove it to have the same sets drawn again"
    try:
        if hash_file(table) != about.get("sha256"):
            raise DataError(f"{table}: damaged (its content is not what the JSON beside it records); {advice}")
        frame = pl.read_parquet(table)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{table}: cannot be read ({' '.join(str(error).split())[:120]}); {advice}") from error
    if frame.schema != pl.Schema(SCHEMA) or frame.height != about.get("rows"):
        raise DataError(f"{table}: holds no candidate sets; {advice}")
    return frame


def _what_changed(about: Path, settings: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """What the JSON says, and what differs from these settings, in words; None where nothing does."""
    try:
        found = json.loads(about.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        return {}, f"{about.name} is damaged"
    for key, value in settings.items():
        if found.get(key) != value:
            what = "the data" if key == "content_hash" else key
            return found, f"{what} has changed from {found.get(key)!r} to {value!r}"
    return found, None


def candidate_sets(
    folder: Path,
    events: pl.DataFrame,
    catalog: pl.DataFrame,
    content_hash: str,
    split: str,
    say: Say,
    n: int = NEGATIVES,
    seed: int = SEED,
) -> pl.DataFrame:
    """The frozen candidate sets of a split: read where they were drawn before, else drawn and written.

    They are drawn again only where the data or a setting is another than that of the file, and that is said.

    Args:
        folder: the dataset folder, where `candidates_SPLIT.parquet` and `.json` lie.
        events: its events.
        catalog: its items.
        content_hash: its content hash.
        split: `test` or `validation`.
        say: prints one line.
        n: negatives for each user.
        seed: of the draw.

    Returns:
        user_id, item_id, relevant, negative; users in the order of the events.

    Raises:
        ConfigError: the split is neither test nor validation.
        DataError: the file is damaged, or no user has an event in the split.
        ResourceError: the folder cannot be written.
    """
    _check_split(split)
    table, about = files_of(folder, split)
    settings = {"rule": RULE, "split": split, "negatives": n, "seed": seed, "content_hash": content_hash}
    why = None
    if table.is_file() and not about.is_file():
        why = f"{about.name}, which says how they were drawn, is missing"
    elif table.is_file():
        found, why = _what_changed(about, settings)
        if why is None:
            frame = _read(table, found)
            say(f"candidate sets: {table}, {_counted(frame)}; frozen, used as they are")
            return frame
    frame = draw(events, catalog, split, n, seed)
    if frame.is_empty():
        raise DataError(f"{folder}: no user has an event in the {split} split, so there are no candidate sets")
    # Without its JSON a table counts as never drawn, so that a kill between the two writes leaves nothing half done.
    about.unlink(missing_ok=True)
    with atomic_path(table) as temporary:
        frame.write_parquet(temporary)
    write_json(
        about, {**settings, "users": frame[USER_ID].n_unique(), "rows": frame.height, "sha256": hash_file(table)}
    )
    again = f"drawn again, because {why}" if why else "drawn"
    say(f"candidate sets: {again}: {_counted(frame)}, seed {seed}; frozen in {table}")
    return frame


def _counted(frame: pl.DataFrame) -> str:
    negatives = int(frame[NEGATIVE].sum())
    return f"{frame[USER_ID].n_unique():,} users, {frame.height - negatives:,} later items, {negatives:,} negatives"
