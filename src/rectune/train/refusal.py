"""A run that is refused before its first step leaves nothing behind, unless nobody may have seen why."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rectune.errors import RectuneError
from rectune.terminal import Terminal
from rectune.train.record import RunRecord
from rectune.train.start import EXTRA
from rectune.train.transcript import FILE

_WATCHED = 60.0
"""Seconds for which whoever starts a run is taken to look at it."""


def _written(run: Path) -> set[Path]:
    """What a run writes before its first step, as far as it is there."""
    logs = run / "logs"
    return {path for path in (run / "config.yaml", run / EXTRA, logs, *logs.rglob("*")) if path.exists()}


@contextmanager
def no_trace_of_refusal(run: Path, record: RunRecord, terminal: Terminal) -> Iterator[None]:
    """Remove what a run has written that is refused before training begins.

    Where the terminal is gone, or where it took more than a minute, `logs/console.log` stays: it holds the reason.

    Args:
        run: the run folder, which is locked.
        record: tells whether training has begun.
        terminal: whether whoever started the run can still read its lines.
    """
    before, begun = _written(run), time.monotonic()
    try:
        yield
    except RectuneError:
        if record.written is None:
            unseen = terminal.gone is not None or time.monotonic() - begun > _WATCHED
            kept = {run / FILE} if unseen else set()
            for path in sorted(_written(run) - before - kept, reverse=True):  # what lies in a folder before the folder
                with suppress(OSError):  # a folder that is not empty; the refusal is the error to be told
                    path.rmdir() if path.is_dir() else path.unlink()
        raise
