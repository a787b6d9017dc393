"""Where a run stands, in a file that others can read while it trains."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import psutil

from rectune.errors import RectuneError, ResourceError
from rectune.files import write_json

FILE_NAME = "status.json"


def clock(seconds: float) -> str:
    """A duration as hours, minutes and seconds, with days where there are some.

    >>> clock(3725.4), clock(180000)
    ('1:02:05', '2d 2:00:00')
    """
    days, rest = divmod(round(seconds), 86400)
    text = f"{rest // 3600}:{rest % 3600 // 60:02d}:{rest % 60:02d}"
    return f"{days}d {text}" if days else text


class RunRecord:
    """Keeps `logs/status.json`: state, process, step, time left.

    The state is training, finished, stopped or failed. A run that was killed leaves `training` behind; that its
    process is gone tells.

    Args:
        folder: the run's `logs/`.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / FILE_NAME
        self.step = 0
        self.last = 0
        self.left: float | None = None
        me = psutil.Process()
        self.process = {"host": socket.gethostname(), "pid": os.getpid(), "process_started": me.create_time()}
        self.begun = time.time()
        self.written: float | None = None
        self.longest_wait = 0.0

    def __enter__(self) -> RunRecord:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None or self.written is None:
            return  # a run that was refused leaves the record of the one that holds the folder
        with suppress(ResourceError):  # on a full disk, the error that says so is the one to be told
            if isinstance(error, RectuneError) and error.exit_code == 130:
                self.end("stopped", str(error))
            elif isinstance(error, KeyboardInterrupt):
                self.end("stopped", "interrupted before a checkpoint could be saved")
            else:
                name = "" if isinstance(error, RectuneError) else f"{type(error).__name__}: "
                self.end("failed", f"{name}{error}".strip().partition("\n")[0])

    def _write(self, state: str, message: str | None) -> None:
        now = time.time()
        if self.written is not None:
            self.longest_wait = max(self.longest_wait, now - self.written)
        values = {
            "state": state, "message": message, "step": self.step, "max_steps": self.last,
            "seconds_left": None if self.left is None else round(self.left, 1),
            "begun": round(self.begun, 3), "updated": round(now, 3), "longest_wait": round(self.longest_wait, 3),
            **self.process,
        }  # fmt: skip
        write_json(self.file, values)
        self.written = now

    def progress(self, step: int, last: int, left: float | None) -> None:
        """Say how far the run is.

        Args:
            step: optimiser steps done.
            last: the last one.
            left: seconds until then, where known.
        """
        self.step, self.last, self.left = step, last, left
        self._write("training", None)

    def end(self, state: str, message: str | None = None) -> None:
        """Say how the run ended: finished, stopped or failed."""
        self.left = None
        self._write(state, message)
