"""Micro-batches that do not fit the memory: halved by rows, while batch, data order and steps stay as they were."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from rectune.files import write_json
from rectune.model.memory import free_memory, is_out_of_memory

_FILE = "micro_batch.json"
_BY_ROW = ("input_ids", "position_ids", "run", "first", "fork")
"""What of a batch has a line for each row; all else has a number for each answer."""

Batch = dict[str, torch.Tensor]


def parts_of(batch: Batch, size: int) -> Iterator[Batch]:
    """A batch in parts of at most `size` rows, each cut behind the last token that its loss looks at.

    Tokens only look back, so what stands behind the last answer, its label and the end token changes nothing.
    """
    rows, length = batch["input_ids"].shape
    if size >= rows:
        yield batch
        return
    for start in range(0, rows, size):
        stop = min(start + size, rows)
        mine = (batch["rows"] >= start) & (batch["rows"] < stop)
        width = min(length, int(batch["positions"][mine].max()) + 3)
        part = {name: value[start:stop, :width] if name in _BY_ROW else value[mine] for name, value in batch.items()}
        yield {**part, "rows": part["rows"] - start}


class Halving:
    """Computes micro-batches in as many rows at once as have fitted so far.

    Losses are sums over answers divided by the answers of the whole optimiser step, so the gradients of parts add up
    to those of the whole: where memory runs out the step is repeated in halves and nothing else changes. The halves
    stay for the rest of the run, and are saved with its checkpoints so that a resumed run repeats them.

    Args:
        wanted: whether to halve at all; else the error is left to the caller.
        say: prints one line.
        checkpoint: folder of the checkpoint that the run goes on from.

    Attributes:
        rows: rows at once; None for whole micro-batches, as long as memory has not run out.
    """

    def __init__(self, wanted: bool, say: Callable[[str], None], checkpoint: Path | None = None) -> None:
        self.wanted = wanted
        self.say = say
        self.rows: int | None = None
        if wanted and checkpoint is not None and (checkpoint / _FILE).is_file():
            self.rows = int(json.loads((checkpoint / _FILE).read_text(encoding="utf-8"))["rows"])
            say(f"memory: {self.rows} rows at a time, as before the checkpoint")

    def begin_with(self, rows: int) -> None:
        """Compute no more than these rows at once from here on."""
        if self.wanted:
            self.rows = min(rows, self.rows or rows)

    def save(self, checkpoint: Path) -> None:
        """Write the rows at once into a checkpoint's folder, if memory has run out before."""
        if self.rows is not None:
            write_json(checkpoint / _FILE, {"rows": self.rows})

    def step(self, model: Any, batch: Batch, once: Callable[[Batch], torch.Tensor]) -> torch.Tensor:
        """The loss of a micro-batch, its gradients added to those that the parameters have.

        Args:
            model: whose gradients are kept safe.
            batch: as the collator makes it.
            once: forward and backward of a batch or part; gives the loss.

        Raises:
            RuntimeError: memory ran out on one row, or another error of `once`.
        """
        if not self.wanted:
            return once(batch)
        before = _set_aside(model)
        while True:
            size = min(self.rows or len(batch["input_ids"]), len(batch["input_ids"]))
            try:
                loss = torch.stack([once(part) for part in parts_of(batch, size)]).sum()
            except Exception as error:
                if not is_out_of_memory(error) or size == 1:
                    raise
            else:
                for parameter, gradient in before:
                    parameter.grad = gradient if parameter.grad is None else gradient.add_(parameter.grad)
                return loss
            # Here, outside the handler, nothing holds the failed pass any more.
            model.zero_grad(set_to_none=True)
            free_memory(batch["input_ids"].device)
            self.rows = (size + 1) // 2
            self.say(
                f"memory: {size} rows of {batch['input_ids'].shape[1]} tokens at once do not fit; going on with "
                f"{self.rows} at a time, the effective batch unchanged"
            )


def _set_aside(model: Any) -> list[tuple[Any, torch.Tensor]]:
    """Take earlier gradients off the parameters, so that a pass that fails half-way cannot spoil them."""
    found = [(parameter, parameter.grad) for parameter in model.parameters() if parameter.grad is not None]
    for parameter, _ in found:
        parameter.grad = None
    return found
