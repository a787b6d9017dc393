"""What a run tells while it trains: lines or a bar, JSONL, CSV, TensorBoard."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback

from rectune.files import append_line, write_text

_SHOWN = ("loss", "auc", "uauc", "accuracy", "precision", "recall", "f1", "predicted_positive_rate")


def _entries(log: dict[str, Any]) -> list[tuple[str, float]]:
    return [(name, value) for name, value in log.items() if name not in ("step", "epoch")]


def _csv_lines(log: dict[str, Any]) -> str:
    """A log as CSV rows of step, epoch, name, value."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    for name, value in _entries(log):
        writer.writerow([log.get("step"), log.get("epoch"), name, value])
    return stream.getvalue()


class RunLog(TrainerCallback):
    """Keeps `logs/log.jsonl` and `logs/log.csv` (long format), and talks to the terminal.

    Both files are made anew from the Trainer's history when a run starts or resumes, so that a resumed run's log
    has each step once.

    Args:
        folder: the run's `logs/`.
        console: where to talk; without a terminal, plain lines take the place of the bar.
        labels_per_step: answers trained by one optimiser step, for the speed.
        keep: keeps a line in `logs/console.log`.
    """

    def __init__(self, folder: Path, console: Console, labels_per_step: float, keep: Callable[[str], None]) -> None:
        self.folder = folder
        self.console = console
        self.labels_per_step = labels_per_step
        self.keep = keep
        self.bar: Progress | None = None
        self.task: Any = None
        self.started = (0.0, 0)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Rewrite the files from the history and start the bar."""
        lines = [json.dumps(log) for log in state.log_history]
        write_text(self.folder / "log.jsonl", "".join(line + "\n" for line in lines))
        table = "step,epoch,name,value\n" + "".join(_csv_lines(log) for log in state.log_history)
        write_text(self.folder / "log.csv", table)
        self.started = (time.perf_counter(), state.global_step)
        if self.console.is_terminal:
            self.bar = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self.console,
            )
            self.task = self.bar.add_task("training", total=state.max_steps, completed=state.global_step, note="")
            self.bar.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Move the bar."""
        if self.bar is not None:
            self.bar.update(self.task, completed=state.global_step)

    def _speed(self, step: int) -> tuple[float, float]:
        """Seconds and steps since the start."""
        begun, first = self.started
        return time.perf_counter() - begun, max(step - first, 1)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Append to the files and say one line."""
        if not state.log_history:
            return
        log = state.log_history[-1]
        append_line(self.folder / "log.jsonl", json.dumps(log))
        append_line(self.folder / "log.csv", _csv_lines(log).rstrip("\n"))
        step, total = state.global_step, state.max_steps
        seconds, done = self._speed(step)
        left = time.strftime("%H:%M:%S", time.gmtime(seconds / done * (total - step)))
        if "eval_loss" in log:
            shown = [f"{name} {log[f'eval_{name}']:.3f}" for name in _SHOWN if f"eval_{name}" in log]
            line = f"step {step}/{total}  validation: {'  '.join(shown)}"
            self.keep(line)
            self.console.print(line, highlight=False)
        elif "loss" in log:
            rate = self.labels_per_step * done / seconds
            note = f"loss {log['loss']:.4f}  lr {log['learning_rate']:.2e}"
            note += f"  grad {log['grad_norm']:.2f}" if "grad_norm" in log else ""
            note += f"  {rate:.2f} labels/s"
            line = f"step {step}/{total}  {note}  {left} left"
            self.keep(line)
            if self.bar is not None:
                self.bar.update(self.task, note=note)
            else:
                self.console.print(line, highlight=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop the bar."""
        self.close()

    def close(self) -> None:
        """Give the terminal back, however the run ended."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def tensorboard_callback(folder: Path, purge_from: int | None) -> Any:
    """Transformers' TensorBoard callback, writing into the run's `logs/`.

    Args:
        folder: the run's `logs/`.
        purge_from: when resuming, the first step that will be written again.
    """
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    return TensorBoardCallback(SummaryWriter(log_dir=str(folder), purge_step=purge_from))
