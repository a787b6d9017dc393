"""A training that reports its evaluations and is told when to give up."""

from __future__ import annotations

import os
import time
from multiprocessing.connection import Connection
from typing import Any

from transformers import TrainerCallback

_PAUSE = 1.0
"""Seconds between two reports of the step."""


class Pruning(TrainerCallback):
    """Sends steps and evaluations through a channel; the answer to an evaluation is a reason to stop, or nothing.

    Messages are `(step, steps in all)` and `(step, steps in all, number of the evaluation, value)`.

    Args:
        metric: name of the metric to report, without `eval_`.
        channel: the end of a pipe whose other end answers.

    Attributes:
        reason: why the run was told to stop, or empty.
    """

    def __init__(self, metric: str, channel: Connection) -> None:
        self.metric = metric
        self.channel = channel
        self.reason = ""
        self._sent = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Tell the step, at most once a second."""
        if time.monotonic() - self._sent >= _PAUSE:
            self._sent = time.monotonic()
            self._send((state.global_step, state.max_steps))

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        """Tell the value, and end the run, without another checkpoint, where the answer says so."""
        number = sum("eval_loss" in log for log in state.log_history)
        value = metrics.get(f"eval_{self.metric}")
        if value is None:
            return
        self._send((state.global_step, state.max_steps, number, value))
        try:
            self.reason = self.channel.recv()
        except (EOFError, OSError):
            os._exit(1)  # whoever asked for this run is gone, and the next one goes on from its checkpoint
        if self.reason:
            control.should_training_stop = True
            control.should_save = False

    def _send(self, message: tuple[Any, ...]) -> None:
        try:
            self.channel.send(message)
        except OSError:
            os._exit(1)
