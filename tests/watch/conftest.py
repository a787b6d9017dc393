"""Folders of real runs on the tiny model, made once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rectune.config import parse_config
from rectune.train.train import train


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path, movielens: Path) -> Path:
    """A finished run of 8 steps with four evaluations."""
    root = tmp_path_factory.mktemp("watch")
    keys: dict[str, Any] = {
        "model_name_or_path": str(tiny_qwen3), "dataset": str(movielens), "dataset_dir": str(root / "data"),
        "output_dir": str(root / "run"), "preprocessing_cache_dir": str(root / "cache"), "bf16": False,
        "layout": "pointwise", "prompt_format": "completion", "cutoff_len": 256, "history_len": 3,
        "report_to": "none", "max_steps": 8, "eval_steps": 2, "save_steps": 4, "logging_steps": 1,
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "early_stopping_patience": 0,
        "metric_for_best_model": "loss",
    }  # fmt: skip
    return train(parse_config(keys, origin="test"), lambda _line: None, Console(quiet=True))


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Copies the run's files under a name, to be changed."""

    def make(name: str) -> Path:
        shutil.copytree(trained, tmp_path / name)
        return tmp_path / name

    return make
