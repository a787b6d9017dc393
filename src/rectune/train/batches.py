"""Training batches: prompts with their answers, one a row or packed, and where the loss is taken."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from rectune.prompt.tree import Trees
from rectune.prompt.verbalizer import Verbalizer


@dataclass(frozen=True)
class TrainingCollator:
    """Turns packs of trees into tensors.

    Each sequence is the prompt, the label's token and the token that ends the answer. The loss is taken at the
    answer position (the label should come next) and at the label (the end should come next).

    Attributes:
        trees: trees with one answer, at their last token.
        verbalizer: gives the label tokens and the end token.
    """

    trees: Trees
    verbalizer: Verbalizer

    def __call__(self, packs: list[list[int]]) -> dict[str, torch.Tensor]:
        """One batch; a pack is the tree indices of one row.

        Returns:
            input_ids int64 [batch, length], padded on the right; position_ids and segments of the same shape
            (the tree's number in its row, -1 for padding), both only where a row holds several trees; rows and
            positions int64 [answers]; labels int64 [answers], the label tokens.
        """
        rows, positions, labels, sequences, segments, depths = [], [], [], [], [], []
        for row, pack in enumerate(packs):
            tokens: list[int] = []
            segment: list[int] = []
            depth: list[int] = []
            for number, index in enumerate(pack):
                label = self.verbalizer.token(int(self.trees.labels[self.trees.answers(index)][0]))
                sequence = [*self.trees.tree_tokens(index).tolist(), label, self.verbalizer.end_id]
                rows.append(row)
                positions.append(len(tokens) + len(sequence) - 3)
                labels.append(label)
                tokens += sequence
                segment += [number] * len(sequence)
                depth += range(len(sequence))
            sequences.append(tokens)
            segments.append(segment)
            depths.append(depth)
        width = max(map(len, sequences))
        batch = {
            "input_ids": _padded(sequences, width, 0),
            "rows": torch.tensor(rows),
            "positions": torch.tensor(positions),
            "labels": torch.tensor(labels),
        }
        if any(len(pack) > 1 for pack in packs):
            batch["position_ids"] = _padded(depths, width, 0)
            batch["segments"] = _padded(segments, width, -1)
        return batch


def _padded(rows: list[list[int]], width: int, fill: int) -> torch.Tensor:
    """int64 [rows, width], filled up on the right."""
    array = np.full((len(rows), width), fill, dtype=np.int64)
    for index, row in enumerate(rows):
        array[index, : len(row)] = row
    return torch.from_numpy(array)
