"""QLoRA on real weights: SmolLM2-135M in NF4 on this machine's processor or card. Run with `make test-slow`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from rich.console import Console

from rectune.config import Config, load_config
from rectune.data.columns import VALIDATION
from rectune.model.load import load_model
from rectune.model.lora import load_adapter
from rectune.prompt.encode import encode
from rectune.report.evaluate import evaluate
from rectune.score.open_run import open_run
from rectune.score.score import open_data, split_rows
from rectune.score.scorer import score_trees
from rectune.shipped import find_config
from rectune.train.start import Resume
from rectune.train.train import train

pytestmark = pytest.mark.slow
torch.set_num_threads(os.cpu_count() or 1)  # the fast tests' single thread would take an hour here
QUIET = Console(quiet=True)


def silent(_text: str) -> None:
    """Say nothing."""


@pytest.fixture
def nf4(tmp_path: Path) -> Callable[..., Config]:
    """The shipped offline configuration with 4-bit weights, made short."""
    pytest.importorskip("bitsandbytes")
    base = load_config(find_config(Path("demo_cpu")), ["use_qlora=true", "max_train_samples=48", "max_eval_samples=24"])

    def make(**values: Any) -> Config:
        short = {"max_steps": 6, "eval_steps": 3, "save_steps": 3, "logging_steps": 1, "report_to": "none"}
        folders = {
            "dataset_dir": str(tmp_path / "data"),
            "output_dir": str(tmp_path / "run"),
            "preprocessing_cache_dir": str(tmp_path / "cache"),
        }
        return base.with_overrides(**{**short, **folders, **values})

    return make


def test_a_4_bit_model_trains_resumes_evaluates_and_merges(nf4: Callable[..., Config], tmp_path: Path) -> None:
    lines: list[str] = []
    whole = train(nf4(), lines.append, QUIET)
    assert any("4-bit NF4" in line for line in lines)

    # Resumed from the middle, it ends with the same bytes.
    resumed = nf4(output_dir=str(tmp_path / "resumed"))
    train(resumed, silent, QUIET, Resume(checkpoint=whole / "checkpoint-3"))
    last = Path("checkpoint-6") / "adapter_model.safetensors"
    assert (whole / last).read_bytes() == (resumed.output_dir / last).read_bytes()

    # The metrics of training are those of the saved adapter.
    said: list[str] = []
    found = evaluate(whole, [], VALIDATION, "logits", False, said.append, QUIET)
    assert any("0 in log-odds" in line for line in said)
    assert found.report["models"]["tuned"]["metrics"]["n"] == 24

    # Merged into dequantised weights the scores stay; merging into the 4-bit weights would move them.
    run = open_run(whole, [], silent)
    data = open_data(run, silent)
    rows = split_rows(run, data, VALIDATION)
    trees = encode(run.config, data.events, data.catalog, data.content_hash, run.prompts, rows, silent)
    loaded = load_model(run.config.with_overrides(bf16=False), silent)
    base, kernel = loaded.model, loaded.attention
    base.dequantize()
    size = run.config.per_device_eval_batch_size
    adapted = load_adapter(base, whole)
    apart = score_trees(adapted, trees, run.prompts.verbalizer, size, kernel)
    merged = score_trees(adapted.merge_and_unload(), trees, run.prompts.verbalizer, size, kernel)
    assert np.abs(apart - merged).max() < 1e-3
    # Between bfloat16, in which it was trained, and float32 a model this small moves by about a tenth.
    trained = pl.read_parquet(whole / "validation_predictions.parquet")["log_odds"].to_numpy()
    print(f"merged, float32: {np.abs(apart - merged).max():.2g}; to bfloat16: {np.abs(trained - merged).max():.2g}")
    assert np.abs(trained - merged).mean() < 0.25
