"""The plan of a run: memory by component, what fits, how long it takes; made before anything is paid for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rectune.config import Config
from rectune.errors import ResourceError
from rectune.model.footprint import CUDA_CONTEXT, CUDA_SLACK, Footprint, Memory
from rectune.model.lora import as_earlier_adapter
from rectune.model.shape import ModelShape, UnknownShape, model_shape
from rectune.train.remedies import Remedy, largest_batch, remedies
from rectune.train.workload import Workload
from rectune.world import ALONE, World

Say = Callable[[str], None]

GIB = 1 << 30
CPU_SLACK = 0.4
"""Share of activations and workspace that glibc's malloc keeps beside what is in use (benchmarks/RESULTS.md)."""
CPU_KERNELS = 230 << 20
"""What the libraries' kernels take besides at the first steps: their code, threads and scratch memory."""


@dataclass(frozen=True)
class Machine:
    """Where a run is to go.

    Attributes:
        device: of this computer.
        dtype: the precision of the base model.
        kernel: the attention kernel.
        resident: bytes held before the model.
        room: bytes that the run may hold, the resident ones among them.
        said: what `room` is.
        processes: how many train together, each with as much.
        sharded: whether they share the blocks of the base model among them.
    """

    device: Any
    dtype: Any
    kernel: str
    resident: int
    room: int
    said: str
    processes: int = 1
    sharded: bool = False

    @classmethod
    def of(cls, config: Config, memory_gib: float | None = None, world: World = ALONE) -> Machine:
        """This machine, or with `memory_gib` a CUDA card of that memory, for one of these processes.

        Raises:
            ConfigError, ResourceError: the precision or the kernel is not to be had.
        """
        import psutil
        import torch

        from rectune.model.attention import choose_attention
        from rectune.model.device import choose_device, choose_dtype
        from rectune.model.memory import free_bytes

        if memory_gib is not None:
            dtype = torch.float32 if config.bf16 is False else torch.bfloat16
            dtype = torch.float16 if config.fp16 else dtype
            said = f"a card of {memory_gib:g} GiB, as given"
            room = int(memory_gib * GIB)
            kernel = _card_kernel(config)
            return cls(torch.device("cuda"), dtype, kernel, int(CUDA_CONTEXT), room, said, world.size, world.sharded)
        device, name = choose_device()
        dtype, _ = choose_dtype(config, device)
        kernel, _ = choose_attention(config, device, dtype)
        if device.type == "cuda":
            free = free_bytes(device)  # the context is in use already
            room = free + int(CUDA_CONTEXT)
            return cls(device, dtype, kernel, int(CUDA_CONTEXT), room, f"free on {name}", world.size, world.sharded)
        import peft  # noqa: F401  # what training will have loaded counts as resident
        import transformers.trainer  # noqa: F401

        resident = int(psutil.Process().memory_info().rss)
        room = free_bytes(device) // world.local_size + resident
        said = "free in main memory" + (f" for each of {world.local_size} processes" if world.local_size > 1 else "")
        return cls(device, dtype, kernel, resident + CPU_KERNELS, room, said, world.size, world.sharded)

    def memory(self, config: Config, shape: ModelShape) -> Memory:
        """The memory model of a configuration here."""
        slack = CUDA_SLACK if self.device.type == "cuda" else CPU_SLACK
        return Memory(
            config, shape, self.device.type, self.dtype.itemsize, self.kernel, self.resident, slack,
            self.processes, self.sharded,
        )  # fmt: skip


def _card_kernel(config: Config) -> str:
    """The kernel that a recent card would take."""
    if config.flash_attn == "auto":
        masked = config.packing or config.layout == "stream"
        return "flex_attention" if masked else "sdpa"
    return {"flex": "flex_attention", False: "eager"}.get(config.flash_attn, str(config.flash_attn))


@dataclass(frozen=True)
class Plan:
    """A configuration's memory on a machine."""

    config: Config
    shape: ModelShape
    work: Workload
    machine: Machine

    def footprint(self, config: Config | None = None) -> Footprint:
        """The peaks of this configuration, or of a changed one."""
        config = config or self.config
        training, validation = self.work.training, self.work.validation
        if config.cutoff_len < self.config.cutoff_len:
            training, validation = training.cut(config.cutoff_len), validation.cut(config.cutoff_len)
        scored = None
        if config.eval_strategy != "no":
            scored = validation.batch(config.per_device_eval_batch_size)
        rows = training.batch(config.per_device_train_batch_size)
        return self.machine.memory(config, self.shape).footprint(rows, scored)

    def total(self, config: Config) -> int:
        """The peak of a configuration."""
        return self.footprint(config).total

    @property
    def step_size(self) -> int:
        """Sequences of an optimiser step, of all processes."""
        config = self.config
        return self.machine.processes * config.per_device_train_batch_size * config.gradient_accumulation_steps

    @property
    def fits(self) -> bool:
        """Whether the peak is within the machine's memory."""
        return self.total(self.config) <= self.machine.room

    def largest_batch(self) -> int:
        """The largest per_device_train_batch_size that fits."""
        return largest_batch(self.config, self.total, self.machine.room, "per_device_train_batch_size")

    def rows_at_once(self) -> int:
        """Rows of a micro-batch that fit at once: all of them where the run fits, 0 where not even one does."""
        size = self.config.per_device_train_batch_size
        return largest_batch(self.config, self.total, self.machine.room, "per_device_train_batch_size", size)

    def in_parts(self) -> str:
        """How `auto_batch` goes about a run that does not fit at once, in a line; empty where that is no help."""
        size, rows = self.config.per_device_train_batch_size, self.rows_at_once()
        if self.fits or not rows or not self.config.auto_batch:
            return ""
        how = "in parts of so many"  # where memory that runs out ends the process, nothing can be tried
        if self.machine.device.type != "cpu":
            how = "in halves where memory does run out"
        return (
            f"{size} rows at once do not fit, {rows} do; auto_batch computes micro-batches {how}, the effective batch "
            "unchanged"
        )

    def remedies(self) -> list[Remedy]:
        """What would make it fit, the least harmful first."""
        return remedies(self.config, self.total, self.machine.room)

    def refusal(self) -> str:
        """Why the run is refused, and what to change: a line, and one for each change."""
        need, room = self.total(self.config) / GIB, self.machine.room / GIB
        lines = [
            f"memory: this run needs about {need:.1f} GiB and {room:.1f} GiB are there ({self.machine.said}); change "
            "what is marked, or go on regardless with --ignore-plan"
        ]
        return "\n  ".join([*lines, *map(_remedy_line, self.remedies())])

    def advice(self, rows: int | None = None, checkpoint: bool = True) -> str:
        """After memory ran out: where it went, and the least change that makes room.

        Args:
            rows: of a micro-batch that were computed at once when it did; None for all.
            checkpoint: whether there is one to go on from.
        """
        config, size = self.config, self.config.per_device_train_batch_size
        if rows is not None:  # a divisor, so that a smaller batch is proposed beside the same effective one
            part = next(part for part in range(min(rows, size), 0, -1) if size % part == 0)
            times = config.gradient_accumulation_steps * size // part
            config = config.with_overrides(
                per_device_train_batch_size=part, gradient_accumulation_steps=times, sweep={}
            )
        found = self.footprint(config)
        most = sorted(found.parts.items(), key=lambda part: -part[1])[:3]
        parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in most)
        half = int(0.75 * found.total)  # the plan was too low, or others took memory: leave a quarter of room
        best = next((remedy for remedy in remedies(config, self.total, half) if remedy.least), None)
        change = best.written() if best is not None else "a smaller model"
        after = f", planned at {best.total / GIB:.2f} GiB" if best is not None else ""
        resumable = best is not None and _NEW_RUN.isdisjoint(best.changes)
        how = ", and --resume" if resumable else ", as a new run (its checkpoints do not fit such a change)"
        at_once = "" if rows is None else f" with {rows} row{'s' if rows > 1 else ''} at a time"
        return (
            f"planned were {found.total / GIB:.2f} GiB{at_once} ({parts}); run again with {change}{after}"
            f"{how if checkpoint else ''}"
        )


_NEW_RUN = {"cutoff_len", "use_qlora", "lora_target", "lora_rank"}
"""Changes after which a checkpoint is no good (train/changes.py)."""


def _remedy_line(remedy: Remedy) -> str:
    mark = "→" if remedy.least else " "
    return f"{mark} {remedy.written()}: {remedy.total / GIB:.2f} GiB{'' if remedy.fits else ', not enough'}"


def planned(config: Config, work: Workload, machine: Machine, ignore: bool, say: Say) -> Plan | None:
    """The plan of a run that is about to start, said in one line; None for a model that cannot be planned.

    Args:
        config: all keys.
        work: its rows.
        machine: where it runs.
        ignore: go on where it does not fit.
        say: prints one line.

    Raises:
        ModelError, ResourceError: the model is missing or out of reach; or the run does not fit, and `ignore` is off.
    """
    config = as_earlier_adapter(config)
    try:
        plan = Plan(config, model_shape(config, say), work, machine)
    except UnknownShape as error:
        say(f"plan: {error}")
        return None
    found = plan.footprint()
    parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in found.parts.items() if size >= 0.005 * GIB)
    evaluation = f"; evaluation {found.evaluation / GIB:.2f}" if found.evaluation else ""
    say(f"plan: {found.total / GIB:.2f} of {plan.machine.room / GIB:.2f} GiB {plan.machine.said}: {parts}{evaluation}")
    if not plan.fits and not ignore:
        if not plan.in_parts():
            raise ResourceError(plan.refusal())
        say(f"plan: {plan.in_parts()}")
    elif not plan.fits:
        say("plan: it does not fit; going on regardless, as --ignore-plan asks")
    return plan


def planned_total(lines: list[str]) -> str | None:
    """The GiB that a run's plan came to, from what it said; None where there was no plan."""
    return next((line.split()[1] for line in lines if line.startswith("plan: ") and line.split()[2] == "of"), None)
