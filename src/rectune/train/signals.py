"""Ctrl-C and SIGTERM, received in place of being ended by them."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any, Self


class Signals:
    """Receives Ctrl-C and SIGTERM while it is entered; a second one stops at once.

    Args:
        same: seconds for which a second one is taken for the first: a launcher passes on what the terminal has sent
            to all its processes already.

    Attributes:
        received: number of the first signal, None before it.
    """

    def __init__(self, same: float = 0.0) -> None:
        self.received: int | None = None
        self.same = same
        self._first = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # no other thread may set handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None:
            if time.monotonic() - self._first < self.same:
                return
            raise KeyboardInterrupt
        # Only a flag: a line printed here could cut into one that is being printed.
        self.received = number
        self._first = time.monotonic()
        self.react()

    def react(self) -> None:
        """What the first signal does besides being noted; nothing here."""
