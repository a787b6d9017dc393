"""Candidates score as their plain prompts, whatever the batch, order, split, kept trunk or layout.

The reference writes each prompt as a string, shortens its history by whole events, tokenises the whole and runs it
alone through transformers' own forward.
"""

from __future__ import annotations

import random
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rectune.config import parse_config
from rectune.errors import DataError, ResourceError
from rectune.model.load import load_model
from rectune.prompt.events import Event
from rectune.prompt.layouts import prompts_for
from rectune.prompt.pieces import Pieces
from rectune.score import candidates as module
from rectune.score.candidates import Candidate, CandidateScorer, Request
from rectune.score.open_run import OpenRun
from rectune.score.settings import settings_of

TOLERANCE = 5e-5
TITLES = ["Heat (1995)", "Up!", "L'été 日本", "12 Monkeys", "M*A*S*H", "…And Justice", "Yes", "No: No", "don't", "x",
          "👩‍👧 family", "Film 9, The (2001)", "Will the user like the candidate film?"]  # fmt: skip
LAYOUTS = {
    "stream": {"layout": "stream", "prompt_format": "completion", "history_shows": "label"},
    "chat": {"layout": "stream", "history_shows": "rating"},
    "pointwise": {"layout": "pointwise", "history_len": 6},
}
QUIETLY = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


def silent(_text: str) -> None:
    pass


def run_of(model: str, **values: Any) -> OpenRun:
    """A run without an adapter."""
    config = parse_config({"model_name_or_path": model, "flash_attn": "sdpa", "bf16": False, **values}, origin="test")
    loaded = load_model(config, silent)
    prompts = prompts_for(config, Pieces(loaded.tokenizer))
    saved = settings_of(config, prompts.verbalizer, loaded.source, None, "float32", "")
    return OpenRun(Path("none"), config, saved, loaded.model, loaded, prompts)


@pytest.fixture(scope="module")
def runs(tiny_qwen3: Path) -> dict[str, OpenRun]:
    return {name: run_of(str(tiny_qwen3), cutoff_len=2048, **values) for name, values in LAYOUTS.items()}


class Reference:
    """Plain prompts as strings, one at a time; equal prompts are run once."""

    def __init__(self, run: OpenRun) -> None:
        self.run = run
        self.known: dict[tuple[int, ...], float] = {}

    def __call__(self, history: list[Event], candidate: Candidate) -> float:
        run, prompts = self.run, self.run.prompts
        if run.config.layout == "pointwise":
            history = history[-run.config.history_len :]
        tokenizer = run.loaded.tokenizer
        room = run.config.cutoff_len - (2 if run.config.layout == "pointwise" else 0)
        if run.config.layout == "stream":
            # A line reserves a multiple of 32 tokens, where there is room for that.
            line = len(tokenizer(candidate.text + run.config.stream_cue, add_special_tokens=False).input_ids)
            alone = len(tokenizer(prompts.text([], candidate.text), add_special_tokens=False).input_ids)
            room -= -line % 32 if alone + -line % 32 <= room else 0
        for first in range(len(history) + 1):
            ids = tokenizer(prompts.text(history[first:], candidate.text), add_special_tokens=False).input_ids
            if len(ids) <= room:
                break
        key = tuple(ids)
        if key not in self.known:
            with torch.inference_mode():
                logits = run.model(input_ids=torch.tensor([ids])).logits[0, -1].double()
            self.known[key] = float(logits[prompts.verbalizer.positive_id] - logits[prompts.verbalizer.negative_id])
        return self.known[key] + candidate.prior


def cut_to(run: OpenRun, cutoff_len: int) -> OpenRun:
    config = run.config.with_overrides(cutoff_len=cutoff_len)
    return replace(run, config=config, prompts=prompts_for(config, run.prompts.pieces))


def draw_requests(draw: random.Random, count: int) -> list[Request]:
    def event() -> Event:
        rating = draw.choice([1.0, 2.5, 4.0, 5.0])
        return Event(draw.choice(TITLES), rating, int(rating >= 4))

    return [
        Request(
            [event() for _ in range(draw.choice([0, 1, 5, 12]))],
            [Candidate(draw.choice(TITLES), draw.choice([0.0, -1.5])) for _ in range(draw.choice([0, 1, 3, 20]))],
            draw.choice([None, "ann", "bob"]),
        )
        for _ in range(count)
    ]


def check(scorer: CandidateScorer, reference: Reference, requests: list[Request]) -> float:
    """Compare all scores; the largest difference."""
    counted: list[int] = []
    found = scorer.score(requests, counted.append)
    assert sum(counted) == sum(len(request.candidates) for request in requests)
    worst = 0.0
    for request, odds in zip(requests, found, strict=True):
        assert odds.shape == (len(request.candidates),)
        wanted = [reference(list(request.history), each) for each in request.candidates]
        worst = max([worst, *np.abs(odds - wanted).tolist()])
    assert worst <= TOLERANCE, worst
    return worst


@pytest.mark.parametrize("layout", LAYOUTS)
@given(
    seed=st.integers(0, 1 << 30), count=st.integers(1, 5), tokens=st.sampled_from([1, 17, 60, 300, 4096]),
    room=st.sampled_from([0, 12, 45, 2000]), kept=st.sampled_from([0, 20_000, 1 << 30]),
)  # fmt: skip
@QUIETLY
def test_scores_are_those_of_plain_prompts(
    runs: dict[str, OpenRun], layout: str, seed: int, count: int, tokens: int, room: int, kept: int
) -> None:
    draw = random.Random(seed)
    run = runs[layout]
    longest = max(len(run.prompts.build([], title).tokens) for title in TITLES)
    run = cut_to(run, longest + 8 + room)
    scorer, reference = CandidateScorer(run, silent), Reference(run)
    scorer._tokens, scorer.trunks._limit = tokens, kept
    requests = draw_requests(draw, count)
    check(scorer, reference, requests)
    # Users come back with more history, with less, and in another order.
    later = [replace(request, history=[*request.history, Event("Up!", 5.0, 1)]) for request in requests]
    earlier = [replace(request, history=request.history[: len(request.history) // 2]) for request in requests]
    again = [*later, *earlier]
    draw.shuffle(again)
    check(scorer, reference, again)


def test_a_kept_trunk_is_not_computed_again(runs: dict[str, OpenRun], monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = CandidateScorer(runs["stream"], silent)
    history = [Event("Heat (1995)", 5.0, 1)] * 5
    scorer.score([Request(history, [Candidate("x")], "ann")])
    computed: list[int] = []
    real = module.run_groups

    def counting(model: Any, groups: Any) -> Any:
        computed.append(sum(len(group.trunk) for group in groups))
        return real(model, groups)

    monkeypatch.setattr(module, "run_groups", counting)
    scorer.score([Request(history, [Candidate("x"), Candidate("Up!")], "ann")])
    scorer.score([Request([*history, Event("x", 1.0, 0)], [Candidate("x")], "ann")])
    line = len(runs["stream"].prompts.pieces.text("x:")) + len(runs["stream"].prompts.pieces.text(" No\n"))
    assert computed == [0, line]
    scorer.score([Request(history, [Candidate("x")], "bob")])
    assert computed[-1] > 5 * line


class SmallDevice:
    """A device with room for so many tokens, which says so as PyTorch does; kept trunks take room too."""

    def __init__(self, room: int, scorer: CandidateScorer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room, self.scorer, self.passes = room, scorer, [0]
        self.alive: list[weakref.ref[Any]] = []
        real = module.run_groups

        def run(model: Any, groups: Any) -> Any:
            held = sum(len(tokens) for tokens, _ in scorer.trunks._held.values())
            size = sum(group.tokens for group in groups)
            assert not any(reference() is not None for reference in self.alive), "a failed pass is still held"
            activations = torch.zeros(size)
            if size + held > self.room:
                self.alive.append(weakref.ref(activations))
                raise torch.OutOfMemoryError("CUDA out of memory")
            self.passes.append(size)
            return real(model, groups)

        monkeypatch.setattr(module, "run_groups", run)


def test_a_pass_that_does_not_fit_is_halved_and_said(runs: dict[str, OpenRun], monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    scorer = CandidateScorer(runs["stream"], told.append)
    device = SmallDevice(150, scorer, monkeypatch)
    requests = [Request([Event("Heat (1995)", 5.0, 1)] * 4, [Candidate(title) for title in TITLES * 3])] * 2
    check(scorer, Reference(runs["stream"]), requests)
    assert told[0].startswith("memory: ") and "tokens at once do not fit this device; going on with" in told[0]
    # It does not shrink further than it must, and what was learned is kept: the next call fits at once.
    assert max(device.passes) > 75 and scorer._tokens > 75
    told.clear()
    check(scorer, Reference(runs["stream"]), requests)
    assert told == []


def test_a_history_longer_than_what_fits_is_computed_in_parts(
    runs: dict[str, OpenRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = CandidateScorer(runs["stream"], silent)
    device = SmallDevice(60, scorer, monkeypatch)
    check(scorer, Reference(runs["stream"]), [Request([Event("Heat (1995)", 5.0, 1)] * 40, [Candidate("x")])])
    assert len(device.passes) > 5


def test_kept_trunks_make_room_before_anything_is_given_up(
    runs: dict[str, OpenRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    scorer = CandidateScorer(runs["stream"], told.append)
    SmallDevice(400, scorer, monkeypatch)
    history = [Event("Heat (1995)", 5.0, 1)] * 12
    for user in "abcdef":
        check(scorer, Reference(runs["stream"]), [Request(history, [Candidate("x")], user)])
    assert told == []


def test_threads_that_share_a_run_get_their_own_scores(runs: dict[str, OpenRun]) -> None:
    scorers = [CandidateScorer(runs["stream"], silent) for _ in range(2)]
    asked = [draw_requests(random.Random(seed), 3) for seed in range(8)]
    wanted = [scorers[0].score(requests) for requests in asked]
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda at: scorers[at % 2].score(asked[at % 8]), range(48)))
    finally:
        sys.setswitchinterval(usual)
    for at, mine in enumerate(found):
        for one, other in zip(mine, wanted[at % 8], strict=True):
            assert np.allclose(one, other, atol=TOLERANCE)


def test_one_prompt_that_does_not_fit_is_one_line(runs: dict[str, OpenRun], monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = CandidateScorer(runs["stream"], silent)
    scorer.score([Request([], [Candidate("x")])])

    def full(_model: Any, _groups: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4096 bytes.")

    monkeypatch.setattr(module, "run_groups", full)
    with pytest.raises(ResourceError, match=r"scoring one prompt of \d+ tokens does not fit this device; lower"):
        scorer.score([Request([], [Candidate("x"), Candidate("Up!")])])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("bug", ["values", "blind", "siblings"])
def test_a_model_whose_attention_cannot_be_shared_is_asked_prompt_by_prompt(
    runs: dict[str, OpenRun], tiny_qwen3: Path, dtype: str, bug: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted kernel is wrong, as another architecture's would be; the scorer finds out and says so."""
    from rectune.model import prefix

    real = prefix._attend
    planted: dict[str, Any] = {
        "values": lambda query, key, value, *rest: real(query, key, -value, *rest),
        "blind": lambda query, key, value, before, scale: real(query, key, value, None, scale),
        "siblings": lambda query, key, value, *rest: real(query, key.roll(1, 1), value.roll(1, 1), *rest),
    }
    monkeypatch.setattr(prefix, "_attend", planted[bug])
    run = runs["stream"] if dtype == "float32" else run_of(str(tiny_qwen3), **{**LAYOUTS["stream"], "bf16": True})
    told: list[str] = []
    scorer = CandidateScorer(run, told.append)
    history = [Event(title, 5.0, at % 2) for at, title in enumerate(TITLES)]
    request = Request(history, [Candidate(title) for title in TITLES])
    (found,) = scorer.score([request])
    assert len(told) == 1 and told[0].startswith("scoring: each prompt by itself, since this model cannot share")
    assert "log-odds off" in told[0]
    if dtype == "float32":
        check(scorer, Reference(run), [request])
    assert np.isfinite(found).all()


def test_a_candidate_that_cannot_fit_is_one_line(runs: dict[str, OpenRun]) -> None:
    scorer = CandidateScorer(cut_to(runs["stream"], 40), silent)
    with pytest.raises(DataError, match=r"^cutoff_len: got 40, but the prompt for 'long long .* needs \d+ tokens"):
        scorer.score([Request([], [Candidate("x"), Candidate("long " * 60)])])


def test_untuned_and_tuned_are_told_apart(opened: OpenRun) -> None:
    request = Request([Event("Film 3, The (1983)", 5.0, 1)], [Candidate("Film 5, The (1985)"), Candidate("Film 6")])
    tuned, untuned = (CandidateScorer(opened, silent, tuned=which).score([request])[0] for which in (True, False))
    assert np.abs(tuned - untuned).max() > 1e-3
    with opened.model.disable_adapter():
        by_itself = CandidateScorer(opened, silent).score([request])[0]
    assert np.allclose(untuned, by_itself, atol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_scores_of_the_real_smollm2_are_those_of_plain_prompts(layout: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of("wheel:smollm2-135m-instruct", cutoff_len=700, **LAYOUTS[layout])
    scorer, reference = CandidateScorer(run, silent), Reference(run)
    worst = 0.0
    for tokens in (60, 400, 4096):
        scorer._tokens = tokens
        worst = max(worst, check(scorer, reference, draw_requests(random.Random(tokens), 6)))
    with capsys.disabled():
        print(f"\n{layout}: largest difference {worst:.1e} log-odds over {len(reference.known)} plain prompts")
