"""Which attention kernel, and the one builder of masks for sequences that hold several prompts."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from rectune.config import Config
from rectune.errors import ConfigError, ResourceError

_KERNELS = {"flash_attention_2": "flash_attention_2", "flex": "flex_attention", "sdpa": "sdpa", "eager": "eager"}


def _flash_problem(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why FlashAttention 2 cannot be used here, or None."""
    if device.type != "cuda":
        return "it needs a CUDA card"
    if torch.cuda.get_device_capability(device)[0] < 8:
        return "it needs an Ampere card or newer"
    if dtype not in (torch.bfloat16, torch.float16):
        return "it needs bf16 or fp16"
    if importlib.util.find_spec("flash_attn") is None:
        return "the package flash-attn is not installed (pip install flash-attn --no-build-isolation)"
    return None


def choose_attention(config: Config, device: torch.device, dtype: torch.dtype) -> tuple[str, str]:
    """The kernel's name as transformers knows it, and why.

    `auto` takes FlashAttention 2 where it can be used and PyTorch's SDPA elsewhere; FlashAttention is optional.

    Raises:
        ConfigError: FlashAttention together with packing, whose masks it cannot express.
        ResourceError: a kernel is asked for by name that this machine does not have.
    """
    wanted = config.flash_attn
    problem = _flash_problem(device, dtype)
    if wanted == "auto":
        if config.packing:
            return "sdpa", "auto: packed prompts need a mask, which FlashAttention cannot express"
        if problem is None:
            return "flash_attention_2", "auto: flash-attn is installed"
        return "sdpa", f"auto: no FlashAttention, {problem}"
    if wanted is False:
        return "eager", "flash_attn: false"
    if wanted == "flash_attention_2":
        if config.packing:
            raise ConfigError(
                "flash_attn: flash_attention_2 cannot keep packed prompts apart; use sdpa, or packing=false"
            )
        if problem is not None:
            raise ResourceError(f"flash_attn: flash_attention_2 is not to be had here: {problem}; use flash_attn=auto")
    if wanted == "flex" and device.type != "cuda":
        raise ResourceError("flash_attn: flex trains on CUDA only; use flash_attn=auto")
    return _KERNELS[wanted], f"flash_attn: {wanted}"


def attention_mask(segments: torch.Tensor, kernel: str, dtype: torch.dtype) -> Any:
    """The mask of rows that hold several prompts each: a token attends to itself and earlier tokens of its prompt.

    Args:
        segments: int64 [batch, length]; the number of the prompt that each token belongs to, -1 for padding.
        kernel: `flex_attention` gives a BlockMask; the others a dense additive mask.
        dtype: of the dense mask.

    Returns:
        [batch, 1, length, length] with 0 where attention is allowed and the dtype's lowest value elsewhere, or a
        BlockMask of the same meaning. Padding attends to itself, so that no row is empty.
    """
    length = segments.shape[1]
    if kernel == "flex_attention":
        from torch.nn.attention.flex_attention import create_block_mask

        def allowed_at(
            batch: torch.Tensor, _head: torch.Tensor, query: torch.Tensor, key: torch.Tensor
        ) -> torch.Tensor:
            return (segments[batch, query] == segments[batch, key]) & (key <= query)

        return create_block_mask(allowed_at, segments.shape[0], None, length, length, device=str(segments.device))
    same = segments[:, :, None] == segments[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    mask = torch.zeros(same.shape, dtype=dtype, device=segments.device)
    return mask.masked_fill(~(same & causal), torch.finfo(dtype).min)[:, None]
