"""The slices that a report measures in: short and long histories, known and unknown items, busy and new users."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rectune.baselines.questions import Log
from rectune.data.columns import DRAWN_FOR
from rectune.measure.slices import Cut, cut_by_edges, cut_by_known_events
from rectune.prompt.dataset import Dataset


def slices_of(data: Dataset, rows: npt.NDArray[Any]) -> dict[str, Cut]:
    """Slices of some events of a dataset.

    Args:
        data: the dataset.
        rows: int64 [n]; rows of its events.

    Returns:
        By the number of strictly earlier events of the user, by the number of training and warm-up events of the
        item, and by that of the user, both without sampled negatives; none is cold.
    """
    log = Log.of(data.events, data.catalog)
    # Sampled negatives are nothing that happened.
    own = data.events[DRAWN_FOR].is_null().to_numpy() if DRAWN_FOR in data.events.columns else True
    known = log.known & own
    items = np.bincount(log.item[known], minlength=len(log.items) + 1)
    users = np.bincount(log.user[known], minlength=log.users)
    return {
        "length of the history": cut_by_edges(log.stop[rows] - log.first[rows]),
        "training events of the item": cut_by_known_events(items[log.item[rows]]),
        "training events of the user": cut_by_known_events(users[log.user[rows]]),
    }
