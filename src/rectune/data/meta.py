"""What `meta.json` says of a dataset, and the same for a person."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import polars as pl

from rectune.config import Config, default_of
from rectune.data import alpaca, folder
from rectune.data import columns as c
from rectune.data.classes import say_classes
from rectune.data.leak import leak_note
from rectune.data.sources.source import Nouns
from rectune.data.sources.table_values import moment
from rectune.data.split import COLUMN, GLOBAL_TIME, Timeline
from rectune.data.tally import Tally
from rectune.files import hash_file, write_json
from rectune.version import __version__

MOST_RECORDS = 1_000_000
"""A JSON file of more records is left out where `json_files` is auto."""

Say = Callable[[str], None]
Column = Callable[[str], Iterable[pl.Series]]
"""A column of a table by its name, whole or in parts."""


def describe(
    config: Config,
    source: dict[str, str],
    settings: dict[str, Any],
    tally: Tally,
    line: Timeline,
    rejects: pl.DataFrame,
    catalog: pl.DataFrame,
    digest: str,
    more: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What `meta.json` says; no time and no path, so that the same input gives the same bytes.

    Users, items, histories and leaks are of the data's own events; rows and their labels count sampled negatives too.

    Args:
        source, settings: what the folder was made from.
        tally: counts over its events.
        line: what the split left out, and its cuts; its events are not looked at.
        digest: see `content_hash`.
        more: what else is to be said.
    """
    return {
        "name": config.dataset_name(),
        "rectune_version": __version__,
        "source": source,
        "content_hash": digest,
        **settings,
        "events": sum(tally.written.values()),
        "users": tally.users,
        "items": tally.items,
        "catalog_items": catalog.height,
        "splits": {name: tally.balance(name) for name in c.SPLITS},
        "history": tally.history(),
        "left_out": {
            "users_with_too_few_events": line.short_users,
            "their_events": line.short_events,
            "users_not_drawn": line.users_not_drawn,
            "events_not_drawn": line.events_not_drawn,
            **({"events_before_the_last_of_a_user": line.old_events} if config.max_per_user is not None else {}),
        },
        "rejects": {
            "rows": rejects.height,
            "by_reason": by_reason(rejects),
            **({} if config.max_rejects == default_of("max_rejects") else {"allowed": config.max_rejects}),
        },
        "leak": _leak(tally, config.split),
        **(more or {}),
        **_cuts(tally, line),
    }


def _leak(tally: Tally, split: str) -> dict[str, Any]:
    leak = tally.leak()
    return {
        "share_of_test_events_with_later_train_events": None if leak.share is None else round(leak.share, 6),
        "test_events_of_cold_users": leak.cold.users,
        "test_events_about_cold_items": leak.cold.items,
        "note": leak_note(leak, split),
    }


def _cuts(tally: Tally, line: Timeline) -> dict[str, Any]:
    """Where `global_time` cut and what came out, under `cuts`; nothing for other splits.

    A user's first events, as many as are warm-up, are not usable, yet asked about when they are at or after a cut.
    """
    cuts = line.cuts
    if cuts is None:
        return {}
    return {
        "cuts": {
            "usable_events": cuts.usable,
            **{
                split: {
                    "from_timestamp": moment,
                    "usable": usable,
                    "share_of_usable": round(usable / cuts.usable, 6),
                    "not_usable": tally.early.get(split, 0),
                }
                for split, moment, usable in (
                    (c.VALIDATION, cuts.validation, cuts.usable_validation),
                    (c.TEST, cuts.test, cuts.usable_test),
                )
            },
        }
    }


def by_reason(rejects: pl.DataFrame) -> dict[str, int]:
    """How many rows were rejected, by file and reason."""
    counts = rejects.group_by(c.FILE, c.REASON).len().sort(c.FILE, c.REASON)
    return {f"{file}: {reason}": number for file, reason, number in counts.iter_rows()}


def content_hash(events: Column, schema: dict[str, Any], catalog: pl.DataFrame, protocol: dict[str, Any]) -> str:
    """SHA-256 over the values of the tables and the protocol; no matter how a library's version writes them.

    Args:
        events: their columns, each asked for as often as its bytes are gone through.
        schema: the names and types of these.
        catalog: the items.
        protocol: settings that decide what the values mean.
    """
    digest = hashlib.sha256(json.dumps(protocol, sort_keys=True).encode())
    for name, dtype in schema.items():
        _add_column(digest, events, name, dtype)
    for name, dtype in catalog.schema.items():
        _add_column(digest, lambda name: [catalog[name]], name, dtype)
    return digest.hexdigest()


def _add_column(digest: Any, column: Column, name: str, dtype: Any) -> None:
    rows, nulls = 0, 0
    for part in column(name):
        rows, nulls = rows + len(part), nulls + part.null_count()
    digest.update(f"{name}:{rows}:".encode())
    text = dtype == pl.String
    if nulls or not text:
        for part in column(name):
            digest.update(part.is_null().to_numpy().tobytes())
    if text:
        for part in column(name):
            digest.update(part.fill_null("").str.len_bytes().to_numpy().astype("<u4").tobytes())
        for part in column(name):
            digest.update((part.fill_null("").str.join("").item() or "").encode())
        return
    for part in column(name):
        filled = part.fill_null(0).to_numpy()
        digest.update(filled.astype(filled.dtype.newbyteorder("<")).tobytes())


def json_left_out(config: Config, rows: dict[str, int], say: Say) -> list[str]:
    """The JSON files that are not written for their size, see `json_files`, and say which.

    Args:
        rows: of each split.
    """
    if config.json_files == "all":
        return []
    names = [name for name, split in alpaca.JSON_FILES.items() if rows.get(split, 0) > MOST_RECORDS]
    for name in names:
        say(
            f"{name}: left out, since it would have {rows[alpaca.JSON_FILES[name]]:,} records, more than "
            f"{MOST_RECORDS:,}; training reads events.parquet, and json_files=all writes it"
        )
    return names


def write_rest(
    place: Path, config: Config, catalog: pl.DataFrame, rejects: pl.DataFrame, meta: dict[str, Any], left_out: list[str]
) -> None:
    """Write all files of a dataset folder but the events and the JSON files of events, `meta.json` last."""
    catalog.write_parquet(place / folder.CATALOG)
    rejects.write_parquet(place / folder.REJECTS)
    rejects.write_csv(place / folder.REJECTS_CSV)
    write_json(place / folder.DATASET_INFO, alpaca.dataset_info(config.dataset_name(), left_out))
    written = [name for name in folder.FILES if name != folder.META and name not in left_out]
    sizes = {name: (place / name).stat().st_size for name in written}
    sums = {name: hash_file(place / name) for name in (folder.EVENTS, folder.CATALOG)}
    more = {"json_left_out": left_out} if left_out else {}
    write_json(place / folder.META, {**meta, **more, "bytes": sizes, "sha256": sums})


def say_read(rows: int, catalog: pl.DataFrame, rejects: pl.DataFrame, nouns: Nouns, say: Say) -> None:
    """Say how much was read, and what could not be used."""
    say(f"read: {rows:,} {nouns.interactions}, {catalog.height:,} {nouns.items}, {rejects.height:,} rejected")
    for reason, number in by_reason(rejects).items():
        say(f"  rejected {number:,}: {reason}")


def say_split(meta: dict[str, Any], say: Say) -> None:
    """Say how the events were split."""
    if "classes" in meta:
        if meta["left_out"]["users_not_drawn"]:
            say(f"left out by max_users: {meta['left_out']['events_not_drawn']:,} texts")
        say_classes(meta["classes"], meta["leak"]["note"], say)
        return
    splits = meta["splits"]
    shown = (c.TRAIN, c.VALIDATION, c.TEST)
    counts = " / ".join(f"{splits[name]['rows']:,}" for name in shown)
    liked = " / ".join(f"{splits[name]['positive_rate']:.1%}" if splits[name]["rows"] else "-" for name in shown)
    warmup = splits[c.WARMUP]["rows"]
    say(f"split: {counts} train / validation / test rows, {warmup:,} warm-up, {meta['users']:,} users; liked {liked}")
    protocol = meta["protocol"]
    length = protocol["history_len"]
    first = protocol.get("min_history", length)
    for name in (c.VALIDATION, c.TEST) if "cuts" in meta else ():
        cut = meta["cuts"][name]
        say(
            f"{name}: begins at {moment(cut['from_timestamp'])} and holds {cut['share_of_usable']:.2%} of the "
            f"{meta['cuts']['usable_events']:,} usable events, and {cut['not_usable']:,} events among their users' "
            f"first {first}"
        )
    left = meta["left_out"]
    if left["users_with_too_few_events"]:
        say(
            f"left out: {left['users_with_too_few_events']:,} users with at most {first} "
            f"events ({left['their_events']:,} events)"
        )
    if left["users_not_drawn"]:
        say(f"left out by max_users: {left['users_not_drawn']:,} users ({left['events_not_drawn']:,} events)")
    if left.get("events_before_the_last_of_a_user"):
        say(
            f"left out by max_per_user: {left['events_before_the_last_of_a_user']:,} events before their users' last "
            f"{protocol['max_per_user']:,}"
        )
    history = meta["history"]
    new = protocol["split"] in (GLOBAL_TIME, COLUMN) or first < length
    why = "for ties in time" + (" or new users" if new else "")
    say(
        f"history: mean length {history['mean']:.2f}; {history['shorter_than_history_len']:,} shorter than {length} "
        f"{why}, {history['empty']:,} empty"
    )
    say(meta["leak"]["note"])
