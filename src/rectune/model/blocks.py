"""Attention for CPUs: blocks of queries against the keys that they can see, in plain matrix products.

On CPUs without AMX PyTorch's fused kernel multiplies bfloat16 at float32's speed and visits all keys of a masked
row; `benchmarks/RESULTS.md` has both timed.
"""

from __future__ import annotations

from typing import Any

import torch

from rectune.errors import ModelError

KERNEL = "rectune_blocks"
"""Name under which transformers knows this kernel."""
_BLOCK = 128


def attend_in_blocks(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scale: float
) -> torch.Tensor:
    """softmax(query @ key^T * scale + mask) @ value, skipping the keys behind each block of queries.

    Args:
        query: [batch, heads, queries, dim]; the last of the keys' places.
        key, value: [batch, heads, keys, dim].
        mask: additive, [batch, 1, queries, keys]; allows no key behind its query.
        scale: of the products.

    Returns:
        [batch, heads, queries, dim].
    """
    queries, keys = query.shape[2], key.shape[2]
    query, transposed = query * scale, key.transpose(-1, -2)
    parts = []
    for start in range(0, queries, _BLOCK):
        stop = min(start + _BLOCK, queries)
        seen = keys - queries + stop
        products = torch.matmul(query[:, :, start:stop], transposed[..., :seen]) + mask[:, :, start:stop, :seen]
        parts.append(torch.matmul(torch.softmax(products, dim=-1), value[:, :, :seen]))
    return torch.cat(parts, dim=2)


def _forward(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
    **extra: Any,
) -> tuple[torch.Tensor, None]:
    """The form in which transformers calls an attention kernel; heads of keys are repeated as in its own."""
    from transformers.integrations.sdpa_attention import repeat_kv

    unknown = [name for name in ("s_aux", "softcap", "position_bias") if extra.get(name) is not None]
    if dropout or unknown:
        what = ", ".join([*unknown, *(["dropout"] if dropout else [])])
        raise ModelError(f"attention: this model needs {what}, which the kernel of CPUs has not; set flash_attn=eager")
    groups = getattr(module, "num_key_value_groups", 1)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    found = attend_in_blocks(query, repeat_kv(key, groups), repeat_kv(value, groups), attention_mask, scale)
    return found.transpose(1, 2).contiguous(), None


def register() -> None:
    """Make the kernel known to transformers; its masks are the dense ones of `eager`."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    AttentionInterface.register(KERNEL, _forward)
    AttentionMaskInterface.register(KERNEL, eager_mask)
