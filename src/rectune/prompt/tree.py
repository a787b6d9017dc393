"""Token trees in columns: the one example type of every layout.

A tree is a trunk of tokens and branches that leave it. The pointwise layout makes trunks with one answer at their
end; the stream layout makes trunks with many answers, and branches for what must not see its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int32]
Offsets = npt.NDArray[np.int64]
Floats32 = npt.NDArray[np.float32]


class Joined:
    """Arrays laid end to end without being copied; what is taken out of them is."""

    def __init__(self, parts: Sequence[Ints | Joined]) -> None:
        self.parts = parts
        self.begins = starts_of(np.array([len(part) for part in parts]))

    def __len__(self) -> int:
        return int(self.begins[-1])

    def __getitem__(self, wanted: slice | npt.NDArray[np.int64]) -> Ints:
        """A run of elements, or those at these places."""
        if isinstance(wanted, slice):
            start, stop, _ = wanted.indices(len(self))
            first = int(np.searchsorted(self.begins, start, side="right")) - 1
            last = max(int(np.searchsorted(self.begins, stop)), first + 1)
            runs = [
                self.parts[part][max(start - self.begins[part], 0) : max(stop - self.begins[part], 0)]
                for part in range(first, min(last, len(self.parts)))
            ]
            return runs[0] if len(runs) == 1 else np.concatenate([np.empty(0, np.int32), *runs])
        found = np.empty(len(wanted), dtype=np.int32)
        part_of = np.searchsorted(self.begins, wanted, side="right") - 1
        for part in np.unique(part_of).tolist():
            mine = part_of == part
            found[mine] = self.parts[part][wanted[mine] - self.begins[part]]
        return found


@dataclass(frozen=True)
class Trees:
    """Many trees, flat: tree `i` owns `tokens[offsets[i]:offsets[i+1]]`, and answers and branches at the same cut.

    Within a tree the trunk comes first and the branches follow, one after the other. A branch continues the trunk
    at its fork: its tokens see the trunk's tokens before the fork and themselves, and nothing else.

    Attributes:
        tokens: int32 [tokens]; in several arrays where the trees are of several files.
        offsets: int64 [trees + 1].
        answer_at: int32 [answers]; index inside the tree of the token whose next-token distribution is read.
        answer_offsets: int64 [trees + 1].
        labels: int32 [answers]; 0 or 1.
        rows: int32 [answers]; row of the event that each answer is about, in the table of events.
        shown_from: int32 [answers]; row of the oldest event of the history shown (the history ends where
            `history_slices` says). Of no use where tied events were put in another order for training.
        prior: float32 [answers]; what is added to the model's log-odds.
        branch_at: int32 [branches]; index inside the tree where the branch begins.
        branch_fork: int32 [branches]; how many of the trunk's tokens it sees.
        branch_offsets: int64 [trees + 1].
    """

    tokens: Ints | Joined
    offsets: Offsets
    answer_at: Ints
    answer_offsets: Offsets
    labels: Ints
    rows: Ints
    shown_from: Ints
    prior: Floats32
    branch_at: Ints
    branch_fork: Ints
    branch_offsets: Offsets

    @classmethod
    def of_prompts(
        cls, prompts: list[npt.ArrayLike], labels: npt.ArrayLike, rows: npt.ArrayLike, shown_from: npt.ArrayLike,
        prior: npt.ArrayLike | None = None,
    ) -> Trees:  # fmt: skip
        """Trees without branches, each a prompt that ends where its one answer is read.

        Args:
            prompts: token ids of each.
            labels, rows, shown_from, prior: one number a prompt; no prior is 0.
        """
        chunks = [np.asarray(prompt, dtype=np.int32) for prompt in prompts]
        lengths = np.array([len(chunk) for chunk in chunks], dtype=np.int64)
        nothing = np.empty(0, dtype=np.int32)
        return cls(
            tokens=np.concatenate([nothing, *chunks]),
            offsets=starts_of(lengths),
            answer_at=(lengths - 1).astype(np.int32),
            answer_offsets=np.arange(len(chunks) + 1, dtype=np.int64),
            labels=np.asarray(labels, dtype=np.int32),
            rows=np.asarray(rows, dtype=np.int32),
            shown_from=np.asarray(shown_from, dtype=np.int32),
            prior=np.zeros(len(chunks), np.float32) if prior is None else np.asarray(prior, dtype=np.float32),
            branch_at=nothing,
            branch_fork=nothing,
            branch_offsets=np.zeros(len(chunks) + 1, dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> Offsets:
        """Tokens of each tree, int64 [trees]."""
        return np.diff(self.offsets)

    @property
    def branching(self) -> bool:
        """Whether any tree has a branch."""
        return len(self.branch_at) > 0

    def tree_tokens(self, index: int) -> Ints:
        """Tokens of one tree."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def answers(self, index: int) -> slice:
        """Where the answers of one tree lie in `answer_at`, `labels`, `rows`, `shown_from` and `prior`."""
        return slice(int(self.answer_offsets[index]), int(self.answer_offsets[index + 1]))

    def runs(self, index: int) -> tuple[Offsets, Offsets]:
        """Ancestry of one tree's tokens.

        Returns:
            run int64 [tokens], 0 on the trunk and 1, 2, ... on the branches; fork int64 [tokens], how many of the
            trunk's tokens a branch sees, 0 on the trunk, whose tokens see those before them.
        """
        mine = slice(int(self.branch_offsets[index]), int(self.branch_offsets[index + 1]))
        length, at = int(self.lengths[index]), self.branch_at[mine].astype(np.int64)
        sizes = np.diff(np.concatenate([[0], at, [length]]))
        run = np.repeat(np.arange(len(at) + 1), sizes)
        fork = np.repeat(np.concatenate([[0], self.branch_fork[mine]]).astype(np.int64), sizes)
        return run, fork

    def depths(self, index: int) -> Offsets:
        """Position of each token of one tree: the number of its ancestors, int64 [tokens]."""
        mine = slice(int(self.branch_offsets[index]), int(self.branch_offsets[index + 1]))
        length, at = int(self.lengths[index]), self.branch_at[mine].astype(np.int64)
        starts = np.concatenate([[0], at])
        shift = np.concatenate([[0], self.branch_fork[mine]]) - starts
        depth: Offsets = np.arange(length) + np.repeat(shift, np.diff(np.concatenate([starts, [length]])))
        return depth

    def path(self, index: int, at: int) -> Ints:
        """The plain prompt that ends at this token of a tree: its ancestors and itself."""
        tokens = self.tree_tokens(index)
        run, fork = self.runs(index)
        if run[at] == 0:
            return tokens[: at + 1]
        begin = int(np.searchsorted(run, run[at]))
        return np.concatenate([tokens[: fork[at]], tokens[begin : at + 1]])

    def plain(self) -> Trees:
        """Every answer as a tree of its own: what a program that can only run plain prompts is given."""
        if not self.branching and np.array_equal(self.answer_offsets, np.arange(len(self) + 1)):
            return self
        prompts: list[npt.ArrayLike] = [
            self.path(tree, int(at)) for tree in range(len(self)) for at in self.answer_at[self.answers(tree)]
        ]
        return Trees.of_prompts(prompts, self.labels, self.rows, self.shown_from, self.prior)

    def select(self, chosen: npt.NDArray[np.int64]) -> Trees:
        """The trees of these indices, in this order."""
        token_index, offsets = ragged(self.offsets, chosen)
        answer_index, answer_offsets = ragged(self.answer_offsets, chosen)
        branch_index, branch_offsets = ragged(self.branch_offsets, chosen)
        return Trees(
            tokens=self.tokens[token_index],
            offsets=offsets,
            answer_at=self.answer_at[answer_index],
            answer_offsets=answer_offsets,
            labels=self.labels[answer_index],
            rows=self.rows[answer_index],
            shown_from=self.shown_from[answer_index],
            prior=self.prior[answer_index],
            branch_at=self.branch_at[branch_index],
            branch_fork=self.branch_fork[branch_index],
            branch_offsets=branch_offsets,
        )


def starts_of(lengths: npt.NDArray[np.integer]) -> Offsets:
    """Where runs of these lengths begin when laid end to end, and where the last one ends: int64 [runs + 1]."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def ragged(offsets: Offsets, chosen: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], Offsets]:
    """Flat indices of the chosen runs laid end to end, and their offsets.

    >>> ragged(np.array([0, 2, 5]), np.array([1, 0]))
    (array([2, 3, 4, 0, 1]), array([0, 3, 5]))
    """
    lengths = np.diff(offsets)[chosen]
    fresh = starts_of(lengths)
    index = np.arange(fresh[-1]) + np.repeat(offsets[:-1][chosen] - fresh[:-1], lengths)
    return index, fresh
