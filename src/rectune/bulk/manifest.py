"""What a folder of scores says of itself, so that a second call goes on with it or leaves it alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rectune.errors import ConfigError
from rectune.files import hash_file, remove_leftovers, write_json

MANIFEST = "manifest.json"
_MARK = "rectune_scores"
_FORMAT = 1

Key = dict[str, Any]


def part_file(output: Path, part: int) -> Path:
    """Where the scores of a part lie."""
    return output / f"part-{part:05d}.parquet"


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def open_output(output: Path, key: Key) -> None:
    """Take a folder for scores, or take it up again.

    Args:
        output: the folder.
        key: what the scores depend on, in levels.

    Raises:
        ConfigError: it holds something else, or scores that depend on something else.
    """
    if output.exists() and not output.is_dir():
        raise ConfigError(f"--output: {output} is a file; with --workers give a folder")
    told = _read(output / MANIFEST)
    now = json.loads(json.dumps(key))
    if told.get(_MARK) == _FORMAT:
        changed = _changed(told["key"], now)
        if changed is not None:
            raise ConfigError(
                f"--output: {output} holds scores of another call: {changed}; give another folder, or remove this one"
            )
        remove_leftovers(output)
        return
    alien = sorted(entry.name for entry in output.iterdir()) if output.is_dir() else []
    if alien:
        raise ConfigError(
            f"--output: {output} holds other files ({', '.join(alien[:4])}) and no {MANIFEST} of scores, so it is left "
            "alone; give a new folder"
        )
    write_json(output / MANIFEST, {_MARK: _FORMAT, "finished": False, "key": now})


def _changed(old: Any, now: Any, name: str = "") -> str | None:
    """The first thing that is another, in words."""
    if isinstance(old, dict) and isinstance(now, dict):
        found = (_changed(old.get(each), now.get(each), each) for each in sorted({*old, *now}))
        return next((words for words in found if words is not None), None)
    return None if old == now else f"{name} has changed from {str(old)[:60]} to {str(now)[:60]}"


def close_output(output: Path, told: dict[str, Any]) -> None:
    """Say that all parts are there."""
    write_json(output / MANIFEST, {**_read(output / MANIFEST), "finished": True, **told})


def finish_part(output: Path, part: int, told: dict[str, Any]) -> dict[str, Any]:
    """Count a part as finished, whose file is in its place."""
    told = {**told, "sha256": hash_file(part_file(output, part))}
    write_json(part_file(output, part).with_suffix(".json"), told)
    return told


def finished_part(output: Path, part: int) -> dict[str, Any] | None:
    """What was told of a part that is finished, its file whole; else None."""
    file = part_file(output, part)
    told = _read(file.with_suffix(".json"))
    return told if told and file.is_file() and hash_file(file) == told.get("sha256") else None
