"""Packs hold every sequence once; trees can be chosen and put back."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rectune.prompt.packs import pack
from rectune.prompt.tree import Trees

Shapes = list[tuple[int, int, int]]
shapes_of_forests = st.lists(st.tuples(st.integers(1, 7), st.integers(1, 3), st.integers(0, 2)), min_size=1, max_size=9)


def forest(shapes: Shapes) -> Trees:
    """Trees of (tokens, answers, branches) with numbers that tell them apart."""
    tokens = [np.arange(length) + 100 * index for index, (length, _, _) in enumerate(shapes)]
    answers = [np.arange(count) + 10 * index for index, (_, count, _) in enumerate(shapes)]
    branches = [np.arange(count) + 50 * index for index, (_, _, count) in enumerate(shapes)]
    flat, forks = np.concatenate(answers).astype(np.int32), np.concatenate(branches).astype(np.int32)
    return Trees(
        tokens=np.concatenate(tokens).astype(np.int32),
        offsets=np.cumsum([0, *(length for length, _, _ in shapes)]).astype(np.int64),
        answer_at=flat,
        answer_offsets=np.cumsum([0, *(count for _, count, _ in shapes)]).astype(np.int64),
        labels=flat + 1,
        rows=flat + 2,
        shown_from=flat + 3,
        prior=flat.astype(np.float32) / 4,
        branch_at=forks + 4,
        branch_fork=forks,
        branch_offsets=np.cumsum([0, *(count for _, _, count in shapes)]).astype(np.int64),
    )


def same(left: Trees, right: Trees) -> bool:
    return all(np.array_equal(getattr(left, item.name), getattr(right, item.name)) for item in fields(Trees))


@given(lengths=st.lists(st.integers(1, 50), max_size=80), spare=st.integers(0, 100), seed=st.integers(0, 5))
@settings(max_examples=150, deadline=None)
def test_each_sequence_is_in_one_pack_and_no_pack_is_too_long(lengths: list[int], spare: int, seed: int) -> None:
    sizes, capacity = np.array(lengths, dtype=np.int64), max(lengths, default=1) + spare
    packs = pack(sizes, capacity, seed)
    assert sorted(index for group in packs for index in group) == list(range(len(lengths)))
    assert all(0 < sum(lengths[index] for index in group) <= capacity for group in packs)
    assert packs == pack(sizes, capacity, seed)
    # No two packs could be one: best fit opens a new pack only where none has room.
    loads = sorted(sum(lengths[index] for index in group) for group in packs)
    assert len(loads) < 2 or loads[0] + loads[1] > capacity


def test_a_sequence_longer_than_a_pack_is_refused() -> None:
    with pytest.raises(ValueError, match="a sequence of 11 tokens does not fit a pack of 10"):
        pack(np.array([3, 11]), 10, seed=0)


def test_best_fit_fills_the_fullest_pack_that_has_room() -> None:
    # Whatever the order, four halves need two packs and the full one stands alone.
    for seed in range(6):
        packs = pack(np.array([5, 5, 10, 5, 5]), 10, seed)
        assert len(packs) == 3 and [2] in packs


@given(shapes=shapes_of_forests, data=st.data())
@settings(max_examples=100, deadline=None)
def test_chosen_trees_keep_their_tokens_answers_and_branches(shapes: Shapes, data: st.DataObject) -> None:
    trees = forest(shapes)
    chosen = np.array(data.draw(st.lists(st.integers(0, len(shapes) - 1), max_size=12)), dtype=np.int64)
    part = trees.select(chosen)
    assert len(part) == len(chosen)
    for new, old in enumerate(chosen.tolist()):
        assert part.tree_tokens(new).tolist() == trees.tree_tokens(old).tolist()
        for name in ("answer_at", "labels", "rows", "shown_from", "prior"):
            here, there = getattr(part, name)[part.answers(new)], getattr(trees, name)[trees.answers(old)]
            assert here.tolist() == there.tolist()
        ours = slice(part.branch_offsets[new], part.branch_offsets[new + 1])
        theirs = slice(trees.branch_offsets[old], trees.branch_offsets[old + 1])
        assert part.branch_at[ours].tolist() == trees.branch_at[theirs].tolist()
        assert part.branch_fork[ours].tolist() == trees.branch_fork[theirs].tolist()


@given(shapes=shapes_of_forests, data=st.data())
@settings(max_examples=50, deadline=None)
def test_a_permutation_and_its_inverse_give_the_same_trees_back(shapes: Shapes, data: st.DataObject) -> None:
    trees = forest(shapes)
    order = np.array(data.draw(st.permutations(range(len(shapes)))), dtype=np.int64)
    assert same(trees.select(order).select(np.argsort(order)), trees)
