"""A tuned tiny run, made once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rectune.config import parse_config
from rectune.prompt.tree import Trees


def silent(_line: str) -> None:
    """Say nothing."""


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path, movielens: Path) -> Path:
    """A run folder with a random adapter, as training leaves it."""
    from rectune.model.load import load_model
    from rectune.model.lora import attach_adapter
    from rectune.prompt.dataset import open_dataset
    from rectune.prompt.pieces import Pieces
    from rectune.prompt.pointwise import PointwisePrompts
    from rectune.score.settings import settings_of

    root = tmp_path_factory.mktemp("tiny-run")
    config = parse_config(
        {
            "model_name_or_path": str(tiny_qwen3),
            "layout": "pointwise",
            "dataset": str(movielens),
            "dataset_dir": str(root / "data"),
            "output_dir": str(root / "run"),
            "preprocessing_cache_dir": str(root / "cache"),
            "bf16": False,
            "report_to": "none",
            "per_device_eval_batch_size": 4,
        },
        origin="test",
    )
    data = open_dataset(config, silent)
    loaded = load_model(config, silent)
    torch.manual_seed(5)
    model = attach_adapter(loaded.model, config, str(tiny_qwen3), None)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.05)
    model.save_pretrained(root / "run")
    prompts = PointwisePrompts(config, Pieces(loaded.tokenizer))
    settings_of(config, prompts.verbalizer, loaded.source, None, "float32", data.content_hash).save(root / "run")
    (root / "run" / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    return root / "run"


@pytest.fixture(scope="session")
def opened(tiny_run: Path) -> Any:
    from rectune.score.open_run import open_run

    return open_run(tiny_run, [], silent)


@pytest.fixture(scope="session")
def data(opened: Any) -> Any:
    from rectune.score.score import open_data

    return open_data(opened, silent)


@pytest.fixture(scope="session")
def trees(opened: Any, data: Any) -> Trees:
    """Prompts of the test events, of different lengths."""
    from rectune.prompt.encode import encode, sample_rows

    rows = sample_rows(data.events, "train", 26, 1)
    config = opened.config
    found = encode(config, data.events, data.catalog, data.content_hash, opened.prompts, rows, silent)
    assert len(np.unique(found.lengths)) > 3
    return found
