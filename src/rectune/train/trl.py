"""TRL's SFTTrainer as the one who computes the steps. Imported only where `backend` asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from datasets import Dataset
from trl import SFTTrainer

from rectune.train.not_finite import Batch
from rectune.train.trainer import AnswerTrainer

IGNORED = -100
"""Label of a token that is not trained."""
_TRAINED = 2
"""Tokens trained at an answer: its label and the end of the turn."""


def sft_batch(batch: Batch, end_id: int) -> dict[str, Any]:
    """A batch of ours as TRL's own collator would make it from the same tokens.

    Args:
        batch: as `TrainingCollator` makes it, with the end token behind each label.
        end_id: the end token.

    Returns:
        input_ids and labels, int64 [batch, length], with the prompts' labels masked. Where each row is one prompt also
        attention_mask; rows of several are laid end to end as one row without padding, as TRL's packing has them,
        with position_ids that begin anew at each prompt.
    """
    input_ids, rows, positions = batch["input_ids"], batch["rows"], batch["positions"]
    labels = torch.full_like(input_ids, IGNORED)
    labels[rows, positions + 1] = batch["labels"]
    labels[rows, positions + 2] = end_id
    if "run" not in batch:
        lengths = torch.empty_like(rows)
        lengths[rows] = positions + 3
        mask = (torch.arange(input_ids.shape[1], device=rows.device) < lengths[:, None]).to(input_ids.dtype)
        return {"input_ids": input_ids, "labels": labels, "attention_mask": mask}
    used = batch["run"] >= 0
    depth = batch["position_ids"][used][None]
    starts = (depth[0] == 0).nonzero().flatten()
    ends = torch.cat([starts, starts.new_tensor([depth.shape[1]])]).to(torch.int32)
    sizes = ends.diff()
    return {
        "input_ids": input_ids[used][None],
        "labels": labels[used][None],
        "position_ids": depth,
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": int(sizes.max()),
        "max_length_k": int(sizes.max()),
        "seq_idx": torch.arange(len(sizes), dtype=torch.int32, device=rows.device).repeat_interleave(sizes)[None],
    }


class SupervisedTrainer(AnswerTrainer, SFTTrainer):
    """SFTTrainer's forward pass and loss inside our Trainer: evaluation, checkpoints and all else are ours.

    TRL takes the mean over trained tokens. An answer has two of them, and the loss here is, as everywhere in rectune,
    the mean over answers: twice TRL's.

    Args:
        arguments: as `AnswerTrainer` takes them; `train_dataset` are packs of trees.
    """

    def __init__(self, *, train_dataset: list[list[int]], data_collator: Any, **arguments: Any) -> None:
        model = arguments["model"]
        kept = {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}
        super().__init__(
            train_dataset=Dataset.from_dict({"pack": train_dataset}),
            data_collator=lambda examples: data_collator([example["pack"] for example in examples]),
            **arguments,
        )
        # On a quantised base SFTTrainer rounds the adapter to bfloat16, in which small updates vanish.
        for name, value in model.named_parameters():
            if name in kept:
                value.data = kept[name]

    def get_batch_samples(self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device) -> Any:
        """The micro-batches of a step and their answers, counted here: Unsloth puts a count of tokens in Trainer."""
        batches = list(islice(epoch_iterator, num_batches))
        return batches, self._get_num_items_in_batch(batches, device)

    def _batch_loss(self, model: Any, inputs: Batch, count: torch.Tensor | int | None) -> torch.Tensor:
        """The loss of one micro-batch by SFTTrainer, its sum divided by `count` answers."""
        answers = len(inputs["labels"]) if count is None else count
        batch = sft_batch(inputs, self.verbalizer.end_id)
        dtype = self.model.dtype
        with torch.autocast(batch["input_ids"].device.type, dtype, enabled=dtype != torch.float32):
            loss: torch.Tensor = SFTTrainer.compute_loss(self, model, batch, num_items_in_batch=_TRAINED * answers)
        return _TRAINED * loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log without TRL's own figures, which count from the last resume and are of tokens."""
        for figures in self._metrics.values():
            figures.clear()
        super().log(logs, start_time)

    def create_model_card(self, *_arguments: Any, **_named: Any) -> None:
        """Leave the run folder without TRL's model card, which would say that TRL's data preparation was used."""
