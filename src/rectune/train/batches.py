"""Training batches: trees in rows, and where the loss is taken."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from rectune.prompt.forest import lay_out
from rectune.prompt.tree import Trees
from rectune.prompt.verbalizer import Verbalizer

_OF_ANSWERS = ("rows", "positions", "labels", "prior", "trees")
"""What of a batch has a number for each answer."""


def without_answers(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A batch at none of whose places a loss is taken, so that its gradients are zeros."""
    return {name: value[:0] if name in _OF_ANSWERS else value for name, value in batch.items()}


@dataclass(frozen=True)
class TrainingCollator:
    """Turns packs of trees into tensors.

    Where answers end their prompts (the pointwise layout), each sequence is the prompt, the label's token and the
    token that ends the answer: the loss is taken at the answer position (the label should come next) and at the
    label (the end should come next). In a stream what follows an answer is in the tree already, and the loss is
    taken at the answer positions alone.

    Attributes:
        trees: what is trained on.
        verbalizer: gives the label tokens and the end token.
        with_end: whether label and end token are put behind each tree, which then has one answer, at its last token.
    """

    trees: Trees
    verbalizer: Verbalizer
    with_end: bool

    def __call__(self, packs: list[list[int]]) -> dict[str, torch.Tensor]:
        """One batch; a pack is the tree indices of one row.

        Returns:
            input_ids int64 [batch, length], padded on the right; rows and positions int64 [answers]; labels int64
            [answers], the label tokens; prior float32 [answers]; trees int64 [answers], the tree of each. Where a row
            holds several trees or branches also position_ids, run, first and fork, int64 [batch, length], as `Forest`
            has them.
        """
        if not packs:  # the share of a process for which a step has nothing left: a pass whose loss looks nowhere
            return without_answers(self([[int(self.trees.lengths.argmin())]]))
        used = sorted({index for pack in packs for index in pack})
        local = {index: at for at, index in enumerate(used)}
        part = self.trees.select(np.array(used, dtype=np.int64))
        tails = None
        if self.with_end:
            tails = [[self.verbalizer.token(int(label)), self.verbalizer.end_id] for label in part.labels]
        forest = lay_out(part, [[local[index] for index in pack] for pack in packs], tails)
        words = torch.tensor(self.verbalizer.token_ids)
        batch = {
            "input_ids": torch.from_numpy(forest.input_ids),
            "rows": torch.from_numpy(forest.rows),
            "positions": torch.from_numpy(forest.positions),
            "labels": words[torch.from_numpy(part.labels[forest.answers].astype(np.int64))],
            "prior": torch.from_numpy(part.prior[forest.answers]),
            "trees": torch.tensor(used)[np.searchsorted(part.answer_offsets, forest.answers, side="right") - 1],
        }
        if not forest.plain:
            for name, value in (("position_ids", forest.depth), ("run", forest.run)):
                batch[name] = torch.from_numpy(value)
            batch["first"], batch["fork"] = torch.from_numpy(forest.first), torch.from_numpy(forest.fork)
        return batch
