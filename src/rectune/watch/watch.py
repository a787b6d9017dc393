"""The stage that looks at runs while they train, and at finished ones."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console, RenderableType
from rich.live import Live

from rectune.watch.read import RunView, read_run
from rectune.watch.show import show_one, show_several

_EVERY = 2.0
_PLOT = 12
_LOWEST = 7


def view(runs: Sequence[RunView], width: int, height: int | None) -> RenderableType:
    """One run or several.

    Args:
        runs: what their files tell.
        width: of the terminal.
        height: of the terminal, which the view then fits into as far as it can; None for as much as there is.
    """
    plot = _PLOT
    rows = 2 if width >= 76 else 4
    if height is not None:
        plot = max(min((height - 8) // rows, _PLOT), _LOWEST)
    if len(runs) > 1:
        return show_several(runs, width, plot)
    used = rows * plot + 8 + len(runs[0].diagnosis)
    panel = len({line.get("row") for line in runs[0].panel}) + 1 + len(runs[0].lines)
    return show_one(runs[0], width, plot, height is None or used + panel <= height)


def watch(folders: Sequence[Path], once: bool, as_json: bool, say: Callable[[str], None], console: Console) -> None:
    """Show runs, again and again until none of them is alive; once without a terminal.

    Args:
        folders: the run folders.
        once: print and return.
        as_json: print JSON, a list with an object for each run, and return.
        say: prints JSON.
        console: shows all else.

    Raises:
        DataError: one of them holds no run.
    """
    runs = [read_run(folder) for folder in folders]
    if as_json:
        say(json.dumps([run.as_json() for run in runs], indent=2, ensure_ascii=False))
        return
    if not once and console.is_terminal and any(run.alive for run in runs):
        try:
            with Live(console=console, screen=True, auto_refresh=False) as live:
                while any(run.alive for run in runs):
                    live.update(view(runs, console.width, console.height), refresh=True)
                    time.sleep(_EVERY)
                    runs = [read_run(folder) for folder in folders]
        except KeyboardInterrupt:
            runs = [read_run(folder) for folder in folders]  # and leave what was seen last in the terminal
    console.print(view(runs, console.width, None), highlight=False)
