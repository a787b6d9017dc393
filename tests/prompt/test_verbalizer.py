"""Label words are single, distinct tokens where they stand; the prompt never depends on its own answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rectune.config import parse_config
from rectune.errors import ModelError
from rectune.prompt.pieces import Pieces
from rectune.prompt.pointwise import PointwisePrompts
from rectune.prompt.tree import Trees
from rectune.prompt.verbalizer import Verbalizer, build_class_words, build_verbalizer
from rectune.train.batches import TrainingCollator


def prompts_of(pieces: Pieces, **values: Any) -> PointwisePrompts:
    return PointwisePrompts(parse_config({"layout": "pointwise", **values}, origin="test"), pieces)


def letters(text: str) -> list[int]:
    """A toy tokenizer: one token a character, except that "nY" is one."""
    return [1000 if part == "\0" else ord(part) for part in text.replace("nY", "\0")]


@pytest.mark.parametrize("key", ["positive_label", "negative_label"])
@pytest.mark.parametrize("prompt_format", ["chat", "instruction", "completion"])
def test_a_word_of_several_tokens_is_refused_in_one_line(tiny_pieces: Pieces, key: str, prompt_format: str) -> None:
    with pytest.raises(ModelError, match=rf"^{key}: 'Extraordinary' is \d+ tokens") as caught:
        prompts_of(tiny_pieces, prompt_format=prompt_format, **{key: "Extraordinary"})
    assert "\n" not in str(caught.value)


def test_a_word_that_merges_with_its_context_is_refused() -> None:
    with pytest.raises(ModelError, match=r"^positive_label: 'Y' joins the text before it"):
        build_verbalizer("Y", "N", "n", 3, letters)
    assert build_verbalizer("Y", "N", "m", 3, letters) == Verbalizer("Y", "N", ord("Y"), ord("N"), 3)


def test_two_words_with_one_token_are_refused() -> None:
    with pytest.raises(ModelError, match=r"'Y' and negative_label 'N' are the same token \(7\)"):
        build_verbalizer("Y", "N", "", 3, lambda text: [7] * len(text))


@pytest.mark.parametrize(("words", "prompt_format"), [(("Yes", "No"), "chat"), (("Yes", "No"), "completion")])
def test_qwens_own_tokens_of_the_words_are_found(
    qwen_pieces: Pieces, words: tuple[str, str], prompt_format: str
) -> None:
    found = prompts_of(qwen_pieces, prompt_format=prompt_format).verbalizer
    space = "" if prompt_format == "chat" else " "
    ids = [qwen_pieces.tokenizer(space + word, add_special_tokens=False).input_ids for word in words]
    assert [[found.positive_id], [found.negative_id]] == ids
    assert found.end_id == qwen_pieces.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert (found.word(1), found.word(0)) == words


def test_the_seeds_rq_is_two_tokens_of_qwens_and_is_refused(qwen_pieces: Pieces) -> None:
    with pytest.raises(ModelError, match=r"^positive_label: 'RQ' is 2 tokens"):
        prompts_of(qwen_pieces, positive_label="RQ", negative_label="O")
    found = prompts_of(qwen_pieces, positive_label="R", negative_label="O").verbalizer
    assert [qwen_pieces.tokenizer.decode([found.token(label)]) for label in (1, 0)] == ["R", "O"]


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("system", [None, ""])
def test_a_training_sequence_is_the_whole_conversation_in_qwen3s_template(
    qwen_pieces: Pieces, label: int, system: str | None
) -> None:
    prompts = prompts_of(qwen_pieces, system_prompt=system)
    built = prompts.build([], "Heat (1995)")
    texts = prompts.texts
    turn = f"{texts.instruction}\n\nThe user's last 0 films, oldest first: (none yet)\nCandidate film: Heat (1995)\n"
    messages = [{"role": "system", "content": texts.system}] if texts.system else []
    messages += [
        {"role": "user", "content": turn + texts.question},
        {"role": "assistant", "content": ("No", "Yes")[label]},
    ]
    text = qwen_pieces.tokenizer.apply_chat_template(messages, tokenize=False, enable_thinking=False)
    assert text.endswith("<think>\n\n</think>\n\n" + ("No", "Yes")[label] + "<|im_end|>\n")
    whole = qwen_pieces.tokenizer(text.removesuffix("\n"), add_special_tokens=False).input_ids
    tree = Trees.of_prompts([built.tokens], [label], [0], [0])
    batch = TrainingCollator(tree, prompts.verbalizer, with_end=True)([[0]])
    assert batch["input_ids"].tolist() == [whole]
    # The loss is taken after the last prompt token and after the label: the last two tokens are trained, no others.
    trained = [int(batch["positions"][0]) + 1, int(batch["positions"][0]) + 2]
    assert trained == [len(built.tokens), len(built.tokens) + 1] == [len(whole) - 2, len(whole) - 1]
    assert batch["labels"].tolist() == [whole[-2]]
    assert prompts.verbalizer.end_id == whole[-1]


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8), data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_packed_rows_train_each_label_behind_its_own_prompt(lengths: list[int], data: Any) -> None:
    trees = [[100 * index + at for at in range(length)] for index, length in enumerate(lengths)]
    labels = np.array(data.draw(st.lists(st.integers(0, 1), min_size=len(lengths), max_size=len(lengths))), np.int32)
    flat = Trees.of_prompts(list(trees), labels, np.arange(len(lengths)), np.zeros(len(lengths)))
    order = data.draw(st.permutations(range(len(lengths))))
    cut = data.draw(st.integers(0, len(lengths) - 1))
    packs = [pack for pack in (order[:cut], order[cut:]) if pack]
    batch = TrainingCollator(flat, Verbalizer("Yes", "No", 9001, 9000, 9002), with_end=True)(packs)
    ids = batch["input_ids"]
    for answer, index in enumerate([index for pack in packs for index in pack]):
        row, at = int(batch["rows"][answer]), int(batch["positions"][answer])
        label = 9000 + int(labels[index])
        assert ids[row, at - lengths[index] + 1 : at + 3].tolist() == [*trees[index], label, 9002]
        assert int(batch["labels"][answer]) == label
        if "run" in batch:
            runs = batch["run"][row]
            own = (runs == runs[at]).nonzero().flatten().tolist()
            assert own == list(range(at - lengths[index] + 1, at + 3))
            # Of the tokens before its own it sees none.
            assert (batch["fork"][row, own] == batch["first"][row, own]).all()
            assert batch["position_ids"][row, own].tolist() == list(range(lengths[index] + 2))
    assert ("run" in batch) == any(len(pack) > 1 for pack in packs)


def test_words_of_many_classes_are_single_distinct_tokens_in_the_order_of_their_labels() -> None:
    found = build_class_words(["x", "y", "z"], ["A", "B", "C"], "answer:", 7, letters)
    assert found.words == ["A", "B", "C"] and found.token_ids == [65, 66, 67]
    assert [found.token(label) for label in range(3)] == [65, 66, 67] and found.word(2) == "C"
    two = build_class_words(["no", "yes"], ["O", "R"], "answer:", 7, letters)
    assert two == Verbalizer("R", "O", 82, 79, 7)  # two classes are what every other run has
    with pytest.raises(ModelError, match=r"labels: 'CC', the word of 'z', is 2 tokens for this model, .*; choose"):
        build_class_words(["x", "y", "z"], ["A", "B", "CC"], "answer:", 7, letters)
    with pytest.raises(ModelError, match=r"labels: 'Y', the word of 'x', joins the text before it"):
        build_class_words(["x", "y"], ["Y", "A"], "n", 7, letters)
    with pytest.raises(ModelError, match=r"labels: 'A' of 'x' and 'B' of 'z' are the same token \(1\)"):
        build_class_words(
            ["x", "y", "z"], ["A", "C", "B"], "", 7, lambda text: [1 if one in "AB" else 2 for one in text]
        )
