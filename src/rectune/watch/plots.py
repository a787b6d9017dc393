"""Curves in a terminal, drawn by plotext."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

COLOURS = (39, 208, 77, 170, 220, 44, 203, 245)
"""Of the terminal's 256: told apart on dark and on light ground."""


@dataclass(frozen=True)
class Curve:
    """A named line of a plot.

    Attributes:
        name: shown in the plot's title line; empty where the colour says it already.
        colour: one of the terminal's 256.
        steps, values: its points.
    """

    name: str
    colour: int
    steps: Sequence[float]
    values: Sequence[float]


def thin(steps: Sequence[float], values: Sequence[float], most: int) -> tuple[list[float], list[float]]:
    """At most so many points, each the mean of a stretch, so that a long and noisy curve shows its course.

    >>> thin([1, 2, 3, 4], [1.0, 3.0, 5.0, 7.0], 2)
    ([1.5, 3.5], [2.0, 6.0])
    """
    size = -(-len(steps) // most) if steps else 1
    parts = [slice(at, at + size) for at in range(0, len(steps), size)]

    def means(of: Sequence[float]) -> list[float]:
        return [sum(of[part]) / len(of[part]) for part in parts]

    return (list(steps), list(values)) if size == 1 else (means(steps), means(values))


def _mark(value: float, span: float) -> str:
    """A number beside an axis, with as many digits as its span asks for."""
    if span < 0.01 and abs(value) < 0.1:
        return f"{value:.1e}"
    return f"{value:.{0 if span >= 100 else 1 if span >= 10 else 2 if span >= 0.3 else 3}f}"


def draw(title: str, curves: Sequence[Curve], width: int, height: int) -> Text:
    """A plot by optimiser step, its title line naming the curves in their colours.

    Args:
        title: above the plot.
        curves: what to draw; those without points are left out.
        width, height: in characters, the title line included.
    """
    import plotext

    shown = [curve for curve in curves if curve.steps]
    head = Text(f" {title}", style="bold", overflow="ellipsis", no_wrap=True)
    for curve in shown:
        if curve.name:
            head.append(f"  ▪ {curve.name}", style=f"not bold color({curve.colour})")
    head.truncate(width, pad=True)
    if not shown:
        return Text.assemble(head, "\n", Text("  nothing yet".ljust(width), style="dim"), "\n" * (height - 2))
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.limit_size(False, False)
    plotext.plot_size(width, height - 1)
    for curve in shown:
        steps, values = thin(curve.steps, curve.values, 2 * width)
        plotext.plot(steps, values, marker="braille", color=curve.colour)
        if len(steps) <= 12:  # few evaluations: their places
            plotext.scatter(steps, values, marker="●", color=curve.colour)
    first = min(curve.steps[0] for curve in shown)
    last = max(curve.steps[-1] for curve in shown)
    if first == last:
        plotext.xlim(first - 1, last + 1)
    ticks = sorted({round(first + (last - first) * part / 3) for part in range(4)})
    plotext.xticks(ticks, [f"{tick:,}" for tick in ticks])
    low = min(min(curve.values) for curve in shown)
    high = max(max(curve.values) for curve in shown)
    if high - low < 1e-12:
        spread = abs(high) * 0.1 or 1.0
        low, high = low - spread, high + spread
    plotext.ylim(low, high)
    marks = [low + (high - low) * part / 3 for part in range(4)]
    plotext.yticks(marks, [_mark(mark, high - low) for mark in marks])
    body = Text.from_ansi(plotext.build().rstrip("\n"))
    return Text.assemble(head, "\n", body)
