"""Other runs beside this one in its report: another seed, other settings, titles replaced by ids; and their average."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from rectune.baselines.questions import FROZEN, ONLINE
from rectune.data.columns import ITEM_ID, LABEL, USER_ID
from rectune.errors import ConfigError, DataError
from rectune.report.parts import predictions_as
from rectune.score.score import TUNED

AVERAGE = "average of these runs"
"""The mean of all runs' log-odds, each with its prior and as calibrated."""
_KEYS = [USER_ID, ITEM_ID, LABEL]


def prediction_file(run: Path, split: str, protocol: str) -> Path:
    """Where `evaluate` leaves the tuned model's predictions under one protocol."""
    return run / f"predictions_{split}_{TUNED}{'_frozen' if protocol == FROZEN else ''}.parquet"


def names_beside(run: Path, others: Sequence[Path]) -> dict[str, Path]:
    """What each other run is called in the report: its folder's name, the whole path where that is not enough.

    >>> list(names_beside(Path("out/a"), [Path("out/b"), Path("old/a")]))
    ['run b', 'run old/a']

    Raises:
        ConfigError: a run is named twice, or is the very run that is evaluated.
    """
    whole = [path.resolve() for path in others]
    if len(set(whole)) < len(whole) or run.resolve() in whole:
        raise ConfigError(f"--beside: got {', '.join(map(str, others))} for {run}; name each other run once")
    shared = [path.name for path in [run.resolve(), *whole]]
    return {
        f"run {other if shared.count(path.name) > 1 else path.name}": other
        for other, path in zip(others, whole, strict=True)
    }


def _read(file: Path, run: Path, split: str) -> pl.DataFrame:
    again = f"`rectune evaluate {run}{'' if split == 'test' else f' --split {split}'}` makes it"
    if not file.is_file():
        raise ConfigError(f"--beside: {file} is missing; {again}")
    try:
        return pl.read_parquet(file, columns=[*_KEYS, "log_odds"])
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{file}: damaged ({' '.join(str(error).split())[:120]}); {again} anew") from error


def read_beside(
    run: Path, others: Sequence[Path], split: str, protocols: Sequence[str] = (ONLINE, FROZEN)
) -> dict[str, dict[str, pl.DataFrame]]:
    """Name in the report → protocol → the predictions that another run's `evaluate` left; read before any scoring.

    Raises:
        ConfigError: a run was not evaluated on this split, or is named twice.
        DataError: its predictions are damaged.
    """
    return {
        name: {protocol: _read(prediction_file(path, split, protocol), path, split) for protocol in protocols}
        for name, path in names_beside(run, others).items()
    }


def add_beside(
    beside: Mapping[str, Mapping[str, pl.DataFrame]], protocols: Mapping[str, dict[str, pl.DataFrame]]
) -> list[str]:
    """Put other runs, and the average of all with this one, among the tables of each protocol.

    Args:
        beside: as `read_beside` gives it; may be empty.
        protocols: protocol → model → predictions, the tuned model's among them; changed.

    Returns:
        The names that were added.

    Raises:
        DataError: another run was asked about other events.
    """
    if not beside:
        return []
    for protocol, tables in protocols.items():
        like = tables[TUNED]
        odds = [like["log_odds"].to_numpy()]
        for name, found in beside.items():
            if not found[protocol].select(_KEYS).equals(like.select(_KEYS)):
                raise DataError(
                    f"--beside: {name} was asked about other events ({found[protocol].height:,} of them, "
                    f"{like.height:,} here): both need the same dataset, split, seed and limit on samples"
                )
            odds.append(found[protocol]["log_odds"].to_numpy())
            tables[name] = predictions_as(like, odds[-1])
        tables[AVERAGE] = predictions_as(like, np.mean(odds, axis=0))
    return [*beside, AVERAGE]
