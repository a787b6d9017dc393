"""How fast this machine multiplies matrices, and how many multiplications a training step cannot do without.

Together they give the matmul utilisation that train_speed.py reports.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

ROWS = 4096
ATTEMPTS = 5


@dataclass(frozen=True)
class Shapes:
    """What of a decoder's shape decides its multiplications.

    Attributes:
        blocks: number of transformer blocks.
        linear: (inputs, outputs) of each linear layer of a block, by name.
        attention: width of all query heads together.
        head: (hidden, vocabulary) of the output head.
    """

    blocks: int
    linear: dict[str, tuple[int, int]]
    attention: int
    head: tuple[int, int]

    @classmethod
    def of(cls, config: Any) -> Shapes:
        """The shapes of a Llama-like model from its transformers configuration."""
        hidden, inner = config.hidden_size, config.intermediate_size
        width = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
        queries, keys = width * config.num_attention_heads, width * config.num_key_value_heads
        linear = {
            "q_proj": (hidden, queries),
            "k_proj": (hidden, keys),
            "v_proj": (hidden, keys),
            "o_proj": (queries, hidden),
            "gate_proj": (hidden, inner),
            "up_proj": (hidden, inner),
            "down_proj": (inner, hidden),
        }
        return cls(config.num_hidden_layers, linear, queries, (hidden, config.vocab_size))


def adapted_blocks(lora_layers: str | list[int], blocks: int) -> list[int]:
    """Indices of the blocks that carry an adapter.

    >>> adapted_blocks("upper_half", 5)
    [2, 3, 4]
    """
    if lora_layers == "all":
        return list(range(blocks))
    if lora_layers == "upper_half":
        return list(range(blocks // 2, blocks))
    return sorted(int(index) for index in lora_layers)


def adapted_linear(lora_target: str | list[str], shapes: Shapes) -> list[str]:
    """Names of the linear layers that carry an adapter."""
    shorthand = {"all": list(shapes.linear), "attention": ["q_proj", "k_proj", "v_proj", "o_proj"]}
    shorthand["qv"] = ["q_proj", "v_proj"]
    return shorthand[lora_target] if isinstance(lora_target, str) else list(lora_target)


def training_flops(shapes: Shapes, adapter: dict[str, Any], tokens: int, pairs: int, places: int) -> float:
    """Floating-point operations that training on these tokens needs, each multiply-add counted as two.

    Counted: the frozen linear layers forward, and backward from the top down to the lowest adapted block (by the
    input only); the adapter's own forward and both its gradients; attention over the pairs that may see each other;
    the output head at the places of the loss. Not counted, because a run can do without: padding, recomputation,
    masked-out attention, the head anywhere else. Norms, activations and softmax are no matmuls.

    Args:
        shapes: of the model.
        adapter: `lora_rank`, `lora_target`, `lora_layers` as in rectune's configuration.
        tokens: real tokens.
        pairs: (query, key) pairs of real tokens that attend, over all sequences.
        places: positions with a loss.
    """
    adapted = adapted_blocks(adapter["lora_layers"], shapes.blocks)
    backward = shapes.blocks - adapted[0]
    block = sum(inputs * outputs for inputs, outputs in shapes.linear.values())
    lora = adapter["lora_rank"] * sum(
        sum(shapes.linear[name]) for name in adapted_linear(adapter["lora_target"], shapes)
    )
    per_token = 2 * block * (shapes.blocks + backward) + 6 * lora * len(adapted)
    per_pair = 4 * shapes.attention * (shapes.blocks + 2 * backward)
    return float(tokens * per_token + pairs * per_pair + places * 4 * shapes.head[0] * shapes.head[1])


def measure_peak(shapes: Shapes) -> dict[str, Any]:
    """The fastest bfloat16 `F.linear` over the model's own layer shapes, and float32's beside it.

    Returns:
        `tflops`, the best of several attempts over all shapes in bfloat16; `shapes`, every measurement by name.
    """
    import torch
    from torch.nn import functional

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    best: dict[str, dict[str, float]] = {"bfloat16": {}, "float32": {}}
    with torch.inference_mode():
        for name, found in best.items():
            dtype = getattr(torch, name)
            for inputs, outputs in sorted(set(shapes.linear.values())):
                rows = torch.randn(ROWS, inputs, device=device, dtype=dtype)
                weight = torch.randn(outputs, inputs, device=device, dtype=dtype)
                seconds = []
                for _ in range(ATTEMPTS + 1):
                    wait()
                    start = time.perf_counter()
                    functional.linear(rows, weight)
                    wait()
                    seconds.append(time.perf_counter() - start)
                found[f"{ROWS}x{inputs}x{outputs}"] = 2e-12 * ROWS * inputs * outputs / min(seconds[1:])
    return {"tflops": max(best["bfloat16"].values()), "device": device.type, "shapes": best}
