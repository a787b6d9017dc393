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


def _drawn(seed: int | list[int], places: Ints) -> npt.NDArray[np.float64]:
    """The random numbers of these events, ascending, whichever others are drawn for beside them: one a place."""
    source = np.random.PCG64(seed)
    first = int(places[0])
    source.advance(first)
    found: npt.NDArray[np.float64] = np.random.Generator(source).random(int(places[-1]) - first + 1)
    return found[places - first]


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

    def ranks(self, places: Ints) -> npt.NDArray[np.float64]:
        """Random numbers that events of one moment are put in the order of: float64 [places]."""
        return _drawn(self.seed, places)

    def hidden(self, places: Ints) -> npt.NDArray[np.bool_]:
        """Which events of streams are shown to no later one: bool [places]. They are still asked about."""
        if not self.drop:
            return np.zeros(len(places), dtype=bool)
        return _drawn([self.seed, _DROPS], places) < self.drop

    def draw(self, state: dict[str, Any] | None = None) -> np.random.Generator:
        """The random numbers of `histories`, from their beginning or from where an earlier call ended."""
        draw = np.random.default_rng([self.seed, _HISTORIES])
        if state is not None:
            draw.bit_generator.state = state
        return draw

    def histories(self, starts: Ints, stops: Ints, draw: np.random.Generator | None = None) -> list[Ints]:
        """The events of each pointwise history, as rows, after dropping and shuffling.

        Args:
            starts, stops: int64 [n]; where each history lies, whole.
            draw: random numbers; from their beginning when None.
        """
        draw = self.draw() if draw is None else draw
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
