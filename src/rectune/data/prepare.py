"""The stage `prepare`: from ratings to a dataset folder, whole or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from rectune import wording
from rectune.config import Config, default_of
from rectune.config_classify import CLASSIFY, STRATIFIED
from rectune.data import alpaca, folder
from rectune.data import columns as c
from rectune.data.classes import class_counts, say_classes, text_note
from rectune.data.folder import history_slices, load_catalog, load_events, load_meta
from rectune.data.label import labelled
from rectune.data.leak import cold, leak_note, leak_share
from rectune.data.negatives import Drawn, add_negatives, say_negatives
from rectune.data.sources.formats import TABLE_KEYS, read_source, source_of
from rectune.data.sources.source import Source
from rectune.data.sources.table_values import moment
from rectune.data.split import COLUMN, GLOBAL_TIME, LEAVE_ONE_OUT, Timeline, timeline
from rectune.data.stratified import with_stratified_split
from rectune.errors import ConfigError, DataError
from rectune.files import atomic_folder, hash_file, write_json
from rectune.version import __version__

__all__ = ["history_slices", "load_catalog", "load_events", "load_meta", "prepare"]

_LATER_KEYS = ("source_format", "label_from", "min_history", "max_per_user", "task", "text_column", *TABLE_KEYS)

Say = Callable[[str], None]


def prepare(config: Config, *, force: bool = False, say: Say = print, read: Source | None = None) -> Path:
    """Read, clean, label and split a dataset, and write it as a folder.

    A folder that was prepared from the same source with the same settings is used again. The same input and
    settings give the same bytes.

    Args:
        config: its data and prompt keys decide everything.
        force: prepare again even if nothing has changed.
        say: prints one line.
        read: what `read_source` has read for this configuration already.

    Returns:
        The dataset folder, `config.dataset_folder()`.

    Raises:
        ConfigError: `dataset` is neither a known name nor a path, or the folder is someone else's.
        DataError: the input is missing, damaged or unusable.
        ResourceError: the network or the disk fails.
    """
    target = config.dataset_folder()
    _check_target(target)
    source = source_of(config)
    settings = _settings(config)
    changed = _what_changed(config, target, source, settings)
    if changed is None and not force:
        what = "the same source" if load_meta(target)["source"] == source else f"a local copy of {source['name']}"
        say(f"{target}: already prepared from {what} with the same settings; used as it is")
        return target
    if target.exists():
        say(f"{target}: prepared again, because {changed or 'that was asked for (force)'}")
    read = read_source(config, say) if read is None else read
    _say_read(read, say)
    rows = labelled(read, config, say)
    if config.split == STRATIFIED:
        rows = with_stratified_split(rows, config.classes, config.test_ratio, config.validation_ratio, config.seed)
    line = timeline(
        rows,
        split=COLUMN if config.split == STRATIFIED else config.split,
        history_len=config.warmup,
        test_ratio=config.test_ratio,
        validation_ratio=config.validation_ratio,
        max_users=config.max_users,
        max_per_user=config.max_per_user,
        seed=config.seed,
    )
    drawn = None
    if config.label_from == "purchases":
        many, how = config.negatives, config.negative_sampling
        drawn = add_negatives(line.events, rows, read.catalog, many, how, config.seed)
        say_negatives(drawn, many, how, say)
    meta = _meta(config, source, settings, read, line, drawn)
    _say_split(meta, say)
    with atomic_folder(target) as temporary:
        _write(temporary, config, read, line.events if drawn is None else drawn.events, meta)
        _carry_over(target, temporary)
    lost = read.rejects.height
    say(f"{target}: written" + (f"; {lost:,} rows could not be used, listed in {folder.REJECTS_CSV}" if lost else ""))
    return target


def _check_target(target: Path) -> None:
    """Refuse to replace a folder that this stage has not written: it may be someone's only copy of something."""
    if target.exists() and not target.is_dir():
        raise ConfigError(f"dataset_dir: {target} is a file; name a folder for the prepared dataset")
    if not target.is_dir() or (target / folder.META).is_file():
        return
    alien = sorted(entry.name for entry in target.iterdir() if entry.name not in folder.FILES)
    if alien:
        raise ConfigError(
            f"dataset_dir: {target} holds other files ({', '.join(alien[:4])}) and no {folder.META}, so it is not a "
            "prepared dataset and is left alone; set dataset_dir to a new folder"
        )


def _carry_over(target: Path, temporary: Path) -> None:
    """Keep what others have put into the old folder."""
    if not target.is_dir():
        return
    for entry in target.iterdir():
        if entry.name in folder.FILES:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, temporary / entry.name, symlinks=True)
        else:
            shutil.copy2(entry, temporary / entry.name, follow_symlinks=False)


def _settings(config: Config) -> dict[str, Any]:
    """Every setting that the folder depends on."""
    data_keys = ("history_len", "rating_threshold", "split", "test_ratio", "validation_ratio", "max_users")
    unused = ("test_ratio", "validation_ratio") if config.split in (LEAVE_ONE_OUT, COLUMN) else ()
    protocol = {key: getattr(config, key) for key in data_keys if key not in unused}
    # Left out at their defaults, so that a folder from before they existed is still good.
    protocol |= {key: getattr(config, key) for key in _LATER_KEYS if getattr(config, key) != default_of(key)}
    if config.items is not None:
        protocol["items"] = config.items.name  # its content is in the source's hash
    if config.label_from != "rating":
        del protocol["rating_threshold"]
    if config.label_from == "purchases":
        protocol |= {"negatives": config.negatives, "negative_sampling": config.negative_sampling}
    if config.task == CLASSIFY:
        protocol["labels"] = [list(pair) for pair in config.labels.items()]  # their order says what a label means
    if config.max_users is not None or config.label_from == "purchases" or config.split == STRATIFIED:
        protocol["seed"] = config.seed
    text_keys = ("positive_label", "negative_label", "history_shows", "item_text")
    prompt = {key: getattr(config, key) for key in text_keys}
    prompt.update(dataclasses.asdict(wording.texts_for(config)))
    del prompt["stream_header"]  # these files hold the pointwise layout's text
    return {"protocol": protocol, "prompt": prompt}


def _same_source(old: Any, now: dict[str, str]) -> bool:
    """Whether a folder's source is the one asked for; a local copy of a published set stands in for it.

    Who has prepared a zip of ml-latest-small can then train by its name without fetching it again.
    """
    if old == now:
        return True
    stands_in = isinstance(old, dict) and old.get("kind") == "local" and old.get("name") == now["name"]
    return stands_in and now["kind"] == "published"


def _what_changed(config: Config, target: Path, source: dict[str, str], settings: dict[str, Any]) -> str | None:
    """Why an existing folder cannot be used as it is, in words; None when it can."""
    try:
        meta = load_meta(target)
        events = pl.scan_parquet(target / folder.EVENTS).select(pl.len()).collect().item()
        sizes = {name: (target / name).stat().st_size for name in folder.FILES if name != folder.META}
    except (DataError, OSError, pl.exceptions.PolarsError):
        return "it is incomplete or damaged"
    if meta.get("rectune_version") != __version__:
        return f"it was written by rectune {meta.get('rectune_version')}"
    if not _same_source(meta.get("source"), source):
        return f"its source is another: {meta.get('source')} in place of {source}"
    for group, values in settings.items():
        old = meta.get(group)
        old = old if isinstance(old, dict) else {}
        for key in sorted({*values, *old}):
            if old.get(key) != values.get(key):
                return f"{key} has changed from {old.get(key)!r} to {values.get(key)!r}"
    rejects = meta.get("rejects") or {}
    if rejects.get("rows") and rejects.get("allowed", default_of("max_rejects")) != config.max_rejects:
        return f"its {rejects['rows']:,} rejected rows are to be held against max_rejects={config.max_rejects}"
    if meta.get("events") != events or meta.get("bytes") != sizes:
        return "it is incomplete or damaged"
    return None


def _meta(
    config: Config,
    source: dict[str, str],
    settings: dict[str, Any],
    read: Source,
    line: Timeline,
    drawn: Drawn | None,
) -> dict[str, Any]:
    """What `meta.json` says; no time and no path, so that the same input gives the same bytes.

    Users, items, histories and leaks are of the data's own events; rows and their labels count sampled negatives too.
    """
    events, written = line.events, line.events if drawn is None else drawn.events
    share, unseen = leak_share(events), cold(events)
    per_split = {row[0]: row[1:] for row in written.group_by(c.SPLIT).agg(pl.len(), pl.col(c.LABEL).sum()).iter_rows()}
    starts, stops = history_slices(events, config.history_len)
    asked = (events[c.SPLIT] != c.WARMUP).to_numpy()
    lengths = (stops - starts)[asked]
    return {
        "name": config.dataset_name(),
        "rectune_version": __version__,
        "source": source,
        "content_hash": content_hash(written, read.catalog, settings["protocol"]),
        **settings,
        "events": written.height,
        "users": events[c.USER_ID].n_unique(),
        "items": events[c.ITEM_ID].n_unique(),
        "catalog_items": read.catalog.height,
        "splits": {name: _balance(*per_split.get(name, (0, 0))) for name in c.SPLITS},
        "history": {
            "mean": round(float(lengths.mean()), 4),
            "shorter_than_history_len": int((lengths < config.history_len).sum()),
            "empty": int((lengths == 0).sum()),
        },
        "left_out": {
            "users_with_too_few_events": line.short_users,
            "their_events": line.short_events,
            "users_not_drawn": line.users_not_drawn,
            "events_not_drawn": line.events_not_drawn,
            **({"events_before_the_last_of_a_user": line.old_events} if config.max_per_user is not None else {}),
        },
        "rejects": {
            "rows": read.rejects.height,
            "by_reason": _by_reason(read.rejects),
            **({} if config.max_rejects == default_of("max_rejects") else {"allowed": config.max_rejects}),
        },
        "leak": {
            "share_of_test_events_with_later_train_events": None if share is None else round(share, 6),
            "test_events_of_cold_users": unseen.users,
            "test_events_about_cold_items": unseen.items,
            "note": text_note(events, config.split) if config.task == CLASSIFY else leak_note(events, config.split),
        },
        **({} if drawn is None else {"negatives": drawn.meta(config.negatives, config.negative_sampling)}),
        **({"classes": class_counts(events, config.classes)} if config.task == CLASSIFY else {}),
        **_cuts(line, config.warmup),
    }


def _cuts(line: Timeline, history_len: int) -> dict[str, Any]:
    """Where `global_time` cut and what came out, under `cuts`; nothing for other splits.

    A user's first `history_len` events are not usable, yet asked about when they are at or after a cut.
    """
    cuts = line.cuts
    if cuts is None:
        return {}
    early = dict(line.events.filter(pl.col(c.POSITION) < history_len).group_by(c.SPLIT).len().iter_rows())
    return {
        "cuts": {
            "usable_events": cuts.usable,
            **{
                split: {
                    "from_timestamp": moment,
                    "usable": usable,
                    "share_of_usable": round(usable / cuts.usable, 6),
                    "not_usable": early.get(split, 0),
                }
                for split, moment, usable in (
                    (c.VALIDATION, cuts.validation, cuts.usable_validation),
                    (c.TEST, cuts.test, cuts.usable_test),
                )
            },
        }
    }


def _balance(rows: int, positives: int) -> dict[str, Any]:
    return {"rows": rows, "positive": positives, "positive_rate": round(positives / rows, 6) if rows else None}


def _by_reason(rejects: pl.DataFrame) -> dict[str, int]:
    counts = rejects.group_by(c.FILE, c.REASON).len().sort(c.FILE, c.REASON)
    return {f"{file}: {reason}": number for file, reason, number in counts.iter_rows()}


def content_hash(events: pl.DataFrame, catalog: pl.DataFrame, protocol: dict[str, Any]) -> str:
    """SHA-256 over the values of the tables and the protocol; no matter how a library's version writes them."""
    digest = hashlib.sha256(json.dumps(protocol, sort_keys=True).encode())
    for frame in (events, catalog):
        for column in frame.iter_columns():
            digest.update(f"{column.name}:{len(column)}:".encode())
            if column.dtype == pl.String:
                if column.null_count():
                    digest.update(column.is_null().to_numpy().tobytes())
                    column = column.fill_null("")
                digest.update(column.str.len_bytes().to_numpy().astype("<u4").tobytes())
                digest.update("".join(column.to_list()).encode())
            else:
                digest.update(column.is_null().to_numpy().tobytes())
                filled = column.fill_null(0).to_numpy()
                digest.update(filled.astype(filled.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def _write(temporary: Path, config: Config, read: Source, events: pl.DataFrame, meta: dict[str, Any]) -> None:
    events.write_parquet(temporary / folder.EVENTS)
    read.catalog.write_parquet(temporary / folder.CATALOG)
    read.rejects.write_parquet(temporary / folder.REJECTS)
    read.rejects.write_csv(temporary / folder.REJECTS_CSV)
    records = alpaca.Records(events, read.catalog, config)
    for name, split in ((folder.TRAIN_JSON, c.TRAIN), (folder.EVAL_JSON, c.VALIDATION)):
        alpaca.write_json_list(temporary / name, records.alpaca(records.rows_of(split)))
    alpaca.write_json_lines(temporary / folder.TEST_RAW, records.raw(records.rows_of(c.TEST)))
    write_json(temporary / folder.DATASET_INFO, alpaca.dataset_info(config.dataset_name()))
    sizes = {name: (temporary / name).stat().st_size for name in folder.FILES if name != folder.META}
    sums = {name: hash_file(temporary / name) for name in (folder.EVENTS, folder.CATALOG)}
    write_json(temporary / folder.META, {**meta, "bytes": sizes, "sha256": sums})


def _say_read(read: Source, say: Say) -> None:
    rows, items = read.nouns
    say(f"read: {read.interactions.height:,} {rows}, {read.catalog.height:,} {items}, {read.rejects.height:,} rejected")
    for reason, number in _by_reason(read.rejects).items():
        say(f"  rejected {number:,}: {reason}")


def _say_split(meta: dict[str, Any], say: Say) -> None:
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
