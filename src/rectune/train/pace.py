"""How long a run will take: its operations over the speed at which this machine multiplies matrices. An estimate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rectune.config import Config
from rectune.errors import ResourceError
from rectune.model.flops import peak_operations
from rectune.model.shape import ModelShape
from rectune.train.arguments import planned_steps
from rectune.train.workload import Workload

_SHARE = {"cpu": 0.42, "cuda": 0.35}
"""Share of the products' speed that a training step reaches: on a CPU as measured (benchmarks/RESULTS.md, 42 and 47 %),
on CUDA an assumption."""


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


def estimate_pace(
    config: Config,
    shape: ModelShape,
    work: Workload,
    device: Any,
    dtype: Any,
    tflops: float | None,
    given: bool = True,
    processes: int = 1,
) -> Pace:
    """The speed of a configuration.

    Args:
        config: batch, epochs, adapter and checkpointing.
        shape: of the model.
        work: rows of training.
        device, dtype: where and in what precision products are measured.
        tflops: matrix products' speed of a machine one does not have; None measures this one.
        given: whether a person gave that figure.
        processes: how many share the steps, each on a card of its own, or all on this machine's cores; what passes
            between them is left out.

    Raises:
        ResourceError: the speed of this device can neither be looked up nor measured.
    """
    side = work.training
    per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps
    # Where a loss is taken over the whole vocabulary.
    words = 0 if config.loss_over == "labels" or config.prompt_format == "classifier" else side.mean_answers
    places = words + (side.mean_answers if config.ends_answers else 0)
    flops = per_step * shape.training_flops(config, side.mean, side.mean_pairs, places)
    share = _SHARE.get(device.type, _SHARE["cuda"])
    if tflops is not None:
        speed, said = (
            tflops * 1e12,
            f"{tflops:g} TFLOP/s {'as given' if given else 'assumed, since no --tflops is given'}",
        )
    else:
        measured = peak_operations(device, dtype)
        if measured is None:
            raise ResourceError(f"plan: nothing is known of the speed of {device.type}; give --tflops N")
        speed, said = measured[0], f"{measured[0] / 1e12:.2f} TFLOP/s, {measured[1]}"
    if device.type == "cpu":
        speed /= processes
    known = side.rows > 0 or config.max_steps > 0
    steps = planned_steps(config, side.rows, config.num_train_epochs, processes) if known else None
    tokens = processes * per_step * side.mean
    return Pace(flops / (speed * share), tokens, steps, f"{said}, of which training reaches {share:.0%}")
