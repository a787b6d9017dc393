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
from rectune.model import attention, blocks
from rectune.model.attention import attention_mask, choose_attention
from rectune.model.device import choose_dtype

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
LOW = torch.finfo(torch.float32).min


def config_of(**values: Any) -> Any:
    return parse_config({"layout": "pointwise", **values}, origin="test")


# --- masks ---

Row = list[tuple[int, list[tuple[int, int]]]]
"""Trees of one row: tokens of the trunk, and for each branch how much of the trunk it sees and its own tokens."""
Places = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def places_of(rows: list[Row]) -> Places:
    """run, first and fork of these rows, padded on the right."""
    laid: list[list[tuple[int, int, int]]] = []
    for row in rows:
        laid.append([])
        number = 0
        for trunk, branches in row:
            first = len(laid[-1])
            laid[-1] += [(number, first, first)] * trunk
            number += 1
            for seen, length in branches:
                laid[-1] += [(number, first, first + seen)] * length
                number += 1
    width = max(map(len, laid))
    table = torch.tensor([row + [(-1, 0, 0)] * (width - len(row)) for row in laid])
    return table[..., 0], table[..., 1], table[..., 2]


def picture(allowed: list[list[int]]) -> list[list[float]]:
    return [[0.0 if pair else LOW for pair in row] for row in allowed]


def test_a_small_mask_is_as_worked_out_by_hand() -> None:
    run, first = torch.tensor([[0, 0, 1, 1, 1, -1]]), torch.tensor([[0, 0, 2, 2, 2, 0]])
    mask = attention_mask(run, first, first, "sdpa", torch.float32)
    assert mask.shape == (1, 1, 6, 6) and mask.dtype == torch.float32
    allowed = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 1, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]
    assert mask[0, 0].tolist() == picture(allowed)


def test_a_small_mask_of_branches_is_as_worked_out_by_hand() -> None:
    # A tree of one token; a trunk of three with branches after its first token and after its second.
    run = torch.tensor([[0, 1, 1, 1, 2, 2, 3]])
    first, fork = torch.tensor([[0, 1, 1, 1, 1, 1, 1]]), torch.tensor([[0, 1, 1, 1, 2, 2, 3]])
    assert all(map(torch.equal, places_of([[(1, []), (3, [(1, 2), (2, 1)])]]), (run, first, fork)))
    mask = attention_mask(run, first, fork, "sdpa", torch.float32)
    allowed = [
        [1, 0, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0, 0],
        [0, 1, 1, 1, 0, 0, 0],
        [0, 1, 0, 0, 1, 0, 0],
        [0, 1, 0, 0, 1, 1, 0],
        [0, 1, 1, 0, 0, 0, 1],
    ]
    assert mask[0, 0].tolist() == picture(allowed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_forbidden_pairs_have_the_lowest_value_of_the_dtype(dtype: torch.dtype) -> None:
    mask = attention_mask(*places_of([[(1, []), (1, [])]]), "eager", dtype)
    assert mask.dtype == dtype and mask[0, 0, 1, 0] == torch.finfo(dtype).min and torch.isfinite(mask).all()


trees = st.tuples(st.integers(1, 5), st.lists(st.tuples(st.integers(0, 5), st.integers(1, 3)), max_size=2)).map(
    lambda tree: (tree[0], [(min(seen, tree[0]), length) for seen, length in tree[1]])
)
rows_of_trees = st.lists(st.lists(trees, min_size=1, max_size=3), min_size=1, max_size=3)


@given(rows=rows_of_trees)
@settings(max_examples=50, deadline=None)
def test_a_token_attends_to_itself_and_to_its_ancestors(rows: list[Row]) -> None:
    run, first, fork = places_of(rows)
    mask = attention_mask(run, first, fork, "sdpa", torch.float32)
    for batch, row in enumerate(rows):
        at = 0
        for trunk, branches in row:
            begin = at
            for seen, length in [(0, trunk), *branches]:
                for place in range(length):
                    ancestors = {*range(begin, begin + seen), *range(at, at + place + 1)}
                    assert set((mask[batch, 0, at + place] == 0).nonzero().flatten().tolist()) == ancestors
                at += length
        for padding in range(at, run.shape[1]):  # it attends to padding, so that no row is empty
            assert (mask[batch, 0, padding] == 0).nonzero().flatten().tolist() == list(range(at, padding + 1))


@pytest.mark.parametrize(
    "rows",
    [
        [[(3, []), (2, []), (4, [])], [(9, [])]],
        [[(1, [])], [(5, []), (1, [])]],
        [[(70, []), (90, []), (3, [])]],
        [[(140, [(30, 9), (135, 20)]), (150, [(1, 2), (149, 3)])], [(5, [(5, 300)])]],
    ],
)
def test_a_block_mask_allows_the_pairs_of_the_dense_one(rows: list[Row]) -> None:
    places = places_of(rows)
    batch, length = places[0].shape
    block = attention_mask(*places, "flex_attention", torch.float32)
    at = torch.arange(length)
    allowed = block.mask_mod(torch.arange(batch)[:, None, None], torch.tensor(0), at[None, :, None], at[None, None, :])
    dense = attention_mask(*places, "sdpa", torch.float32)
    assert torch.equal(allowed, dense[:, 0] == 0)
    # No block that holds an allowed pair is skipped.
    blocks = block.to_dense()[:, 0].bool()
    size = block.BLOCK_SIZE[0]
    row, query, key = allowed.nonzero().T
    assert blocks[row, query // size, key // size].all()


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


def packed(model: Any, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    from rectune.model.answers import head_weight, hidden_at

    ids = torch.cat([*PROMPTS, torch.zeros(3, dtype=torch.int64)])[None]
    count = sum(map(len, PROMPTS))
    with torch.inference_mode():
        hidden = hidden_at(
            model, ids, torch.zeros(count, dtype=torch.int64), torch.arange(count), mask, position_ids=positions
        )
        return hidden @ head_weight(model).T


def right_places() -> Places:
    run, first, fork = places_of([[(len(prompt), []) for prompt in PROMPTS], [(sum(map(len, PROMPTS)) + 3, [])]])
    return run[:1], first[:1], fork[:1]


def right_positions() -> torch.Tensor:
    return torch.tensor([[at for prompt in PROMPTS for at in range(len(prompt))] + [0] * 3])


@pytest.mark.parametrize("kernel", ["sdpa", "eager", blocks.KERNEL])
def test_packed_prompts_answer_as_each_does_alone(model: Any, tiny_qwen3: Path, kernel: str) -> None:
    from transformers import AutoModelForCausalLM

    blocks.register()
    used = model if kernel == "sdpa" else AutoModelForCausalLM.from_pretrained(tiny_qwen3, attn_implementation=kernel)
    mask = attention_mask(*right_places(), kernel, torch.float32)
    found = packed(used.eval(), mask, right_positions())
    torch.testing.assert_close(found, alone(model), atol=1e-4, rtol=0)


def bugs() -> list[Any]:
    (run, first, fork), positions = right_places(), right_positions()
    count = run.shape[1]
    shifted = run.clone()
    shifted[0, len(PROMPTS[0])] = 0  # the second prompt's first token is counted to the first prompt
    return [
        pytest.param((torch.zeros_like(run), first, fork), positions, id="no runs in the mask"),
        pytest.param((run, first, fork), torch.arange(count)[None] * 2, id="positions twice as far apart"),
        pytest.param((shifted, first, fork), positions, id="one token in the wrong run"),
        pytest.param((torch.arange(count)[None], first, fork), positions, id="each token alone"),
        pytest.param((run, torch.zeros_like(first), fork), positions, id="each prompt sees those before it"),
        pytest.param((run, first, fork + 2), positions, id="each prompt sees two tokens of its own too early"),
    ]


@pytest.mark.parametrize(("places", "positions"), bugs())
def test_planted_bugs_are_caught(model: Any, places: Places, positions: torch.Tensor) -> None:
    mask = attention_mask(*places, "sdpa", torch.float32)
    difference = (packed(model, mask, positions) - alone(model)).abs().max()
    assert difference > 1e-2  # a hundred times the tolerance above


def test_a_mask_without_causality_is_caught(model: Any) -> None:
    mask = attention_mask(*right_places(), "sdpa", torch.float32)
    blind = torch.maximum(mask, mask.transpose(-1, -2))
    assert (packed(model, blind, right_positions()) - alone(model)).abs().max() > 1e-2


# --- kernels and dtypes ---


@pytest.mark.parametrize(
    ("values", "dtype", "kernel", "reason"),
    [
        ({}, torch.float32, "sdpa", "auto: no FlashAttention, it needs a CUDA card"),
        (
            {"packing": True},
            torch.float32,
            "sdpa",
            "auto: packed rows need a mask, and FlexAttention is not to be had: it trains on CUDA only",
        ),
        (
            {"layout": "stream"},
            torch.float32,
            "sdpa",
            "auto: branching streams need a mask, and FlexAttention is not to be had: it trains on CUDA only",
        ),
        (
            {},
            torch.bfloat16,
            "rectune_blocks",
            "auto: plain products in blocks, the fastest for bfloat16 on CPUs",
        ),
        (
            {"packing": True, "layout": "stream"},
            torch.bfloat16,
            "rectune_blocks",
            "auto: plain products in blocks, the fastest for bfloat16 on CPUs",
        ),
        ({"flash_attn": False}, torch.bfloat16, "eager", "flash_attn: false"),
        ({"flash_attn": "eager", "packing": True}, torch.float32, "eager", "flash_attn: eager"),
        ({"flash_attn": "sdpa", "packing": True}, torch.bfloat16, "sdpa", "flash_attn: sdpa"),
        ({"flash_attn": "blocks"}, torch.float32, "rectune_blocks", "flash_attn: blocks"),
    ],
)
def test_the_kernel_is_chosen_and_said_on_a_cpu(
    values: dict[str, Any], dtype: torch.dtype, kernel: str, reason: str
) -> None:
    assert choose_attention(config_of(**values), CPU, dtype) == (kernel, reason)


@pytest.mark.parametrize("wanted", ["flash_attention_2", "flex"])
def test_a_kernel_that_this_machine_lacks_is_one_line(wanted: str) -> None:
    with pytest.raises(ResourceError, match=rf"^flash_attn: {wanted}?.*use flash_attn=auto$"):
        choose_attention(config_of(flash_attn=wanted), CPU, torch.float32)


@pytest.mark.parametrize(
    ("values", "said"), [({"packing": True}, "packed rows"), ({"layout": "stream"}, "branching streams")]
)
def test_flash_attention_cannot_be_asked_for_masks(
    values: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    card(monkeypatch, 9, installed=True)
    with pytest.raises(ConfigError, match=f"cannot mask {said}; .*layout=pointwise packing=false"):
        choose_attention(config_of(flash_attn="flash_attention_2", **values), CUDA, torch.bfloat16)


@pytest.mark.parametrize(
    ("values", "said"), [({"packing": True}, "packed rows"), ({"layout": "stream"}, "branching streams")]
)
def test_on_cuda_rows_that_need_a_mask_get_flex_attention(
    values: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    card(monkeypatch, 9, installed=True)
    chosen, reason = choose_attention(config_of(**values), CUDA, torch.bfloat16)
    assert chosen == "flex_attention" and reason.startswith(f"auto: {said} need a mask")


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
