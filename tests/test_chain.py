"""The whole chain on a tiny random Qwen3: prepare, train, score, evaluate, compare."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl
import torch
from rich.console import Console

from rectune.config import Config
from rectune.report.evaluate import compare, evaluate
from rectune.train.train import train

QUIET = Console(quiet=True)


def silent(_text: str) -> None:
    """Say nothing."""


def test_a_run_trains_evaluates_and_compares_on_a_tiny_qwen3(tiny_config: Callable[..., Config]) -> None:
    run = train(tiny_config(), silent, QUIET)
    lines: list[str] = []
    found = evaluate(run, [], "validation", "logits", True, lines.append, QUIET)
    assert found.page.is_file()
    assert any("row by row: 0 in log-odds" in line for line in lines)
    assert {"tuned", "untuned", "item like-rate", "stack"} < set(found.report["models"])
    written = compare(run, [], "test", None, silent, QUIET)
    assert (written / "comparison_report.json").is_file()


def test_the_run_folder_loads_with_plain_peft(tiny_config: Callable[..., Config], tiny_qwen3: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run = train(tiny_config(max_steps=2, eval_steps=2), silent, QUIET)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_qwen3), run)
    ups = [value for name, value in model.named_parameters() if "lora_B" in name]
    assert ups and any(bool(torch.any(value)) for value in ups)
    assert pl.read_parquet(run / "validation_predictions.parquet").height > 0
