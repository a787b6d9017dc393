"""Checkpoints: complete or not counted, the newest good one found, old ones removed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rectune.errors import ModelError
from rectune.files import hash_file, write_json
from rectune.model.lora import ADAPTER_FILE

_MARK = "complete.json"
PENDING = "pending.json"
"""What a checkpoint leaves open: the loss since the last log line, and whether its evaluation is still to come."""
PROCESSES_FILE = "processes.json"
"""How many processes trained until a checkpoint; where one did there is no such file."""
_NEEDED = (ADAPTER_FILE, "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")
_NAME = re.compile(r"checkpoint-(\d+)$")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its folder, the last completed optimiser step and the epoch reached."""

    folder: Path
    step: int
    epoch: float


def mark_complete(folder: Path) -> None:
    """Record the hash of every file of a checkpoint, last of all: without this record it is not counted."""
    hashes = {
        str(file.relative_to(folder)): hash_file(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != _MARK
    }
    write_json(folder / _MARK, hashes)


def problem_with(folder: Path) -> str | None:
    """Why a checkpoint cannot be used, or None when all its files are as they were saved."""
    try:
        hashes = json.loads((folder / _MARK).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return "it was cut off while being saved"
    except (ValueError, OSError) as error:
        return f"its {_MARK} is damaged ({error})"
    if not isinstance(hashes, dict):
        return f"its {_MARK} is damaged (it names no files)"
    for name in _NEEDED:
        if name not in hashes:  # the Trainer would go on without it and say nothing
            return f"its {_MARK} does not name {name}"
    for name, expected in hashes.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if hash_file(file) != expected:
            return f"{name} is damaged: its content is not what was saved"
    return None


def evaluation_pending(folder: Path) -> bool:
    """Whether a checkpoint was saved in place of the evaluation of its step; one of an earlier version never was."""
    try:
        return bool(json.loads((folder / PENDING).read_text(encoding="utf-8"))["evaluation"])
    except FileNotFoundError:
        return False


def processes_of(folder: Path) -> int:
    """How many processes trained until a checkpoint."""
    file = folder / PROCESSES_FILE
    return int(json.loads(file.read_text(encoding="utf-8"))["processes"]) if file.is_file() else 1


def checkpoint_folders(output_dir: Path) -> list[Path]:
    """All checkpoint folders of a run, newest step first, complete or not."""
    found = [(int(match[1]), path) for path in output_dir.glob("checkpoint-*") if (match := _NAME.search(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def read_checkpoint(folder: Path) -> Checkpoint:
    """A checkpoint by its folder.

    Raises:
        ModelError: it is missing, cut off or damaged.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such checkpoint; --resume alone takes the latest of output_dir")
    problem = problem_with(folder)
    if problem is not None:
        raise ModelError(f"{folder}: {problem}; take an earlier checkpoint, or --resume for the latest good one")
    state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    return Checkpoint(folder, int(state["global_step"]), float(state["epoch"]))


def latest_checkpoint(output_dir: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest complete checkpoint of a run, or None; each newer one that is passed over is named."""
    for folder in checkpoint_folders(output_dir):
        problem = problem_with(folder)
        if problem is None:
            return read_checkpoint(folder)
        say(f"resume: {folder.name} is passed over: {problem}")
    return None


def _remove(folder: Path) -> None:
    """Remove a checkpoint, its record first: cut off half-way it must not look whole."""
    (folder / _MARK).unlink(missing_ok=True)
    shutil.rmtree(folder)


def rotate(output_dir: Path, keep: int | None) -> None:
    """Remove all but the newest `keep` checkpoints; None keeps all."""
    if keep is not None:
        for folder in checkpoint_folders(output_dir)[keep:]:
            _remove(folder)


def drop_after(output_dir: Path, step: int) -> None:
    """Remove checkpoints beyond a step, when a run goes on from that step."""
    for folder in checkpoint_folders(output_dir):
        if int(folder.name.partition("-")[2]) > step:
            _remove(folder)
