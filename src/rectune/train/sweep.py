"""`rectune sweep`: many short trainings, each with other settings, and which of them to believe."""

from __future__ import annotations

import time
from collections.abc import Callable
from shlex import quote
from typing import Any

from rich.console import Console

from rectune.config import Config
from rectune.config_classify import only_two_classes
from rectune.errors import ConfigError, RectuneError
from rectune.lock import run_lock
from rectune.prompt.dataset import open_dataset
from rectune.terminal import outlive_terminal
from rectune.train.signals import Signals
from rectune.train.start import empty
from rectune.train.sweep_plots import write_plots
from rectune.train.sweep_result import summary, tidy, trial_config, trial_folder, verdict_lines, write_files
from rectune.train.sweep_study import Row, SweepStudy, best_row, described, import_optuna
from rectune.train.sweep_trial import Result, read_result, run_in_process
from rectune.train.sweep_view import SweepView, trials_table

FOLDER = "sweep"
_GIVE_UP = 3
"""Trials that fail one after the other, with none before them that ran, before the sweep itself is at fault."""

Say = Callable[[str], None]


class SweepInterrupted(RectuneError):  # noqa: N818
    """A sweep was stopped by a signal; its running trial has saved a checkpoint."""

    exit_code = 130


def _twin(study: SweepStudy, values: dict[str, Any]) -> Result | None:
    """The result of an earlier trial with the same settings, which would come out again."""
    for row in study.finished():
        if row.values == values and row.outcome in ("complete", "refused"):
            return Result(
                "complete" if row.value is not None else "refused", row.value, row.step, f"as trial {row.number}"
            )
    return None


def _run(
    study: SweepStudy, trial: Any, view: SweepView, begun: float, before: float, stopping: Callable[[], bool]
) -> Result | None:
    """One trial, from its settings to its result; None where it was stopped before its end."""
    run = trial_folder(study.folder, trial.number)
    left = read_result(run) if run.is_dir() else None
    if left is not None:  # its process had ended, but the sweep was killed before it wrote that down
        return left
    values = study.row(trial).values
    twin = _twin(study, values)
    if twin is not None:
        return twin
    try:
        config = trial_config(study.config, values, run)
    except ConfigError as error:
        return Result("refused", reason=" ".join(str(error).split()))

    def evaluated(step: int, total: int, number: int, value: float) -> str:
        study.report(trial, number, value, before + time.monotonic() - begun)
        view.evaluated(study.rows(), study.row(trial), step, total, value)
        return study.reason_to_prune(trial) if step < total else ""

    return run_in_process(config, study.metric, evaluated, view.moved, stopping)


def _check_going(rows: list[Row]) -> None:
    """Stop a sweep in which nothing works.

    Raises:
        ConfigError: its first trials have all failed.
    """
    ended = [row for row in rows if row.outcome != "running"]
    if len(ended) >= _GIVE_UP and all(row.outcome in ("failed", "refused") for row in ended):
        raise ConfigError(
            f"sweep: all of the first {len(ended)} trials have failed, the last one because: {ended[-1].reason}; mend "
            "this and start over with --overwrite"
        )


def _trials(study: SweepStudy, trials: int, view: SweepView, stopping: Callable[[], bool]) -> None:
    """Run trials until there are enough, or until it is time to stop."""
    while len(study.finished()) < trials and not stopping():
        trial = study.next_trial()
        begun, row = time.monotonic(), study.row(trial)
        view.begun(study.rows(), row, trial_folder(study.folder, row.number).is_dir())
        result = _run(study, trial, view, begun, row.seconds, stopping)
        seconds = row.seconds + time.monotonic() - begun
        if result is None:
            trial.set_user_attr("seconds", seconds)
            return
        ended = study.finish(trial, result, seconds)
        rows = study.rows()
        tidy(study.folder, rows, best_row(rows, study.metric))
        view.ended(rows, ended)
        _check_going(rows)


def sweep(
    config: Config,
    trials: int,
    metric: str,
    timeout: float | None,
    overwrite: bool,
    say: Say,
    console: Console,
) -> dict[str, Any]:
    """Try settings until there are `trials` trials in all, and say which are the best and how sure that is.

    Everything lies in `output_dir/sweep`: `study.db`, `trials/NNN` (a run folder each; only the best keeps its
    weights), `study.json`, `trials.csv`, `plots.html`, `best.yaml`. A sweep that lies there goes on, and a trial that
    was cut off goes on from its checkpoint.

    Args:
        config: all keys; `sweep` has the space.
        trials: how many there shall be in the end, those of earlier calls among them.
        metric: what makes a trial the best: that of its kept adapter on the validation events.
        timeout: seconds after which the running trial saves a checkpoint and the call ends.
        overwrite: remove an earlier sweep in `output_dir`.
        say: prints one line.
        console: shows progress and the table.

    Returns:
        What `study.json` holds.

    Raises:
        ConfigError: nothing to sweep, another sweep lies there, or no trial works.
        SweepInterrupted: a signal came.
    """
    only_two_classes(config, "sweep")
    import_optuna()
    if config.eval_strategy == "no":
        raise ConfigError("eval_strategy: got 'no', but trials are compared by evaluation; use steps or epoch")
    folder = config.output_dir / FOLDER
    until = None if timeout is None else time.monotonic() + timeout
    with Signals() as signals, run_lock(folder), outlive_terminal():
        if overwrite:
            empty(folder)
        data = open_dataset(config, say)
        study = SweepStudy(folder, config, metric, data.content_hash)
        there = len(study.finished())
        say(f"sweep: {trials} trials for {metric} on validation, {there} of them done, in {folder}")
        say(f"space: {described(study.space)}")

        def stopping() -> bool:
            return signals.received is not None or (until is not None and time.monotonic() >= until)

        try:
            with SweepView(console, say, list(study.space), metric, trials) as view:
                _trials(study, trials, view, stopping)
        finally:
            found = summary(study)
            write_files(study, found)
        return _told(study, found, trials, signals.received is not None, say, console)


def _told(
    study: SweepStudy, found: dict[str, Any], trials: int, interrupted: bool, say: Say, console: Console
) -> dict[str, Any]:
    """Print the table and the words, draw the pictures.

    Raises:
        SweepInterrupted: a signal had ended the sweep.
    """
    rows, done = study.rows(), len(study.finished())
    best = best_row(rows, study.metric)
    sign = 1 if found["direction"] == "minimize" else -1
    order = {"complete": 0, "pruned": 1, "running": 2, "refused": 3, "failed": 4}
    rows.sort(key=lambda row: (order[row.outcome], sign * (row.value if row.value is not None else 0), row.number))
    console.print()
    console.print(trials_table(rows, list(study.space), study.metric, None if best is None else best.number))
    for row in rows:
        if row.outcome in ("refused", "failed"):
            say(f"trial {row.number} {row.outcome}: {row.reason}")
    lines = verdict_lines(found)
    for line in lines:
        say(line)
    plots = write_plots(study, lines, bool(found["importances"]))
    say(f"files: {study.folder}{f', pictures in {plots.name}' if plots else ''}")
    if best is not None:
        say(f"train the best settings: rectune train {quote(str(study.folder / 'best.yaml'))}")
    if done < trials:
        left = f"{done} of {trials} trials are done; the same command goes on"
        if interrupted:
            raise SweepInterrupted(left)
        say(f"time is up: {left}")
    return found
