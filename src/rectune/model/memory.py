"""How much memory is free, and how many tokens a scoring pass may hold."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from rectune.model.answers import backbone_of
from rectune.model.prefix import CELLS

_GIB = 1 << 30
_LEAST = 256
"""Tokens of a pass below which everything is slow; taken however little memory there is."""
_MOST = {"cpu": 4096, "cuda": 32768}
"""Tokens of a pass beyond which nothing gets faster."""


@dataclass(frozen=True)
class Budget:
    """What scoring may hold beside the weights.

    Attributes:
        tokens: in one pass.
        kept: bytes of trunks' keys that are kept between passes.
        reason: where the figures come from, for a person.
        tight: whether more memory would allow larger passes.
    """

    tokens: int
    kept: int
    reason: str
    tight: bool


def free_bytes(device: torch.device) -> int:
    """Memory that can be had on a device, with what PyTorch holds but does not use."""
    if device.type == "cuda":
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + idle
    available = int(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    try:  # a container may be allowed less than the machine has; what files left in its cache can be had back
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return max(0, min(available, limit - used + int(stat.get("inactive_file", 0))))
    except (OSError, ValueError):
        return available


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, for which not every device has an error of its own."""
    said = str(error).lower()
    known = ("not enough memory", "allocate memory", "out of memory", "alloc_failed", "bad_alloc")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(words in said for words in known)
    )


def free_memory(device: torch.device) -> None:
    """Give back what a failed pass has left behind."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def reset_peak(device: torch.device) -> bool:
    """Begin to note the peak of memory from here on; whether that can be done here."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def peak_bytes(device: torch.device) -> int | None:
    """The most that was held since `reset_peak`: reserved on CUDA, else this process's resident memory on Linux."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM")), None)


def bytes_per_token(config: Any, width: int) -> int:
    """What a token takes while a layer is computed, attention's matrix aside.

    Args:
        config: of a model of the Llama family.
        width: bytes of a number.
    """
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shared = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    heads = config.num_attention_heads + 2 * shared
    # The feed-forward layer's three products, each beside its adapter's; or queries, keys and values, twice; and the
    # residual stream with its norm in float32.
    inner = 6 * getattr(config, "intermediate_size", 4 * config.hidden_size)
    return int(width * (max(inner, 2 * heads * dim) + 4 * config.hidden_size) + 8 * config.hidden_size)


def scoring_budget(model: Any, memory_gib: float | None = None) -> Budget:
    """The budget of scoring with a loaded model.

    Args:
        model: on its device, with or without an adapter.
        memory_gib: what scoring may take beside the weights; None takes half of a GPU's free memory, or a quarter
            of the main memory that is free, 4 GiB at most.
    """
    bare, _ = backbone_of(model)
    device = next(bare.parameters()).device
    free = free_bytes(device)
    if memory_gib is not None:
        total, reason = memory_gib * _GIB, f"{memory_gib:g} GiB as asked"
    elif device.type == "cuda":
        total, reason = free / 2, f"half of {free / _GIB:.1f} GiB free"
    else:
        total = min(free / 4, 4 * _GIB)
        reason = f"{total / _GIB:.1f} of {free / _GIB:.1f} GiB free"
    width = torch.finfo(bare.dtype).bits // 8
    matrix = 4 * CELLS * bare.config.num_attention_heads * width
    most = _MOST.get(device.type, _MOST["cpu"])
    fits = int((total / 2 - matrix) // bytes_per_token(bare.config, width))
    # A power of two, so that the same run on the same machine makes the same passes though free memory varies.
    tokens = 1 << (min(max(fits, _LEAST), most).bit_length() - 1)
    return Budget(tokens, int(total / 2), reason, tokens < most)
