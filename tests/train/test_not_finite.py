"""Runs that break: where, on which rows, what is kept, and what one is told."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from rectune.errors import ModelError, NotFinite
from rectune.report.evaluate import evaluate
from rectune.train.trainer import AnswerTrainer

Run = Callable[..., tuple[Path, list[str]]]
WAYS = r"micro-batch (\d) of 2: (?P<n>\d+) answers in (?P=n) sequences of up to (\d+) tokens, of (?:user|2 users:) "


def findings(run: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((run / "logs" / "diagnosis.json").read_text(encoding="utf-8"))
    return found


def broken_gradient(step: int, micro_batch: int, seen: list[list[int]]) -> Callable[..., Any]:
    """A loss whose value is right and whose gradient is NaN in one micro-batch of one step."""
    true = AnswerTrainer._batch_loss

    def loss(self: Any, model: Any, inputs: Any, count: Any) -> Any:
        value = true(self, model, inputs, count)
        trees = inputs["trees"].tolist()
        now = self.state.global_step == step - 1 and trees == self.step_batches[micro_batch - 1]["trees"].tolist()
        if now:
            seen.append(trees)
            poison = sum(p.sum() for p in model.parameters() if p.requires_grad) * 0.0
            value = value + torch.sqrt(poison.clamp(min=0.0))  # the slope of sqrt at 0 is infinite: 0 * inf is NaN
        return value

    return loss


def test_a_gradient_that_is_no_number_is_stopped_before_it_reaches_the_weights(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: dict[str, Any] = {"max_steps": 6, "eval_steps": 2, "save_steps": 2, "logging_steps": 1, "report_to": "none"}
    whole, _ = run(**keys, output_dir=str(tmp_path / "whole"))
    seen: list[list[int]] = []
    monkeypatch.setattr(AnswerTrainer, "_batch_loss", broken_gradient(5, 2, seen))
    with pytest.raises(NotFinite) as caught:
        run(**keys)
    text, folder = str(caught.value), tmp_path / "run"
    assert "\n" not in text
    assert text.startswith("step 5: the gradient became nan in micro-batch 2 of 2: 2 answers in 2 sequences of up to ")
    assert re.search(WAYS, text) and re.search(r"row_id \d+, user \d+, 'Film \d+", text)
    assert "learning_rate=1.0e-03 (it was 1.0e-02)" in text and "checkpoint-4 is as it was" in text
    # All that was kept is what the unbroken run had at that step.
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    for kept in ("checkpoint-4", "checkpoint-2"):
        if (whole / kept).is_dir():
            assert (folder / kept / "adapter_model.safetensors").read_bytes() == (
                whole / kept / "adapter_model.safetensors"
            ).read_bytes()
    best = json.loads((folder / "best" / "step.json").read_text())["step"]
    assert f"the best adapter so far (step {best}) stands in {folder}" in text
    assert (folder / "adapter_model.safetensors").read_bytes() == (
        folder / f"checkpoint-{best}" / "adapter_model.safetensors"
    ).read_bytes()
    (finding,) = [each for each in findings(folder) if each["severity"] == "stop"]
    assert (finding["code"], finding["step"]) == ("not_finite", 5)
    assert text.startswith(f"step 5: {finding['message']}; {finding['advice']}; ")
    # It can be used as it stands.
    report = evaluate(folder, [], "validation", "logits", False, lambda _: None, Console(quiet=True)).report
    assert np.isfinite(report["models"]["tuned"]["metrics"]["loss"])
    assert report["diagnosis"] == findings(folder)


def test_a_weight_of_the_base_model_that_is_no_number_is_named(run: Run, tmp_path: Path, tiny_qwen3: Path) -> None:
    bad = tmp_path / "bad-model"
    shutil.copytree(tiny_qwen3, bad)
    weights = load_file(bad / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(weights, bad / "model.safetensors", {"format": "pt"})
    with pytest.raises(NotFinite) as caught:
        run(model_name_or_path=str(bad), eval_steps=4)
    text = str(caught.value)
    assert "layers.1.mlp.up_proj" in text and "model_name_or_path: fetch the model's files again" in text
    assert "no checkpoint had been saved; no adapter had been kept" in text
    assert "learning_rate" not in text


def test_a_loss_that_is_no_number_names_its_rows_and_the_overflowed_weight(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        run(learning_rate=1e30, max_grad_norm=0, max_steps=6, warmup_ratio=0.0, logging_steps=1)
    text = str(caught.value)
    found = re.match(r"step (\d): the training loss became (nan|inf) in " + WAYS, text)
    assert found is not None and int(found[1]) > 1
    assert "learning_rate=1.0e+29 (it was 1.0e+30)" in text


@pytest.mark.parametrize("recovers", [True, False])
def test_steps_that_loss_scaling_skips_are_no_failure_until_it_skips_them_all(
    recovers: bool, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    true, scalers = AnswerTrainer.train, []

    def train(self: Any, *arguments: Any, **named: Any) -> Any:
        # A real scaler whose first scales overflow float32; float16 on a card does the same at 2^16.
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**70, backoff_factor=0.5 if recovers else 0.999)
        self.accelerator.scaler = scaler
        scalers.append(scaler)
        return true(self, *arguments, **named)

    monkeypatch.setattr(AnswerTrainer, "train", train)
    keys: dict[str, Any] = {"max_steps": 24, "eval_steps": 24, "save_steps": 24, "logging_steps": 1}
    if recovers:
        folder, _ = run(**keys, max_grad_norm=0.0)
        norms = [log["grad_norm"] for log in json.loads((folder / "log_history.json").read_text()) if "loss" in log]
        assert not np.isfinite(norms[0]) and np.isfinite(norms[-1])
        assert scalers[0].get_scale() < 2.0**70
    else:
        with pytest.raises(NotFinite, match="step 20: the gradient became"):
            run(**keys, max_grad_norm=0.0)
