"""Floating-point operations that training with an adapter needs, and how many this device can do."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any

import torch

from rectune.errors import ModelError
from rectune.model.answers import backbone_of, head_weight

_BLOCK = re.compile(r"\blayers\.(\d+)\.")

CARDS = (
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("L4", 121e12),
    ("A10G", 70e12),
    ("RTX 4090", 165e12),
    ("RTX 3090", 71e12),
    ("RTX A6000", 155e12),
    ("Tesla T4", 65e12),
)
"""Peak of dense products in 16 bits with sums in 32, in operations a second, from NVIDIA's data sheets (AWS's for the
A10G); the first name that stands in the card's name counts."""


@dataclass(frozen=True)
class Work:
    """Operations of a training step: forward, and backward as far down as gradients go.

    Operations that gradient checkpointing repeats are not counted, as usual (Chowdhery et al., PaLM, 2022,
    appendix B); unlike there, a frozen matrix costs no gradient of its own, and of attention only the pairs that a
    causal mask leaves.

    Attributes:
        per_token: matrix products of the blocks.
        per_pair: attention of one token to one other or to itself, over all blocks and heads.
        per_word: the output head at one trained place.
    """

    per_token: float
    per_pair: float
    per_word: float

    def of(self, tokens: float, pairs: float, words: float) -> float:
        """Operations of so many tokens, attended pairs and trained places."""
        return self.per_token * tokens + self.per_pair * pairs + self.per_word * words


def training_work(model: Any, words: int | None = None) -> Work | None:
    """What one token, one attended pair and one trained place cost, or None where the model does not say.

    Args:
        model: the adapted model.
        words: rows of the output head that the loss reads; all when None.
    """
    bare, backbone = backbone_of(model)
    config = bare.config
    try:
        rows, hidden = head_weight(model).shape
    except ModelError:  # a classification head, which costs next to nothing
        rows = hidden = 0
    heads, blocks = getattr(config, "num_attention_heads", None), getattr(config, "num_hidden_layers", None)
    if heads is None or blocks is None:
        return None
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    trained = [
        int(found[1])
        for name, weight in backbone.named_parameters()
        if weight.requires_grad and (found := _BLOCK.search(name)) is not None
    ]
    lowest = min(trained, default=blocks)
    per_token = 0.0
    for name, module in backbone.named_modules():
        found = _BLOCK.search(name)
        if not isinstance(module, torch.nn.Linear) or found is None:
            continue
        product = 2.0 * module.in_features * module.out_features
        backward = int(found[1]) >= lowest
        per_token += product * (1 + backward + bool(module.weight.requires_grad))
    forward = 4.0 * heads * size  # query times key, and weight times value
    per_pair = forward * (blocks + 2 * (blocks - lowest))
    return Work(per_token, per_pair, 4.0 * hidden * (words or rows))


def _timed(device: torch.device, dtype: torch.dtype, size: int, repeats: int) -> float:
    """Operations a second of the fastest of some products of two square matrices."""
    left = torch.ones(size, size, device=device, dtype=dtype)

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    best = 0.0
    for _ in range(repeats):
        wait()
        start = time.perf_counter()
        left @ left
        wait()
        best = max(best, 2.0 * size**3 / (time.perf_counter() - start))
    return best


def peak_operations(device: torch.device, dtype: torch.dtype) -> tuple[float, str] | None:
    """Operations a second that this device can do at most, and where the figure is from; None when unknown.

    A known card in 16 bits has its maker's figure; on a CPU or another card some matrix products are timed.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        known = [peak for part, peak in CARDS if part in name]
        if known and dtype != torch.float32:
            return known[0], f"its maker's figure for {name}"
        return _timed(device, dtype, 4096, 5), f"measured on {name} with products of 4,096"
    if device.type == "cpu":
        return _timed(device, dtype, 512, 6), "measured here with products of 512"
    return None
