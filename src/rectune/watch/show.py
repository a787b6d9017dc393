"""One run or several, laid out for a terminal."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rectune.train.best import best_evaluation
from rectune.train.record import clock
from rectune.watch.plots import COLOURS, Curve, draw
from rectune.watch.read import RunView

_STATE = {
    "preparing": "cyan", "training": "green", "silent": "yellow", "finished": "bold", "stopped": "yellow",
    "failed": "bold red", "killed": "bold red",
}  # fmt: skip
_FIGURES = (
    ("loss", "loss", "{:.4f}"),
    ("learning_rate", "lr", "{:.1e}"),
    ("grad_norm", "grad", "{:.2f}"),
    ("labels_per_second", "labels/s", "{:,.1f}"),
    ("tokens_per_second", "tokens/s", "{:,.0f}"),
    ("mfu", "mfu", "{:.0%}"),
    ("gpu_utilization", "GPU", "{:.0%}"),
    ("memory_allocated_gib", "GiB allocated", "{:.2f}"),
    ("memory_reserved_gib", "GiB reserved", "{:.2f}"),
    ("memory_resident_gib", "GiB resident", "{:.2f}"),
)
_EVALUATION = (
    ("loss", "loss"), ("auc", "AUC"), ("uauc", "UAUC"), ("accuracy", "accuracy"), ("precision", "precision"),
    ("recall", "recall"), ("f1", "F1"), ("predicted_positive_rate", "predicted yes"), ("positive_rate", "true yes"),
)  # fmt: skip
_BLOCKS = "▁▂▃▄▅▆▇█"
_TITLE = 34
_DATE = re.compile(r"^\d{4}-\d{2}-\d{2} ")

Plot = tuple[str, list[Curve]]


def _standing(run: RunView) -> Text:
    """State, step, share and time left of a run."""
    text = Text.assemble((run.state, _STATE[run.state]))
    if run.last_step:
        text.append(f"  step {run.step:,} of {run.last_step:,} ({run.step / run.last_step:.0%})")
    elif run.step:
        text.append(f"  step {run.step:,}")
    if run.seconds_left is not None:
        text.append(f"  {clock(run.seconds_left)} left")
    return text


def _best(run: RunView) -> str:
    best = best_evaluation(run.logs, run.metric)
    return "" if best is None else f"best {run.metric} {best[1]:.4f} at step {best[0]:,}"


def packed(parts: Sequence[str], width: int) -> list[str]:
    """Parts in lines of at most a width, none of them broken.

    >>> packed(["loss 0.5", "lr 1e-4", "grad 2"], 20)
    ['loss 0.5  lr 1e-4', 'grad 2']
    """
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + 2 + len(part) <= width:
            lines[-1] += f"  {part}"
        else:
            lines.append(part)
    return lines


def _figures(run: RunView, width: int) -> list[str]:
    """The latest training line and the latest evaluation, in words."""
    now = [f"{name} {form.format(value)}" for key, name, form in _FIGURES if (value := run.latest(key)) is not None]
    last = next((log for log in reversed(run.logs) if "eval_loss" in log), {})
    seen = [f"{name} {last[f'eval_{key}']:.3f}" for key, name in _EVALUATION if f"eval_{key}" in last]
    counts = [f"{name} {last[f'eval_{name}']:,}" for name in ("tp", "fp", "fn", "tn") if f"eval_{name}" in last]
    lines = packed(now, width)
    if seen:
        lines += packed([f"validation at step {last['step']:,}:", *seen, *counts], width)
    return lines


def _of_one(run: RunView) -> list[Plot]:
    """Which plots one run has."""

    def curve(name: str, key: str, colour: int) -> Curve:
        return Curve(name, COLOURS[colour], *run.curve(key))

    return [
        ("loss", [curve("training", "loss", 0), curve("validation", "eval_loss", 1)]),
        ("validation", [curve("AUC", "eval_auc", 0), curve("UAUC", "eval_uauc", 1), curve("F1", "eval_f1", 2)]),
        ("loss by class", [curve("liked", "eval_loss_positive", 0), curve("not liked", "eval_loss_negative", 1)]),
        ("learning rate", [curve("", "learning_rate", 3)]),
    ]


def _of_several(runs: Sequence[RunView]) -> list[Plot]:
    """Which plots several runs share, a colour each."""
    keys = (
        ("training loss", "loss"), ("validation loss", "eval_loss"), ("validation AUC", "eval_auc"),
        ("validation F1", "eval_f1"),
    )  # fmt: skip
    return [
        (title, [Curve("", COLOURS[at % len(COLOURS)], *run.curve(key)) for at, run in enumerate(runs)])
        for title, key in keys
    ]


def _grid(plots: Sequence[Plot], width: int, height: int) -> Table:
    """Plots in two columns where there is room, else one below the other."""
    columns = 2 if width >= 76 else 1
    table = Table.grid(padding=(0, 1), expand=False)
    wide = (width - columns + 1) // columns - 1
    cells = [draw(title, curves, wide, height) for title, curves in plots]
    for at in range(0, len(cells), columns):
        table.add_row(*cells[at : at + columns])
    return table


def _spark(scores: Sequence[float]) -> str:
    """P(yes) over the evaluations as a row of blocks."""
    return "".join(_BLOCKS[min(int(score * len(_BLOCKS)), len(_BLOCKS) - 1)] for score in scores[-12:])


def _panel(run: RunView) -> Table | None:
    """The panel's events, each with its P(yes) at the first and the latest evaluation and the way between."""
    by_event: dict[tuple[Any, Any, Any], list[dict[str, Any]]] = {}
    for line in run.panel:
        by_event.setdefault((line.get("row"), line.get("user_id"), line.get("candidate_title")), []).append(line)
    if not by_event:
        return None
    table = Table(box=None, padding=(0, 1), pad_edge=True, header_style="bold", expand=False)
    table.add_column("panel: user", no_wrap=True, max_width=12)
    table.add_column("asked about", no_wrap=True, max_width=_TITLE, overflow="ellipsis")
    for name in ("liked", "first", "P(yes)", "last"):
        table.add_column(name, no_wrap=True, justify="left" if name == "P(yes)" else "right")
    for (_, user, title), lines in by_event.items():
        scores = [float(line["score"]) for line in lines]
        liked = bool(lines[-1].get("label"))
        right = (scores[-1] >= 0.5) == liked
        last = Text(f"{scores[-1]:.2f}", style="green" if right else "red")
        table.add_row(
            str(user), str(title), "yes" if liked else "no", f"{scores[0]:.2f}", _spark(scores), last
        )  # fmt: skip
    return table


def _findings(run: RunView, name: str = "") -> list[Text]:
    """What the diagnosis says, a line each."""
    return [
        Text.assemble(
            (f"diagnosis{name}, step {entry.get('step', '?')}: ", "bold yellow"),
            f"{entry.get('message', '')}; {entry.get('advice', '')}",
        )
        for entry in run.diagnosis
    ]


def short_names(folders: Sequence[Path]) -> list[str]:
    """Folders without the part that all of them share.

    >>> short_names([Path("output/a"), Path("output/b/c")])
    ['a', 'b/c']
    """
    shared = os.path.commonpath([folder.absolute().parent for folder in folders])
    return [str(folder.absolute().relative_to(shared)) for folder in folders]


def show_one(run: RunView, width: int, plot_height: int, details: bool = True) -> RenderableType:
    """A run: where it stands, figures, curves, panel, diagnosis, last lines.

    Args:
        run: what its files tell.
        width: of the terminal.
        plot_height: lines of a plot.
        details: whether panel and last lines are shown.
    """
    parts: list[RenderableType] = [Text.assemble((str(run.folder), "bold"), "  ", _standing(run), f"  {_best(run)}")]
    if run.message:
        parts.append(Text(run.message, style=_STATE[run.state]))
    parts += [Text(line) for line in _figures(run, width)]
    parts.append(_grid(_of_one(run), width, plot_height))
    parts += _findings(run)
    panel = _panel(run) if details else None
    if panel is not None:
        parts.append(panel)
    if details and run.lines:
        parts += [Text(_DATE.sub("", line), style="dim", no_wrap=True, overflow="ellipsis") for line in run.lines]
    return Group(*parts)


def show_several(runs: Sequence[RunView], width: int, plot_height: int) -> RenderableType:
    """Several runs: a table with a colour each, and their curves over one another.

    Args:
        runs: what their files tell.
        width: of the terminal.
        plot_height: lines of a plot.
    """
    names = short_names([run.folder for run in runs])
    table = Table(box=None, padding=(0, 1), header_style="bold", expand=False)
    table.add_column("run", overflow="fold")
    for name in ("state", "step", "left", "loss", "validation", "AUC", "F1", "labels/s", "best"):
        table.add_column(name, no_wrap=name != "best", justify="left" if name in ("state", "best") else "right")
    for at, (name, run) in enumerate(zip(names, runs, strict=True)):
        values = [run.latest(key) for key in ("loss", "eval_loss", "eval_auc", "eval_f1", "labels_per_second")]
        best = best_evaluation(run.logs, run.metric)
        table.add_row(
            Text(f"▪ {name}", style=f"color({COLOURS[at % len(COLOURS)]})"),
            Text(run.state, style=_STATE[run.state]),
            f"{run.step:,}/{run.last_step:,}" if run.last_step else f"{run.step:,}",
            clock(run.seconds_left) if run.seconds_left is not None else "",
            *("" if value is None else f"{value:.3f}" for value in values[:4]),
            "" if values[4] is None else f"{values[4]:,.1f}",
            "" if best is None else f"{run.metric} {best[1]:.4f} at {best[0]:,}",
        )
    parts: list[RenderableType] = [table]
    for name, run in zip(names, runs, strict=True):
        if run.message:
            parts.append(Text(f"{name}: {run.message}", style=_STATE[run.state]))
    parts.append(_grid(_of_several(runs), width, plot_height))
    for name, run in zip(names, runs, strict=True):
        parts += _findings(run, f" of {name}")
    return Group(*parts)
