"""The stage that fits anew what a finished run takes from validation: blend, temperature, offset, threshold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from rectune.baselines.blended import fit_served
from rectune.config import Config, parse_override
from rectune.config_classify import only_two_classes
from rectune.data.columns import LABEL, VALIDATION
from rectune.errors import ConfigError, DataError
from rectune.lock import run_lock
from rectune.score import calibrate as calibration
from rectune.score.joined import joined_rows
from rectune.score.open_run import OpenRun, open_run, run_config
from rectune.score.score import OWN, TUNED, open_data, score_rows, split_rows
from rectune.score.settings import MODEL, OFFSET, AdapterSettings

_CHECKPOINT = "complete.json"


def _without_blend(overrides: list[str]) -> list[str]:
    return [each for each in overrides if parse_override(each)[0] != "blend"]


def _joining(run: OpenRun, given: Config, overrides: list[str]) -> list[str]:
    """The baselines asked for, or those that join the run's answer already.

    Raises:
        ConfigError: the stack is asked for, and the run starts from it.
    """
    asked = len(_without_blend(overrides)) < len(overrides)
    names: list[str] = (
        list(given.blend) if asked else [name for name in run.settings.blend if name not in (MODEL, OFFSET)]
    )
    if run.config.prior in names:
        raise ConfigError(f"blend: got {run.config.prior!r}, which this run starts from already; leave it out")
    return names


def recalibrate(folder: Path, overrides: list[str], say: Callable[[str], None], console: Console) -> AdapterSettings:
    """Score validation with a run, fit the calibration and the blend, and save them beside the adapter.

    The adapter stays as it is. `blend=[...]` names the baselines that are to join the answer; without it they are
    those that do already. `max_eval_samples` is the number of validation events.

    Args:
        folder: a run folder.
        overrides: `key=value` strings.
        say: prints one line.
        console: shows progress.

    Raises:
        ConfigError: the folder is a checkpoint or in use, or `blend` holds the stack, which it starts from already.
        DataError: the dataset is missing, damaged or not the one trained on, or has too few validation events.
        ModelError: the run is.
    """
    if (folder / _CHECKPOINT).is_file():
        raise ConfigError(f"{folder}: is a checkpoint, which --resume must find unchanged; give its run folder")
    if not folder.is_dir():
        run_config(folder, overrides)  # says what is wrong, and makes no folder
    with run_lock(folder, say):
        return _recalibrate(folder, overrides, say, console)


def _recalibrate(folder: Path, overrides: list[str], say: Callable[[str], None], console: Console) -> AdapterSettings:
    """Fit and save, while no other process writes into the folder."""
    given = run_config(folder, overrides)
    only_two_classes(given, "calibrate")
    run = open_run(folder, _without_blend(overrides), say)
    names = _joining(run, given, overrides)
    data = open_data(run, say)
    if data.content_hash != run.settings.data_hash:
        raise DataError(
            f"{data.folder}: not the dataset that the run was trained on, so its validation events may be ones that "
            "were trained on; give the run's own with dataset_dir=FOLDER"
        )
    rows = split_rows(run, data, VALIDATION)
    labels = data.events[LABEL].to_numpy()[rows]
    if calibration.too_few(labels):
        raise DataError(
            f"{VALIDATION}: {len(rows):,} events are too few to fit anything on ({calibration.LEAST} are needed, "
            f"{calibration.RARER} of the rarer label); raise max_eval_samples. Nothing was changed"
        )
    served = fit_served(names, data.events, data.catalog, data.content_hash, run.config.preprocessing_cache_dir, say)
    # Without what joined before, which may be of a version that this one cannot read.
    run = replace(run, settings=replace(run.settings, blend={}))
    table = score_rows(run, data, rows, (TUNED,), "logits", say, console)[TUNED]
    joined = joined_rows(served, data, rows)
    settings = calibration.calibrate(run.settings, table[LABEL].to_numpy(), table[OWN].to_numpy(), served, joined, say)
    settings.save(folder)
    say(
        f"calibrated: {settings.correction_text} ({len(rows):,} events), threshold {settings.threshold:.3f}; "
        f"written into {folder}"
    )
    return settings
