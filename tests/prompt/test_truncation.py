"""Truncation drops the oldest whole events and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rectune.config import parse_config
from rectune.errors import DataError
from rectune.prompt.events import Event
from rectune.prompt.pieces import Pieces
from rectune.prompt.pointwise import PointwisePrompts

HISTORY = [Event(f"Film {'x' * number} ({number})", 0.5 * number, number % 2) for number in range(1, 10)]


def prompts_of(pieces: Pieces, cutoff: int, **values: Any) -> PointwisePrompts:
    keys = {"layout": "pointwise", "cutoff_len": cutoff}
    return PointwisePrompts(parse_config({**keys, **values}, origin="test"), pieces)


@given(
    prompt_format=st.sampled_from(["chat", "instruction", "completion"]),
    keep=st.integers(0, len(HISTORY)),
    spare=st.integers(0, 3),
)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_newest_events_that_fit_stay_numbered_and_counted_from_one(
    tiny_pieces: Pieces, prompt_format: str, keep: int, spare: int
) -> None:
    free = prompts_of(tiny_pieces, 1 << 20, prompt_format=prompt_format)
    shown = HISTORY[len(HISTORY) - keep :]
    exact = len(free.build(shown, "Heat (1995)").tokens) + 2
    cut = prompts_of(tiny_pieces, exact + spare, prompt_format=prompt_format).build(HISTORY, "Heat (1995)")
    assert cut.dropped == len(HISTORY) - keep
    assert cut.tokens == free.build(shown, "Heat (1995)").tokens
    text = tiny_pieces.tokenizer.decode(cut.tokens)
    assert f"last {keep} films" in text
    assert [f"{number}. {event.title} (rating" in text for number, event in enumerate(shown, start=1)] == [True] * keep
    assert "Candidate film: Heat (1995)\nWill the user like the candidate film? Answer Yes or No." in text


@pytest.mark.parametrize("prompt_format", ["chat", "instruction", "completion"])
def test_one_token_less_than_needed_drops_one_event_more(tiny_pieces: Pieces, prompt_format: str) -> None:
    whole = prompts_of(tiny_pieces, 1 << 20, prompt_format=prompt_format).build(HISTORY, "Heat")
    fits = len(whole.tokens) + 2
    assert prompts_of(tiny_pieces, fits, prompt_format=prompt_format).build(HISTORY, "Heat") == whole
    assert prompts_of(tiny_pieces, fits - 1, prompt_format=prompt_format).build(HISTORY, "Heat").dropped == 1


@pytest.mark.parametrize("prompt_format", ["chat", "instruction", "completion"])
def test_a_cutoff_too_small_for_the_answer_names_a_length_that_is_enough(
    tiny_pieces: Pieces, prompt_format: str
) -> None:
    with pytest.raises(DataError, match=r"^cutoff_len: got 8, .* set cutoff_len=\d+") as caught:
        prompts_of(tiny_pieces, 8, prompt_format=prompt_format).build(HISTORY, "Heat")
    assert "\n" not in str(caught.value)
    needed = int(str(caught.value).split("cutoff_len=")[1].split()[0])
    enough = prompts_of(tiny_pieces, needed, prompt_format=prompt_format).build(HISTORY, "Heat")
    assert len(enough.tokens) + 2 <= needed
    with pytest.raises(DataError):
        prompts_of(tiny_pieces, needed - 1, prompt_format=prompt_format).build(HISTORY, "Heat")


@pytest.mark.parametrize("prompt_format", ["chat", "instruction", "completion"])
def test_a_record_is_never_cut(tiny_pieces: Pieces, prompt_format: str) -> None:
    whole = prompts_of(tiny_pieces, 1 << 20, prompt_format=prompt_format).record("s", "i", "Heat " * 20)
    fits = len(whole.tokens) + 2
    assert prompts_of(tiny_pieces, fits, prompt_format=prompt_format).record("s", "i", "Heat " * 20) == whole
    assert prompts_of(tiny_pieces, fits - 1, prompt_format=prompt_format).record("s", "i", "Heat " * 20) == whole
