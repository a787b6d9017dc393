"""Work, time and memory of a run: counted by hand, and written where they belong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rectune.train import speed
from rectune.train.speed import Meter, tokens_and_pairs

Run = Callable[..., tuple[Path, list[str]]]


def batch(**more: Any) -> dict[str, torch.Tensor]:
    """Two prompts of 3 and 5 tokens, the shorter padded, each with its answer at its end."""
    return {
        "input_ids": torch.zeros(2, 5, dtype=torch.int64),
        "rows": torch.tensor([0, 1]),
        "positions": torch.tensor([2, 4]),
        "labels": torch.tensor([7, 8]),
        **more,
    }


def test_padding_is_no_token_and_each_token_sees_itself_and_those_before() -> None:
    assert tokens_and_pairs(batch(), 0) == (8, (1 + 2 + 3) + (1 + 2 + 3 + 4 + 5))


def test_label_and_end_token_behind_an_answer_count() -> None:
    assert tokens_and_pairs(batch(), 2) == (12, 15 + 28)


def test_a_packed_row_counts_pairs_within_each_prompt_only() -> None:
    run = torch.tensor([[0, 0, 0, 1, 1], [0, 0, -1, -1, -1]])
    depth = torch.tensor([[0, 1, 2, 0, 1], [0, 1, 0, 0, 0]])
    assert tokens_and_pairs(batch(run=run, position_ids=depth), 2) == (7, 6 + 3 + 3)


class Clock:
    """A clock that the test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(speed.time, "perf_counter", lambda: self.now)

    def passes(self, seconds: float) -> None:
        self.now += seconds


def test_evaluations_and_checkpoints_do_not_slow_the_speed_but_count_for_the_time_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    meter = Meter(torch.device("cpu"), None, None, evaluation_tokens=160, say=print)
    meter.on_train_begin(None, None, None)
    args = SimpleNamespace(eval_steps=4, save_steps=8, eval_strategy="steps", num_train_epochs=1.0)
    assert meter.seconds_left(args, 0, 10) is None
    for _ in range(4):
        meter.on_step_begin(None, None, None)
        meter.saw(meter.count([batch()], with_end=False))
        clock.passes(2.0)
        meter.on_step_end(None, None, None)
    # 6 steps of 2 s, and 3 evaluations (4, 8, 10) less the one at this step: 160 tokens at half of 8 tokens in 2 s.
    assert meter.seconds_left(args, 4, 10) == pytest.approx(6 * 2 + 2 * 160 * 0.5 * 2 / 8)
    found = meter.read()
    assert found["tokens_per_second"] == 4.0 and found["labels_per_second"] == 1.0
    clock.passes(30.0)
    meter.on_evaluate(None, None, None)
    clock.passes(5.0)
    meter.on_save(None, None, None)
    meter.on_step_begin(None, None, None)
    meter.saw(meter.count([batch()], with_end=False))
    clock.passes(4.0)
    meter.on_step_end(None, None, None)
    assert meter.read()["tokens_per_second"] == 2.0
    # 5 steps of (4 x 2 + 4) / 5 s, evaluations at 8 and 10, checkpoints at 8 and 10.
    assert meter.seconds_left(args, 5, 10) == pytest.approx(5 * 12 / 5 + 2 * 30 + 2 * 5)
    assert meter.seconds_left(args, 10, 10) == 0


def test_utilisation_is_absent_where_the_peak_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    from rectune.model.flops import Work

    clock = Clock(monkeypatch)
    for peak, want in ((None, None), (100.0, (8 * 10 + 21 * 1 + 2 * 5) / 2 / 100)):
        meter = Meter(torch.device("cpu"), Work(10, 1, 5), peak, 0, print)
        meter.on_train_begin(None, None, None)
        meter.on_step_begin(None, None, None)
        meter.saw(meter.count([batch()], with_end=False))
        clock.passes(2.0)
        meter.on_step_end(None, None, None)
        assert meter.read().get("mfu") == (None if want is None else pytest.approx(want))


def test_a_card_filling_up_is_said_once_at_90_and_once_at_95_percent(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    meter = Meter(torch.device("cuda"), None, None, 0, lines.append)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _device: SimpleNamespace(total_memory=100 * 1024**3)
    )
    for reserved in (80.0, 91.0, 93.0, 96.0, 92.0, 99.0):
        meter._warn(reserved)
    assert [line.split(" of ")[0] for line in lines] == ["memory: 91%", "memory: 96%"]


def test_every_log_line_has_speed_and_memory_and_every_evaluation_its_counts(run: Run) -> None:
    folder, lines = run(max_steps=4, eval_steps=2, save_steps=4, logging_steps=1)
    logs = [json.loads(line) for line in (folder / "logs" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    training = [log for log in logs if "loss" in log]
    assert [log["step"] for log in training] == [1, 2, 3, 4]
    for log in training:
        wanted = ("learning_rate", "grad_norm", "tokens_per_second", "labels_per_second", "mfu", "memory_resident_gib")
        assert all(log[name] >= 0 for name in wanted) and log["tokens_per_second"] > log["labels_per_second"] > 0
        assert "memory_allocated_gib" not in log and "gpu_utilization" not in log
    for log in [log for log in logs if "eval_loss" in log]:
        counts = [log[f"eval_{name}"] for name in ("tn", "fp", "fn", "tp")]
        assert sum(counts) == log["eval_n"]
        assert (counts[1] + counts[3]) / log["eval_n"] == pytest.approx(log["eval_predicted_positive_rate"])
        assert {"eval_auc", "eval_f1", "eval_loss_positive", "eval_loss_negative", "eval_positive_rate"} <= set(log)
    assert any(line.startswith("speed: ") and "GFLOP a token" in line for line in lines)
