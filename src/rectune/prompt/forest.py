"""Trees laid into rows: what training and scoring hand to the model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rectune.prompt.tree import Trees

Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Forest:
    """Rows of trees, padded on the right.

    Attributes:
        input_ids: int64 [rows, width].
        depth: int64 [rows, width]; each token's position in its plain prompt.
        run: int64 [rows, width]; the number of the trunk or branch in its row, -1 for padding.
        first: int64 [rows, width]; where in the row the token's tree begins.
        fork: int64 [rows, width]; a token sees the row's tokens from `first` to before `fork`, besides those before
            it in its own run.
        plain: whether each row is one trunk from its beginning, so that the causal mask says it all.
        rows, positions: int64 [answers]; where the answers are read.
        answers: int64 [answers]; their indices in the trees' columns.
    """

    input_ids: Places
    depth: Places
    run: Places
    first: Places
    fork: Places
    plain: bool
    rows: Places
    positions: Places
    answers: Places


def lay_out(trees: Trees, packs: list[list[int]], tails: list[list[int]] | None = None) -> Forest:
    """Lay trees side by side.

    Args:
        trees: the trees.
        packs: for each row the indices of its trees.
        tails: tokens to put behind each tree, by the tree's index; only for trees without branches.
    """
    lengths = trees.lengths + (0 if tails is None else np.array([len(tail) for tail in tails]))
    width = max(int(lengths[pack].sum()) for pack in packs)
    shape = (len(packs), width)
    input_ids, depth, first, fork = (np.zeros(shape, dtype=np.int64) for _ in range(4))
    run = np.full(shape, -1, dtype=np.int64)
    rows, positions, answers = [], [], []
    plain = True
    for row, pack in enumerate(packs):
        begin, number = 0, 0
        for index in pack:
            end = begin + int(lengths[index])
            body = begin + int(trees.lengths[index])
            of_tree, of_fork = trees.runs(index)
            input_ids[row, begin:body] = trees.tree_tokens(index)
            depth[row, begin:body] = trees.depths(index)
            run[row, begin:body] = of_tree + number
            first[row, begin:end] = begin
            fork[row, begin:end] = begin
            fork[row, begin:body] += of_fork
            if tails is not None:
                input_ids[row, body:end] = tails[index]
                depth[row, body:end] = np.arange(body - begin, end - begin)
                run[row, body:end] = number
            plain = plain and begin == 0 and int(of_tree[-1]) == 0
            mine = trees.answers(index)
            rows.append(np.full(mine.stop - mine.start, row))
            positions.append(begin + trees.answer_at[mine].astype(np.int64))
            answers.append(np.arange(mine.start, mine.stop))
            number += int(of_tree[-1]) + 1
            begin = end
    return Forest(
        input_ids, depth, run, first, fork, plain,
        np.concatenate(rows), np.concatenate(positions), np.concatenate(answers),
    )  # fmt: skip
