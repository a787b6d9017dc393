"""When to keep an adapter, when to stop: decisions made from the Trainer's history alone, so a resume repeats them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback

from rectune.errors import RectuneError
from rectune.terminal import Terminal
from rectune.train.best import Log, best_evaluation
from rectune.train.signals import Signals
from rectune.world import ALONE, World


def evaluations_since_best(history: list[Log], metric: str) -> int:
    """How many evaluations have come after the best one."""
    best = best_evaluation(history, metric)
    if best is None:
        return 0
    return sum(1 for log in history if f"eval_{metric}" in log and int(log["step"]) > best[0])


def has_plateaued(history: list[Log], patience: int, min_delta: float, smoothing: float = 0.8) -> bool:
    """Whether the smoothed training loss has not fallen by `min_delta` for `patience` log lines.

    The loss is smoothed as s = 0.8 s + 0.2 loss, since single log lines are noisy.
    """
    smoothed: float | None = None
    lowest: float | None = None
    waited = 0
    for log in history:
        if "loss" not in log:
            continue
        smoothed = log["loss"] if smoothed is None else smoothing * smoothed + (1 - smoothing) * log["loss"]
        if lowest is None or smoothed < lowest - min_delta:
            lowest, waited = smoothed, 0
        else:
            waited += 1
    return patience > 0 and waited >= patience


class BestAndStop(TrainerCallback):
    """Keeps the best adapter and stops a run that no longer improves.

    Args:
        metric: name of the deciding metric, without `eval_`.
        early_patience: evaluations without a better one before stopping; 0 never stops.
        plateau_patience, plateau_min_delta: see `has_plateaued`.
        keep: saves the adapter as it is now as the best one and returns its folder.
        say: prints one line.
    """

    def __init__(
        self,
        metric: str,
        early_patience: int,
        plateau_patience: int,
        plateau_min_delta: float,
        keep: Callable[[int, float], str],
        say: Callable[[str], None],
    ) -> None:
        self.metric = metric
        self.early_patience = early_patience
        self.plateau = (plateau_patience, plateau_min_delta)
        self.keep = keep
        self.say = say

    def _no_better(self, history: list[Log]) -> str | None:
        """That patience has run out, in words, or None."""
        waited, best = evaluations_since_best(history, self.metric), best_evaluation(history, self.metric)
        if best is None or not 0 < self.early_patience <= waited:
            return None
        return f"{waited} evaluations since the best {self.metric} {best[1]:.4f} at step {best[0]}"

    def _flat(self, history: list[Log]) -> str | None:
        """That the training loss has gone flat, in words, or None."""
        if not has_plateaued(history, *self.plateau):
            return None
        return f"the training loss has not fallen for {self.plateau[0]} log lines"

    def reason_to_stop(self, history: list[Log]) -> str | None:
        """Why a run with this history trains no further, or None."""
        return self._no_better(history) or self._flat(history)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Evaluate and save at the last step, whatever its number: later versions of transformers need not."""
        if state.global_step >= state.max_steps:
            control.should_evaluate = args.eval_strategy != "no"
            control.should_save = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Do not evaluate at the end of an epoch what was evaluated at its last step."""
        if any("eval_loss" in log and log["step"] == state.global_step for log in state.log_history):
            control.should_evaluate = False

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Keep the adapter when this evaluation is the best, stop when patience has run out."""
        best = best_evaluation(state.log_history, self.metric)
        if best is None:
            return
        if best[0] == state.global_step:
            state.best_global_step, state.best_metric = best
            state.best_model_checkpoint = self.keep(*best)
        reason = self._no_better(state.log_history)
        if reason is not None:
            self.say(f"early stop: {reason}")
            control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop when the training loss has gone flat."""
        reason = self._flat(state.log_history)
        if reason is not None and not control.should_training_stop:
            self.say(f"early stop: {reason}")
            control.should_training_stop = True
            control.should_evaluate = args.eval_strategy != "no"
            control.should_save = True


class Interrupted(RectuneError):  # noqa: N818
    """A run was stopped by a signal, with nothing lost."""

    exit_code = 130


class EvaluationCut(BaseException):
    """A signal came while the validation events were being scored."""


_PASSED_ON = 10.0
"""Seconds within which launchers pass a signal on to their processes."""


class StopSignals(Signals, TrainerCallback):
    """Ctrl-C and SIGTERM finish the step, save a checkpoint and stop; a second one stops at once.

    An evaluation may take longer than whoever sent the signal waits, so it is cut short and made when the run goes on.
    Before the first step there is nothing to save, so the first one stops at once too. Of several processes all stop
    where one has received a signal: behind the same step, or before the same batch of an evaluation.

    Args:
        say: prints one line.
        terminal: where lines go; that it is gone is said once.
        world: the processes.
    """

    def __init__(self, say: Callable[[str], None], terminal: Terminal, world: World = ALONE) -> None:
        super().__init__(same=0.0 if world.alone else _PASSED_ON)
        self.say = say
        self.terminal = terminal
        self.world = world
        self.stopped = False
        self._begun = False
        self._told = False
        self._scoring = False

    def react(self) -> None:
        """Stop at once where nothing is under way, or an evaluation that can be made again.

        Raises:
            EvaluationCut: validation is being scored.
            Interrupted: training has not begun.
        """
        if self._scoring:
            self._scoring = False
            if self.world.alone:
                raise EvaluationCut
        if not self._begun:
            raise Interrupted("stopped before the first step; nothing is lost: the same command begins again")

    def look(self) -> None:
        """Called by all processes between batches of an evaluation: end it in all where one has received a signal.

        Raises:
            EvaluationCut: one has.
        """
        if self.world.any(self.received is not None):
            raise EvaluationCut

    @contextmanager
    def cutting(self) -> Iterator[None]:
        """Inside, where the validation events are scored, a signal does not wait.

        Raises:
            EvaluationCut: one has come, now or before.
        """
        try:
            self.look()
            self._scoring = True
            yield
        except EvaluationCut:
            self.stopped = True
            self.say("stopping in an evaluation; it is made first when the run goes on")
            raise
        finally:
            self._scoring = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """From here on there is something to save."""
        self._begun = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save and stop when a signal has come; log wherever else a checkpoint is saved.

        A checkpoint that a signal asked for brings no log line with it, since the uninterrupted run has none there.
        """
        if self.terminal.gone is not None and not self._told:
            self._told = True
            self.say(f"terminal: it is gone ({self.terminal.gone}); the run goes on and says all in logs/console.log")
        if control.should_save:
            control.should_log = True
        if self.world.any(self.received is not None) and state.global_step < state.max_steps:
            self.say("stopping after this step; a checkpoint will be saved (again to stop at once)")
            control.should_save = True
            control.should_training_stop = True
            self.stopped = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """An epoch that was cut short is not evaluated."""
        if self.stopped:
            control.should_evaluate = False
