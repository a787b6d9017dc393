"""The prompt that a client writes from the templates is the one that was trained, byte for byte and token for token."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rectune.config import parse_config
from rectune.export.prompt_template import PromptTemplate, template_of
from rectune.prompt.events import Event
from rectune.prompt.layouts import Prompts, prompts_for
from rectune.prompt.pieces import Pieces
from rectune.wording import one_line

LAYOUTS: list[dict[str, Any]] = [
    {"layout": "stream", "prompt_format": "completion", "history_shows": "label"},
    {"layout": "stream", "prompt_format": "chat", "history_shows": "rating"},
    {"layout": "stream", "prompt_format": "chat", "history_shows": "nothing", "stream_header": 'Say "{{ x }}"\n% }\\'},
    {"layout": "pointwise", "prompt_format": "chat", "history_shows": "rating"},
    {"layout": "pointwise", "prompt_format": "chat", "history_shows": "label", "question": "", "system_prompt": ""},
    {
        "layout": "pointwise",
        "prompt_format": "instruction",
        "history_shows": "label",
        "history_header": "{count} {count}",
    },
    {"layout": "pointwise", "prompt_format": "completion", "history_shows": "nothing", "history_header": ""},
    {
        "layout": "pointwise",
        "prompt_format": "classifier",
        "history_shows": "rating",
        "instruction": "Ünï {% raw %} 🎬",
    },
]
TITLES = st.text(min_size=1, max_size=30).map(one_line).filter(bool)
EVENTS = st.builds(Event, TITLES, st.none() | st.sampled_from([0.5, 3.0, 4.5, 10.0]), st.sampled_from([0, 1]))


@pytest.fixture(scope="module", params=LAYOUTS, ids=lambda keys: "-".join(map(str, list(keys.values())[:3])))
def built(request: Any, qwen3_tokenizer: Any) -> tuple[Prompts, PromptTemplate]:
    prompts = prompts_for(parse_config({"cutoff_len": 100_000, **request.param}, "test"), Pieces(qwen3_tokenizer))
    return prompts, template_of(prompts)


@settings(max_examples=25)
@given(history=st.lists(EVENTS, max_size=4), candidate=TITLES)
def test_it_writes_the_whole_prompt(
    built: tuple[Prompts, PromptTemplate], history: list[Event], candidate: str
) -> None:
    prompts, template = built
    assert template.text(history, candidate) == prompts.text(history, candidate)


def test_its_halves_are_the_fans_trunk_and_branches(
    built: tuple[Prompts, PromptTemplate], qwen3_tokenizer: Any
) -> None:
    """A cross-encoder tokenises the two apart."""
    prompts, template = built
    history = [Event("Heat (1995)", 2.0, 0), Event("Fargo (1996)", 4.5, 1)]
    (fan,) = prompts.fan_out(history, ["Alien (1979)", "Brazil"])
    for candidate, branch in zip(["Alien (1979)", "Brazil"], fan.branches, strict=True):
        query, document = template.pair(history, candidate)
        assert qwen3_tokenizer(query).input_ids == fan.trunk
        assert qwen3_tokenizer(document).input_ids == branch


def test_a_marker_that_the_tokenizer_adds_by_itself_is_left_to_it(qwen3_tokenizer: Any) -> None:
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    start = qwen3_tokenizer.convert_tokens_to_ids("<|im_start|>")
    own = PreTrainedTokenizerFast(tokenizer_object=qwen3_tokenizer.backend_tokenizer, eos_token="<|im_end|>")
    own.chat_template = qwen3_tokenizer.chat_template
    own.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", start)]
    )
    try:
        prompts = prompts_for(parse_config({"layout": "pointwise"}, "test"), Pieces(own))
        history = [Event("Heat (1995)", 2.0, 0)]
        text = template_of(prompts).text(history, "Alien")
        assert text == prompts.text(history, "Alien").removeprefix("<|im_start|>")
        assert own(text).input_ids == prompts.build(history, "Alien").tokens
    finally:
        qwen3_tokenizer.backend_tokenizer.post_processor = None
