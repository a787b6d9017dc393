"""Prompts put together from pieces equal the tokenisation of the whole string, which is written out here by hand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rectune.config import Config, parse_config
from rectune.prompt.events import Event
from rectune.prompt.pieces import Pieces
from rectune.prompt.pointwise import PointwisePrompts
from rectune.wording import one_line, texts_for

ODD = [
    "Heat (1995)",
    "L'été — 日本語 (2001)!",
    "e\u0301clair",
    "\u0301accent first",
    "👩‍👩‍👧 family",
    "…And Justice for All",
    "12 Monkeys",
    "1. 2. 3.",
    "'s",
    "don't",
    "'",
    '"Quoted"',
    "  spaces\u00a0\u2003inside ",
    "tabs\tand\x0bfeeds\x0c",
    "line\nend",
    "\u2028para\u2029",
    "\x1cfile\x1f",
    "\x00null",
    "\u200bzero width\u200b",
    "\ufeffbom",
    "\u0085next",
    "\u202ertl",
    "Ǆ ﬁ ½ ①",
    "\u1100\u1161\u11a8",
    "=)\r\n",
    "$",
    "→",
    "user\nassistant",
    "[/INST]",
    "\ue000user\ue001",
    "a" * 300,
    "؟ العربية",
    "\u037e",
    "Will the user like",
    "(rating 5.0)",
]
titles = (
    st.one_of(st.sampled_from(ODD), st.text(max_size=24), st.text(alphabet=" .\n\r'\"()!?1a→é\u0301", max_size=8))
    .map(one_line)
    .filter(lambda title: title and "<" not in title)
)
events = st.builds(
    Event, titles, st.none() | st.sampled_from([0.5, 3.0, 4.0, 5.0]), st.integers(min_value=0, max_value=1)
)
own_text = st.none() | st.just("") | titles | st.sampled_from(["two\nlines", "a blank\n\nline:", "{count} films"])
choices = st.fixed_dictionaries(
    {
        "prompt_format": st.sampled_from(["chat", "instruction", "completion", "classifier"]),
        "history_shows": st.sampled_from(["rating", "label", "nothing"]),
        "prompt_domain": st.sampled_from(["films", "products", "food"]),
        "system_prompt": own_text,
        "instruction": own_text,
        "history_header": own_text,
        "candidate_header": own_text,
        "question": own_text,
    }
)
BARE = {"system_prompt": "", "instruction": "", "history_header": "", "candidate_header": "", "question": ""}
EVENTS = [Event("Heat (1995)", 4.0, 1), Event("Up!", None, 0)]


def config_of(values: dict[str, Any]) -> Config:
    return parse_config({"layout": "pointwise", **values, "cutoff_len": 1 << 20}, origin="test")


def user_turn(config: Config, history: list[Event], candidate: str) -> str:
    """What a user reads: instruction, history, candidate, question."""
    texts = texts_for(config)
    words = {1: config.positive_label, 0: config.negative_label}
    lines = []
    if texts.history_header:
        heading = texts.history_header.replace("{count}", str(len(history)))
        lines.append(heading if history else heading + " (none yet)")
    for number, event in enumerate(history, start=1):
        shown = {"rating": f" (rating {event.rating})", "label": f" → {words[event.label]}", "nothing": ""}
        behind = "" if config.history_shows == "rating" and event.rating is None else shown[config.history_shows]
        lines.append(f"{number}. {event.title}{behind}")
    lines.append(f"{texts.candidate_header} {candidate}")
    lines += [texts.question] if texts.question and config.prompt_format != "classifier" else []
    return "\n".join(lines)


def whole_string(tokenizer: Any, config: Config, history: list[Event], candidate: str) -> str:
    """The prompt as one string, from the documented formats and the tokenizer's own chat template."""
    texts, turn = texts_for(config), user_turn(config, history, candidate)
    gap = "\n\n" if texts.history_header else "\n"
    if config.prompt_format == "chat":
        messages = [{"role": "system", "content": texts.system}] if texts.system else []
        messages.append({"role": "user", "content": texts.instruction + gap + turn if texts.instruction else turn})
        return str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)
        )
    if config.prompt_format == "instruction":
        lead = " ".join(filter(None, [texts.system, texts.instruction]))
        blank = "\n\n" if texts.question else "\n"
        return f"### Instruction:\n{lead}\n\n### Input:\n{turn}{blank}### Response:\nAnswer:"
    lead = texts.instruction or texts.system
    asked = "" if config.prompt_format == "classifier" else "\nAnswer:"
    return (lead + gap if lead else "") + turn + asked


def check(pieces: Pieces, values: dict[str, Any], history: list[Event], candidate: str) -> None:
    config = config_of(values)
    prompts = PointwisePrompts(config, pieces)
    whole = whole_string(pieces.tokenizer, config, history, candidate)
    assert prompts.text(history, candidate) == whole
    built = prompts.build(history, candidate)
    assert built.tokens == pieces.tokenizer(whole, add_special_tokens=False).input_ids
    assert built.dropped == 0
    prompts.check_pieces(history, candidate)
    if config.prompt_format == "chat":
        texts = texts_for(config)
        turn = prompts.record(texts.system, texts.instruction, user_turn(config, history, candidate))
    else:
        turn = prompts.record("", "", user_turn(config, history, candidate))
    assert turn.tokens == built.tokens


@example(values=BARE | {"prompt_format": "instruction"}, history=EVENTS, candidate="Heat (1995)")
@example(values=BARE | {"prompt_format": "completion"}, history=[], candidate="!")
@example(values=BARE | {"prompt_format": "chat"}, history=EVENTS, candidate="Heat")
@given(values=choices, history=st.lists(events, max_size=12), candidate=titles)
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_pieces_equal_the_whole_string_with_the_tiny_tokenizer(
    tiny_pieces: Pieces, values: dict[str, Any], history: list[Event], candidate: str
) -> None:
    check(tiny_pieces, values, history, candidate)


@example(values=BARE | {"prompt_format": "instruction"}, history=EVENTS, candidate="Heat (1995)")
@example(values=BARE | {"prompt_format": "completion"}, history=[], candidate="!")
@example(values=BARE | {"prompt_format": "chat"}, history=EVENTS, candidate="Heat")
@given(values=choices, history=st.lists(events, max_size=12), candidate=titles)
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_pieces_equal_the_whole_string_with_qwens_real_tokenizer(
    qwen_pieces: Pieces, values: dict[str, Any], history: list[Event], candidate: str
) -> None:
    check(qwen_pieces, values, history, candidate)


@pytest.mark.slow
@example(values=BARE | {"prompt_format": "instruction"}, history=EVENTS, candidate="Heat (1995)")
@example(values=BARE | {"prompt_format": "completion"}, history=[], candidate="!")
@example(values=BARE | {"prompt_format": "chat"}, history=EVENTS, candidate="Heat")
@given(values=choices, history=st.lists(events, max_size=12), candidate=titles)
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_pieces_equal_the_whole_string_with_smollm2s_real_tokenizer(
    smollm2_pieces: Pieces, values: dict[str, Any], history: list[Event], candidate: str
) -> None:
    check(smollm2_pieces, values, history, candidate)


@pytest.mark.parametrize("title", ODD)
def test_odd_titles_keep_their_pieces_apart(qwen_pieces: Pieces, title: str) -> None:
    line = one_line(title)
    check(qwen_pieces, {}, [Event(line, 4.0, 1), Event(line, None, 0)], line)
    check(qwen_pieces, {"history_shows": "nothing", "question": ""}, [Event(line, 4.0, 1)], line)
