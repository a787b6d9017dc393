"""Memory or disk running out while training, told in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rectune.errors import ResourceError
from rectune.files import disk_problem
from rectune.model.memory import is_out_of_memory
from rectune.train.plan import Plan


@contextmanager
def shortages(device: str, plan: Plan | None) -> Iterator[None]:
    """Turn memory running out while training into one line, explained from the run's plan.

    Args:
        device: where it ran out.
        plan: says where the memory went and what to change; None where the model could not be planned.

    Raises:
        ResourceError: in place of the libraries' own error.
    """
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            advice = (
                plan.advice()
                if plan is not None
                else (
                    "halve per_device_train_batch_size and double gradient_accumulation_steps, or set "
                    "gradient_checkpointing=true, then run again with --resume"
                )
            )
            raise ResourceError(f"out of memory on {device}; the last checkpoint is whole. {advice}") from error
        raise


@contextmanager
def full_disk(run: Path) -> Iterator[None]:
    """Turn a full disk, wherever in a training, into one line.

    Raises:
        ResourceError: in place of the libraries' own errors and of our line about one file.
    """
    try:
        yield
    except Exception as error:
        if not disk_problem(error):
            raise
        left = "the last checkpoint is whole" if any(run.glob("checkpoint-*")) else "no checkpoint was saved yet"
        raise ResourceError(
            f"{run}: the disk is full; {left}, and what was half-written is removed. "
            "Free some space, then run again with --resume"
        ) from error
