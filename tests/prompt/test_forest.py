"""Trees laid into rows, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from rectune.prompt.forest import lay_out
from rectune.prompt.tree import Trees

# A trunk 1 2 3 4 5 with answers at 2 and 5 and two branches: 6 7 behind two tokens, 8 behind all five.
# A trunk 11 12 with one answer. A trunk 21 22 23 with a branch 24 25 behind three tokens.
TREES = Trees(
    tokens=np.array([1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 21, 22, 23, 24, 25], dtype=np.int32),
    offsets=np.array([0, 8, 10, 15]),
    answer_at=np.array([1, 4, 6, 7, 1, 2, 4], dtype=np.int32),
    answer_offsets=np.array([0, 4, 5, 7]),
    labels=np.array([1, 0, 0, 1, 1, 0, 1], dtype=np.int32),
    rows=np.arange(7, dtype=np.int32),
    shown_from=np.zeros(7, dtype=np.int32),
    prior=np.zeros(7, dtype=np.float32),
    branch_at=np.array([5, 7, 3], dtype=np.int32),
    branch_fork=np.array([2, 5, 3], dtype=np.int32),
    branch_offsets=np.array([0, 2, 2, 3]),
)
PROMPTS = Trees.of_prompts([[1, 2, 3], [4, 5]], [1, 0], [0, 1], [0, 0])


def test_packed_trees_with_branches_and_padding_are_as_worked_out_by_hand() -> None:
    forest = lay_out(TREES, [[1, 0], [2]])
    assert forest.input_ids.tolist() == [
        [11, 12, 1, 2, 3, 4, 5, 6, 7, 8],
        [21, 22, 23, 24, 25, 0, 0, 0, 0, 0],
    ]
    assert forest.depth.tolist() == [
        [0, 1, 0, 1, 2, 3, 4, 2, 3, 5],
        [0, 1, 2, 3, 4, 0, 0, 0, 0, 0],
    ]
    assert forest.run.tolist() == [
        [0, 0, 1, 1, 1, 1, 1, 2, 2, 3],
        [0, 0, 0, 1, 1, -1, -1, -1, -1, -1],
    ]
    assert forest.first.tolist() == [
        [0, 0, 2, 2, 2, 2, 2, 2, 2, 2],
        [0] * 10,
    ]
    # A branch sees its tree's trunk from `first` to before `fork`; a trunk sees nothing that way.
    assert forest.fork.tolist() == [
        [0, 0, 2, 2, 2, 2, 2, 4, 4, 7],
        [0, 0, 0, 3, 3, 0, 0, 0, 0, 0],
    ]
    assert not forest.plain
    assert forest.rows.tolist() == [0, 0, 0, 0, 0, 1, 1]
    assert forest.positions.tolist() == [1, 3, 6, 8, 9, 2, 4]
    assert forest.answers.tolist() == [4, 0, 1, 2, 3, 5, 6]


def test_two_branching_trees_of_one_row_number_their_runs_on() -> None:
    forest = lay_out(TREES, [[0, 2]])
    assert forest.run.tolist() == [[0, 0, 0, 0, 0, 1, 1, 2, 3, 3, 3, 4, 4]]
    assert forest.first.tolist() == [[0] * 8 + [8] * 5]
    assert forest.fork.tolist() == [[0, 0, 0, 0, 0, 2, 2, 5, 8, 8, 8, 11, 11]]
    assert forest.depth.tolist() == [[0, 1, 2, 3, 4, 2, 3, 5, 0, 1, 2, 3, 4]]


def test_tails_stand_behind_each_tree_and_belong_to_its_run() -> None:
    forest = lay_out(PROMPTS, [[1, 0], [1]], [[91, 99], [90, 99]])
    assert forest.input_ids.tolist() == [[4, 5, 90, 99, 1, 2, 3, 91, 99], [4, 5, 90, 99, 0, 0, 0, 0, 0]]
    assert forest.depth.tolist() == [[0, 1, 2, 3, 0, 1, 2, 3, 4], [0, 1, 2, 3, 0, 0, 0, 0, 0]]
    assert forest.run.tolist() == [[0] * 4 + [1] * 5, [0] * 4 + [-1] * 5]
    assert forest.first.tolist() == [[0] * 4 + [4] * 5, [0] * 9]
    assert forest.fork.tolist() == forest.first.tolist()
    assert forest.rows.tolist() == [0, 0, 1]
    assert forest.positions.tolist() == [1, 6, 1]
    assert forest.answers.tolist() == [1, 0, 1]
    assert not forest.plain


@pytest.mark.parametrize(
    ("packs", "plain"), [([[1]], True), ([[0]], False), ([[1], [2]], False), ([[1, 1]], False), ([[1], [1]], True)]
)
def test_rows_are_plain_only_where_each_is_one_trunk(packs: list[list[int]], plain: bool) -> None:
    assert bool(lay_out(TREES, packs).plain) == plain


def test_rows_of_one_trunk_are_plain_and_need_no_mask() -> None:
    forest = lay_out(PROMPTS, [[0], [1]])
    assert forest.plain
    assert forest.input_ids.tolist() == [[1, 2, 3], [4, 5, 0]]
    assert forest.depth.tolist() == [[0, 1, 2], [0, 1, 0]]
    assert forest.run.tolist() == [[0, 0, 0], [0, 0, -1]]
    assert forest.positions.tolist() == [2, 1]
