"""The stage that fits anew what a finished run takes from validation: blend, temperature, offset, threshold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from rectune.baselines.blended import fit_served
from rectune.data.columns import LABEL, VALIDATION
from rectune.errors import ConfigError
from rectune.score.calibrate import calibrate
from rectune.score.joined import joined_rows
from rectune.score.open_run import open_run
from rectune.score.score import OWN, TUNED, open_data, score_rows, split_rows
from rectune.score.settings import AdapterSettings


def recalibrate(folder: Path, overrides: list[str], say: Callable[[str], None], console: Console) -> AdapterSettings:
    """Score validation with a run, fit the calibration and the blend, and save them beside the adapter.

    The adapter stays as it is. `blend` names the baselines that are to join the answer, `max_eval_samples` the number
    of validation events; both are the run's own where they are not overridden.

    Args:
        folder: a run folder.
        overrides: `key=value` strings.
        say: prints one line.
        console: shows progress.

    Raises:
        ConfigError: `blend` holds the stack, which the run starts from already.
        DataError: the dataset is missing or damaged.
        ModelError: the run is.
    """
    run = open_run(folder, overrides, say)
    if run.config.prior in run.config.blend:
        raise ConfigError(f"blend: holds {run.config.prior!r}, which this run starts from already; leave it out")
    data = open_data(run, say)
    rows = split_rows(run, data, VALIDATION)
    served = fit_served(
        run.config.blend, data.events, data.catalog, data.content_hash, run.config.preprocessing_cache_dir, say
    )
    table = score_rows(run, data, rows, (TUNED,), "logits", say, console)[TUNED]
    joined = joined_rows(served, data, rows)
    settings = calibrate(run.settings, table[LABEL].to_numpy(), table[OWN].to_numpy(), served, joined, say)
    settings.save(folder)
    say(
        f"calibrated on {len(rows):,} validation events: temperature {settings.temperature:.3f}, offset "
        f"{settings.offset:+.3f}, threshold {settings.threshold:.3f}; written into {folder}"
    )
    return settings
