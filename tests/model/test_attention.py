"""Masks keep packed prompts apart, and planted bugs are caught by the same comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rectune.config import parse_config
from rectune.errors import ConfigError, ResourceError
from rectune.model import attention
from rectune.model.attention import attention_mask, choose_attention
from rectune.model.device import choose_dtype

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
LOW = torch.finfo(torch.float32).min


def config_of(**values: Any) -> Any:
    return parse_config(values, origin="test")


# --- masks ---


def test_a_small_mask_is_as_worked_out_by_hand() -> None:
    mask = attention_mask(torch.tensor([[0, 0, 1, 1, 1, -1]]), "sdpa", torch.float32)
    assert mask.shape == (1, 1, 6, 6) and mask.dtype == torch.float32
    allowed = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 1, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]
    assert mask[0, 0].tolist() == [[0.0 if pair else LOW for pair in row] for row in allowed]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_forbidden_pairs_have_the_lowest_value_of_the_dtype(dtype: torch.dtype) -> None:
    mask = attention_mask(torch.tensor([[0, 1]]), "eager", dtype)
    assert mask.dtype == dtype and mask[0, 0, 1, 0] == torch.finfo(dtype).min and torch.isfinite(mask).all()


packs = st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), min_size=1, max_size=3)


def segments_of(rows: list[list[int]]) -> torch.Tensor:
    flat = [[number for number, length in enumerate(row) for _ in range(length)] for row in rows]
    width = max(map(len, flat))
    return torch.tensor([row + [-1] * (width - len(row)) for row in flat])


@given(rows=packs)
@settings(max_examples=50, deadline=None)
def test_a_token_attends_to_itself_and_to_earlier_tokens_of_its_own_prompt(rows: list[list[int]]) -> None:
    segments = segments_of(rows)
    mask = attention_mask(segments, "sdpa", torch.float32)
    for batch in range(segments.shape[0]):
        for query in range(segments.shape[1]):
            for key in range(segments.shape[1]):
                allowed = key <= query and segments[batch, key] == segments[batch, query]
                assert (mask[batch, 0, query, key] == 0) == allowed


@pytest.mark.parametrize("rows", [[[3, 2, 4], [9]], [[1], [5, 1]], [[70, 90, 3]]])
def test_a_block_mask_allows_the_pairs_of_the_dense_one(rows: list[list[int]]) -> None:
    segments = segments_of(rows)
    batch, length = segments.shape
    block = attention_mask(segments, "flex_attention", torch.float32)
    at = torch.arange(length)
    allowed = block.mask_mod(torch.arange(batch)[:, None, None], torch.tensor(0), at[None, :, None], at[None, None, :])
    dense = attention_mask(segments, "sdpa", torch.float32)
    assert torch.equal(allowed, dense[:, 0] == 0)
    # No block that holds an allowed pair is skipped.
    blocks = block.to_dense()[:, 0].bool()
    size = block.BLOCK_SIZE[0]
    for row, query, key in allowed.nonzero().tolist():
        assert blocks[row, query // size, key // size]


# --- packed rows against each prompt alone ---


@pytest.fixture(scope="module")
def model(tiny_qwen3: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_qwen3, attn_implementation="sdpa").eval()


PROMPTS = [torch.randint(0, 300, (length,), generator=torch.Generator().manual_seed(length)) for length in (7, 12, 5)]


def alone(model: Any) -> torch.Tensor:
    """Full logits of each prompt run by itself, by the model's own forward."""
    with torch.inference_mode():
        return torch.cat([model(input_ids=prompt[None]).logits[0] for prompt in PROMPTS])


def packed(model: Any, segments: torch.Tensor, positions: torch.Tensor, kernel: str = "sdpa") -> torch.Tensor:
    from rectune.model.answers import head_weight, hidden_at

    ids = torch.cat([*PROMPTS, torch.zeros(3, dtype=torch.int64)])[None]
    count = sum(map(len, PROMPTS))
    with torch.inference_mode():
        mask = attention_mask(segments, kernel, torch.float32)
        hidden = hidden_at(
            model, ids, torch.zeros(count, dtype=torch.int64), torch.arange(count), mask, position_ids=positions
        )
        return hidden @ head_weight(model).T


def right_segments() -> torch.Tensor:
    return torch.tensor([[number for number, prompt in enumerate(PROMPTS) for _ in prompt] + [-1] * 3])


def right_positions() -> torch.Tensor:
    return torch.tensor([[at for prompt in PROMPTS for at in range(len(prompt))] + [0] * 3])


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_packed_prompts_answer_as_each_does_alone(model: Any, tiny_qwen3: Path, kernel: str) -> None:
    from transformers import AutoModelForCausalLM

    used = model if kernel == "sdpa" else AutoModelForCausalLM.from_pretrained(tiny_qwen3, attn_implementation=kernel)
    found = packed(used.eval(), right_segments(), right_positions(), kernel)
    torch.testing.assert_close(found, alone(model), atol=1e-4, rtol=0)


def bugs() -> list[Any]:
    segments, positions = right_segments(), right_positions()
    count = segments.shape[1]
    shifted = segments.clone()
    shifted[0, len(PROMPTS[0])] = 0  # the second prompt's first token is counted to the first prompt
    return [
        pytest.param(torch.zeros_like(segments), positions, id="no segments in the mask"),
        pytest.param(segments, torch.arange(count)[None] * 2, id="positions twice as far apart"),
        pytest.param(shifted, positions, id="one token in the wrong segment"),
        pytest.param(torch.arange(count)[None], positions, id="each token alone"),
    ]


@pytest.mark.parametrize(("segments", "positions"), bugs())
def test_planted_bugs_are_caught(model: Any, segments: torch.Tensor, positions: torch.Tensor) -> None:
    difference = (packed(model, segments, positions) - alone(model)).abs().max()
    assert difference > 1e-2  # a hundred times the tolerance above


def test_a_mask_without_causality_is_caught(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "tril", lambda self: self)
    assert (packed(model, right_segments(), right_positions()) - alone(model)).abs().max() > 1e-2


# --- kernels and dtypes ---


@pytest.mark.parametrize(
    ("wanted", "packing", "kernel", "reason"),
    [
        ("auto", False, "sdpa", "auto: no FlashAttention, it needs a CUDA card"),
        ("auto", True, "sdpa", "auto: packed prompts need a mask, which FlashAttention cannot express"),
        (False, False, "eager", "flash_attn: false"),
        ("eager", True, "eager", "flash_attn: eager"),
        ("sdpa", True, "sdpa", "flash_attn: sdpa"),
    ],
)
def test_the_kernel_is_chosen_and_said_on_a_cpu(wanted: Any, packing: bool, kernel: str, reason: str) -> None:
    assert choose_attention(config_of(flash_attn=wanted, packing=packing), CPU, torch.float32) == (kernel, reason)


@pytest.mark.parametrize("wanted", ["flash_attention_2", "flex"])
def test_a_kernel_that_this_machine_lacks_is_one_line(wanted: str) -> None:
    with pytest.raises(ResourceError, match=rf"^flash_attn: {wanted}?.*use flash_attn=auto$"):
        choose_attention(config_of(flash_attn=wanted), CPU, torch.float32)


def test_flash_attention_cannot_be_asked_to_keep_packed_prompts_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    card(monkeypatch, 9, installed=True)
    with pytest.raises(ConfigError, match="packing=false"):
        choose_attention(config_of(flash_attn="flash_attention_2", packing=True), CUDA, torch.bfloat16)


def card(monkeypatch: pytest.MonkeyPatch, major: int, installed: bool) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device=None: (major, 0))
    monkeypatch.setattr(attention.importlib.util, "find_spec", lambda _name: object() if installed else None)


@pytest.mark.parametrize(
    ("major", "installed", "dtype", "kernel", "reason"),
    [
        (8, True, torch.bfloat16, "flash_attention_2", "auto: flash-attn is installed"),
        (7, True, torch.float16, "sdpa", "auto: no FlashAttention, it needs an Ampere card or newer"),
        (9, True, torch.float32, "sdpa", "auto: no FlashAttention, it needs bf16 or fp16"),
        (9, False, torch.bfloat16, "sdpa", "auto: no FlashAttention, the package flash-attn is not installed"),
    ],
)
def test_flash_attention_is_taken_where_it_works(
    monkeypatch: pytest.MonkeyPatch, major: int, installed: bool, dtype: torch.dtype, kernel: str, reason: str
) -> None:
    card(monkeypatch, major, installed)
    chosen, said = choose_attention(config_of(), CUDA, dtype)
    assert chosen == kernel and said.startswith(reason)


def test_flash_attention_that_is_not_installed_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    card(monkeypatch, 9, installed=False)
    with pytest.raises(ResourceError, match=r"pip install flash-attn.*flash_attn=auto"):
        choose_attention(config_of(flash_attn="flash_attention_2"), CUDA, torch.bfloat16)
    assert choose_attention(config_of(flash_attn="flex"), CUDA, torch.bfloat16)[0] == "flex_attention"


@pytest.mark.parametrize(
    ("values", "device", "supported", "dtype", "reason"),
    [
        ({"bf16": True}, CPU, False, torch.bfloat16, "bf16: true"),
        ({"bf16": False}, CUDA, True, torch.float32, "bf16: false"),
        ({"bf16": True}, CUDA, True, torch.bfloat16, "bf16: true"),
        ({"fp16": True, "bf16": "auto"}, CUDA, True, torch.float16, "fp16: true"),
        ({}, CUDA, True, torch.bfloat16, "auto: the card has bfloat16"),
        ({}, CUDA, False, torch.float32, "auto: the card has no bfloat16; fp16=true is faster"),
        ({}, CPU, True, torch.bfloat16, "auto: the CPU has bfloat16 instructions"),
        ({}, CPU, False, torch.float32, "auto: no fast bfloat16 on this cpu"),
        ({}, torch.device("mps"), True, torch.float32, "auto: no fast bfloat16 on this mps"),
    ],
)
def test_the_dtype_is_chosen_and_said(
    monkeypatch: pytest.MonkeyPatch,
    values: dict[str, Any],
    device: torch.device,
    supported: bool,
    dtype: torch.dtype,
    reason: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: supported)
    monkeypatch.setattr("rectune.model.device.cpu_multiplies_bfloat16", lambda: supported)
    assert choose_dtype(config_of(**values), device) == (dtype, reason)


def test_a_dtype_that_the_device_lacks_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"^fp16: got true.*needs CUDA, and this device is cpu"):
        choose_dtype(config_of(fp16=True), CPU)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    with pytest.raises(ConfigError, match=r"^bf16: got true.*set bf16=false fp16=true"):
        choose_dtype(config_of(bf16=True), CUDA)
