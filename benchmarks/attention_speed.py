"""Attention kernels side by side on this machine: the blocks of `rectune.model.blocks` and PyTorch's fused SDPA.

Both get the same masked bfloat16 rows; forward and backward, best of several, after a check that they agree.

  python benchmarks/attention_speed.py
  python benchmarks/attention_speed.py --heads 16 --dim 128 --tokens 8192
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch.nn import functional

from rectune.model.blocks import attend_in_blocks

Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
REPEATS = 5


def _sdpa(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def _blocks(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return attend_in_blocks(query, key, value, mask, query.shape[-1] ** -0.5)


def timed(kernel: Kernel, inputs: list[torch.Tensor], mask: torch.Tensor) -> tuple[float, float]:
    """Best forward and backward in seconds."""
    forward = backward = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        found = kernel(*inputs, mask)
        middle = time.perf_counter()
        found.backward(torch.ones_like(found))
        end = time.perf_counter()
        forward, backward = min(forward, middle - start), min(backward, end - middle)
    return forward, backward


def main() -> None:
    """Print one line per shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, default=9, help="attention heads (SmolLM2-135M: 9)")
    parser.add_argument("--dim", type=int, default=64, help="numbers per head")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens in a batch")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {args.tokens} tokens a batch, bfloat16")
    for length in (256, 512, 1024):
        shape = (args.tokens // length, args.heads, length, args.dim)
        torch.manual_seed(0)
        inputs = [torch.randn(shape, dtype=torch.bfloat16).requires_grad_() for _ in range(3)]
        hidden = ~torch.ones(length, length, dtype=torch.bool).tril()
        mask = torch.zeros(shape[0], 1, length, length, dtype=torch.bfloat16)
        mask = mask.masked_fill(hidden, torch.finfo(torch.bfloat16).min)
        exact = _sdpa(*(each.detach().float() for each in inputs), mask.float())
        parts = []
        for name, kernel in (("sdpa", _sdpa), ("blocks", _blocks)):
            error = float((kernel(*inputs, mask).float() - exact).detach().abs().max())
            if error > 0.05:
                raise SystemExit(f"{name} is wrong by {error:.3f} at {length} tokens a row")
            forward, backward = timed(kernel, inputs, mask)
            parts.append(
                (forward + backward, f"{name} {1e3 * forward:.1f} + {1e3 * backward:.1f} ms (error {error:.3f})")
            )
        (peer, peer_said), (own, own_said) = parts
        print(f"rows of {length:>4}: {peer_said}; {own_said}; {peer / own:.2f} times as fast")


if __name__ == "__main__":
    main()
