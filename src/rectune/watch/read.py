"""What a run's folder tells about it, read from files alone: no model, no torch."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import psutil

from rectune.config import Config, load_config
from rectune.errors import ConfigError, DataError
from rectune.lock import NAME as LOCK
from rectune.train.best import best_evaluation
from rectune.train.record import FILE_NAME as STATUS
from rectune.train.record import clock

STUDY = "study.db"
"""What a sweep keeps in its folder; named here too, since reading a run must not import what sweeps need."""
_LINES = 6
_SILENT = 10.0
"""A run is silent when its last line is this many times as old as the longest wait so far."""
_PATIENCE = 120.0
"""And at least this old, in seconds."""

Log = dict[str, Any]


@dataclass(frozen=True)
class RunView:
    """A run as its files show it.

    Attributes:
        folder: the run folder.
        state: preparing, training, silent, finished, stopped, failed or killed.
        message: what that means here, in a sentence, or nothing.
        step, last_step: optimiser steps done and planned; 0 where unknown.
        seconds_left: until the last step, where known.
        logs: the lines of `log.jsonl`.
        panel: the lines of `panel.jsonl`.
        diagnosis: what `diagnosis.json` holds.
        lines: the last ones of `console.log`.
        metric: what decides which adapter is the best.
    """

    folder: Path
    state: str
    message: str
    step: int
    last_step: int
    seconds_left: float | None
    logs: list[Log]
    panel: list[Log]
    diagnosis: list[Log]
    lines: list[str]
    metric: str

    @property
    def alive(self) -> bool:
        """Whether more may come."""
        return self.state in ("preparing", "training", "silent")

    def latest(self, key: str) -> float | None:
        """The last value that was logged under a key."""
        for log in reversed(self.logs):
            value = log.get(key)
            if isinstance(value, int | float):
                return float(value)
        return None

    def curve(self, key: str) -> tuple[list[float], list[float]]:
        """Steps and values of a key that are numbers, in order; of a step logged twice the last."""
        points = {
            float(log["step"]): float(log[key])
            for log in self.logs
            if isinstance(log.get(key), int | float) and abs(float(log[key])) < float("inf") and "step" in log
        }
        return sorted(points), [points[step] for step in sorted(points)]

    def as_json(self) -> dict[str, Any]:
        """What programs want to know."""
        training = next((log for log in reversed(self.logs) if "loss" in log), None)
        evaluation = next((log for log in reversed(self.logs) if "eval_loss" in log), None)
        best = best_evaluation(self.logs, self.metric)
        shown = [line for line in self.panel if line.get("step") == self.panel[-1].get("step")] if self.panel else []
        return {
            "run": str(self.folder), "state": self.state, "message": self.message, "step": self.step,
            "max_steps": self.last_step, "seconds_left": self.seconds_left, "training": training,
            "evaluation": evaluation,
            "best": None if best is None else {"metric": self.metric, "step": best[0], "value": best[1]},
            "panel": shown, "diagnosis": self.diagnosis,
        }  # fmt: skip


def _lines_of(file: Path) -> list[Log]:
    """The objects of a JSONL file; a line that is cut off, since it is just being written, is left out."""
    found = []
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def _json_of(file: Path) -> Any:
    """The content of a JSON file, or None where there is none or it is damaged."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _tail(file: Path) -> list[str]:
    """The last lines of a text file."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()[-_LINES:]
    except FileNotFoundError:
        return []


def process_lives(pid: int, started: float) -> bool:
    """Whether this very process of this machine is alive: same number and same moment of its start."""
    try:
        process = psutil.Process(pid)
        return bool(abs(process.create_time() - started) < 1.0 and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def standing(status: Mapping[str, Any], folder: Path, now: float, host: str) -> tuple[str, str]:
    """State and message of a run that has left a status.

    Args:
        status: what `status.json` holds.
        folder: the run folder, for the command that goes on.
        now: seconds since 1970.
        host: name of this machine.
    """
    state, message = str(status.get("state")), str(status.get("message") or "")
    resume = f"go on with: rectune train {quote(str(folder))} --resume"
    if state == "finished":
        return state, message
    if state in ("stopped", "failed"):
        return state, f"{message}; {resume}" if message else resume
    if not all(isinstance(status.get(key), int | float) for key in ("updated", "pid", "process_started")):
        return "silent", f"its {STATUS} does not say when or by which process it was written; if it is gone, {resume}"
    age = now - float(status["updated"])
    same = status.get("host") == host
    if same and not process_lives(int(status["pid"]), float(status["process_started"])):
        return "killed", f"its process {status['pid']} is gone; {resume}"
    wait = max(_SILENT * float(status.get("longest_wait") or 0.0), _PATIENCE)
    if age <= wait:
        return "training", ""
    where = f"process {status['pid']} on {status.get('host')}"
    known = f"{where} is there" if same else f"{where} cannot be seen from here; if it is gone, {resume}"
    return "silent", f"no line for {clock(age)}, where the longest wait was {clock(wait / _SILENT)}; {known}"


def _preparing(folder: Path, status: Mapping[str, Any] | None) -> bool:
    """Whether a process holds the folder that has not begun to train: the lock names it, the status does not."""
    try:
        pid = int((folder / LOCK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return psutil.pid_exists(pid) and (status is None or status.get("pid") != pid)


def _config_of(folder: Path) -> Config | None:
    """The run's configuration; None where it cannot be read, as one of another version."""
    try:
        return load_config(folder)
    except ConfigError:
        return None


def read_run(folder: Path) -> RunView:
    """A run by its folder.

    Raises:
        DataError: there is no run.
    """
    logs = folder / "logs"
    if (folder / STUDY).is_file():
        trials = sorted(each for each in (folder / "trials").glob("*") if each.is_dir())
        latest = f", such as {trials[-1]}" if trials else ""
        raise DataError(f"{folder}: a sweep, not a run; watch its trials, {folder / 'trials'}/NNN{latest}")
    found = _json_of(logs / STATUS)
    status = found if isinstance(found, dict) else None
    if status is None and not (logs / "log.jsonl").is_file() and not _preparing(folder, None):
        raise DataError(
            f"{folder}: no run here (no {logs / STATUS} and no {logs / 'log.jsonl'}); give the output_dir of a training"
        )
    entries = _lines_of(logs / "log.jsonl")
    step = max((int(log["step"]) for log in entries if "step" in log), default=0)
    last, left = 0, None
    if _preparing(folder, status):
        state, message = "preparing", "reading data and model"
    elif status is not None:
        state, message = standing(status, folder, time.time(), socket.gethostname())
        step, last = int(status.get("step") or step), int(status.get("max_steps") or 0)
        left = status.get("seconds_left") if state in ("training", "silent") else None
        if left is not None and isinstance(status.get("updated"), int | float):
            left = max(float(left) - (time.time() - float(status["updated"])), 0.0)
    elif (folder / "log_history.json").is_file():
        state, message, last = "finished", "", step
    else:
        state, message = (
            "silent",
            f"it left no {STATUS}; if it is gone, go on with: rectune train {quote(str(folder))} --resume",
        )
    config = _config_of(folder)
    diagnosis = _json_of(logs / "diagnosis.json")
    return RunView(
        folder, state, message, step, last, left, entries, _lines_of(logs / "panel.jsonl"),
        [entry for entry in diagnosis if isinstance(entry, dict)] if isinstance(diagnosis, list) else [],
        _tail(logs / "console.log"), config.metric_for_best_model if config is not None else "loss",
    )  # fmt: skip
