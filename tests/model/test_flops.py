"""Operations of a step: a formula against the counts of PyTorch's own counter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rectune.config import parse_config
from rectune.model.flops import peak_operations, training_work
from rectune.model.lora import attach_adapter

LENGTH = 24


@pytest.mark.parametrize("layers", ["all", "upper_half"])
def test_operations_are_those_that_torch_counts_in_a_step(tiny_qwen3: Path, layers: str) -> None:
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_qwen3, attn_implementation="eager")
    config = parse_config({"lora_rank": 4, "lora_dropout": 0.0, "lora_layers": layers}, origin="test")
    model: Any = attach_adapter(base, config, str(tiny_qwen3), None)
    work = training_work(model)
    assert work is not None
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.arange(LENGTH)[None]).logits.sum().backward()
    # Eager attention multiplies all pairs, also those that the mask throws away.
    want = work.of(LENGTH, LENGTH * LENGTH, LENGTH)
    # Off by gradients that torch leaves out where nothing below is trained (the lowest block's inputs), a tenth of the
    # two tiny blocks.
    assert want == pytest.approx(counter.get_total_flops(), rel=0.15)


def test_a_rank_of_the_loss_over_two_words_costs_less_than_over_all(tiny_qwen3: Path) -> None:
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_qwen3)
    whole, two = training_work(base), training_work(base, 2)
    assert whole is not None and two is not None
    assert two.per_word * base.config.vocab_size == pytest.approx(whole.per_word * 2)


def test_a_cpu_says_what_it_measured() -> None:
    found = peak_operations(torch.device("cpu"), torch.float32)
    assert found is not None and found[0] > 1e8 and "measured" in found[1]


def test_a_known_card_has_its_makers_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "NVIDIA GeForce RTX 4090")
    assert peak_operations(torch.device("cuda"), torch.bfloat16) == (
        165e12,
        "its maker's figure for NVIDIA GeForce RTX 4090",
    )


def test_an_unknown_device_has_no_figure() -> None:
    assert peak_operations(torch.device("mps"), torch.float32) is None
