"""An evaluation that a run was ended before is made when the run goes on, and only once."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from transformers import TrainerCallback
from victims import adapter, contents

from rectune.config import Config
from rectune.train import trainer
from rectune.train.checkpoints import evaluation_pending
from rectune.train.start import Resume
from rectune.train.stopping import Interrupted
from rectune.train.train import train

Run = Callable[..., tuple[Path, list[str]]]
EPOCHS: dict[str, Any] = {
    "eval_strategy": "epoch",
    "max_steps": -1,
    "num_train_epochs": 3.0,
    "max_train_samples": 16,
    "gradient_accumulation_steps": 4,  # 2 steps an epoch
    "max_eval_samples": 10,
    "logging_steps": 1,
    "early_stopping_patience": 0,
}
STEPS: dict[str, Any] = {
    "max_steps": 8,
    "save_steps": 4,
    "eval_steps": 3,
    "logging_steps": 1,
    "gradient_accumulation_steps": 1,
    "max_train_samples": 40,
    "max_eval_samples": 10,
    "early_stopping_patience": 0,
}


class Killed(BaseException):
    """The process is gone."""


class At(TrainerCallback):
    """Does something when a step begins."""

    def __init__(self, step: int, act: Callable[[], None]) -> None:
        self.step = step
        self.act = act

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step - 1:
            self.act()


def die() -> None:
    raise Killed


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def told(folder: Path) -> list[tuple[Any, ...]]:
    """Step, loss and evaluation of every line of the history."""
    logs = json.loads((folder / "log_history.json").read_text(encoding="utf-8"))
    names = ("step", "loss", "eval_loss", "eval_auc")
    return [tuple(log.get(name) for name in names) for log in logs if "loss" in log or "eval_loss" in log]


def evaluated(folder: Path) -> list[int]:
    return [line[0] for line in told(folder) if line[2] is not None]


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Lets a signal come in this evaluation, counted from where the process began."""
    scored = trainer.AnswerTrainer._scores

    def install(evaluation: int) -> None:
        calls = 0

        def scores(self: Any, trees: Any, _look: Any = None) -> Any:
            nonlocal calls
            calls += 1
            if calls == evaluation + 1:  # the first call is made before the first step
                terminate()
                raise AssertionError("the signal did not cut")
            return scored(self, trees)

        monkeypatch.setattr(trainer.AnswerTrainer, "_scores", scores)

    return install


@pytest.mark.parametrize(
    ("save_steps", "at", "act", "ended"),
    [(2, 4, die, Killed), (100, 2, terminate, Interrupted)],
    ids=["killed in the next epoch", "stopped in the last step of an epoch"],
)
def test_the_evaluation_of_an_epoch_is_made_though_the_checkpoint_of_its_last_step_was_saved_before(
    save_steps: int,
    at: int,
    act: Callable[[], None],
    ended: type[BaseException],
    make: Callable[..., Config],
    run: Run,
    tmp_path: Path,
) -> None:
    keys = {**EPOCHS, "save_steps": save_steps}
    whole, _ = run(**keys, output_dir=str(tmp_path / "whole"))
    config = make(**keys)
    with pytest.raises(ended):
        train(config, lambda _: None, Console(quiet=True), watchers=[At(at, act)])
    assert evaluation_pending(config.output_dir / "checkpoint-2")
    folder, lines = run(Resume(latest=True), **keys)
    assert any("last completed step: 2\n" in line for line in lines)
    assert evaluated(folder) == evaluated(whole) == [2, 4, 6]
    assert told(folder) == told(whole)
    assert adapter(folder) == adapter(whole)


def test_no_evaluation_is_put_off_within_an_epoch_or_after_it_was_made(run: Run) -> None:
    keys = {**EPOCHS, "save_steps": 1, "num_train_epochs": 2.0, "save_total_limit": None}
    folder, _ = run(**keys)
    pending = {step: evaluation_pending(folder / f"checkpoint-{step}") for step in (1, 2, 3, 4)}
    assert pending == {1: False, 2: True, 3: False, 4: False}  # the last step is evaluated before it is saved


def test_an_evaluation_that_is_cut_short_twice_is_still_made_first(
    run: Run, cut: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole, _ = run(**STEPS, output_dir=str(tmp_path / "whole"))
    cut(1)
    with pytest.raises(Interrupted, match="stopped at step 3; go on with --resume"):
        run(**STEPS)
    before = contents(tmp_path / "run" / "checkpoint-3")
    cut(1)
    with pytest.raises(Interrupted, match="stopped at step 3; go on with --resume"):
        run(Resume(latest=True), **STEPS)
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-3"]
    assert contents(tmp_path / "run" / "checkpoint-3") == before
    # In a folder of its own there is no checkpoint for --resume to find.
    start, branch = Resume(checkpoint=tmp_path / "run" / "checkpoint-3"), str(tmp_path / "branch")
    cut(1)
    with pytest.raises(Interrupted, match="stopped at step 3; go on with the same command"):
        run(start, **STEPS, output_dir=branch)
    monkeypatch.undo()
    for folder, _ in (run(start, **STEPS, output_dir=branch), run(Resume(latest=True), **STEPS)):
        assert evaluated(folder) == [3, 6, 8]
        assert told(folder) == told(whole)
        assert adapter(folder) == adapter(whole)


def test_a_run_stopped_in_its_last_evaluation_goes_on_without_evaluations_and_trains_no_further(
    run: Run, cut: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(3)
    with pytest.raises(Interrupted, match="stopped at step 8"):
        run(**STEPS)
    monkeypatch.undo()
    folder, _ = run(Resume(latest=True), **{**STEPS, "eval_strategy": "no"})
    assert max(line[0] for line in told(folder)) == 8
    assert evaluated(folder) == [3, 6]
