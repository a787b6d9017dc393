"""What a run says, kept beside what it has learned: the terminal may be gone in the morning."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rectune.errors import RectuneError

FILE = Path("logs") / "console.log"


class Transcript:
    """Says lines, and keeps each with its time in `logs/console.log`, which a resumed run goes on with.

    Until the run folder may be written to, lines are held back: a run that is refused leaves it as it was.

    Args:
        say: prints one line.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._held: list[str] = []
        self._file: Path | None = None

    def open(self, run: Path) -> None:
        """Begin to write, with the lines held back so far."""
        self._file = run / FILE
        held, self._held = self._held, []
        self._write(f"---- process {os.getpid()} ----", *held)

    def note(self, text: str) -> None:
        """Keep a line without printing it."""
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}"
        if self._file is None:
            self._held.append(line)
        else:
            self._write(line)

    def say(self, text: str) -> None:
        """Print a line and keep it."""
        self.note(text)
        self._say(text)

    @contextmanager
    def last_words(self) -> Iterator[None]:
        """Keep what ends a run, too: the one line of a known error, the traceback of an unknown one."""
        try:
            yield
        except RectuneError as error:
            self.note(f"{'stopped' if error.exit_code == 130 else 'error'}: {error}")
            raise
        except BaseException:
            self.note(traceback.format_exc().rstrip())
            raise

    def _write(self, *lines: str) -> None:
        assert self._file is not None
        with suppress(OSError):  # a disk too full for this line is told by what cannot be saved
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8") as stream:
                stream.write("".join(line + "\n" for line in lines))
