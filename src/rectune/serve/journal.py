"""What a service writes down: JSON lines without user data: no titles, ids, keys, addresses or messages of errors."""

from __future__ import annotations

import json
import logging
import sys
import threading
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO


class Journal:
    """Writes JSON lines.

    Args:
        stream: standard error as a rule.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._lock = threading.Lock()

    def write(self, event: str, **told: Any) -> None:
        """One line: its time, what happened, and more about it."""
        line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **told})
        with self._lock:
            print(line, file=self._stream, flush=True)

    def failed(self, where: str, error: BaseException, **told: Any) -> None:
        """A failure nobody foresaw: its kind and place. Its message may hold a request's text, and stays out."""
        self.write("failure", where=where, kind=type(error).__name__, at=places(error), **told)


def places(error: BaseException) -> list[str]:
    """Where an error came from, innermost last: `file.py:line`, at most 8."""
    frames = traceback.extract_tb(error.__traceback__)[-8:]
    return [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames]


class JournalHandler(logging.Handler):
    """Puts what libraries log into the journal, their errors without messages."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(logging.WARNING)
        self._journal = journal

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record down; of an exception its kind and place."""
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            self._journal.failed(record.name, error)
        else:
            # The line as its library wrote it in its code, before anything of a request was put into it.
            self._journal.write("library", source=record.name, level=record.levelname, line=str(record.msg)[:200])
