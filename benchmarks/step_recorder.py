"""What train_speed.py measures inside a contender's process: time, tokens, labels, memory."""

from __future__ import annotations

import os
import platform
import re
import resource
import sys
import time
from pathlib import Path
from typing import Any


class Recorder:
    """Times optimiser steps and counts what went through them, for every Trainer built on transformers'.

    A step lasts from the end of the one before to its own end, so that making batches and the optimiser count.

    Args:
        warmup: steps not counted.
        places: loss positions per label where a batch does not show them (rectune's batches).
    """

    def __init__(self, warmup: int, places: int) -> None:
        self.warmup, self.places = warmup, places
        self.ends: list[float] = []
        self.steps: list[dict[str, int]] = [self._nothing()]

    @staticmethod
    def _nothing() -> dict[str, int]:
        return {"labels": 0, "tokens": 0, "padding": 0, "pairs": 0, "places": 0}

    def install(self) -> None:
        """Watch every Trainer made from now on in this process."""
        import torch
        from transformers import Trainer, TrainerCallback

        recorder, make, train_step = self, Trainer.__init__, Trainer.training_step

        class Clock(TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                recorder.ends.append(time.perf_counter())
                recorder.steps.append(recorder._nothing())

        def made(trainer: Any, *arguments: Any, **named: Any) -> None:
            make(trainer, *arguments, **named)
            trainer.add_callback(Clock())

        def counted(trainer: Any, model: Any, inputs: dict[str, Any], *others: Any, **named: Any) -> Any:
            recorder.count(inputs)
            return train_step(trainer, model, inputs, *others, **named)

        Trainer.__init__, Trainer.training_step = made, counted

    def count(self, inputs: dict[str, Any]) -> None:
        """Add one batch: labels, real tokens, padding, attending pairs and loss positions."""
        ids, labels, now = inputs["input_ids"], inputs["labels"], self.steps[-1]
        if "run" in inputs:  # rectune, several trees or branches a row
            real = inputs["run"] >= 0
            tokens = int(real.sum())
            pairs = int((inputs["fork"] - inputs["first"])[real].sum())
            lengths = [int(n) for row in inputs["run"] for n in row[row >= 0].unique(return_counts=True)[1]]
        else:
            if "cu_seq_lens_q" in inputs:  # TRL, packed
                lengths = inputs["cu_seq_lens_q"].diff().tolist()
            elif "attention_mask" in inputs:  # TRL, padded
                lengths = inputs["attention_mask"].sum(1).tolist()
            else:  # rectune, one prompt a row, padded with zeros on the right
                lengths = (ids.shape[1] - (ids.flip(1) != 0).int().argmax(1)).tolist()
            tokens, pairs = sum(lengths), 0
        now["tokens"] += tokens
        now["padding"] += ids.numel() - tokens
        now["pairs"] += pairs + sum(n * (n + 1) // 2 for n in lengths)
        if labels.ndim == 1:
            now["labels"] += len(labels)
            now["places"] += len(labels) * self.places
        else:
            kept = labels != -100
            now["labels"] += int((kept[:, 1:] & ~kept[:, :-1]).sum())
            now["places"] += int(kept.sum())

    def summary(self) -> dict[str, Any]:
        """Totals and speeds over the timed steps."""
        timed = self.steps[self.warmup : len(self.ends)]
        if not timed or self.warmup < 1:
            raise RuntimeError(f"{len(self.ends)} steps were run, of which {self.warmup} are warm-up: nothing to time")
        total: dict[str, Any] = {key: sum(step[key] for step in timed) for key in self._nothing()}
        marks = self.ends[self.warmup - 1 :]
        total["seconds"] = marks[-1] - marks[0]
        total["labels_per_s"] = total["labels"] / total["seconds"]
        total["tokens_per_s"] = total["tokens"] / total["seconds"]
        total["tokens_per_label"] = total["tokens"] / total["labels"]
        total["steps"] = [
            {"seconds": round(end - start, 4), **step}
            for start, end, step in zip(marks[:-1], marks[1:], timed, strict=True)
        ]
        return total


def peak_gib() -> dict[str, float]:
    """Peak resident memory of this process, and of its GPU where there is one."""
    import torch

    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30}
    if torch.cuda.is_available():
        peak["gpu"] = torch.cuda.max_memory_allocated() / 2**30
    return peak


def machine() -> str:
    """Processor, threads, memory and GPU in one line."""
    import torch

    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    name = found[1] if found else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads, {memory:.0f} GiB; {device}"
