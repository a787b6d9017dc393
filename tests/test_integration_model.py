"""Any real model through the whole path: load, prompt, loss, labels, a short generation.

    pytest tests/test_integration_model.py --integration-model-path Qwen/Qwen3-0.6B -v -s
    pytest tests/test_integration_model.py --integration-config-path configs/qwen3_7b_movielens_qlora.yaml -v -s

With `-s` the raw record, the templated text and the answer are shown. Without either option all is skipped.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rectune.config import Config, load_config
from rectune.errors import RectuneError
from rectune.model.load import Loaded, load_model
from rectune.prompt.events import Event, Prompt
from rectune.prompt.layouts import Prompts, prompts_for
from rectune.prompt.pieces import Pieces
from rectune.prompt.tree import Trees
from rectune.score.generate import extract_label, generate_answers
from rectune.score.scorer import score_trees
from rectune.shipped import find_config

RECORD: dict[str, Any] = {
    "history_titles": ["Toy Story (1995)", "Apollo 13 (1995)", "Braveheart (1995)", "Waterworld (1995)"],
    "history_ratings": [4.0, 5.0, 4.0, 2.0],
    "candidate_title": "Shawshank Redemption, The (1994)",
    "label": 1,
}


@dataclass(frozen=True)
class Real:
    """A loaded model with its prompt builder and one prompt."""

    config: Config
    loaded: Loaded
    prompts: Prompts
    history: list[Event]
    prompt: Prompt

    @property
    def tree(self) -> Trees:
        """The prompt as the one example type."""
        return Trees.of_prompts([self.prompt.tokens], [RECORD["label"]], rows=[0], shown_from=[0])


def resolve(model: str | None, config: str | None, **values: Any) -> Real:
    """The model of these options, loaded as training loads it.

    Raises:
        RectuneError: it cannot be had.
    """
    settings = Config() if config is None else load_config(find_config(Path(config)))
    if model is not None:
        values["model_name_or_path"] = model
    settings = settings.with_overrides(**values)
    loaded = load_model(settings, print)
    prompts = prompts_for(settings, Pieces(loaded.tokenizer))
    history = [
        Event(title, rating, int(rating >= settings.rating_threshold))
        for title, rating in zip(RECORD["history_titles"], RECORD["history_ratings"], strict=True)
    ]
    return Real(settings, loaded, prompts, history, prompts.build(history, RECORD["candidate_title"]))


@pytest.fixture(scope="module")
def real(request: pytest.FixtureRequest) -> Real:
    model = request.config.getoption("--integration-model-path")
    config = request.config.getoption("--integration-config-path")
    if model is None and config is None:
        pytest.skip("no model: give --integration-model-path PATH or --integration-config-path CONFIG")
    try:
        return resolve(model, config)
    except RectuneError as error:
        pytest.skip(f"the model cannot be resolved: {error}")


def check_prompt(real: Real) -> None:
    """The pieces are the tokens of the whole string, and decode to it."""
    text = real.prompts.text(real.history, RECORD["candidate_title"])
    print(f"\nrecord: {json.dumps(RECORD, indent=2)}\n\ntext after the template:\n{text}")
    real.prompts.check_pieces(real.history, RECORD["candidate_title"])
    assert real.prompt.dropped == 0
    assert RECORD["candidate_title"] in real.loaded.tokenizer.decode(real.prompt.tokens)


def check_labels(real: Real) -> None:
    """Both label words are single tokens that differ, and so is the end."""
    words = real.prompts.verbalizer
    assert len({words.positive_id, words.negative_id, words.end_id}) == 3
    decode = real.loaded.tokenizer.decode
    assert [decode([token]).strip() for token in (words.positive_id, words.negative_id)] == [
        words.positive,
        words.negative,
    ]


def check_loss(real: Real) -> None:
    """The loss where it is taken (the label, pointwise also the end) is finite; all else is masked, cannot matter."""
    import torch

    from rectune.model.answers import hidden_at, word_losses
    from rectune.train.batches import TrainingCollator

    words, with_end = real.prompts.verbalizer, real.config.ends_answers
    batch = TrainingCollator(real.tree, words, with_end)([[0]])
    batch = {name: value.to(real.loaded.device) for name, value in batch.items()}
    rows, positions, targets = batch["rows"], batch["positions"], batch["labels"]
    if with_end:
        rows, positions = rows.repeat(2), torch.cat([positions, positions + 1])
        targets = torch.cat([targets, torch.full_like(targets, words.end_id)])
    with torch.inference_mode():
        hidden = hidden_at(real.loaded.model, batch["input_ids"], rows, positions)
        losses = word_losses(real.loaded.model, hidden, targets)
    print("\nloss at the answer" + " and at the end behind it" * with_end, [round(loss, 3) for loss in losses.tolist()])
    assert bool(torch.isfinite(losses).all())


def check_answer(real: Real) -> None:
    """A score between 0 and 1, and a short greedy answer without markers."""
    size, words = real.config.per_device_eval_batch_size, real.prompts.verbalizer
    odds = score_trees(real.loaded.model, real.tree, words, size, real.loaded.attention)
    answer = generate_answers(real.loaded.model, real.tree, real.loaded.tokenizer, words, size)[0]
    label = extract_label(answer, words)
    print(f"\nP({words.positive}) = {1 / (1 + np.exp(-odds[0])):.3f}\nanswer: {answer!r}, read as {label}")
    assert np.isfinite(odds).all()
    assert "<|im_end|>" not in answer


CHECKS: list[Callable[[Real], None]] = [check_prompt, check_labels, check_loss, check_answer]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_real_model(check: Callable[[Real], None], real: Real) -> None:
    check(real)


@pytest.mark.parametrize("layout", ["pointwise", "stream"])
def test_the_checks_themselves_pass_on_the_tiny_qwen3(
    layout: str, tiny_qwen3: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = resolve(str(tiny_qwen3), None, layout=layout)
    for check in CHECKS:
        check(tiny)
    shown = capsys.readouterr().out
    assert '"candidate_title"' in shown and "<|im_start|>user" in shown and "answer: " in shown


def test_a_model_that_cannot_be_resolved_is_an_error_with_a_reason(tmp_path: Path) -> None:
    with pytest.raises(RectuneError, match="no such folder"):
        resolve(str(tmp_path / "none"), None)
