"""What a blended answer is made of: the model by itself, and the baselines that join it without the model."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from rectune.baselines.questions import split_rows
from rectune.data.columns import LABEL, VALIDATION
from rectune.measure.blending import fit_blend
from rectune.measure.classification import probability
from rectune.prompt.dataset import Dataset
from rectune.report.verdict import ALONE, WITHOUT
from rectune.score.joined import joined_rows
from rectune.score.open_run import OpenRun
from rectune.score.score import OWN, TUNED


def predictions_as(like: pl.DataFrame, log_odds: np.ndarray[Any, Any]) -> pl.DataFrame:
    """Predictions of another model on the same rows."""
    return like.select(pl.exclude("generated", "generated_label", OWN)).with_columns(
        log_odds=pl.Series(log_odds, dtype=pl.Float64), score=pl.Series(probability(log_odds), dtype=pl.Float64)
    )


def add_parts(
    run: OpenRun, data: Dataset, rows: npt.NDArray[np.int64], protocols: dict[str, dict[str, pl.DataFrame]]
) -> None:
    """Put the model by itself, and the baselines that join it weighed without it, among the tables of each protocol.

    The weights of these baselines are fitted on all validation events, online, as the whole blend's are on those that
    training evaluated on.

    Args:
        run, data, rows: what was scored.
        protocols: protocol → model → predictions; changed.
    """
    served = run.settings.joining
    held_out = split_rows(data.events, VALIDATION)
    labels = data.events[LABEL].to_numpy()[held_out]
    weights, offset = fit_blend(labels, np.column_stack(list(joined_rows(served, data, held_out).values())))
    for protocol, tables in protocols.items():
        joined = joined_rows(served, data, rows, protocol)
        like = tables[TUNED]
        tables[ALONE] = predictions_as(like, run.settings.alone(like[OWN].to_numpy()))
        tables[WITHOUT] = predictions_as(like, np.column_stack(list(joined.values())) @ weights + offset)
