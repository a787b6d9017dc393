"""How a run starts: fresh, from a checkpoint, or not at all because its folder holds another run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rectune.config import Config, load_config
from rectune.errors import ConfigError
from rectune.files import atomic_folder, write_json, write_text
from rectune.model.lora import ADAPTER_FILE
from rectune.score.settings import FILE_NAME, load_settings
from rectune.train.checkpoints import Checkpoint, latest_checkpoint, read_checkpoint

BEST = "best"
KEPT = "kept"
"""Folder of a checkpoint that holds the best adapter as it was then, so that a resumed run can put it back."""
HISTORY = "log_history.json"
_EXTRA = "extra_epochs.json"
"""Where --extra-epochs were trained: the epochs first asked for, and how many were added."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Resume:
    """How a run starts: from the latest checkpoint, from a named one, for more epochs."""

    latest: bool = False
    checkpoint: Path | None = None
    extra_epochs: int = 0


def is_finished(run: Path) -> bool:
    """Whether a run folder holds a finished training."""
    return (run / HISTORY).is_file() and (run / ADAPTER_FILE).is_file()


def _holds_run(run: Path) -> bool:
    return is_finished(run) or any(run.glob("checkpoint-*"))


def starting_point(config: Config, resume: Resume, overwrite: bool, say: Say) -> Checkpoint | None:
    """The checkpoint to go on from, or None for a fresh start.

    Raises:
        ConfigError: the folder holds another run and nothing was said about resuming, or something else than a run.
        ModelError: the named checkpoint is missing or damaged.
    """
    run = config.output_dir
    if run.exists() and not run.is_dir():
        raise ConfigError(f"output_dir: {run} is a file; name a folder for the run")
    if overwrite:
        if resume.latest or resume.checkpoint is not None:
            raise ConfigError("--overwrite: it removes the run that --resume would go on from; choose one of the two")
        if run.is_dir() and any(run.iterdir()) and not (run / "config.yaml").is_file():
            raise ConfigError(f"output_dir: {run} is no run folder (no config.yaml), so --overwrite leaves it alone")
        return None
    if resume.checkpoint is not None:
        found = read_checkpoint(resume.checkpoint)
        if _holds_run(run) and found.folder.parent.resolve() != run.resolve():
            raise ConfigError(
                f"output_dir: {run} already holds a run, and {found.folder} is another's checkpoint; "
                "set output_dir=OTHER"
            )
        return found
    if resume.latest:
        latest = latest_checkpoint(run, say)
        if latest is None and is_finished(run):
            raise ConfigError(
                f"output_dir: {run} holds a finished run without a usable checkpoint to go on from; start from its "
                f"adapter with adapter_name_or_path={run} output_dir=OTHER, or start over with --overwrite"
            )
        if latest is None:
            say(f"resume: {run} holds no usable checkpoint, so training starts from the beginning")
        return latest
    if _holds_run(run):
        raise ConfigError(
            f"output_dir: {run} already holds a run; go on with --resume, start over with --overwrite, "
            "or set output_dir=OTHER"
        )
    return None


def check_same_data(start: Checkpoint, content_hash: str) -> None:
    """A run goes on over the events that it began with.

    Raises:
        ConfigError: the dataset has changed since the checkpoint was saved.
        ModelError: the checkpoint's settings are damaged.
    """
    if not (start.folder / FILE_NAME).is_file():
        return
    before = load_settings(start.folder).data_hash
    if before != content_hash:
        raise ConfigError(
            f"dataset: its content is {content_hash[:12]} now, but {start.folder} was trained on {before[:12]}; put "
            f"the old data back, or train on the new with adapter_name_or_path={start.folder} output_dir=OTHER"
        )


def asked_epochs(run: Path) -> float | None:
    """The num_train_epochs that a run was started with, before --extra-epochs; None where there were none."""
    try:
        return float(json.loads((run / _EXTRA).read_text(encoding="utf-8"))["num_train_epochs"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def extra_epochs(config: Config, resume: Resume, start: Checkpoint | None) -> float:
    """Epochs beyond `num_train_epochs`: those asked for now, else those that this run was going on for."""
    if resume.extra_epochs or start is None or asked_epochs(config.output_dir) != config.num_train_epochs:
        return resume.extra_epochs
    return float(json.loads((config.output_dir / _EXTRA).read_text(encoding="utf-8"))["extra"])


def save_config(config: Config, asked: Config) -> None:
    """Write a run's `config.yaml`, with the extra epochs in it, and what was asked for without them beside it."""
    run, extra = config.output_dir, config.num_train_epochs - asked.num_train_epochs
    if extra:
        write_json(run / _EXTRA, {"num_train_epochs": asked.num_train_epochs, "extra": extra})
    else:
        (run / _EXTRA).unlink(missing_ok=True)
    write_text(run / "config.yaml", config.to_yaml())


def restore_best(run: Path, start: Checkpoint | None) -> None:
    """Make the best adapter that of the starting point: later ones are not part of the run that goes on."""
    kept = None if start is None else start.folder / KEPT / BEST
    if kept is not None and kept.is_dir():
        with atomic_folder(run / BEST) as folder:
            shutil.copytree(kept, folder, dirs_exist_ok=True)
    else:
        shutil.rmtree(run / BEST, ignore_errors=True)


def say_banner(start: Checkpoint, say: Say) -> None:
    """Say where a run goes on from."""
    rule = "=" * 72
    say(
        f"{rule}\nRESUMING FROM A CHECKPOINT\n  checkpoint: {start.folder}\n  last completed step: {start.step}\n"
        f"  next step: {start.step + 1}\n  epoch: {start.epoch:.2f}\n{rule}"
    )


def say_changes(config: Config, run: Path, say: Say) -> None:
    """Name every key that differs from the run's saved configuration."""
    if (run / "config.yaml").is_file():
        before, now = load_config(run).model_dump(mode="json"), config.model_dump(mode="json")
        for key, value in now.items():
            if before[key] != value:
                say(f"resume: {key} was {before[key]!r} and is now {value!r}")
