"""A loss, a gradient or scores that are not finite numbers: where it happened, and why as far as can be told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rectune.data.columns import ITEM_ID, ROW_ID, TITLE, USER_ID
from rectune.prompt.dataset import Dataset
from rectune.prompt.tree import Trees

BROKEN = "not_finite"
"""Key of the history's entry that tells where a run broke: its value is what was no number any more."""
SKIPPED_IN_A_ROW = 20
"""Steps that float16's loss scaling may skip one after the other. The scale begins at 2^16 and is halved at each: after
16 nothing is scaled any more, and what overflows still does so by itself."""
_NAMED = 3

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class BatchNames:
    """Tells which events stand in a training batch, in the data's own words.

    Attributes:
        trees: what is trained on.
        data: the tables that `trees.rows` points into.
    """

    trees: Trees
    data: Dataset

    def __call__(self, indices: Sequence[int]) -> str:
        """Users, the longest sequence, and the last events of the first few trees."""
        chosen = np.array(sorted(set(indices)), dtype=np.int64)
        part = self.trees.select(chosen)
        users = list(dict.fromkeys(map(str, self.data.users(part.rows.astype(np.int64)))))
        rows = [int(part.rows[part.answers(at).stop - 1]) for at in range(min(len(part), _NAMED))]
        events = self.data.at(np.array(rows), self.data.columns).join(
            self.data.catalog, on=ITEM_ID, how="left", maintain_order="left"
        )
        named = [
            f"row_id {row}, user {user}, {str(title)[:40]!r}"
            for row, user, title in events.select(ROW_ID, USER_ID, TITLE).iter_rows()
        ]
        return (
            f"{len(part.rows)} answers in {len(part)} sequences of up to {int(part.lengths.max())} tokens, of "
            f"{'user' if len(users) == 1 else f'{len(users)} users:'} {', '.join(users[:5])}"
            f"{' ...' if len(users) > 5 else ''} ({'; '.join(named)}{' ...' if len(part) > _NAMED else ''})"
        )


def broken_weight(model: Any) -> tuple[str, bool] | None:
    """Name of the first weight that holds a value that is not finite, and whether it is trained; None where all are.

    Trained weights are looked at last: what is wrong with the base model explains them.
    """
    for trained in (False, True):
        for name, parameter in model.named_parameters():
            value = parameter.detach()
            value = value.to_local() if hasattr(value, "to_local") else value  # this process's part of a sharded one
            if parameter.requires_grad == trained and value.is_floating_point() and not torch.isfinite(value).all():
                return name, trained
    return None


def which_batch(batches: Sequence[Batch], culprit: Batch) -> int | None:
    """Number in its step, from 1, of the micro-batch that this one is or is a part of; None where there is none."""
    for number, batch in enumerate(batches, start=1):
        if set(culprit["trees"].tolist()) <= set(batch["trees"].tolist()):
            return number
    return None


def guilty_batch(model: Any, batches: Sequence[Batch], loss_of: Callable[[Batch], torch.Tensor]) -> Batch | None:
    """The first micro-batch whose loss or gradient by itself is not finite; None where only their sum is.

    The step's gradients are lost.

    Args:
        model: as it was in the step, not yet updated.
        batches: the step's micro-batches.
        loss_of: the loss of one.
    """
    for batch in batches:
        model.zero_grad()
        loss = loss_of(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        if not (torch.isfinite(loss) and all(bool(torch.isfinite(gradient).all()) for gradient in gradients)):
            return batch
    return None


def explain(entry: Mapping[str, Any]) -> tuple[str, str]:
    """What broke and where in its step, and what to change, from the history's entry alone.

    Args:
        entry: step, `BROKEN`, value, weight, trained, micro_batch, micro_batches, rows, peak and precision, as
            `AnswerTrainer` leaves them.
    """
    what = {"loss": "the training loss", "gradient": "the gradient", "scores": "scores of the validation events"}
    where = "in the evaluation" if entry[BROKEN] == "scores" else "in a step"
    if entry["rows"]:
        at = entry["micro_batch"]
        number = f"micro-batch {at} of {entry['micro_batches']}" if at else "a micro-batch"
        where = f"in {number}: {entry['rows']}"
    elif entry[BROKEN] == "gradient":
        where = f"in the sum of {entry['micro_batches']} micro-batches, none of which is to blame alone"
    message = f"{what[entry[BROKEN]]} became {entry['value']} {where}"
    lower = f"learning_rate={entry['peak'] / 10:.1e} (it was {entry['peak']:.1e})"
    if entry["weight"] and not entry["trained"]:
        return (
            f"{message}. The base model's own {entry['weight']} holds values that are no numbers",
            "model_name_or_path: fetch the model's files again, or take another model",
        )
    if entry["weight"]:
        return f"{message}. The step before made {entry['weight']} overflow", lower
    if entry["precision"] == "float16":
        return f"{message}. All weights are finite: float16 overflowed at 65,504", "bf16=true or fp16=false"
    return f"{message}. All weights are finite", lower


def what_stands(run: Path, best: int | None, last: Path | None) -> str:
    """What a run that broke has kept, and how to go on from it.

    Args:
        run: its folder.
        best: step of the best adapter, which lies at the root of the run.
        last: the last whole checkpoint.
    """
    checkpoint = "no checkpoint had been saved" if last is None else f"{last.name} is as it was"
    if best is None:
        return f"{checkpoint}; no adapter had been kept"
    return (
        f"{checkpoint}; the best adapter so far (step {best}) stands in {run}: go on from it with "
        f"adapter_name_or_path={run} output_dir=OTHER"
    )
