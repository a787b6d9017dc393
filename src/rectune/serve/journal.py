"""What a service writes down: JSON lines without user data: no titles, ids, keys, addresses or messages of errors."""

from __future__ import annotations

import json
import logging
import queue
import sys
import threading
import traceback
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

_HELD = 10_000
"""Lines that wait to be written; more are counted and dropped."""
_LAST_SECONDS = 5.0
"""In which the last lines must be written."""


class Journal:
    """Writes JSON lines, in a thread of its own: a log that nobody takes any more must not hold up a request.

    Args:
        stream: standard error as a rule.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._lines: queue.Queue[str | None] = queue.Queue(_HELD)
        self._dropped = 0
        self._thread = threading.Thread(target=self._write, name="journal", daemon=True)
        self._thread.start()

    def write(self, event: str, **told: Any) -> None:
        """One line: its time, what happened, and more about it."""
        if self._dropped:
            told["dropped_lines"] = self._dropped
        line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **told})
        try:
            self._lines.put_nowait(line)
            self._dropped = 0
        except queue.Full:
            self._dropped += 1

    def close(self) -> None:
        """Write what waits, as far as somebody takes it."""
        with suppress(queue.Full):
            self._lines.put(None, timeout=_LAST_SECONDS)
            self._thread.join(_LAST_SECONDS)

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            with suppress(OSError, ValueError):  # nobody reads it any more, and that is no reason to stop
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
