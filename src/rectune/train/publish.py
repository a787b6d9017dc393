"""The best adapter of a training at the root of its run folder, with all that is saved beside it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from rectune.errors import ModelError
from rectune.files import atomic_path, hash_file
from rectune.model.lora import ADAPTER_FILE, SEAL
from rectune.score.settings import BASELINE_FILES, FILE_NAME, RATES, load_settings
from rectune.train.start import BEST

VALIDATION_PREDICTIONS = "validation_predictions.parquet"
_ROOT_FILES = (
    ADAPTER_FILE, "adapter_config.json", RATES, *BASELINE_FILES.values(), FILE_NAME, VALIDATION_PREDICTIONS, SEAL,
)  # fmt: skip

Say = Callable[[str], None]


def publish(source: Path, run: Path, blend: Sequence[str], say: Say) -> None:
    """Copy the best adapter to the root of the run folder, its seal last, each file whole.

    Where it lies there already it stays as it is, with what `rectune calibrate` may have written beside it.
    """
    there = [folder / name for folder in (source, run) for name in (ADAPTER_FILE, SEAL, FILE_NAME)]
    if all(file.is_file() for file in there) and hash_file(source / ADAPTER_FILE) == hash_file(run / ADAPTER_FILE):
        return
    if blend and not load_settings(source).blend:
        say(f"blend: the best adapter was kept without it; `rectune calibrate {run}` fits its weights")
    (run / SEAL).unlink(missing_ok=True)  # cut off half-way, the new adapter must not lie beside the old seal
    for name in _ROOT_FILES:
        if (source / name).is_file():
            with atomic_path(run / name) as temporary:
                shutil.copyfile(source / name, temporary)


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
