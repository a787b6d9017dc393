"""The best adapter of a training at the root of its run folder, with all that is saved beside it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rectune.config import Config
from rectune.errors import ModelError
from rectune.files import atomic_path, hash_file
from rectune.model.lora import ADAPTER_FILE, SEAL, seal_problem
from rectune.score.settings import BASELINE_FILES, FILE_NAME, RATES, load_settings
from rectune.train.checkpoints import checkpoint_folders, problem_with
from rectune.train.start import BEST

VALIDATION_PREDICTIONS = "validation_predictions.parquet"
_ROOT_FILES = (
    ADAPTER_FILE, "adapter_config.json", RATES, *BASELINE_FILES.values(), FILE_NAME, VALIDATION_PREDICTIONS, SEAL,
)  # fmt: skip

Say = Callable[[str], None]


def _same_adapter(source: Path, run: Path) -> bool:
    """Whether the root holds this very adapter, whole: the files themselves are read, not only the seal."""
    there = [folder / name for folder in (source, run) for name in (ADAPTER_FILE, SEAL, FILE_NAME)]
    if not all(file.is_file() for file in there):
        return False
    try:
        load_settings(run)
    except ModelError:
        return False
    return hash_file(source / ADAPTER_FILE) == hash_file(run / ADAPTER_FILE) and seal_problem(run) is None


def publish(source: Path, run: Path, blend: Sequence[str], say: Say) -> None:
    """Copy the best adapter to the root of the run folder, its seal last, each file whole.

    Where it lies there already it stays as it is, with what `rectune calibrate` may have written beside it. Cut off
    half-way, what is new lies beside the old seal and so is refused by whoever loads it, until --resume goes on here.
    """
    if _same_adapter(source, run):
        return
    if blend and not load_settings(source).blend:
        say(f"blend: the best adapter was kept without it; `rectune calibrate {run}` fits its weights")
    for name in _ROOT_FILES:
        if (source / name).is_file():
            with atomic_path(run / name) as temporary:
                shutil.copyfile(source / name, temporary)


def publish_tokenizer(tokenizer: Any, run: Path) -> None:
    """Put the tokenizer beside the adapter, each of its files whole."""
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for file in sorted(Path(folder).rglob("*")):
            if file.is_file():
                with atomic_path(run / file.relative_to(folder)) as temporary:
                    shutil.copyfile(file, temporary)


def check_best(run: Path, step: int | None) -> None:
    """The kept adapter must be of the step that the history calls the best.

    Raises:
        ModelError: the folder holds another step's adapter.
    """
    try:
        kept = json.loads((run / BEST / "step.json").read_text(encoding="utf-8"))["step"]
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{run / BEST}: the best adapter is missing or damaged ({error}); train again") from error
    if step is not None and kept != step:
        raise ModelError(f"{run / BEST}: holds the adapter of step {kept}, not of the best step {step}; train again")


def what_is_kept(config: Config, run: Path, best: int | None, say: Say) -> str:
    """Put the best adapter, where there is one, at the root of a run that broke, and say what stands."""
    from rectune.train.not_finite import what_stands

    if best is not None:
        check_best(run, best)
        publish(run / BEST, run, config.blend, say)
    last = next((folder for folder in checkpoint_folders(run) if problem_with(folder) is None), None)
    return what_stands(run, best, last)
