"""QLoRA on real weights: SmolLM2-135M in NF4 on this machine's processor or card. Run with `make test-slow`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from rectune.config import Config, load_config
from rectune.data.columns import VALIDATION
from rectune.report.evaluate import evaluate
from rectune.score.open_run import open_run
from rectune.score.score import TUNED, open_data, score_rows, split_rows
from rectune.score.scorer import score_trees
from rectune.shipped import find_config
from rectune.train.train import Resume, train

pytestmark = pytest.mark.slow
QUIET = Console(quiet=True)


def silent(_text: str) -> None:
    """Say nothing."""


@pytest.fixture
def nf4(tmp_path: Path) -> Callable[..., Config]:
    """The shipped offline configuration with 4-bit weights, made short."""
    pytest.importorskip("bitsandbytes")
    base = load_config(find_config(Path("demo_cpu")), ["use_qlora=true", "max_train_samples=64", "max_eval_samples=32"])

    def make(**values: Any) -> Config:
        return base.with_overrides(
            dataset_dir=str(tmp_path / "data"),
            output_dir=str(tmp_path / "run"),
            preprocessing_cache_dir=str(tmp_path / "cache"),
            **{"max_steps": 6, "eval_steps": 3, "save_steps": 3, "logging_steps": 1, "report_to": "none", **values},
        )

    return make


def test_a_4_bit_model_trains_resumes_evaluates_and_merges(nf4: Callable[..., Config], tmp_path: Path) -> None:
    lines: list[str] = []
    whole = train(nf4(), lines.append, QUIET)
    assert any("4-bit NF4" in line for line in lines)

    # Resumed from the middle, it ends with the same bytes.
    resumed = nf4(output_dir=str(tmp_path / "resumed"))
    train(resumed, silent, QUIET, Resume(checkpoint=whole / "checkpoint-3"))
    adapters = [(folder / "checkpoint-6" / "adapter_model.safetensors").read_bytes() for folder in (whole, resumed.output_dir)]
    assert adapters[0] == adapters[1]

    # The metrics of training are those of the saved adapter.
    said: list[str] = []
    found = evaluate(whole, [], VALIDATION, "logits", False, said.append, QUIET)
    assert any("0 in log-odds" in line for line in said)
    assert found.report["models"]["tuned"]["metrics"]["n"] == 32

    # Merged into dequantised weights the scores stay; merged into 4 bits again they would move.
    run = open_run(whole, [], silent)
    data = open_data(run, silent)
    rows = split_rows(run, data, VALIDATION)
    before = score_rows(run, data, rows, (TUNED,), "logits", silent, QUIET)[TUNED]
    from rectune.prompt.encode import encode

    trees = encode(run.config, data.events, data.catalog, data.content_hash, run.prompts, rows, silent)
    run.model.base_model.model.dequantize()
    merged = run.model.merge_and_unload()
    after = score_trees(merged, trees, run.prompts.verbalizer, run.config.per_device_eval_batch_size)
    moved = np.abs(before["log_odds"].to_numpy() - after)
    assert float(moved.mean()) < 0.05
    assert pl.Series(before["log_odds"]).is_finite().all()
