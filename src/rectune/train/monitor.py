"""What a run tells while it trains: lines or a bar, JSONL, CSV, and where it stands."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from transformers import TrainerCallback

from rectune.files import append_line, write_text
from rectune.train.record import RunRecord, clock
from rectune.train.speed import Meter

_SHOWN = (
    "loss", "auc", "uauc", "accuracy", "precision", "recall", "f1", "predicted_positive_rate", "positive_rate",
    "macro_f1", "balanced_accuracy",
)  # fmt: skip


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
        meter: knows how long the rest takes.
        record: told at every line where the run stands, for `rectune watch`.
        keep: keeps a line in `logs/console.log`.
    """

    def __init__(
        self, folder: Path, console: Console, meter: Meter, record: RunRecord, keep: Callable[[str], None]
    ) -> None:
        self.folder = folder
        self.console = console
        self.meter = meter
        self.record = record
        self.keep = keep
        self.bar: Progress | None = None
        self.task: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Rewrite the files from the history and start the bar."""
        lines = [json.dumps(log) for log in state.log_history]
        write_text(self.folder / "log.jsonl", "".join(line + "\n" for line in lines))
        table = "step,epoch,name,value\n" + "".join(_csv_lines(log) for log in state.log_history)
        write_text(self.folder / "log.csv", table)
        self.record.progress(state.global_step, state.max_steps, None)
        if self.console.is_terminal:
            self.bar = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}"),
                console=self.console,
            )
            self.task = self.bar.add_task(
                "training", total=state.max_steps, completed=state.global_step, note="", left=""
            )
            self.bar.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Move the bar."""
        if self.bar is not None:
            left = self.meter.seconds_left(args, state.global_step, state.max_steps)
            self.bar.update(self.task, completed=state.global_step, left=f"{clock(left)} left" if left else "")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Append to the files and say one line."""
        if not state.log_history:
            return
        log = state.log_history[-1]
        append_line(self.folder / "log.jsonl", json.dumps(log))
        append_line(self.folder / "log.csv", _csv_lines(log).rstrip("\n"))
        step, total = state.global_step, state.max_steps
        left = self.meter.seconds_left(args, step, total)
        self.record.progress(step, total, left)
        if "eval_loss" in log:
            shown = [f"{name} {log[f'eval_{name}']:.3f}" for name in _SHOWN if f"eval_{name}" in log]
            line = f"step {step}/{total}  validation: {'  '.join(shown)}"
            self.keep(line)
            self.console.print(line, highlight=False)
        elif "loss" in log:
            note = f"loss {log['loss']:.4f}  lr {log['learning_rate']:.2e}"
            note += f"  grad {log['grad_norm']:.2f}" if "grad_norm" in log else ""
            note += f"  {log['labels_per_second']:.2f} labels/s" if "labels_per_second" in log else ""
            after = f"  {clock(left)} left" if left is not None else ""
            line = f"step {step}/{total}  {note}{after}"
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
