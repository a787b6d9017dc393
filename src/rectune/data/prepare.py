"""The stage `prepare`: from ratings to a dataset folder, whole or not at all."""

from __future__ import annotations

import dataclasses
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from rectune import wording
from rectune.config import Config, default_of
from rectune.config_classify import CLASSIFY, STRATIFIED
from rectune.data import alpaca, folder
from rectune.data.classes import class_counts, text_note
from rectune.data.folder import history_slices, load_catalog, load_events, load_meta
from rectune.data.label import labelled
from rectune.data.meta import content_hash, describe, json_left_out, say_read, say_split, write_rest
from rectune.data.negatives import add_negatives, say_negatives
from rectune.data.sources.formats import TABLE_KEYS, read_in_blocks, read_source, source_of
from rectune.data.sources.source import Source
from rectune.data.split import COLUMN, LEAVE_ONE_OUT, timeline
from rectune.data.stratified import with_stratified_split
from rectune.data.tally import Tally
from rectune.errors import ConfigError, DataError
from rectune.files import atomic_folder
from rectune.spread import Say, Workers, one_process
from rectune.version import __version__

__all__ = ["history_slices", "load_catalog", "load_events", "load_meta", "prepare"]

_LATER_KEYS = ("source_format", "label_from", "min_history", "max_per_user", "task", "text_column", *TABLE_KEYS)


def prepare(
    config: Config,
    *,
    force: bool = False,
    say: Say = print,
    read: Source | None = None,
    workers: Workers | None = None,
) -> Path:
    """Read, clean, label and split a dataset, and write it as a folder.

    A folder that was prepared from the same source with the same settings is used again. The same input and
    settings give the same bytes.

    Args:
        config: its data and prompt keys decide everything.
        force: prepare again even if nothing has changed, and from the start even if an earlier call was cut off.
        say: prints one line.
        read: what `read_source` has read for this configuration already.
        workers: starts what does the parts of a log that is prepared in parts; None has this process do them.

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
    blocks = read_in_blocks(config, say) if read is None else None
    if blocks is not None:
        from rectune.data.gather import prepare_in_parts

        with (
            prepare_in_parts(config, blocks, source, settings, say, force, workers or partial(one_process, say)) as (
                write,
                lost,
            ),
            atomic_folder(target) as temporary,
        ):
            write(temporary)
            _carry_over(target, temporary)
        _say_written(target, lost, say)
        return target
    if workers is not None:
        say(
            "workers: this process prepares it alone: only MovieLens sets with labels from ratings and more than "
            f"part_rows={config.part_rows:,} rows are prepared in parts"
        )
    read = read_source(config, say) if read is None else read
    say_read(read.interactions.height, read.catalog, read.rejects, read.nouns, say)
    if read.interactions.height > config.part_rows:
        say(
            f"memory: more than part_rows={config.part_rows:,} rows, and held whole: only MovieLens sets with labels "
            "from ratings are prepared in parts"
        )
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
    events, more = line.events, dict[str, Any]()
    tally = Tally(config.history_len, config.warmup)
    tally.add(line.events)
    if config.label_from == "purchases":
        many, how = config.negatives, config.negative_sampling
        drawn = add_negatives(line.events, rows, read.catalog, many, how, config.seed, read.market)
        say_negatives(drawn, many, how, say)
        events, more = drawn.events, {"negatives": drawn.meta(many, how)}
        tally.count_written(events)
    if config.task == CLASSIFY:
        more["classes"] = class_counts(events, config.classes)
    digest = content_hash(lambda name: [events[name]], dict(events.schema), read.catalog, settings["protocol"])
    meta = describe(config, source, settings, tally, line, read.rejects, read.catalog, digest, more)
    if config.task == CLASSIFY:
        meta["leak"]["note"] = text_note(events, config.split)
    say_split(meta, say)
    left_out = json_left_out(config, tally.written, say)
    with atomic_folder(target) as temporary:
        _write(temporary, config, read, events, meta, left_out)
        _carry_over(target, temporary)
    _say_written(target, read.rejects.height, say)
    return target


def _say_written(target: Path, lost: int, say: Say) -> None:
    say(f"{target}: written" + (f"; {lost:,} rows could not be used, listed in {folder.REJECTS_CSV}" if lost else ""))


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
        left_out = meta.get("json_left_out", [])
        written = [name for name in folder.FILES if name != folder.META and name not in left_out]
        sizes = {name: (target / name).stat().st_size for name in written}
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
    if left_out and config.json_files == "all":
        return f"{', '.join(left_out)}: left out before, now asked for (json_files=all)"
    rejects = meta.get("rejects") or {}
    if rejects.get("rows") and rejects.get("allowed", default_of("max_rejects")) != config.max_rejects:
        return f"its {rejects['rows']:,} rejected rows are to be held against max_rejects={config.max_rejects}"
    if meta.get("events") != events or meta.get("bytes") != sizes:
        return "it is incomplete or damaged"
    return None


def _write(
    temporary: Path, config: Config, read: Source, events: pl.DataFrame, meta: dict[str, Any], left_out: list[str]
) -> None:
    events.write_parquet(temporary / folder.EVENTS)
    records = alpaca.Records(events, alpaca.ItemWords.of(read.catalog, config), config)
    for name in alpaca.JSON_FILES:
        if name not in left_out:
            write = alpaca.write_json_lines if name == folder.TEST_RAW else alpaca.write_json_list
            write(temporary / name, records.of_file(name))
    write_rest(temporary, config, read.catalog, read.rejects, meta, left_out)
