"""Token trees in columns: the one example type of every layout.

A tree is a token sequence with answers. The pointwise layout makes trees with one answer each; a layout with
many answers per sequence fills the same columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int32]
Offsets = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Trees:
    """Many trees, flat: tree `i` owns `tokens[offsets[i]:offsets[i+1]]` and the answers at the same cut.

    Attributes:
        tokens: int32 [tokens]; each tree's prompt, up to and with its last answer position.
        offsets: int64 [trees + 1].
        answer_at: int32 [answers]; index inside the tree of the token whose next-token distribution is read.
        answer_offsets: int64 [trees + 1].
        labels: int32 [answers]; 0 or 1.
        rows: int32 [answers]; row of the event that each answer is about, in the table of events.
        dropped: int32 [trees]; oldest events left out because of `cutoff_len`.
    """

    tokens: Ints
    offsets: Offsets
    answer_at: Ints
    answer_offsets: Offsets
    labels: Ints
    rows: Ints
    dropped: Ints

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Offsets:
        """Tokens of each tree, int64 [trees]."""
        return np.diff(self.offsets)

    def tree_tokens(self, index: int) -> Ints:
        """Tokens of one tree."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def answers(self, index: int) -> slice:
        """Where the answers of one tree lie in `answer_at`, `labels` and `rows`."""
        return slice(int(self.answer_offsets[index]), int(self.answer_offsets[index + 1]))

    def select(self, chosen: npt.NDArray[np.int64]) -> Trees:
        """The trees of these indices, in this order."""
        token_index, offsets = _gather(self.offsets, chosen)
        answer_index, answer_offsets = _gather(self.answer_offsets, chosen)
        return Trees(
            tokens=self.tokens[token_index],
            offsets=offsets,
            answer_at=self.answer_at[answer_index],
            answer_offsets=answer_offsets,
            labels=self.labels[answer_index],
            rows=self.rows[answer_index],
            dropped=self.dropped[chosen],
        )


def _gather(offsets: Offsets, chosen: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], Offsets]:
    """Flat indices and new offsets of the chosen runs."""
    lengths = np.diff(offsets)[chosen]
    fresh = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    starts = offsets[:-1][chosen]
    index = np.arange(fresh[-1]) + np.repeat(starts - fresh[:-1], lengths)
    return index, fresh
