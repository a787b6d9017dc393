"""Predictions as a table: who, what, the true label, the score."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from rectune.data.columns import ITEM_ID, LABEL, ROW_ID, USER_ID
from rectune.data.folder import history_slices
from rectune.measure.classification import probability
from rectune.prompt.dataset import Dataset

LOG_P, PREDICTED = "log_p", "predicted"
"""Of more than two classes: a log-probability a class, and the label of the highest."""


def class_frame(data: Dataset, rows: npt.NDArray[Any], log_probabilities: npt.NDArray[np.float64]) -> pl.DataFrame:
    """One line per answer of more than two classes.

    Args:
        data: the dataset.
        rows: int [answers]; rows of its events.
        log_probabilities: float64 [answers, classes].

    Returns:
        row_id, user_id, item_id, label, log_p (list of Float64), predicted and candidate_title.
    """
    chosen = data.events.select(ROW_ID, USER_ID, ITEM_ID, pl.col(LABEL).cast(pl.Int64))[rows.tolist()]
    titles = dict(data.catalog.select(ITEM_ID, "title").iter_rows())
    found: pl.DataFrame = chosen.with_columns(
        pl.Series(LOG_P, log_probabilities.tolist(), dtype=pl.List(pl.Float64)),
        pl.Series(PREDICTED, log_probabilities.argmax(axis=1), dtype=pl.Int64),
        candidate_title=pl.Series([titles.get(item, "") for item in chosen[ITEM_ID]], dtype=pl.String),
    )
    return found


def prediction_frame(
    data: Dataset,
    rows: npt.NDArray[Any],
    log_odds: npt.NDArray[np.float64],
    shown_from: npt.NDArray[Any] | None = None,
) -> pl.DataFrame:
    """One line per answer.

    Args:
        data: the dataset.
        rows: int [answers]; rows of its events.
        log_odds: float64 [answers].
        shown_from: int [answers]; row of the oldest event that each prompt showed; adds the titles of the history
            shown and of the candidate.

    Returns:
        row_id, user_id, item_id, label, log_odds, score, and where asked candidate_title and history_titles.
    """
    chosen = data.at(rows, (ROW_ID, USER_ID, ITEM_ID, LABEL))
    frame: pl.DataFrame = chosen.with_columns(
        pl.col(LABEL).cast(pl.Int64),
        log_odds=pl.Series(log_odds, dtype=pl.Float64),
        score=pl.Series(probability(log_odds), dtype=pl.Float64),
    )
    if shown_from is None:
        return frame
    names = dict(zip(data.catalog["item_id"].to_list(), data.catalog["title"].to_list(), strict=True))
    titles = [names.get(item, "") for item in data.events[ITEM_ID].to_list()]
    stops = history_slices(data.events, data.events.height)[1]
    with_titles: pl.DataFrame = frame.with_columns(
        candidate_title=pl.Series([titles[row] for row in rows], dtype=pl.String),
        history_titles=pl.Series(
            [titles[first : stops[row]] for first, row in zip(shown_from, rows, strict=True)], dtype=pl.List(pl.String)
        ),
    )
    return with_titles
