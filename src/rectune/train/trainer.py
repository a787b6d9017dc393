"""The Trainer: loss at answers only, evaluation by scores, checkpoints that are whole or not counted."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PrinterCallback, Trainer

from rectune.errors import ModelError
from rectune.measure.classification import classification_metrics
from rectune.model.answers import hidden_at, word_losses
from rectune.model.attention import attention_mask
from rectune.model.losses import AnswerLoss
from rectune.prompt.tree import Trees
from rectune.prompt.verbalizer import Verbalizer
from rectune.score.scorer import score_trees
from rectune.train.checkpoints import mark_complete, rotate
from rectune.train.halving import Halving


@dataclass
class Validation:
    """The validation events, and the scores that the latest evaluation gave them.

    Attributes:
        trees: their prompts.
        user_ids: user of each answer.
        log_odds: float64 [answers] of the latest evaluation, None before the first.
    """

    trees: Trees
    user_ids: list[str]
    log_odds: npt.NDArray[np.float64] | None = None


class AnswerTrainer(Trainer):
    """Hugging Face's Trainer with the loss at answer positions and metrics from answers' scores.

    Args:
        verbalizer: label tokens and end token.
        attention: the attention kernel in use, for the masks of packed and branching rows.
        answer_loss: what an answer costs.
        with_end: whether the token behind each label is trained too (the pointwise layout).
        validation: what `evaluate` scores; None when there is no evaluation.
        save_total_limit: checkpoints kept; older ones are removed once a newer one is whole.
        on_saved: called with each checkpoint folder before it is marked complete.
        halving: how micro-batches that do not fit the memory are taken apart.
        arguments: as `transformers.Trainer` takes them.
    """

    def __init__(
        self,
        *,
        verbalizer: Verbalizer,
        attention: str,
        answer_loss: AnswerLoss,
        with_end: bool,
        validation: Validation | None,
        save_total_limit: int | None,
        on_saved: Callable[[Path], None],
        halving: Halving,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        self.remove_callback(PrinterCallback)  # RunLog says the same in fewer words
        self.verbalizer = verbalizer
        self.attention = attention
        self.answer_loss = answer_loss
        self.with_end = with_end
        self.validation = validation
        self.kept = save_total_limit
        self.on_saved = on_saved
        self.halving = halving
        # compute_loss divides by the answers of the whole optimiser step, so the Trainer must not divide again.
        self.model_accepts_loss_kwargs = True

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor | None:
        """Answers in all micro-batches of one optimiser step."""
        if not batch_samples:
            return None
        return torch.tensor(sum(len(batch["labels"]) for batch in batch_samples), device=device)

    def training_step(
        self, model: Any, inputs: dict[str, torch.Tensor], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Forward and backward of a micro-batch, in parts where it does not fit the memory at once."""
        step = super().training_step
        return self.halving.step(model, inputs, lambda part: step(model, part, num_items_in_batch))

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Mean over answers of what the label costs, plus the cross-entropy of the end token behind it where trained.

        Raises:
            ModelError: the loss is not a number; the checkpoint before stands.
        """
        rows, positions, labels = inputs["rows"], inputs["positions"], inputs["labels"]
        mask = None
        if "run" in inputs:
            mask = attention_mask(inputs["run"], inputs["first"], inputs["fork"], self.attention, self.model.dtype)
        if self.with_end:
            rows, positions = torch.cat([rows, rows]), torch.cat([positions, positions + 1])
        hidden = hidden_at(model, inputs["input_ids"], rows, positions, mask, inputs.get("position_ids"))
        words, ends = hidden[: len(labels)], hidden[len(labels) :]
        total = self.answer_loss(model, words, labels, inputs["prior"], self.verbalizer).sum()
        if self.with_end:
            total = total + word_losses(model, ends, torch.full_like(labels, self.verbalizer.end_id)).sum()
        loss = total / (len(labels) if num_items_in_batch is None else num_items_in_batch)
        if not torch.isfinite(loss):
            raise ModelError(
                f"the training loss became {loss.item()} after step {self.state.global_step}; the last checkpoint is "
                "whole. Lower learning_rate, or train with bf16=true in place of fp16"
            )
        return (loss, None) if return_outputs else loss

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Score the validation events and log the metrics; only two numbers an answer are ever kept.

        The metrics are of plain probabilities, whatever the loss: what class weights add to log-odds is taken off.
        """
        if self.validation is None:
            return {}
        start = time.perf_counter()
        trees = self.validation.trees
        log_odds = score_trees(self.model, trees, self.verbalizer, self.args.per_device_eval_batch_size, self.attention)
        self.validation.log_odds = log_odds
        plain = log_odds - self.answer_loss.shift
        found = classification_metrics(trees.labels, plain, self.validation.user_ids)
        metrics = {f"{metric_key_prefix}_{key}": value for key, value in found.items() if value is not None}
        seconds = time.perf_counter() - start
        metrics[f"{metric_key_prefix}_runtime"] = round(seconds, 3)
        metrics[f"{metric_key_prefix}_labels_per_second"] = round(len(log_odds) / seconds, 3)
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save, mark the checkpoint complete with its hashes, and only then remove an older one."""
        super()._save_checkpoint(model, trial)
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        self.on_saved(folder)
        mark_complete(folder)
        rotate(Path(self.args.output_dir), self.kept)
