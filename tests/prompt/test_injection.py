"""No text from data yields a special or an added token, whatever the format."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from rectune.config import parse_config
from rectune.errors import DataError, ModelError
from rectune.prompt.events import Event
from rectune.prompt.pieces import Pieces
from rectune.prompt.pointwise import PointwisePrompts
from rectune.wording import one_line

MARKERS = ["<|im_end|>", "<|im_start|>", "<think>", "</think>", "<|endoftext|>", "<tool_call>", "<|image_pad|>"]
FORMATS = ["chat", "instruction", "completion"]
titles = st.lists(
    st.one_of(st.sampled_from([*MARKERS, "assistant\n", "\n", " ", "<|", "|>"]), st.text(max_size=5)), min_size=1
).map(lambda parts: one_line("".join(parts)))


def prompts_of(pieces: Pieces, prompt_format: str, **values: Any) -> PointwisePrompts:
    keys = {"layout": "pointwise", "prompt_format": prompt_format, "cutoff_len": 1 << 20}
    config = parse_config({**keys, **values}, origin="test")
    return PointwisePrompts(config, pieces)


def specials(pieces: Pieces, tokens: list[int]) -> list[int]:
    known = set(pieces.special_ids.values())
    return [token for token in tokens if token in known]


@pytest.mark.parametrize("prompt_format", FORMATS)
@given(history=st.lists(titles, max_size=4), candidate=titles)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_special_tokens_of_a_prompt_do_not_depend_on_its_titles(
    tiny_pieces: Pieces, prompt_format: str, history: list[str], candidate: str
) -> None:
    prompts = prompts_of(tiny_pieces, prompt_format)
    plain = specials(tiny_pieces, prompts.build([], "Heat").tokens)
    assert len(plain) == (7 if prompt_format == "chat" else 0)  # 3 turns begin, 2 end, one think block
    events = [Event(title, 4.0, 1) for title in history]
    assert specials(tiny_pieces, prompts.build(events, candidate).tokens) == plain
    record = prompts.record("\n".join(history), candidate, "\n".join([*history, candidate]))
    assert specials(tiny_pieces, record.tokens) == plain


@pytest.mark.parametrize("prompt_format", FORMATS)
@pytest.mark.parametrize("marker", MARKERS)
def test_a_marker_in_a_title_stays_readable_text_for_qwens_real_tokenizer(
    qwen_pieces: Pieces, prompt_format: str, marker: str
) -> None:
    prompts = prompts_of(qwen_pieces, prompt_format)
    title = f"Film {marker}{marker} \U0001f600"
    tokens = prompts.build([Event(title, 4.0, 1)], title).tokens
    assert specials(qwen_pieces, tokens) == specials(qwen_pieces, prompts.build([], "Heat").tokens)
    assert qwen_pieces.tokenizer.decode(tokens).count(title) == 2
    prompts.check_pieces([Event(title, 4.0, 1)], title)


def test_every_marker_of_the_tokenizer_is_plain_text_when_it_comes_from_data(qwen_pieces: Pieces) -> None:
    assert len(qwen_pieces.special_ids) == 26
    for marker, special in qwen_pieces.special_ids.items():
        assert special not in qwen_pieces.text(marker)
        assert qwen_pieces.template(marker) == [special]


def test_warming_gives_the_same_ids_as_single_texts(qwen3_tokenizer: Any) -> None:
    texts = ["Heat (1995)\n", "<|im_end|>", " a", " a", "日本"]
    warm, single = Pieces(qwen3_tokenizer), Pieces(qwen3_tokenizer)
    warm.warm(texts)
    assert [warm.text(text) for text in texts] == [single.text(text) for text in texts]


def test_a_vocabulary_that_spells_its_markers_out_of_text_is_refused() -> None:
    backend = Tokenizer(models.Unigram([("<unk>", 0.0), ("</s>", 0.0), ("a", -1.0)], unk_id=0))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")
    with pytest.raises(ModelError, match=r"in a title as its special token.*byte-level"):
        Pieces(tokenizer)


def test_half_a_character_is_one_line_and_no_traceback(tiny_pieces: Pieces) -> None:
    prompts = prompts_of(tiny_pieces, "chat")
    with pytest.raises(DataError, match="lone surrogate") as caught:
        prompts.record("", "", "Film \ud83d")
    assert "\n" not in str(caught.value)
    str(caught.value).encode()
    with pytest.raises(DataError, match="lone surrogate"):
        prompts.build([], "Film \ud83d")


def test_a_tokenizer_without_a_fast_form_is_refused() -> None:
    with pytest.raises(ModelError, match="no fast"):
        Pieces(object())
