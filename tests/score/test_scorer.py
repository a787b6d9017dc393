"""Scores do not depend on the batch, the padding or the order, and are what the model's own forward says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from rectune.errors import ModelError, ResourceError
from rectune.measure.classification import probability
from rectune.prompt.tree import Trees
from rectune.score import scorer
from rectune.score.scorer import score_trees, scoring_batches

KERNEL = "sdpa"


def plain_logits(model: Any, trees: Trees) -> torch.Tensor:
    """Full next-token logits of each prompt, run one at a time by the model's own forward."""
    rows = []
    with torch.inference_mode():
        for index in range(len(trees)):
            ids = torch.tensor(trees.tree_tokens(index).astype(np.int64))[None]
            rows.append(model(input_ids=ids).logits[0, -1])
    return torch.stack(rows).double()


def test_log_odds_are_the_difference_of_the_two_logits_of_plain_prompts(opened: Any, trees: Trees) -> None:
    words = opened.prompts.verbalizer
    logits = plain_logits(opened.model, trees)
    expected = (logits[:, words.positive_id] - logits[:, words.negative_id]).numpy()
    found = score_trees(opened.model, trees, words, 5, KERNEL)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert expected.std() > 1e-3  # the prompts do not all score alike
    pair = torch.softmax(logits[:, [words.negative_id, words.positive_id]], dim=-1)[:, 1].numpy()
    np.testing.assert_allclose(probability(found), pair, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 7, 26, 100])
def test_scores_do_not_depend_on_the_batch_size(opened: Any, trees: Trees, size: int) -> None:
    words = opened.prompts.verbalizer
    np.testing.assert_allclose(
        score_trees(opened.model, trees, words, size, KERNEL),
        score_trees(opened.model, trees, words, 4, KERNEL),
        atol=1e-5,
    )


def test_scores_do_not_depend_on_the_order(opened: Any, trees: Trees) -> None:
    words = opened.prompts.verbalizer
    order = np.random.default_rng(0).permutation(len(trees))
    shuffled = score_trees(opened.model, trees.select(order), words, 4, KERNEL)
    np.testing.assert_allclose(shuffled, score_trees(opened.model, trees, words, 4, KERNEL)[order], atol=1e-5)


def test_scores_do_not_depend_on_padding(opened: Any, trees: Trees) -> None:
    words = opened.prompts.verbalizer
    short, long = int(trees.lengths.argmin()), int(trees.lengths.argmax())
    alone = score_trees(opened.model, trees.select(np.array([short])), words, 1, KERNEL)
    beside = score_trees(opened.model, trees.select(np.array([short, long])), words, 2, KERNEL)
    np.testing.assert_allclose(beside[:1], alone, atol=1e-5)


def test_a_chunk_is_batched_the_same_whether_it_is_scored_alone_or_not(
    opened: Any, trees: Trees, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scorer, "CHUNK", 10)
    words = opened.prompts.verbalizer
    whole = score_trees(opened.model, trees, words, 4, KERNEL)
    parts = [
        score_trees(opened.model, trees.select(np.arange(first, min(first + 10, len(trees)))), words, 4, KERNEL)
        for first in range(0, len(trees), 10)
    ]
    assert np.concatenate(parts).tolist() == whole.tolist()


def test_batches_hold_every_answer_once_longest_first(trees: Trees) -> None:
    batches = list(scoring_batches(trees, 4))
    assert sorted(int(answer) for batch in batches for answer in batch.answers) == list(range(len(trees)))
    assert [batch.input_ids.shape[1] for batch in batches] == sorted(
        (batch.input_ids.shape[1] for batch in batches), reverse=True
    )
    for batch in batches:
        for row, tree in enumerate(batch.answers.tolist()):
            tokens = trees.tree_tokens(tree).tolist()
            assert batch.input_ids[row, : len(tokens)].tolist() == tokens
            assert int(batch.positions[row]) == len(tokens) - 1


def test_a_tree_of_several_answers_is_scored_at_each(opened: Any, trees: Trees) -> None:
    words = opened.prompts.verbalizer
    tokens = trees.tree_tokens(0)
    places = np.array([9, 40, len(tokens) - 1], dtype=np.int32)
    many = Trees(
        tokens=np.concatenate([tokens, trees.tree_tokens(1)]),
        offsets=np.array([0, len(tokens), len(tokens) + trees.lengths[1]]),
        answer_at=np.concatenate([places, trees.answer_at[1:2]]),
        answer_offsets=np.array([0, 3, 4]),
        labels=np.zeros(4, dtype=np.int32),
        rows=np.arange(4, dtype=np.int32),
        shown_from=np.zeros(4, dtype=np.int32),
        prior=np.zeros(4, dtype=np.float32),
        branch_at=np.empty(0, dtype=np.int32),
        branch_fork=np.empty(0, dtype=np.int32),
        branch_offsets=np.zeros(3, dtype=np.int64),
    )
    with torch.inference_mode():
        logits = opened.model(input_ids=torch.tensor(tokens.astype(np.int64))[None]).logits[0]
    found = score_trees(opened.model, many, words, 2, KERNEL)
    expected = (logits[:, words.positive_id] - logits[:, words.negative_id])[torch.from_numpy(places).long()]
    np.testing.assert_allclose(found[:3], expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(found[3:], score_trees(opened.model, trees, words, 4, KERNEL)[1:2], atol=1e-5)


def test_a_prior_is_added_to_the_log_odds_of_its_own_answer(opened: Any, trees: Trees) -> None:
    words = opened.prompts.verbalizer
    prior = np.linspace(-3, 3, len(trees)).astype(np.float32)
    found = score_trees(opened.model, replace(trees, prior=prior), words, 4, KERNEL)
    without = score_trees(opened.model, trees, words, 4, KERNEL)
    assert found.tolist() == (without + prior).tolist()


@pytest.mark.parametrize("training", [True, False])
def test_the_models_mode_is_put_back_and_dropout_is_off(opened: Any, trees: Trees, training: bool) -> None:
    words = opened.prompts.verbalizer
    opened.model.train(training)
    try:
        seen: list[int] = []
        found = score_trees(opened.model, trees, words, 4, KERNEL, seen.append)
        assert opened.model.training is training and sum(seen) == len(trees)
    finally:
        opened.model.eval()
    assert found.tolist() == score_trees(opened.model, trees, words, 4, KERNEL).tolist()


def test_scores_that_are_no_numbers_are_refused(opened: Any, trees: Trees, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_model: Any, hidden: torch.Tensor, *_ids: int) -> torch.Tensor:
        return torch.full((len(hidden), 2), float("nan"))

    monkeypatch.setattr(scorer, "label_logits", broken)
    with pytest.raises(ModelError, match=r"^26 of 26 scores are not numbers: .*learning_rate"):
        score_trees(opened.model, trees, opened.prompts.verbalizer, 4, KERNEL)


def test_too_little_memory_says_which_batch_size_to_try(
    opened: Any, trees: Trees, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr(scorer, "hidden_at", full)
    with pytest.raises(ResourceError, match=r"set per_device_eval_batch_size=4$"):
        score_trees(opened.model, trees, opened.prompts.verbalizer, 8, KERNEL)


def test_no_trees_have_no_scores(opened: Any, trees: Trees) -> None:
    none = trees.select(np.array([], dtype=np.int64))
    assert score_trees(opened.model, none, opened.prompts.verbalizer, 4, KERNEL).tolist() == []
