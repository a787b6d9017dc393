"""The part of the Trainer that nothing gets lost by: checkpoints whole or not at all, all of their state put back."""

from __future__ import annotations

import json
import math
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback

from rectune.errors import ModelError
from rectune.files import atomic_folder, write_json
from rectune.model.memory import is_out_of_memory
from rectune.train.checkpoints import PENDING, evaluation_pending, mark_complete, rotate


@contextmanager
def refusing(checkpoint: str | None, what: str) -> Iterator[None]:
    """Turn a part of a checkpoint that does not load into one line.

    Raises:
        ModelError: it holds more than tensors and numbers (which is refused unread), or does not fit.
    """
    try:
        yield
    except (ValueError, TypeError, KeyError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        if is_out_of_memory(error):
            raise  # nothing is wrong with the file
        reason = " ".join(str(error).split())[:160]
        raise ModelError(
            f"{checkpoint}: its {what} is not what a training saves, and nothing in it was run ({reason}); "
            "take another checkpoint with --resume-from-checkpoint"
        ) from error


class _LossSinceLog(TrainerCallback):
    """Puts the loss summed since the last log line back, so that a resumed run logs the same averages."""

    def __init__(self, trainer: ResumableTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Read it from the checkpoint that the run goes on from; one of an earlier version has none."""
        start = self.trainer.start
        if start is not None and (start / PENDING).is_file():
            kept = json.loads((start / PENDING).read_text(encoding="utf-8"))
            self.trainer._tr_loss += kept["loss_since_log"]
            self.trainer._globalstep_last_logged = int(kept["logged_at"])


class _NothingLeft(Exception):  # noqa: N818
    """The evaluation that was put off was all that was left to do, or was cut short again."""


class ResumableTrainer(Trainer):
    """Hugging Face's Trainer with checkpoints that are whole or not there, and that a run goes on from exactly.

    Args:
        save_total_limit: checkpoints kept; older ones are removed once a newer one is whole.
        start: the checkpoint that training goes on from, if any.
        on_saved: called with each checkpoint folder before it is marked complete.
        cutting: inside what it gives, a signal raises `EvaluationCut`.
        arguments: as `transformers.Trainer` takes them.
    """

    def __init__(
        self,
        *,
        save_total_limit: int | None,
        start: Path | None,
        on_saved: Callable[[Path], None],
        cutting: Callable[[], AbstractContextManager[None]],
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        self.kept = save_total_limit
        self.start = start
        self.on_saved = on_saved
        self.cutting = cutting
        self._stage: Path | None = None
        self._put_off = False
        self._catching_up = start is not None and evaluation_pending(start)
        self.args.eval_on_start = self._catching_up
        self.add_callback(_LossSinceLog(self))

    def train(self, *arguments: Any, **named: Any) -> Any:
        """Train, or only evaluate where that was all that was left or was cut short again."""
        try:
            return super().train(*arguments, **named)
        except _NothingLeft:
            return None

    def put_off_evaluation(self) -> None:
        """Stop with a checkpoint from which the run goes on with the evaluation that was cut short.

        Raises:
            _NothingLeft: it had been put off before: the checkpoint that says so stands. `train` catches this.
        """
        if self._catching_up:
            raise _NothingLeft
        self._put_off = True
        self.control.should_evaluate = False
        self.control.should_save = True
        self.control.should_training_stop = True

    def end_put_off_evaluation(self) -> None:
        """Called after every evaluation: after one that had been put off there may be nothing left to train.

        Raises:
            _NothingLeft: the run ends with it. `train` catches this.
        """
        if self._catching_up:
            self._catching_up = False
            if self.control.should_training_stop or self.state.global_step >= self.state.max_steps:
                raise _NothingLeft

    def _evaluation_due(self) -> bool:
        """Whether the evaluation of this step is still to come: that of an epoch follows the save of its last step."""
        if self.args.eval_strategy != "epoch":
            return False
        batches = len(self.callback_handler.train_dataloader)
        steps = math.ceil(batches / self.args.gradient_accumulation_steps)
        step = self.state.global_step
        made = any("eval_loss" in log and log["step"] == step for log in self.state.log_history)
        return step % steps == 0 and not made

    def _get_output_dir(self, trial: Any) -> str:
        """Where checkpoints are made: while one is being saved, out of sight."""
        return str(self._stage or self.args.output_dir)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save a checkpoint whole or not at all, marked complete with its hashes; only then remove an older one."""
        run, name = Path(self.args.output_dir), f"checkpoint-{self.state.global_step}"
        best = self.state.best_model_checkpoint
        with atomic_folder(run / name) as folder:
            self._stage = folder
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._stage = None
                self.state.best_model_checkpoint = best  # never one of these folders: the best adapter is kept by us
            for file in (folder / name).iterdir():
                os.replace(file, folder / file.name)
            (folder / name).rmdir()
            (folder / "training_args.bin").unlink()  # a pickle that nothing reads; config.yaml says the same
            self.state.save_to_json(str(folder / "trainer_state.json"))
            pending = {
                "loss_since_log": self._tr_loss.item(),
                "logged_at": self._globalstep_last_logged,
                "evaluation": self._put_off or self._evaluation_due(),
            }
            write_json(folder / PENDING, pending)
            self.on_saved(folder)
            mark_complete(folder)
        rotate(run, self.kept)

    def join_saving(self, model: Any, trial: Any) -> None:
        """Take part in what all processes do together when the main one saves a checkpoint, and write nothing."""
        best = self.state.best_model_checkpoint
        super()._save_checkpoint(model, trial)
        self.state.best_model_checkpoint = best

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with refusing(resume_from_checkpoint, "adapter"):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with refusing(checkpoint, "rng_state.pth"):
            super()._load_rng_state(checkpoint)

    def _load_scaler(self, checkpoint: str | None) -> None:
        with refusing(checkpoint, "scaler.pt"):
            super()._load_scaler(checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load their states, but keep this configuration's settings, which may have been changed since."""
        if checkpoint is None:
            return
        asked = [{key: group[key] for key in group if key != "params"} for group in self.optimizer.param_groups]
        with refusing(checkpoint, "optimizer.pt or scheduler.pt"):
            super()._load_optimizer_and_scheduler(checkpoint)
        scheduler: Any = self.lr_scheduler
        scheduler.base_lrs = [group["initial_lr"] for group in asked]
        scheduler._last_lr = [
            base * shape(scheduler.last_epoch)
            for base, shape in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        ]
        for group, settings, rate in zip(self.optimizer.param_groups, asked, scheduler._last_lr, strict=True):
            group.update(settings | {"lr": rate})
