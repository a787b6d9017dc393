"""Where the time of a stream's training step goes on a CPU: shares by kind of operation.

python benchmarks/profile_step.py demo_cpu
"""

from __future__ import annotations

import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import torch
from rich.console import Console
from torch.profiler import ProfilerActivity, profile

from rectune.config import load_config
from rectune.shipped import find_config
from rectune.train.train import train
from rectune.train.trainer import AnswerTrainer

KINDS = {
    "matrix products (linear layers)": ("aten::mm", "aten::addmm"),
    "attention (batched products, softmax)": ("aten::bmm", "aten::_softmax", "attention"),
    "elementwise": ("mul", "add", "sub", "silu", "neg", "pow", "rsqrt", "mean", "div", "sum"),
    "copies, casts, fills": ("copy_", "fill_", "zero_", "cat", "index", "slice", "clone", "expand", "empty"),
}
STEPS = 6


def main() -> None:
    """Train a few steps with the package's own stage and profile all but the first two."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        raise SystemExit(__doc__)
    spent: dict[str, float] = defaultdict(float)
    steps = {"done": 0}
    original = AnswerTrainer.training_step

    def step(self: AnswerTrainer, *arguments: object, **more: object) -> torch.Tensor:
        steps["done"] += 1
        if steps["done"] <= 2:
            return original(self, *arguments, **more)
        with profile(activities=[ProfilerActivity.CPU]) as found:
            loss = original(self, *arguments, **more)
        for event in found.key_averages():
            kind = next((kind for kind, names in KINDS.items() if any(name in event.key for name in names)), "the rest")
            spent[kind] += event.self_cpu_time_total
        return loss

    AnswerTrainer.training_step = step  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as work:
        overrides = [f"output_dir={work}/run", f"max_steps={STEPS}", "eval_strategy=no", "report_to=none"]
        config = load_config(find_config(Path(sys.argv[1])), [*overrides, *sys.argv[2:]])
        train(config, print, Console())
    total = sum(spent.values())
    print(f"\n{STEPS - 2} training steps, {1e-6 * total / (STEPS - 2):.2f} s each (profiled)")
    for kind, microseconds in sorted(spent.items(), key=lambda item: -item[1]):
        print(f"{microseconds / total:>6.1%}  {kind}")


if __name__ == "__main__":
    main()
