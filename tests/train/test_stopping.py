"""Decisions from a history alone, with values worked out by hand."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rectune.terminal import Terminal
from rectune.train.stopping import (
    BestAndStop,
    Interrupted,
    StopSignals,
    best_evaluation,
    evaluations_since_best,
    has_plateaued,
)


def evaluations(metric: str, values: list[float]) -> list[dict[str, Any]]:
    return [{"step": 10 * at, f"eval_{metric}": value} for at, value in enumerate(values, start=1)]


def losses(values: list[float]) -> list[dict[str, Any]]:
    return [{"step": at, "loss": value} for at, value in enumerate(values, start=1)]


def test_the_best_is_the_highest_auc_or_the_lowest_loss_and_the_earliest_wins_a_tie() -> None:
    assert best_evaluation(evaluations("auc", [0.6, 0.7, 0.7]), "auc") == (20, 0.7)
    assert best_evaluation(evaluations("loss", [0.6, 0.5, 0.5]), "loss") == (20, 0.5)
    assert best_evaluation(evaluations("brier", [0.3, 0.2]), "brier") == (20, 0.2)
    assert best_evaluation(evaluations("ece", [0.1, 0.2]), "ece") == (10, 0.1)
    assert best_evaluation(evaluations("pr_auc", [0.1, 0.2]), "pr_auc") == (20, 0.2)
    assert best_evaluation(losses([1.0]), "auc") is None


def test_waiting_counts_evaluations_after_the_best() -> None:
    assert evaluations_since_best(evaluations("f1", [0.5, 0.6, 0.4, 0.6]), "f1") == 2
    assert evaluations_since_best([], "f1") == 0


def test_a_plateau_is_judged_on_the_smoothed_loss() -> None:
    # Smoothed: 1, 1.0, 1.0, 1.0: never 0.01 lower, so three lines have waited.
    assert has_plateaued(losses([1.0, 1.0, 1.0, 1.0]), patience=3, min_delta=0.01)
    assert not has_plateaued(losses([1.0, 1.0, 1.0]), patience=3, min_delta=0.01)
    # Smoothed: 1, 0.9 (lower), 0.92, 0.936: two lines have waited.
    assert not has_plateaued(losses([1.0, 0.5, 1.0, 1.0]), patience=3, min_delta=0.01)
    assert has_plateaued(losses([1.0, 0.5, 1.0, 1.0]), patience=2, min_delta=0.01)


def test_patience_zero_never_stops() -> None:
    assert not has_plateaued(losses([1.0] * 50), patience=0, min_delta=0.01)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_no_evaluation_is_better_than_the_best_and_those_since_it_are_counted(values: list[float]) -> None:
    found = best_evaluation(evaluations("auc", values), "auc")
    assert found is not None and found[1] == max(values)
    assert found[0] == 10 * (values.index(max(values)) + 1)
    assert evaluations_since_best(evaluations("auc", values), "auc") == len(values) - found[0] // 10


def test_a_history_that_has_stopped_once_stops_again() -> None:
    rule = BestAndStop("auc", 2, 0, 0.0, lambda step, value: "", print)
    assert rule.reason_to_stop(evaluations("auc", [0.7, 0.6])) is None
    assert rule.reason_to_stop(evaluations("auc", [0.7, 0.6, 0.5])) == (
        "2 evaluations since the best auc 0.7000 at step 10"
    )
    assert rule.reason_to_stop([]) is None


@pytest.mark.parametrize(("strategy", "evaluates"), [("steps", True), ("epoch", True), ("no", False)])
def test_the_last_step_is_evaluated_and_saved_and_not_evaluated_twice(strategy: str, evaluates: bool) -> None:
    rule = BestAndStop("auc", 2, 0, 0.0, lambda step, value: "", print)
    args, control = SimpleNamespace(eval_strategy=strategy), SimpleNamespace(should_evaluate=False, should_save=False)
    rule.on_step_end(args, SimpleNamespace(global_step=8, max_steps=9), control)
    assert not control.should_evaluate and not control.should_save
    rule.on_step_end(args, SimpleNamespace(global_step=9, max_steps=9), control)
    assert control.should_evaluate is evaluates and control.should_save
    control.should_evaluate = True
    rule.on_epoch_end(args, SimpleNamespace(global_step=9, log_history=[{"step": 9, "eval_loss": 1.0}]), control)
    assert not control.should_evaluate


def test_a_signal_asks_for_a_checkpoint_and_a_second_one_stops_at_once() -> None:
    lines: list[str] = []
    control = SimpleNamespace(should_save=False, should_log=False, should_training_stop=False)
    before = signal.getsignal(signal.SIGINT)
    with StopSignals(lines.append, Terminal()) as signals:
        signals.on_train_begin(None, None, None)
        signals.on_step_end(None, SimpleNamespace(global_step=1, max_steps=9), control)
        assert not control.should_training_stop and not signals.stopped
        os.kill(os.getpid(), signal.SIGTERM)
        assert lines == []  # nothing is printed inside the handler
        signals.on_step_end(None, SimpleNamespace(global_step=2, max_steps=9), control)
        assert control.should_save and control.should_training_stop and signals.stopped
        assert not control.should_log  # the uninterrupted run has no log line here
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert lines == ["stopping after this step; a checkpoint will be saved (again to stop at once)"]
    assert signal.getsignal(signal.SIGINT) is before


def test_before_the_first_step_a_signal_stops_at_once() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="before the first step; nothing is lost"), StopSignals(print, Terminal()):
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_regular_checkpoint_brings_a_log_line_and_a_lost_terminal_is_told_once() -> None:
    lines: list[str] = []
    control = SimpleNamespace(should_save=True, should_log=False, should_training_stop=False)
    signals = StopSignals(lines.append, Terminal(gone="SIGHUP"))
    signals.on_step_end(None, SimpleNamespace(global_step=1, max_steps=9), control)
    signals.on_step_end(None, SimpleNamespace(global_step=2, max_steps=9), control)
    assert control.should_log and not control.should_training_stop
    assert lines == ["terminal: it is gone (SIGHUP); the run goes on and says all in logs/console.log"]
