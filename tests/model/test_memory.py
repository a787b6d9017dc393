"""The scoring budget: more memory never gives fewer tokens, and what a token takes is counted as by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from rectune.model.memory import bytes_per_token, free_bytes, scoring_budget


@pytest.fixture(scope="module")
def model(tiny_qwen3: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_qwen3, dtype=torch.float32)


def test_bytes_of_a_token_are_those_counted_by_hand() -> None:
    # SmolLM2-135M in bfloat16: 6 x 1,536 numbers of the feed-forward layer against 2 x (9 + 2 x 3) x 64 of attention;
    # 4 x 576 of the residual stream, and its norm's 8 x 576 bytes.
    config = SimpleNamespace(
        hidden_size=576, intermediate_size=1536, num_attention_heads=9, num_key_value_heads=3, head_dim=64
    )
    assert bytes_per_token(config, 2) == 2 * (9216 + 2304) + 4608 == 27_648


def test_more_memory_gives_more_tokens_between_a_floor_and_a_ceiling(model: Any) -> None:
    found = [scoring_budget(model, gib).tokens for gib in (0.001, 0.14, 0.15, 8.0)]
    assert found == sorted(found) and found[0] == 256 and found[-1] == 4096
    assert scoring_budget(model, 2.0).kept == 1 << 30


def test_without_a_wish_a_quarter_of_the_free_memory_is_taken_and_said(model: Any) -> None:
    budget = scoring_budget(model)
    free = psutil.virtual_memory().available
    assert 0 < budget.kept <= free / 8 * 1.1
    assert "GiB free" in budget.reason
    assert 0 < free_bytes(torch.device("cpu")) <= psutil.virtual_memory().total
