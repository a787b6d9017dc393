"""Tells a run's findings as they come, and keeps them in its `logs/diagnosis.json`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from rectune.config import Config
from rectune.files import write_json
from rectune.measure.classification import auc, log_loss
from rectune.prompt.tree import Trees
from rectune.train.curves import Facts, Log
from rectune.train.diagnose import diagnose
from rectune.train.start import DIAGNOSIS


def facts_of(config: Config, trees: Trees, held_out: Trees, users: int, steps: int) -> Facts:
    """What is known of a run before its first step.

    Args:
        config: all keys.
        trees, held_out: training and validation prompts.
        users: how many there are in validation.
        steps: optimiser steps planned.
    """
    prior = bool(held_out.prior.any())
    return Facts(
        training_events=len(trees.labels),
        validation_events=len(held_out.labels),
        training_rate=float(trees.labels.mean()),
        validation_rate=float(held_out.labels.mean()),
        validation_users=users,
        steps=steps,
        warmup_steps=config.warmup_steps or round(config.warmup_ratio * steps),
        epochs=config.num_train_epochs,
        by_steps=config.max_steps > 0,
        learning_rate=config.learning_rate,
        max_grad_norm=config.max_grad_norm,
        metric=config.metric_for_best_model,
        plain_loss=config.class_weights == "none"
        and not config.label_smoothing
        and not config.focal_gamma
        and config.oversample == "none",
        prior_loss=log_loss(held_out.labels, held_out.prior) if prior else None,
        prior_auc=auc(held_out.labels, held_out.prior) if prior else None,
    )


class Checkup(TrainerCallback):
    """Diagnoses a run at every evaluation and at its end.

    What it finds depends on the history alone, so a resumed run's file is that of an uninterrupted one.

    Args:
        logs: the run's folder for logs.
        facts: what is known besides the history.
        say: prints one line.
        interrupted: whether the run is only being paused, so that its end is not the end.
    """

    def __init__(self, logs: Path, facts: Facts, say: Callable[[str], None], interrupted: Callable[[], bool]) -> None:
        self.file = logs / DIAGNOSIS
        self.facts = facts
        self.say = say
        self.interrupted = interrupted
        self.said: set[str] = set()

    def look(self, history: list[Log], silent: bool = False) -> None:
        """Write all findings, and say those that are new.

        A diagnosis only advises, so one that fails is said and does not end the training.

        Args:
            history: the Trainer's log entries.
            silent: when they have been said before.
        """
        try:
            findings = diagnose(history, self.facts)
        except Exception as error:
            self.say(f"diagnosis: left out, since it failed ({type(error).__name__}: {error}); the training goes on")
            return
        write_json(self.file, [finding.as_json() for finding in findings])
        for finding in findings:
            if finding.code not in self.said and not silent:
                self.say(finding.line())
            self.said.add(finding.code)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Make the file anew from the history that the run goes on from."""
        self.look(state.log_history, silent=True)

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look at the evaluation just made."""
        self.look(state.log_history)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look at the whole run, if this is its end."""
        if not self.interrupted():
            self.look(state.log_history)
