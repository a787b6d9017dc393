"""How far a long piece of work is: a bar in a terminal, a line now and then without one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_EVERY = 15.0
"""Seconds between two lines."""

Say = Callable[[str], None]
Advance = Callable[[int], None]


@contextmanager
def progress(what: str, total: int | None, unit: str, say: Say, done: int = 0) -> Iterator[Advance]:
    """Show work go on.

    Args:
        what: the work, in words.
        total: how much there is to do; None where that is not known.
        unit: what it is counted in, in the plural.
        say: prints one line.
        done: what was done before.

    Yields:
        what is to be called with how much has been done since the last call.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    said = time.monotonic()
    with Progress(*columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total, completed=done)

        def advance(more: int) -> None:
            nonlocal done, said
            done += more
            bar.update(task, completed=done)
            if not console.is_terminal and time.monotonic() - said > _EVERY:
                said = time.monotonic()
                say(f"{what}: {done:,}{'' if total is None else f' of {total:,}'} {unit}")

        yield advance
