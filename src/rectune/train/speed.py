"""How fast a run is, how full the memory, how long it still takes: read off while it trains, never decided by."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import psutil
import torch
from transformers import TrainerCallback

from rectune.model.flops import Work

Say = Callable[[str], None]
Batch = dict[str, torch.Tensor]

_GIB = 1024.0**3
_FULL = (0.95, 0.90)
_COUNTED = ("tokens", "pairs", "answers", "words")
"""What the work of a step is counted in: tokens, pairs of them, answers, places whose loss is taken over words."""
ANSWERS = 2
"""Place of the answers among them."""


def _utilization() -> float | None:
    """Share of the last moments in which the card computed, 0 to 1; None where nothing can say."""
    try:
        return torch.cuda.utilization() / 100
    except Exception:  # its library is missing, or the driver does not tell
        return None


def memory_use(device: torch.device) -> dict[str, float]:
    """Memory in GiB: on CUDA the most that tensors took so far and what is reserved; on a CPU the resident set."""
    if device.type == "cuda":
        return {
            "memory_allocated_gib": round(torch.cuda.max_memory_allocated(device) / _GIB, 3),
            "memory_reserved_gib": round(torch.cuda.memory_reserved(device) / _GIB, 3),
        }
    return {"memory_resident_gib": round(psutil.Process().memory_info().rss / _GIB, 3)}


def tokens_and_pairs(batch: Batch, behind: int) -> tuple[int, int]:
    """Tokens of a batch without padding, and how many pairs of a token and one that it sees they make.

    Args:
        batch: as the collator makes it.
        behind: tokens behind the last answer of a row that is one prompt.
    """
    if "run" in batch:
        real = batch["run"] >= 0
        return int(real.sum()), int((batch["position_ids"][real] + 1).sum())
    last = torch.zeros(len(batch["input_ids"]), dtype=torch.int64, device=batch["rows"].device)
    lengths = last.scatter_reduce(0, batch["rows"], batch["positions"], "amax") + 1 + behind
    return int(lengths.sum()), int((lengths * (lengths + 1) // 2).sum())


class Meter(TrainerCallback):
    """Counts work and time of training steps; evaluations and checkpoints are timed apart.

    It must be the last callback, so that what the others do at an evaluation counts as evaluation.

    Args:
        device: where the model lies.
        work: operations of a token, pair and place; None leaves utilisation out.
        peak: operations a second that the device can do; None leaves utilisation out.
        evaluation_tokens: tokens of an evaluation, to guess the time of the first one.
        say: prints one line.
    """

    def __init__(
        self, device: torch.device, work: Work | None, peak: float | None, evaluation_tokens: int, say: Say
    ) -> None:
        self.device = device
        self.work = work
        self.peak = peak
        self.evaluation_tokens = evaluation_tokens
        self.say = say
        self.tokens = 0
        self.warned = 1.0
        self.mark: float | None = None
        self.counts = dict.fromkeys(_COUNTED, 0)
        self.seconds = 0.0
        self.spent: dict[str, list[float]] = {"step": [0.0, 0], "evaluation": [0.0, 0], "checkpoint": [0.0, 0]}

    @staticmethod
    def count(batches: Sequence[Batch], with_end: bool) -> list[int]:
        """The work in the micro-batches of one optimiser step, as `_COUNTED` has it.

        Args:
            batches: as the collator makes them.
            with_end: whether label and end token stand behind each answer and are trained.
        """
        found = [0, 0, 0, 0]
        for batch in batches:
            tokens, pairs = tokens_and_pairs(batch, 2 if with_end else 0)
            answers = len(batch["labels"])
            work = (tokens, pairs, answers, answers * (2 if with_end else 1))
            found = [before + more for before, more in zip(found, work, strict=True)]
        return found

    def saw(self, work: Sequence[int]) -> None:
        """Book the work of one optimiser step, as `count` gives it, of all processes."""
        for name, more in zip(_COUNTED, work, strict=True):
            self.counts[name] += more
        self.tokens += work[0]

    def _lap(self, kind: str) -> float:
        """Seconds since the last mark, booked under what they were spent on."""
        now = time.perf_counter()
        seconds = now - (self.mark if self.mark is not None else now)
        self.mark = now
        self.spent[kind][0] += seconds
        self.spent[kind][1] += 1
        return seconds

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start anew."""
        self.mark, self.seconds, self.tokens = None, 0.0, 0
        self.spent = {kind: [0.0, 0] for kind in self.spent}
        self.counts = dict.fromkeys(self.counts, 0)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The first step begins here, once batches that a resumed run skips are skipped."""
        if self.mark is None:
            self.mark = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Book a step."""
        self.seconds += self._lap("step")

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Book an evaluation with all that others did at it."""
        self._lap("evaluation")

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Book a checkpoint."""
        self._lap("checkpoint")

    def read(self) -> dict[str, float]:
        """Speed since the last reading, and memory now; what cannot be known is left out."""
        found: dict[str, float] = {}
        if self.seconds > 0:
            found["tokens_per_second"] = round(self.counts["tokens"] / self.seconds, 2)
            found["labels_per_second"] = round(self.counts["answers"] / self.seconds, 3)
            if self.work is not None and self.peak:
                done = self.work.of(self.counts["tokens"], self.counts["pairs"], self.counts["words"])
                found["mfu"] = round(done / self.seconds / self.peak, 4)
        self.counts, self.seconds = dict.fromkeys(self.counts, 0), 0.0
        found.update(memory_use(self.device))
        if self.device.type == "cuda":
            busy = _utilization()
            if busy is not None:
                found["gpu_utilization"] = busy
            self._warn(found["memory_reserved_gib"])
        return found

    def _warn(self, reserved_gib: float) -> None:
        """Say once when 90 %, and once when 95 %, of the card's memory are reserved."""
        share = reserved_gib * _GIB / torch.cuda.get_device_properties(self.device).total_memory
        line = next((full for full in _FULL if share >= full), None)
        if line is not None and (self.warned == 1.0 or line > self.warned):
            self.warned = line
            self.say(
                f"memory: {share:.0%} of the card's memory are reserved; a longer batch may run out. Halve "
                "per_device_train_batch_size and double gradient_accumulation_steps, or set gradient_checkpointing=true"
            )

    def seconds_left(self, args: Any, step: int, last: int) -> float | None:
        """Seconds until the last step, with the evaluations and checkpoints still to come; None before the first step.

        Each kind costs what it has cost on average in this process. Before the first evaluation, its tokens are taken
        to cost half of what a trained one does, since the backward pass takes as long as the forward; a checkpoint
        costs nothing before the first.
        """
        trained, steps = self.spent["step"]
        if steps == 0:
            return None
        if step >= last:
            return 0.0

        def mean(kind: str) -> float:
            seconds, times = self.spent[kind]
            if kind == "evaluation" and not times and self.tokens:
                return 0.5 * self.evaluation_tokens * trained / self.tokens
            return seconds / times if times else 0.0

        def to_come(every: int) -> int:
            return max(-(-last // every) - step // every, 0)

        left = (last - step) * mean("step") + to_come(args.save_steps) * mean("checkpoint")
        if args.eval_strategy == "steps":
            left += to_come(args.eval_steps) * mean("evaluation")
        elif args.eval_strategy == "epoch":
            left += max(round(args.num_train_epochs * (1 - step / last)), 0) * mean("evaluation")
        return left
