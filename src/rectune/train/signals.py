"""Ctrl-C and SIGTERM, received in place of being ended by them."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self


class Signals:
    """Receives Ctrl-C and SIGTERM while it is entered; a second one stops at once.

    Attributes:
        received: number of the first signal, None before it.
    """

    def __init__(self) -> None:
        self.received: int | None = None
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
            raise KeyboardInterrupt
        # Only a flag: a line printed here could cut into one that is being printed.
        self.received = number
        self.react()

    def react(self) -> None:
        """What the first signal does besides being noted; nothing here."""
