"""One trial of a sweep: a training in a fresh process, as `rectune train` would run it, so that only it can crash."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal

from rectune.config import Config
from rectune.errors import RectuneError, ResourceError
from rectune.files import disk_problem, write_json

RESULT = "result.json"
OUTPUT = "output.txt"
_DISK_FULL = 75
"""Exit code of a trial that met a full disk: no fault of its parameters, and nothing could be written about it."""
_POLL = 0.3
START = "spawn"
"""How a trial's process comes to be: a fresh interpreter, since a forked one could not use a GPU."""

Outcome = Literal["complete", "pruned", "refused", "failed"]


@dataclass(frozen=True)
class Result:
    """How a trial ended.

    Attributes:
        outcome: `complete`; `pruned`, given up as worse than others; `refused`, its settings cannot run here; `failed`,
            it crashed.
        value: the metric of the adapter that the run has kept as its best; None where there is none.
        step: the optimiser step of that adapter.
        reason: why it is not complete.
        loss_shift: what class weights in its loss have added to the log-odds of its predictions' file.
    """

    outcome: Outcome
    value: float | None = None
    step: int | None = None
    reason: str = ""
    loss_shift: float = 0.0


def _end_with(parent: object) -> None:
    """End this process when the one that started it is gone: its successor goes on from the last checkpoint."""

    def watch() -> None:
        parent.join()  # type: ignore[attr-defined]
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _train(config: Config, metric: str, channel: Connection) -> Result:
    """Train, going on from a checkpoint where there is one, and read off what came of it."""
    from rich.console import Console

    from rectune.cli_options import say
    from rectune.model.lora import ADAPTER_FILE
    from rectune.score.settings import load_settings
    from rectune.train.checkpoints import checkpoint_folders
    from rectune.train.pruning import Pruning
    from rectune.train.start import BEST, HISTORY, Resume
    from rectune.train.train import train

    pruning = Pruning(metric, channel)
    if not checkpoint_folders(config.output_dir):
        # Given up before its first checkpoint and killed before it could say so: it begins again.
        (config.output_dir / ADAPTER_FILE).unlink(missing_ok=True)
    run = train(config, say, Console(width=110), Resume(latest=True), watchers=[pruning])
    step = json.loads((run / BEST / "step.json").read_text(encoding="utf-8"))["step"]
    history = json.loads((run / HISTORY).read_text(encoding="utf-8"))
    values = [log[f"eval_{metric}"] for log in history if log["step"] == step and f"eval_{metric}" in log]
    if not values:
        return Result("refused", reason=f"{metric} has no value on these validation events")
    outcome: Outcome = "pruned" if pruning.reason else "complete"
    return Result(outcome, float(values[-1]), int(step), pruning.reason, load_settings(run).loss_shift)


def run_trial(config: Config, metric: str, channel: Connection) -> None:
    """What the trial's process does: train in `output_dir`, and leave `result.json` there unless it was stopped."""
    from rectune.quiet import quiet_libraries

    os.setsid()  # Ctrl-C in the terminal is for the sweep, which then asks the trial to save and stop
    _end_with(multiprocessing.parent_process())
    run = config.output_dir
    with (run / OUTPUT).open("a", encoding="utf-8") as output:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(output.fileno(), stream.fileno())
    quiet_libraries()
    try:
        result = _train(config, metric, channel)
    except RectuneError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        if error.exit_code == 130:
            sys.exit(error.exit_code)
        if error.__cause__ is not None and disk_problem(error.__cause__):
            sys.exit(_DISK_FULL)
        result = Result("refused", reason=" ".join(str(error).split()))
    except Exception as error:
        traceback.print_exc()
        if disk_problem(error):
            sys.exit(_DISK_FULL)
        result = Result("failed", reason=f"{type(error).__name__}: {' '.join(str(error).split())}"[:500])
    write_json(run / RESULT, asdict(result))


def read_result(run: Path) -> Result | None:
    """The result that a trial has left, or None."""
    if not (run / RESULT).is_file():
        return None
    return Result(**json.loads((run / RESULT).read_text(encoding="utf-8")))


def _crash(run: Path, code: int) -> Result:
    """A trial that ended without a word of its own."""
    if code == -signal.SIGKILL:
        reason = "killed from outside (SIGKILL), most likely because the machine ran out of memory"
        return Result("failed", reason=reason)
    what = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return Result("failed", reason=f"crashed with {what}; {run / OUTPUT} holds its last words")


def run_in_process(
    config: Config,
    metric: str,
    evaluated: Callable[[int, int, int, float], str],
    moved: Callable[[int, int], None],
    stopping: Callable[[], bool],
) -> Result | None:
    """Run one trial in a process of its own and wait for it.

    Args:
        config: the trial's; its `output_dir` is the trial's folder.
        metric: what it reports.
        evaluated: called with step, steps in all, number of the evaluation and value; gives a reason to stop, or "".
        moved: called with step and steps in all, now and then.
        stopping: whether the sweep is to end; the trial is then asked to save a checkpoint and stop.

    Returns:
        Its result; None where it was stopped before its end.

    Raises:
        ResourceError: it met a full disk.
    """
    run = config.output_dir
    run.mkdir(parents=True, exist_ok=True)
    context: Any = multiprocessing.get_context(START)
    here, there = context.Pipe()
    process = context.Process(target=run_trial, args=(config, metric, there))
    process.start()
    there.close()
    asked = False
    try:
        while True:
            ready = wait([here, process.sentinel], timeout=_POLL)
            if stopping() and not asked:
                process.terminate()
                asked = True
            if here in ready:
                try:
                    message = here.recv()
                except (EOFError, OSError):
                    break
                if len(message) == 2:
                    moved(*message)
                else:
                    here.send(evaluated(*message))
            elif process.sentinel in ready:
                break
    except BaseException:
        process.kill()
        raise
    finally:
        process.join()
        here.close()
    result = read_result(run)
    if result is not None:
        return result
    code = process.exitcode or 0
    if code == _DISK_FULL:
        raise ResourceError(f"{run}: the disk is full; free some space, then run the same command again: it goes on")
    return None if asked else _crash(run, code)
