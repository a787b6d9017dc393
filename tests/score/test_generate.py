"""Generated answers: which label they give, and that they agree with the logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rectune.errors import ResourceError
from rectune.prompt.tree import Trees
from rectune.prompt.verbalizer import Verbalizer
from rectune.score.generate import MAX_NEW_TOKENS, agreement, extract_label, generate_answers
from rectune.score.scorer import score_trees

WORDS = Verbalizer("Yes", "No", 1, 2, 3)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("Yes", 1), ("No", 0), ("yes.", 1), ("NO!", 0), ("  Yes\n", 1), ("Yes, they would.", 1), ('"No"', 0),
        ("**Yes**", 1), ("It is a no", 0), ("Answer: Yes", 1), ("Да", None), ("", None), ("  ", None),
        # both words: the one in front wins, and no other
        ("Yes, not No", 1), ("No. Yes?", 0), ('"Yes" and not "No"', 1), ("- No, not yes", 0),
        ("Either Yes or No", None), ("I would say no, or yes", None),
        # parts of other words
        ("Nobody knows", None), ("Yesterday", None), ("Nothing", None), ("Eyes", None), ("Nobody says yes", 1),
        ("Yesterday: no", 0), ("No_1", None), ("Yes2", None),
        # thinking
        ("<think>\n\n</think>\n\nYes", 1), ("<think>No idea</think>Yes", 1), ("<think>Yes it is", None),
        ("<think>Yes</think>", None), ("Yes<think>No", 1), ("<think>a</think>No<think>Yes", 0),
        ("<think>no</think>x<think>no</think> yes", 1), ("No idea.\n</think>\n\nYes", 1), ("Yes</think>", None),
    ],
)  # fmt: skip
def test_the_label_of_a_generated_answer(text: str, label: int | None) -> None:
    assert extract_label(text, WORDS) == label


@pytest.mark.parametrize(
    ("words", "text", "label"),
    [
        (("RQ", "O"), "O", 0), (("RQ", "O"), "RQ: a rules question", 1), (("RQ", "O"), "Other", None),
        (("+", "-"), "+", 1), (("+", "-"), "- bad", 0), (("Ja", "Nö"), "nö", 0), (("a.b", "a"), "axb", None),
    ],
)  # fmt: skip
def test_any_label_words_are_found_as_they_are(words: tuple[str, str], text: str, label: int | None) -> None:
    assert extract_label(text, Verbalizer(*words, 1, 2, 3)) == label


@given(text=st.text())
def test_thinking_never_decides(text: str) -> None:
    inside = text.replace("<", "").replace(">", "")
    assert extract_label(f"<think>{inside} Yes</think>\n\nNo", WORDS) == 0
    assert extract_label(f"<think>{inside} Yes", WORDS) is None


def test_agreement_counts_missing_labels_as_disagreement() -> None:
    odds = np.array([1.0, -1.0, 1.0, -0.1])
    assert agreement(["Yes", "No", "Perhaps", "Yes"], odds, WORDS) == 0.5


def test_greedy_generation_names_the_label_with_the_higher_logit(opened: Any, trees: Trees) -> None:
    words, head = opened.prompts.verbalizer, opened.model.get_base_model().lm_head
    odds = score_trees(opened.model, trees, words, 4, "sdpa")
    centred = odds - np.median(odds)
    shift = float(np.median(odds))

    def dominate(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[..., words.positive_id] += 1000 - shift
        output[..., words.negative_id] += 1000
        return output

    handle = head.register_forward_hook(dominate)
    try:
        # Mixed lengths in one batch: the prompts are padded on the left for generation.
        texts = generate_answers(opened.model, trees, opened.loaded.tokenizer, words, 5)
    finally:
        handle.remove()
    clear = np.abs(centred) > 1e-4
    assert clear.sum() > 10 and len({text[:2] for text in texts}) == 2
    first = [text.startswith("Yes") for text, sure in zip(texts, clear, strict=True) if sure]
    assert first == (centred[clear] > 0).tolist()


def test_generation_stops_at_the_end_token_or_after_eight_tokens(opened: Any, trees: Trees) -> None:
    words, few = opened.prompts.verbalizer, trees.select(np.arange(3))
    steps: list[int] = []

    def forced(token: int) -> Any:
        def hook(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
            steps.append(output.shape[1])
            output = output.clone()
            output[..., token if len(steps) == 1 else words.end_id if token == words.positive_id else token] += 1e6
            return output

        return hook

    for token, text, count in ((words.positive_id, "Yes", 2), (words.negative_id, "No" * MAX_NEW_TOKENS, 8)):
        steps.clear()
        handle = opened.model.get_base_model().lm_head.register_forward_hook(forced(token))
        try:
            assert generate_answers(opened.model, few, opened.loaded.tokenizer, words, 3) == [text] * 3
        finally:
            handle.remove()
        assert len(steps) == count
        assert max(steps) == 1  # the head runs on the last place only, also over the prompt


def test_generation_does_not_depend_on_the_batch(opened: Any, trees: Trees) -> None:
    words, tokenizer, few = opened.prompts.verbalizer, opened.loaded.tokenizer, trees.select(np.arange(6))
    assert generate_answers(opened.model, few, tokenizer, words, 6) == generate_answers(
        opened.model, few, tokenizer, words, 1
    )


def test_too_little_memory_for_answers_says_which_batch_size_to_try(
    opened: Any, trees: Trees, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr(opened.model, "generate", full)
    with pytest.raises(ResourceError, match=r"set per_device_eval_batch_size=4$"):
        generate_answers(opened.model, trees, opened.loaded.tokenizer, opened.prompts.verbalizer, 8)
