"""A sweep in the terminal: a live table with a bar, or plain lines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from rectune.train.sweep_study import Row, best_row

_LIVE_ROWS = 15
"""A live table longer than the terminal could not be redrawn."""


def number_text(value: Any) -> str:
    """A setting as a table shows it: numbers in at most four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def settings_text(values: dict[str, Any]) -> str:
    """Settings in a line."""
    return ", ".join(f"{key} {number_text(value)}" for key, value in values.items())


def _value_text(row: Row) -> str:
    if row.value is not None:
        return f"{row.value:.4f}"
    return f"{row.evaluations[max(row.evaluations)]:.4f}" if row.evaluations else ""


def trials_table(rows: list[Row], keys: list[str], metric: str, best: int | None) -> Table:
    """Trials in the order given.

    Args:
        rows: the trials.
        keys: of the space, a column each.
        metric: name of the value.
        best: number of the best trial, which is marked.
    """
    table = Table("trial", *keys, metric, "evaluations", "state", "seconds", box=None, pad_edge=False)
    for row in rows:
        # As Text: a list such as ['q_proj'] would be read as markup.
        settings = [Text(number_text(row.values.get(key, ""))) for key in keys]
        name = f"{row.number}{' own' if row.number == 0 else ''}{' *' if row.number == best else ''}"
        state = row.outcome
        table.add_row(
            name, *settings, _value_text(row), str(len(row.evaluations)), state, f"{row.seconds:.0f}",
            style="bold" if row.number == best else None,
        )  # fmt: skip
    return table


class SweepView:
    """What a running sweep shows.

    Args:
        console: with a terminal the table is redrawn in place; without one there is a line for each event.
        say: prints one line.
        keys: of the space.
        metric: what is measured.
        trials: how many there will be.
    """

    def __init__(self, console: Console, say: Callable[[str], None], keys: list[str], metric: str, trials: int) -> None:
        self.console, self.say, self.keys, self.metric, self.trials = console, say, keys, metric, trials
        self.live: Live | None = None
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.bar = Progress(*columns, console=console)
        self.task = self.bar.add_task("trials", total=trials)
        self.step = self.bar.add_task("steps of this trial", total=None, visible=False)

    def __enter__(self) -> SweepView:
        if self.console.is_terminal:
            self.live = Live(console=self.console, refresh_per_second=4)
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()

    def _draw(self, rows: list[Row]) -> None:
        if self.live is not None:
            best = best_row(rows, self.metric)
            shown = trials_table(rows[-_LIVE_ROWS:], self.keys, self.metric, None if best is None else best.number)
            self.live.update(Group(shown, self.bar))

    def begun(self, rows: list[Row], row: Row, goes_on: bool) -> None:
        """A trial begins, or goes on from its checkpoint."""
        self.bar.update(self.task, completed=len(rows) - 1)
        self.bar.reset(self.step, total=None, visible=True)
        self._draw(rows)
        if self.live is None:
            how = "goes on" if goes_on else "begins"
            self.say(f"trial {row.number} {how} ({len(rows)} of {self.trials}): {settings_text(row.values)}")

    def moved(self, step: int, total: int) -> None:
        """A trial has come to a step."""
        self.bar.update(self.step, completed=step, total=total)

    def evaluated(self, rows: list[Row], row: Row, step: int, total: int, value: float) -> None:
        """A trial has been evaluated."""
        self.moved(step, total)
        self._draw(rows)
        if self.live is None:
            self.say(f"trial {row.number}: step {step}/{total}, {self.metric} {value:.4f}")

    def ended(self, rows: list[Row], row: Row) -> None:
        """A trial has ended."""
        self.bar.update(self.task, completed=len(rows))
        self.bar.update(self.step, visible=False)
        self._draw(rows)
        if self.live is None:
            best = best_row(rows, self.metric)
            value = "" if row.value is None else f", {self.metric} {row.value:.4f}"
            reason = f": {row.reason}" if row.reason else ""
            lead = "" if best is None else f"; best so far trial {best.number}, {best.value:.4f}"
            self.say(f"trial {row.number} {row.outcome}{value}, {row.seconds:.0f} s{reason}{lead}")
