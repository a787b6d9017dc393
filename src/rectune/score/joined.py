"""What the baselines that join a tuned model's answer say of a dataset's events."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from rectune.baselines.questions import ONLINE, Floats, Log, Questions, ask
from rectune.baselines.served import Served
from rectune.prompt.dataset import Dataset


def joined_rows(
    served: Mapping[str, Served], data: Dataset, rows: npt.NDArray[np.int64], protocol: str = ONLINE
) -> dict[str, Floats]:
    """Log-odds of events by each baseline, name → float64 [rows].

    Args:
        served: the baselines.
        data: the dataset.
        rows: int64 [n]; rows of its events, of one split where the protocol is `frozen`.
        protocol: of `baselines.questions.PROTOCOLS`.
    """
    if not served or not len(rows):
        return {name: np.zeros(len(rows)) for name in served}
    log = Log.of(data.events, data.catalog)
    # Histories are frozen before all of a user's events of the split, whichever of them are asked about.
    split = data.events["split"].to_numpy()
    whole = np.flatnonzero(split == split[rows[0]]) if protocol != ONLINE else np.sort(rows)
    asked = ask(log, whole, protocol)
    place = np.searchsorted(whole, rows)
    chosen = Questions(asked.rows[place], asked.stops[place])
    return {name: each.of_log(log, chosen) for name, each in served.items()}
