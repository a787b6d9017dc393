"""The Trainer: loss at answers only, evaluation by scores."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PrinterCallback

from rectune.config import Config
from rectune.config_classify import CLASSIFY
from rectune.errors import NotFinite
from rectune.measure.classes import (
    balanced_rows,
    by_class,
    class_metrics,
    confusion_table,
    log_softmax,
    over_classes,
)
from rectune.measure.classification import classification_metrics, confusion, predict
from rectune.measure.uncertainty import self_assessment
from rectune.model.answers import hidden_at, word_losses
from rectune.model.attention import attention_mask
from rectune.model.initial import hold_start
from rectune.model.losses import AnswerLoss
from rectune.prompt.tree import Trees
from rectune.prompt.verbalizer import Verbalizer
from rectune.score.scorer import CHUNK, score_classes, score_trees
from rectune.train.halving import parts_of
from rectune.train.not_finite import BROKEN, SKIPPED_IN_A_ROW, Batch, broken_weight, explain, guilty_batch, which_batch
from rectune.train.parallel import ParallelTrainer
from rectune.train.speed import ANSWERS, Meter
from rectune.train.stopping import EvaluationCut


@dataclass(frozen=True)
class Classes:
    """The classes of a validation set, which is then measured by class and on as many rows of each, too.

    Attributes:
        words: label word of each label, in whose name its metrics are logged.
        seed: of the draw of the balanced rows.
        shift: float64 [labels]; what oversampling adds to each log-probability, taken off before anything is measured
            where there are more than two classes.
    """

    words: tuple[str, ...]
    seed: int
    shift: npt.NDArray[np.float64]

    @property
    def many(self) -> bool:
        """Whether an answer is a log-probability a class, in place of one log-odds."""
        return len(self.words) > 2

    def measure(self, labels: npt.NDArray[Any], predicted: npt.NDArray[Any]) -> dict[str, float | None]:
        """Means over classes, precision, recall and F1 of each, and the same answers on the balanced rows."""
        table = confusion_table(labels, predicted, len(self.words))
        found: dict[str, float | None] = {k: v for k, v in over_classes(table).items() if k != "accuracy"}
        for word, values in by_class(table, self.words).items():
            found |= {f"{key}_{word}": value for key, value in values.items() if key != "rows"}
        rows = balanced_rows(labels, len(self.words), self.seed)
        part = confusion_table(labels[rows], predicted[rows], len(self.words))
        found["balanced_set_n"] = len(rows)
        found |= {f"balanced_set_{key}": value for key, value in over_classes(part).items() if key[:8] != "balanced"}
        for word, values in by_class(part, self.words).items():
            found |= {f"balanced_set_{key}_{word}": value for key, value in values.items() if key != "rows"}
        return found


def classes_of(config: Config, shift: npt.NDArray[np.float64]) -> Classes | None:
    """The classes of a text classification, None for other tasks."""
    return Classes(config.label_words, config.seed, shift) if config.task == CLASSIFY else None


@dataclass
class Validation:
    """The validation events, and the scores that the latest evaluation gave them.

    Attributes:
        trees: their prompts.
        user_ids: user of each answer.
        log_odds: float64 [answers] of the latest evaluation, None before the first; of more than two classes the
            log-probabilities, [answers, classes], as they came.
        untrained: float64 [answers of `first_batch`], as they were before the first step; None before training.
        classes: where it is measured by class.
    """

    trees: Trees
    user_ids: list[str]
    log_odds: npt.NDArray[np.float64] | None = None
    untrained: npt.NDArray[np.float64] | None = None
    classes: Classes | None = None

    def first_batch(self, size: int) -> npt.NDArray[np.int64]:
        """The trees that an evaluation scores first, in its order, so that scored alone they give the same floats."""
        return np.argsort(-self.trees.lengths[:CHUNK], kind="stable")[:size]

    @property
    def many(self) -> bool:
        """Whether there are more than two classes."""
        return self.classes is not None and self.classes.many

    def moved(self, size: int) -> float | None:
        """Mean change of the log-odds since training began, over the answers of the first batch."""
        if self.log_odds is None or self.untrained is None:
            return None
        answers = np.concatenate([np.arange(*self.trees.answers(int(tree)).indices(len(self.log_odds))[:2])
                                  for tree in self.first_batch(size)])  # fmt: skip
        return float(np.abs(self.log_odds[answers] - self.untrained).mean())


class AnswerTrainer(ParallelTrainer):
    """Hugging Face's Trainer with the loss at answer positions and metrics from answers' scores.

    Args:
        verbalizer: label tokens and end token.
        attention: the attention kernel in use, for the masks of packed and branching rows.
        answer_loss: what an answer costs.
        lr_ratio: how much faster the adapter's matrices B learn than its matrices A (LoRA+); None is alike.
        with_end: whether the token behind each label is trained too (the pointwise layout).
        validation: what `evaluate` scores; None when there is no evaluation.
        look: called while validation is scored, by all of several processes; may end the scoring.
        name_batch: tells in words which events the trees of a batch hold.
        meter: counts the work of each step.
        arguments: as `ParallelTrainer` takes them.
    """

    def __init__(
        self,
        *,
        verbalizer: Verbalizer,
        attention: str,
        answer_loss: AnswerLoss,
        lr_ratio: float | None,
        with_end: bool,
        validation: Validation | None,
        meter: Meter,
        look: Callable[[], None] | None = None,
        name_batch: Callable[[list[int]], str] = str,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        self.remove_callback(PrinterCallback)  # RunLog says the same in fewer words
        self.verbalizer = verbalizer
        self.attention = attention
        self.answer_loss = answer_loss
        self.lr_ratio = lr_ratio
        self.with_end = with_end
        self.validation = validation
        self.meter = meter
        self.look = look
        self.name_batch = name_batch
        self.step_batches: list[Batch] = []
        self.skipped = 0
        # compute_loss divides by the answers of the whole optimiser step, so the Trainer must not divide again.
        self.model_accepts_loss_kwargs = True

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The optimiser of the arguments; with a ratio, two learning rates (LoRA+, Hayou et al. 2024)."""
        if self.lr_ratio is not None:
            from peft.optimizers import create_loraplus_optimizer

            kind, values = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer: Any = create_loraplus_optimizer(
                self.model,
                kind,
                loraplus_lr_ratio=self.lr_ratio,
                loraplus_weight_decay=self.args.weight_decay,
                **values,
            )
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        hold_start(self.model, optimizer)
        return optimizer

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor | None:
        """Answers in all micro-batches of one optimiser step, of all processes."""
        self.step_batches = batch_samples  # kept to name the one that breaks the run
        if not batch_samples:
            return None
        work = self.world.sum(self.meter.count(batch_samples, self.with_end))
        self.meter.saw(work)
        return torch.tensor(work[ANSWERS], device=device)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as the Trainer does, with speed and memory in each line of the training loss."""
        super().log({**logs, **self.meter.read()} if "loss" in logs else logs, start_time)

    def training_step(
        self, model: Any, inputs: dict[str, torch.Tensor], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Forward and backward of a micro-batch, in parts where it does not fit the memory at once."""
        step = super().training_step
        if not self.world.alone:  # whose batches come as they were made, in main memory
            inputs = self._prepare_inputs(inputs)
        return self.take_part(
            model, lambda: self.halving.step(model, inputs, lambda part: step(model, part, num_items_in_batch))
        )

    def train(self, *arguments: Any, **named: Any) -> Any:
        """Remember what the model answers before its first step, also where a checkpoint's weights are loaded next."""
        if self.validation is not None:
            first = self.validation.trees.select(self.validation.first_batch(self.args.per_device_eval_batch_size))
            self.validation.untrained = self._scores(first)
        return super().train(*arguments, **named)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Mean over answers of what the label costs, plus the cross-entropy of the end token behind it where trained.

        Raises:
            NotFinite: the loss is not a number; the checkpoint before stands.
        """
        loss = self._batch_loss(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            self.not_finite(self._broken("loss", loss.item(), inputs))
        return (loss, None) if return_outputs else loss

    def _batch_loss(self, model: Any, inputs: Batch, count: torch.Tensor | int | None) -> torch.Tensor:
        """The loss of one micro-batch, its sum divided by `count` answers."""
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
        return total / (len(labels) if count is None else count)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The gradient's norm, looked at before the optimiser could carry it into the weights.

        Float16's loss scaling skips a step that overflowed and halves its scale: that is no failure, until it has
        happened so often in a row that scaling cannot be the reason.

        Raises:
            NotFinite: the norm is not a number.
        """
        norm = super()._get_grad_norm(model, grad_norm)
        if norm is None or math.isfinite(float(norm)):
            self.skipped = 0
            return norm
        self.skipped += 1
        if getattr(self.accelerator, "scaler", None) is not None and self.skipped < SKIPPED_IN_A_ROW:
            return norm
        culprit = None
        if not self.world.sharded:  # where a pass by itself would wait for the others
            whole = map(self._prepare_inputs, self.step_batches)
            at_once = self.halving.rows
            batches = [part for batch in whole for part in parts_of(batch, at_once or len(batch["input_ids"]))]
            culprit = guilty_batch(model, batches, lambda batch: self._batch_loss(model, batch, None))
        error = self._broken("gradient", float(norm), culprit)
        self.hear(error)
        raise error

    def _broken(self, what: str, value: float, culprit: Batch | None = None) -> NotFinite:
        """Leave an entry in the history that says what broke the run, and make the error that says it too.

        Args:
            what: `loss`, `gradient` or `scores`.
            value: what it became.
            culprit: the micro-batch to blame, where one is.
        """
        weight = broken_weight(self.model)
        entry = {
            "epoch": self.state.epoch,
            "step": self.state.global_step + (what != "scores"),
            BROKEN: what,
            "value": str(value),
            "weight": weight[0] if weight else None,
            "trained": weight[1] if weight else None,
            "micro_batch": which_batch(self.step_batches, culprit) if culprit else None,
            "micro_batches": len(self.step_batches),
            "rows": self.name_batch(culprit["trees"].tolist()) if culprit else None,
            "peak": self.args.learning_rate,
            "precision": "float16" if self.args.fp16 else str(self.model.dtype).removeprefix("torch."),
        }
        self.state.log_history.append(entry)
        return NotFinite(f"step {entry['step']}: {'; '.join(explain(entry))}")

    def _scores(self, trees: Trees, look: Callable[[], None] | None = None) -> npt.NDArray[np.float64]:
        """Log-odds of all answers of the trees, or log-probabilities where there are more than two classes.

        Several processes share the batches, and all get all scores.

        Raises:
            NotFinite: one of them is not a number.
        """
        size = self.args.per_device_eval_batch_size
        try:
            score = score_classes if self.validation is not None and self.validation.many else score_trees
            return score(self.model, trees, self.verbalizer, size, self.attention, world=self.world, look=look)
        except NotFinite as error:
            broken = self._broken("scores", math.nan)
            broken.shared = True  # all processes have all scores
            raise broken from error

    def _measured(self, validation: Validation, scores: npt.NDArray[np.float64]) -> dict[str, Any]:
        """What an evaluation logs of its scores, what weights and oversampling add to them taken off."""
        labels, classes = validation.trees.labels, validation.classes
        if classes is not None and classes.many:
            log_p = log_softmax(scores - classes.shift)
            return {**class_metrics(labels, log_p), **classes.measure(labels, log_p.argmax(axis=1))}
        plain = scores - self.answer_loss.shift
        said = predict(plain)
        found: dict[str, Any] = {**classification_metrics(labels, plain, validation.user_ids)}
        if classes is not None:
            found |= classes.measure(labels, said.astype(np.int64))
            if self.answer_loss.shift:  # then what the model says and what it is sure of part
                answered = classes.measure(labels, predict(scores).astype(np.int64))
                found |= {f"answered_{key}": value for key, value in answered.items()}
        return {**found, **confusion(labels, said)._asdict(), **self_assessment(labels, plain)}

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Score the validation events and log the metrics; only two numbers an answer are ever kept.

        The metrics are of plain probabilities, whatever the loss: what class weights add to log-odds is taken off.

        Raises:
            NotFinite: a score is not a number.
        """
        if self.validation is None:
            self.end_put_off_evaluation()  # the run was stopped in it, and goes on with eval_strategy=no
            return {}
        start = time.perf_counter()
        trees = self.validation.trees
        try:
            with self.cutting():
                log_odds = self._scores(trees, self.look)
        except EvaluationCut:
            self.put_off_evaluation()
            return {}
        self.validation.log_odds = log_odds
        moved = self.validation.moved(self.args.per_device_eval_batch_size)
        found = {**self._measured(self.validation, log_odds), "log_odds_moved": moved}
        metrics = {f"{metric_key_prefix}_{key}": value for key, value in found.items() if value is not None}
        seconds = time.perf_counter() - start
        metrics[f"{metric_key_prefix}_runtime"] = round(seconds, 3)
        metrics[f"{metric_key_prefix}_labels_per_second"] = round(len(log_odds) / seconds, 3)
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.end_put_off_evaluation()
        return metrics
