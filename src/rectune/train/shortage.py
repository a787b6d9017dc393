"""Memory or disk running out while training, told in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rectune.errors import ResourceError
from rectune.files import disk_problem
from rectune.model.memory import is_out_of_memory
from rectune.train.halving import Halving
from rectune.train.plan import GIB, Plan


def _checkpoint(run: Path) -> str:
    """Whether there is a checkpoint to go on from, in words."""
    return "the last checkpoint is whole" if any(run.glob("checkpoint-*")) else "no checkpoint was saved yet"


@contextmanager
def shortages(device: str, plan: Plan | None, run: Path, halving: Halving) -> Iterator[None]:
    """Turn memory running out while training into one line, explained from the run's plan.

    Args:
        device: where it ran out.
        plan: says where the memory went and what to change; None where the model could not be planned.
        run: the run folder.
        halving: knows how many rows were computed at once.

    Raises:
        ResourceError: in place of the libraries' own error, or of the scorer's line about a batch.
    """
    try:
        yield
    except Exception as error:
        scoring = isinstance(error, ResourceError)
        cause = error.__cause__ if scoring else error
        if not isinstance(cause, Exception) or not is_out_of_memory(cause):
            raise
        if scoring:
            peak = "" if plan is None else f" (planned were {plan.footprint().evaluation / GIB:.2f} GiB)"
            advice = f"In an evaluation{peak}: {error}, and run again with --resume"
        elif plan is not None:
            advice = plan.advice(halving.rows, any(run.glob("checkpoint-*")))
        elif halving.rows == 1:
            advice = "Not even one row fits: set gradient_checkpointing=true, then run again with --resume"
        else:
            advice = (
                "halve per_device_train_batch_size and double gradient_accumulation_steps, or set "
                "gradient_checkpointing=true, then run again with --resume"
            )
        raise ResourceError(f"out of memory on {device}; {_checkpoint(run)}. {advice}") from error


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
        raise ResourceError(
            f"{run}: the disk is full; {_checkpoint(run)}, and what was half-written is removed. "
            "Free some space, then run again with --resume"
        ) from error
