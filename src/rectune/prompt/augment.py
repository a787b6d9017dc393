"""What training alone changes of the histories it shows, drawn once with the seed; evaluation and scoring never do.

Sources: item masking and reordering as augmentations of sequences, Xie et al., "Contrastive learning for sequential
recommendation", ICDE 2022.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rectune.config import Config

_DROPS, _HISTORIES = 1, 2
"""Streams of random numbers beside that of `shuffle_moments`, which the seed alone begins."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Augment:
    """Changes of one training.

    Attributes:
        seed: of all draws.
        moments: whether events of one timestamp come in random order (stream).
        drop: chance of an event to be left out of a history.
        shuffle: chance of a history to be in random order (pointwise).
    """

    seed: int = 0
    moments: bool = False
    drop: float = 0.0
    shuffle: float = 0.0

    @classmethod
    def of(cls, config: Config) -> Augment:
        """What a configuration asks for in its layout."""
        stream = config.layout == "stream"
        shuffle = 0.0 if stream else config.history_shuffle
        return cls(config.seed, stream and config.shuffle_moments, config.history_drop, shuffle)

    def key(self) -> dict[str, Any]:
        """What trees depend on, for their cache key; empty where nothing is changed."""
        found: dict[str, Any] = {"shuffled with seed": self.seed} if self.moments else {}
        if self.drop or self.shuffle:
            found["augmented"] = [self.seed, self.drop, self.shuffle]
        return found

    def hidden(self, places: int) -> npt.NDArray[np.bool_]:
        """Which events of streams are shown to no later one: bool [events]. They are still asked about."""
        if not self.drop:
            return np.zeros(places, dtype=bool)
        return np.random.default_rng([self.seed, _DROPS]).random(places) < self.drop

    def histories(self, starts: Ints, stops: Ints) -> list[Ints]:
        """The events of each pointwise history, as rows, after dropping and shuffling.

        Args:
            starts, stops: int64 [n]; where each history lies, whole.
        """
        draw = np.random.default_rng([self.seed, _HISTORIES])
        found = []
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
            rows = np.arange(start, stop)
            if self.drop:
                rows = rows[draw.random(len(rows)) >= self.drop]
            if self.shuffle and draw.random() < self.shuffle:
                rows = draw.permutation(rows)
            found.append(rows)
        return found


NOTHING = Augment()
