"""Memory or disk running out while training, told in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rectune.errors import ResourceError
from rectune.files import disk_problem
from rectune.model.memory import is_out_of_memory


@contextmanager
def shortages(run: Path, device: str) -> Iterator[None]:
    """Turn memory or disk running out while training into one line.

    Raises:
        ResourceError: in place of the libraries' own errors.
    """
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise ResourceError(
                f"out of memory on {device}; the last checkpoint is whole. Halve per_device_train_batch_size and "
                "double gradient_accumulation_steps, or set gradient_checkpointing=true, then run again with --resume"
            ) from error
        if disk_problem(error):
            raise ResourceError(
                f"{run}: the disk is full; the last checkpoint is whole. Free some space, then run again with --resume"
            ) from error
        raise
