"""Tiny runs with random adapters, as training leaves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import MakeRun, write_run


@pytest.fixture
def make_run(tmp_path: Path, tiny_qwen3: Path, movielens: Path) -> MakeRun:
    """Makes a run under the test's own folder; a stream of labels, if nothing else is said."""

    def make(**keys: Any) -> Path:
        stream = {"layout": "stream", "history_shows": "label"}
        return write_run(tmp_path, tiny_qwen3, movielens, **{**stream, **keys})

    return make


@pytest.fixture(scope="session")
def stream_run(tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path, movielens: Path) -> Path:
    """A run of the stream layout, calibrated; tests do not change it."""
    root = tmp_path_factory.mktemp("stream-run")
    return write_run(root, tiny_qwen3, movielens, layout="stream", history_shows="label", temperature=1.7, offset=-0.3)


@pytest.fixture(scope="session")
def even_run(tmp_path_factory: pytest.TempPathFactory, qwen3_tokenizer: Any, movielens: Path) -> Path:
    """A run on a Llama whose weights all have rows of multiples of 64; tests do not change it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    root = tmp_path_factory.mktemp("even-run")
    torch.manual_seed(0)
    settings = LlamaConfig(
        vocab_size=len(qwen3_tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048, tie_word_embeddings=True,
        initializer_range=0.1, eos_token_id=qwen3_tokenizer.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(settings).save_pretrained(root / "model")
    qwen3_tokenizer.save_pretrained(root / "model")
    return write_run(root, root / "model", movielens, layout="stream", history_shows="label", spread=0.3)


@pytest.fixture(scope="session")
def pointwise_run(tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path, movielens: Path) -> Path:
    """A run of the pointwise layout in the chat template; tests do not change it."""
    root = tmp_path_factory.mktemp("pointwise-run")
    return write_run(root, tiny_qwen3, movielens, layout="pointwise")
