"""How a run starts: fresh, from a checkpoint, or not at all because its folder holds another run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rectune.config import Config
from rectune.errors import ConfigError
from rectune.files import atomic_folder, cache_root, remove_leftovers, write_json, write_text
from rectune.lock import NAME
from rectune.model.lora import ADAPTER_FILE
from rectune.score.settings import FILE_NAME, load_settings
from rectune.train.changes import check_changes, saved_config
from rectune.train.checkpoints import Checkpoint, drop_after, latest_checkpoint, processes_of, read_checkpoint

BEST = "best"
KEPT = "kept"
"""Folder of a checkpoint that holds the best adapter as it was then, so that a resumed run can put it back."""
HISTORY = "log_history.json"
DIAGNOSIS = "diagnosis.json"
"""What was found wrong with a run, in its folder for logs."""
EXTRA = "extra_epochs.json"
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
    """Whether a run folder holds what a fresh start would destroy: an adapter, also of a run that broke."""
    return (run / ADAPTER_FILE).is_file() or any(run.glob("checkpoint-*"))


def starting_point(config: Config, resume: Resume, overwrite: bool, say: Say) -> Checkpoint | None:
    """The checkpoint to go on from, or None for a fresh start.

    Raises:
        ConfigError: the folder holds another run and nothing was said about resuming, or something else than a run.
        ModelError: the named checkpoint is missing or damaged.
    """
    run = config.output_dir
    if overwrite:
        if resume.latest or resume.checkpoint is not None:
            raise ConfigError("--overwrite: it removes the run that --resume would go on from; choose one of the two")
        if any(path.name != NAME for path in run.iterdir()) and not (run / "config.yaml").is_file():
            raise ConfigError(f"output_dir: {run} is no run folder (no config.yaml), so --overwrite leaves it alone")
        if (run / "sweep").is_dir():
            raise ConfigError(
                f"output_dir: {run} holds a sweep, which --overwrite would remove; move {run / 'sweep'} away, or set "
                "output_dir=OTHER"
            )
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
        if latest is None and (run / ADAPTER_FILE).is_file():
            raise ConfigError(
                f"output_dir: {run} holds an adapter without a usable checkpoint to go on from; start from its "
                f"adapter with adapter_name_or_path={run} output_dir=OTHER, or start over with --overwrite"
            )
        if latest is None:
            say(f"resume: {run} holds no usable checkpoint, so training starts from the beginning")
        return latest
    if _holds_run(run):
        ways = "go on with --resume, " if any(run.glob("checkpoint-*")) else ""
        raise ConfigError(
            f"output_dir: {run} already holds a run; {ways}start over with --overwrite, or set output_dir=OTHER"
        )
    return None


@dataclass(frozen=True)
class Beginning:
    """A start that was found good, before anything of the run has been touched.

    Attributes:
        config: all keys, with the extra epochs in `num_train_epochs`.
        asked: the same without them.
        checkpoint: where training goes on from, None for the beginning.
        in_place: whether it overwrites nothing and goes on from nothing, so that its folder may be written to at once.
    """

    config: Config
    asked: Config
    checkpoint: Checkpoint | None
    in_place: bool

    @property
    def extra(self) -> float:
        """Epochs beyond those asked for."""
        return self.config.num_train_epochs - self.asked.num_train_epochs


def prepare_start(config: Config, resume: Resume, overwrite: bool, say: Say, processes: int = 1) -> Beginning:
    """Remove what killed processes left half-written, find the starting point, and check that it can be gone on from.

    The caller holds the run folder's lock; of several `processes` that are to train only the main one calls this.

    Raises:
        ConfigError, ModelError: see `starting_point`; a key has changed that may not.
    """
    run = config.output_dir
    removed = remove_leftovers(run, alone=True)
    data, fetched = config.dataset_folder(), [cache_root() / name for name in ("wheels", "models")]
    for folder in (run / "logs", data.parent, data, config.preprocessing_cache_dir, *fetched):
        removed += remove_leftovers(folder)
    if removed:
        say(f"start: removed what a killed process left half-written: {', '.join(sorted(removed))}")
    checkpoint = starting_point(config, resume, overwrite, say)
    extra = extra_epochs(config, resume, checkpoint)
    longer = config
    if extra:  # beyond what a sweep of it may vary
        space = {key: part for key, part in config.sweep.items() if key != "num_train_epochs"}
        longer = config.with_overrides(num_train_epochs=config.num_train_epochs + extra, sweep=space)
    before = None if checkpoint is None else saved_config(checkpoint.folder)
    if checkpoint is not None and before is not None:
        check_changes(before, longer, checkpoint.folder, say, (processes_of(checkpoint.folder), processes))
    return Beginning(longer, config, checkpoint, checkpoint is None and not overwrite)


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
        return float(json.loads((run / EXTRA).read_text(encoding="utf-8"))["num_train_epochs"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def extra_epochs(config: Config, resume: Resume, start: Checkpoint | None) -> float:
    """Epochs beyond `num_train_epochs`: those asked for now, else those that this run was going on for."""
    if resume.extra_epochs or start is None or asked_epochs(config.output_dir) != config.num_train_epochs:
        return resume.extra_epochs
    return float(json.loads((config.output_dir / EXTRA).read_text(encoding="utf-8"))["extra"])


def save_config(config: Config, asked: Config) -> None:
    """Write a run's `config.yaml`, with the extra epochs in it, and what was asked for without them beside it."""
    run, extra = config.output_dir, config.num_train_epochs - asked.num_train_epochs
    if extra:
        write_json(run / EXTRA, {"num_train_epochs": asked.num_train_epochs, "extra": extra})
    else:
        (run / EXTRA).unlink(missing_ok=True)
    write_text(run / "config.yaml", config.to_yaml())


def empty(run: Path) -> None:
    """Empty a run folder, keeping the lock that is held on it; what tells that it is a run goes last."""
    for path in sorted(run.iterdir(), key=lambda path: path.name == "config.yaml"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != NAME:
            path.unlink()


def go_back(run: Path, start: Checkpoint | None) -> None:
    """Make a run folder what it was at the starting point: later checkpoints and best adapters are no part of it."""
    (run / HISTORY).unlink(missing_ok=True)  # not finished any more
    if start is None:
        drop_after(run, 0)
    elif start.folder.parent.resolve() == run.resolve():
        drop_after(run, start.step)
    restore_best(run, start)


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
