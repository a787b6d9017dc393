"""Which attention kernel, and the one builder of masks for rows that hold several prompts or branching trees."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from rectune.config import Config
from rectune.config_backends import NATIVE
from rectune.errors import ConfigError, ResourceError
from rectune.model import blocks

_KERNELS = {
    "flash_attention_2": "flash_attention_2",
    "flex": "flex_attention",
    "blocks": blocks.KERNEL,
    "sdpa": "sdpa",
    "eager": "eager",
}


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


def _flex_problem(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why FlexAttention cannot be trusted to train here, or None."""
    if device.type != "cuda":
        return "it trains on CUDA only"
    if dtype not in (torch.bfloat16, torch.float16) or torch.cuda.get_device_capability(device)[0] < 8:
        return "it wants bf16 or fp16 on an Ampere card or newer"
    return "triton is not installed" if importlib.util.find_spec("triton") is None else None


def choose_attention(config: Config, device: torch.device, dtype: torch.dtype) -> tuple[str, str]:
    """The kernel's name as transformers knows it, and why.

    `auto` takes our blocks for bfloat16 on a CPU; elsewhere FlashAttention 2 where it can be used and needs no mask,
    FlexAttention for masked rows on CUDA, and PyTorch's SDPA for the rest. FlashAttention is optional.

    Raises:
        ConfigError: FlashAttention together with packing or streams, whose masks it cannot express.
        ResourceError: a kernel is asked for by name that this machine does not have.
    """
    wanted = config.flash_attn
    problem = _flash_problem(device, dtype)
    # TRL lays packed prompts end to end, which FlashAttention can express by itself.
    packed = config.packing and config.backend == NATIVE
    masked = "packed rows" if packed else "branching streams" if config.layout == "stream" else None
    if wanted == "auto":
        if device.type == "cpu" and dtype == torch.bfloat16:
            return blocks.KERNEL, "auto: plain products in blocks, the fastest for bfloat16 on CPUs"
        if masked is not None:
            flex_problem = _flex_problem(device, dtype)
            if flex_problem is None:
                return "flex_attention", f"auto: {masked} need a mask, and FlexAttention skips what it hides"
            return "sdpa", f"auto: {masked} need a mask, and FlexAttention is not to be had: {flex_problem}"
        if problem is None:
            return "flash_attention_2", "auto: flash-attn is installed"
        return "sdpa", f"auto: no FlashAttention, {problem}"
    if wanted is False:
        return "eager", "flash_attn: false"
    if wanted == "flash_attention_2":
        if masked is not None:
            raise ConfigError(
                f"flash_attn: flash_attention_2 cannot mask {masked}; use auto or sdpa, "
                "or layout=pointwise packing=false"
            )
        if problem is not None:
            raise ResourceError(f"flash_attn: flash_attention_2 is not to be had here: {problem}; use flash_attn=auto")
    if wanted == "flex" and device.type != "cuda":
        raise ResourceError("flash_attn: flex trains on CUDA only; use flash_attn=auto")
    return _KERNELS[wanted], f"flash_attn: {wanted}"


def attention_mask(run: torch.Tensor, first: torch.Tensor, fork: torch.Tensor, kernel: str, dtype: torch.dtype) -> Any:
    """The mask of rows that hold several prompts or branching trees: a token attends to itself and its ancestors.

    Its ancestors are the earlier tokens of its own run (a trunk or a branch) and, on a branch, the tokens of its
    trunk before the fork.

    Args:
        run: int64 [batch, length]; the number of the trunk or branch that each token belongs to, -1 for padding.
        first, fork: int64 [batch, length]; a token also sees the places from `first` to before `fork` of its row.
        kernel: `flex_attention` gives a BlockMask; the others a dense additive mask.
        dtype: of the dense mask.

    Returns:
        [batch, 1, length, length] with 0 where attention is allowed and the dtype's lowest value elsewhere, or a
        BlockMask of the same meaning. Padding attends to padding before it, so that no row is empty.
    """
    length = run.shape[1]
    if kernel == "flex_attention":
        from torch.nn.attention.flex_attention import create_block_mask

        def allowed_at(
            batch: torch.Tensor, _head: torch.Tensor, query: torch.Tensor, key: torch.Tensor
        ) -> torch.Tensor:
            own = (run[batch, query] == run[batch, key]) & (key <= query)
            return own | ((key >= first[batch, query]) & (key < fork[batch, query]))

        return create_block_mask(allowed_at, run.shape[0], None, length, length, device=str(run.device))
    at = torch.arange(length, device=run.device)
    own = (run[:, :, None] == run[:, None, :]) & (at[:, None] >= at)
    trunk = (at >= first[:, :, None]) & (at < fork[:, :, None])
    mask = torch.zeros(own.shape, dtype=dtype, device=run.device)
    return mask.masked_fill(~(own | trunk), torch.finfo(dtype).min)[:, None]
