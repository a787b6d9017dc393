"""Attention in blocks equals PyTorch's own, forwards and backwards, in and out of a model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from rectune.errors import ModelError
from rectune.model import blocks
from rectune.model.attention import attention_mask
from rectune.model.blocks import attend_in_blocks

LOW = torch.finfo(torch.float32).min


def drawn(queries: int, keys: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Queries, keys and values of 2 rows, 3 heads and 8 numbers, with gradients asked for."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(2, 3, queries, 8), (2, 3, keys, 8), (2, 3, keys, 8)]
    return tuple(torch.randn(shape, generator=generator).requires_grad_() for shape in shapes)


def random_mask(queries: int, keys: int, seed: int = 1) -> torch.Tensor:
    """Allows each query itself and about half of the keys before it, differently in each row."""
    generator = torch.Generator().manual_seed(seed)
    at = torch.arange(keys)
    own = at[keys - queries :, None]
    allowed = (torch.rand(2, 1, queries, keys, generator=generator) < 0.5) & (at <= own)
    return torch.zeros(allowed.shape).masked_fill(~(allowed | (at == own)), LOW)


@pytest.mark.parametrize("queries", [1, 2, 127, 128, 129, 255, 256, 257, 300])
def test_blocks_give_what_sdpa_gives_and_the_same_gradients(queries: int) -> None:
    mask = random_mask(queries, queries)
    query, key, value = drawn(queries, queries)
    weights = torch.randn(query.shape, generator=torch.Generator().manual_seed(2))
    found = attend_in_blocks(query, key, value, mask, 0.3)
    gradients = torch.autograd.grad((found * weights).sum(), [query, key, value])
    expected = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3)
    wanted = torch.autograd.grad((expected * weights).sum(), [query, key, value])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    for mine, theirs in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("queries", "keys"), [(1, 1), (1, 128), (1, 300), (5, 131), (128, 256), (130, 259), (200, 201)]
)
def test_queries_are_the_last_of_the_keys_places(queries: int, keys: int) -> None:
    mask = random_mask(queries, keys)
    query, key, value = drawn(queries, keys)
    expected = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3)
    torch.testing.assert_close(attend_in_blocks(query, key, value, mask, 0.3), expected, atol=1e-5, rtol=0)


def test_a_causal_mask_gives_causal_attention() -> None:
    query, key, value = drawn(140, 140)
    mask = torch.full((1, 1, 140, 140), LOW).triu(1).expand(2, 1, 140, 140)
    expected = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    torch.testing.assert_close(attend_in_blocks(query, key, value, mask, 8**-0.5), expected, atol=1e-5, rtol=0)


def test_two_queries_worked_out_by_hand() -> None:
    # Query 1 sees both keys with products 0 and log 3: weights 1/4 and 3/4.
    query = torch.tensor([1.0, 1.0]).reshape(1, 1, 2, 1)
    key = torch.tensor([0.0, math.log(3) / 2]).reshape(1, 1, 2, 1)
    value = torch.tensor([4.0, 8.0]).reshape(1, 1, 2, 1)
    mask = torch.tensor([[0.0, LOW], [0.0, 0.0]]).reshape(1, 1, 2, 2)
    assert attend_in_blocks(query, key, value, mask, 2.0).flatten().tolist() == pytest.approx([4.0, 7.0])


@pytest.fixture(scope="module")
def models(tiny_qwen3: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM

    blocks.register()
    both = [
        AutoModelForCausalLM.from_pretrained(tiny_qwen3, attn_implementation=name) for name in ("sdpa", blocks.KERNEL)
    ]
    assert both[1].config._attn_implementation == blocks.KERNEL
    return both[0].eval(), both[1].eval()


IDS = torch.randint(0, 300, (2, 260), generator=torch.Generator().manual_seed(3))


def test_the_registered_kernel_gives_the_logits_of_sdpa_without_a_mask(models: tuple[Any, Any]) -> None:
    with torch.inference_mode():
        plain, ours = (model(input_ids=IDS).logits for model in models)
    torch.testing.assert_close(ours, plain, atol=1e-4, rtol=0)
    assert plain.std() > 0.1  # the comparison is not between noughts


def test_the_registered_kernel_gives_the_logits_of_sdpa_with_padding(models: tuple[Any, Any]) -> None:
    padding = torch.ones_like(IDS)
    padding[1, 200:] = 0
    with torch.inference_mode():
        plain, ours = (model(input_ids=IDS, attention_mask=padding).logits for model in models)
    torch.testing.assert_close(ours[padding == 1], plain[padding == 1], atol=1e-4, rtol=0)


def test_the_registered_kernel_gives_the_logits_of_sdpa_on_packed_branching_rows(models: tuple[Any, Any]) -> None:
    run = torch.tensor([[0] * 90 + [1] * 20 + [2] * 150, [0] * 200 + [1] * 40 + [-1] * 20])
    first = torch.tensor([[0] * 110 + [110] * 150, [0] * 260])
    fork = torch.tensor([[0] * 90 + [33] * 20 + [110] * 150, [0] * 200 + [131] * 40 + [0] * 20])
    depth = torch.arange(260).repeat(2, 1)
    with torch.inference_mode():
        plain, ours = (
            model(
                input_ids=IDS,
                attention_mask=attention_mask(run, first, fork, name, torch.float32),
                position_ids=depth,
            ).logits
            for model, name in zip(models, ("sdpa", blocks.KERNEL), strict=True)
        )
    torch.testing.assert_close(ours, plain, atol=1e-4, rtol=0)


def test_the_registered_kernel_goes_on_from_a_cache(models: tuple[Any, Any]) -> None:
    with torch.inference_mode():
        whole = models[0](input_ids=IDS).logits
        begun = models[1](input_ids=IDS[:, :200], use_cache=True)
        rest = models[1](input_ids=IDS[:, 200:], past_key_values=begun.past_key_values, use_cache=True).logits
    torch.testing.assert_close(rest, whole[:, 200:], atol=1e-4, rtol=0)


def test_the_registered_kernel_trains_with_the_gradients_of_sdpa(models: tuple[Any, Any]) -> None:
    found = []
    for model in models:
        model.zero_grad()
        model(input_ids=IDS).logits.logsumexp(-1).mean().backward()
        found.append([value.grad.clone() for value in model.parameters()])
    for plain, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("needs", "said"), [({"dropout": 0.1}, "dropout"), ({"softcap": 30.0}, "softcap")])
def test_what_this_kernel_cannot_do_is_refused(needs: dict[str, float], said: str) -> None:
    query, key, value = drawn(3, 3)
    with pytest.raises(ModelError, match=f"this model needs {said}"):
        blocks._forward(torch.nn.Identity(), query, key, value, random_mask(3, 3), **needs)
