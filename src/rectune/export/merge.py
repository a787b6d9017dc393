"""An adapter merged into its base model in 16 bits, one layer at a time in float32 and rounded once."""

from __future__ import annotations

from typing import Any

import torch

from rectune.errors import ModelError
from rectune.model.answers import HEAD, backbone_of

_ROUNDING = 1e-5
"""How far sums in float32 may be apart, as a share of the largest weight."""
HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def half_type(trained: str, base: Any) -> torch.dtype:
    """The 16-bit type of an export: that of training, else that of the base model's files, else bfloat16.

    >>> from types import SimpleNamespace
    >>> half_type("float16", SimpleNamespace(dtype="bfloat16")), half_type("float32", SimpleNamespace(dtype="float32"))
    (torch.float16, torch.bfloat16)
    """
    stored = str(getattr(base, "dtype", None)).removeprefix("torch.")
    return HALF.get(trained) or HALF.get(stored) or torch.bfloat16


def check_mergeable(adapted: Any) -> None:
    """Refuse an adapter that cannot be merged into the base model alone.

    Raises:
        ModelError: it stands on the embeddings or the output head, which may be one and the same matrix, or the base
            model's weights are quantised.
    """
    from peft.tuners.lora import LoraLayer

    bare, _ = backbone_of(adapted)
    if getattr(bare, "is_quantized", False):
        raise ModelError("an adapter is never merged into quantised weights: that would round it to their few bits")
    ends = {id(end): name for name, end in (("embeddings", bare.get_input_embeddings()), ("output head", _head(bare)))}
    for name, module in adapted.named_modules():
        if isinstance(module, LoraLayer) and (id(module) in ends or id(module.get_base_layer()) in ends):
            raise ModelError(
                f"{name}: this adapter changes the model's embeddings or output head, which merging could tear apart; "
                "export it with --to adapter"
            )


def _head(bare: Any) -> Any:
    return getattr(bare, HEAD, None) or bare.get_output_embeddings()


def _check_layer(name: str, layer: Any, before: torch.Tensor) -> None:
    """Compare a merged layer with the sum worked out apart from PEFT: W + scale B A, in DoRA each row of it at the
    length that was trained (arXiv 2402.09353).

    A single layer that is left out moves scores by less than rounding does, so asking the export would not tell.

    Raises:
        ModelError: they differ.
    """
    (adapter,) = layer.active_adapters
    down, up = layer.lora_A[adapter].weight.float(), layer.lora_B[adapter].weight.float()
    wanted = before + layer.scaling[adapter] * (up @ down)
    if layer.use_dora.get(adapter, False):
        lengths = layer.lora_magnitude_vector[adapter].weight.float()
        wanted = wanted * (lengths / wanted.norm(dim=1))[:, None]
    apart = float((layer.get_base_layer().weight.data - wanted).abs().max())
    if not apart <= _ROUNDING * float(wanted.abs().max()):
        raise ModelError(
            f"{name}: merged, it is {apart:.2g} off the base weight plus the adapter's; nothing was exported"
        )


@torch.no_grad()
def merge_adapter(adapted: Any, dtype: torch.dtype) -> Any:
    """The base model with the adapter in its weights.

    Each layer's weight is widened to float32 for the sum, so that the adapter's small numbers are rounded once and not
    twice; the adapter itself is kept in float32 anyway.

    Args:
        adapted: a base model, not quantised, with an adapter; it is taken apart.
        dtype: of the result.

    Raises:
        ModelError: it cannot be merged (see `check_mergeable`), PEFT's sum is not that of the adapter, or a merged
            weight is beyond what `dtype` can hold.
    """
    from peft.tuners.lora import LoraLayer

    check_mergeable(adapted)
    for name, layer in list(adapted.named_modules()):
        if isinstance(layer, LoraLayer):
            base = layer.get_base_layer()
            before = base.weight.data.float()
            base.weight.data = before.clone()
            layer.merge(safe_merge=True)
            _check_layer(name, layer, before)
            base.weight.data = base.weight.data.to(dtype)
            if not bool(torch.isfinite(base.weight.data).all()):
                raise ModelError(f"{name}: its merged weight is beyond what {dtype} can hold; train with bf16=true")
    merged = adapted.unload()
    merged.to(dtype)
    odd = [name for name, value in merged.named_parameters() if not bool(torch.isfinite(value).all())]
    if odd:
        raise ModelError(f"{odd[0]}: holds values beyond what {dtype} can hold; train with bf16=true")
    merged.config.dtype = dtype
    if hasattr(merged, "peft_config"):
        del merged.peft_config
    return merged.eval()
