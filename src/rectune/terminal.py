"""Outliving the terminal: a closed SSH session, or a pipe that nobody reads any more, does not end a run."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, TextIO, cast

_GONE = (errno.EIO, errno.EPIPE, errno.ENXIO)


@dataclass
class Terminal:
    """What is known about it: how it went, in words, or None while it is there."""

    gone: str | None = None


class _Outliving:
    """A text stream that writes into nothing once its terminal or its reader is gone."""

    def __init__(self, stream: TextIO, terminal: Terminal) -> None:
        self.stream = stream
        self.terminal = terminal

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except OSError as error:
            self._let_go(error)
            return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError as error:
            self._let_go(error)

    def _let_go(self, error: OSError) -> None:
        if error.errno not in _GONE:
            raise error
        self.terminal.gone = self.terminal.gone or f"nothing takes its output any more: {error.strerror}"
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())  # also for libraries that write past Python, and at exit
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def outlive_terminal() -> Iterator[Terminal]:
    """Let nothing inside end because the terminal goes: neither SIGHUP nor a line that cannot be printed.

    An ignored SIGHUP (nohup) stays ignored. Inside another such block this one changes nothing.
    """
    if isinstance(sys.stdout, _Outliving):
        yield sys.stdout.terminal
        return
    terminal = Terminal()

    def hang_up(_number: int, _frame: FrameType | None) -> None:
        terminal.gone = "SIGHUP"

    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGHUP, hang_up)
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, _Outliving(stream, terminal)) for stream in streams)
    try:
        yield terminal
    finally:
        sys.stdout, sys.stderr = streams
        if ours:
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
