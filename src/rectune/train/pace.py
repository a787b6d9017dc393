"""How long a run will take: its operations over the speed at which this machine multiplies matrices. An estimate."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from rectune.config import Config
from rectune.model.shape import ModelShape
from rectune.train.arguments import planned_steps
from rectune.train.workload import Workload

_SHARE = {"cpu": 0.42, "cuda": 0.35}
"""Share of the products' speed that a training step reaches: on a CPU as measured (benchmarks/RESULTS.md, 42 and 47 %),
on CUDA an assumption."""
_ROWS = 1024
_ATTEMPTS = 3


@dataclass(frozen=True)
class Pace:
    """An estimate of a run's speed.

    Attributes:
        step_seconds: of an optimiser step.
        tokens_per_step: places of its rows.
        steps: of the whole run; None where the number of rows is not known.
        basis: what it is worked out from.
    """

    step_seconds: float
    tokens_per_step: float
    steps: int | None
    basis: str

    @property
    def tokens_per_second(self) -> float:
        """Tokens that training takes in a second."""
        return self.tokens_per_step / self.step_seconds

    @property
    def run_seconds(self) -> float | None:
        """The whole run, evaluations left out."""
        return None if self.steps is None else self.steps * self.step_seconds


def product_speed(shape: ModelShape, device: Any, dtype: Any) -> float:
    """FLOP/s of this machine on products of the model's feed-forward shape, the best of a few short attempts."""
    import torch

    rows = torch.randn(_ROWS, shape.hidden, device=device, dtype=dtype)
    weight = torch.randn(shape.inner, shape.hidden, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(_ATTEMPTS + 1):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        torch.nn.functional.linear(rows, weight)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * _ROWS * shape.hidden * shape.inner / best


def estimate_pace(
    config: Config, shape: ModelShape, work: Workload, device: Any, dtype: Any, tflops: float | None
) -> Pace:
    """The speed of a configuration.

    Args:
        config: batch, epochs, adapter and checkpointing.
        shape: of the model.
        work: rows of training.
        device, dtype: where and in what precision products are measured.
        tflops: matrix products' speed of a machine one does not have; None measures this one.
    """
    side = work.training
    per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps
    ends = config.layout == "pointwise"
    places = (0 if config.loss_over == "labels" else side.mean_answers) + (side.mean_answers if ends else 0)
    flops = per_step * shape.training_flops(config, side.mean, side.mean_pairs, places)
    share = _SHARE.get(device.type, _SHARE["cuda"])
    if tflops is not None:
        speed, said = tflops * 1e12, f"{tflops:g} TFLOP/s as given"
    else:
        speed = product_speed(shape, device, dtype)
        said = f"{speed / 1e12:.2f} TFLOP/s, measured here just now"
    known = side.rows > 0 or config.max_steps > 0
    steps = planned_steps(config, side.rows, config.num_train_epochs) if known else None
    return Pace(flops / (speed * share), per_step * side.mean, steps, f"{said}, of which training reaches {share:.0%}")
