"""Figures as inline SVG, each a string that a page can hold.

Text and axes are drawn in `currentColor`, so that a figure is readable on a light and on a dark page; a model has one
colour and one dash pattern in every figure. The same input gives the same bytes: ids come from a fixed salt, there is
no date. Text stays text.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rectune.measure.calibration import reliability_curve
from rectune.measure.classification import UserIds, auc, auc_by_user, confusion, pr_auc, predict, probability

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = npt.NDArray[Any]

_INK = "#010203"
"""Stands for the colour of the page's text until the SVG is written."""
_COLOURS = {"tuned": "#2f7fd8", "untuned": "#e07b39"}
_MORE_COLOURS = ("#1f9e77", "#a05fc4", "#c9a227", "#d1477a", "#3aa6b9", "#8a8f98")
_DASHES = {"tuned": "solid", "untuned": (0, (6, 2))}
_MORE_DASHES = ((0, (2, 1.5)), (0, (7, 2, 1.5, 2)), (0, (4, 1, 1, 1, 1, 1)))
_POINTS = 400
"""A curve is drawn with at most this many points: a large test set must not make a large page."""
_STYLE = {
    "svg.hashsalt": "rectune",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "axes.titlesize": 10,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "grid.color": _INK,
    "grid.alpha": 0.15,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


def model_styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour and dash pattern of each model: fixed for tuned and untuned, by order for the others."""
    styles: dict[str, dict[str, Any]] = {}
    others = 0
    for name in names:
        if name in _COLOURS:
            styles[name] = {"color": _COLOURS[name], "linestyle": _DASHES[name]}
        else:
            styles[name] = {
                "color": _MORE_COLOURS[others % len(_MORE_COLOURS)],
                "linestyle": _MORE_DASHES[others % len(_MORE_DASHES)],
            }
            others += 1
    return styles


def _inline(svg: str, name: str, alt: str) -> str:
    """Cut a matplotlib SVG down to what an HTML page needs: ids that no other figure has, no size, no metadata."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    used = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", svg))
    svg = re.sub(r' id="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", svg)
    svg = re.sub(r"(url\(#|href=\"#)", rf"\1{name}-", svg)
    head, end, body = svg.partition(">")
    head = re.sub(r' (?:width|height|version|xmlns:xlink)="[^"]*"', "", head)
    body = body.replace("xlink:href", "href").replace(_INK, "currentColor").strip()
    return f'{head} role="img" aria-label="{html.escape(alt)}"{end}{body}'


def _draw(name: str, alt: str, width: float, height: float, paint: Any) -> str:
    """Make a figure, let `paint(figure)` fill it, and return it as SVG."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        figure.patch.set_alpha(0)
        paint(figure)
        for axes in figure.axes:
            axes.patch.set_alpha(0)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    return _inline(stream.getvalue(), name, alt)


def _thin(x: Array, y: Array) -> tuple[Array, Array]:
    """At most _POINTS points of a curve, spread evenly along its way, ends kept."""
    if len(x) <= _POINTS:
        return x, y
    way = np.cumsum(np.abs(np.diff(x, prepend=x[0])) + np.abs(np.diff(y, prepend=y[0])))
    kept = np.unique(np.searchsorted(way, np.linspace(0, way[-1], _POINTS)).clip(0, len(x) - 1))
    kept = np.unique(np.r_[0, kept, len(x) - 1])
    return x[kept], y[kept]


def _values(log_history: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of a key, in order of the step; a step logged twice (a resumed run) keeps its last value."""
    points = {
        float(entry["step"]): float(entry[key])
        for entry in log_history
        if isinstance(entry.get(key), int | float) and isinstance(entry.get("step"), int | float)
    }
    return sorted(points), [points[step] for step in sorted(points)]


def training_curves(log_history: Sequence[Mapping[str, Any]]) -> str | None:
    """Loss in training and validation, validation AUC, UAUC and F1, loss by class, and learning rate, by step.

    Args:
        log_history: dicts as in the Trainer's `log_history`: step with loss, learning_rate, eval_loss, eval_auc,
            eval_uauc, eval_f1, eval_loss_positive, eval_loss_negative. A key that is missing or None at a step is
            skipped there.

    Returns:
        The SVG, or None when nothing was logged.
    """
    keys = {
        "loss": {"training": "loss", "validation": "eval_loss"},
        "validation": {"AUC": "eval_auc", "UAUC": "eval_uauc", "F1": "eval_f1"},
        "validation loss by class": {"liked": "eval_loss_positive", "not liked": "eval_loss_negative"},
        "learning rate": {"learning rate": "learning_rate"},
    }
    found = {title: {name: _values(log_history, key) for name, key in of.items()} for title, of in keys.items()}
    panels = [
        (title, curves)
        for title, of in found.items()
        if (curves := {name: points for name, points in of.items() if points[0]})
    ]
    if not panels:
        return None
    across = min(len(panels), 2)

    def paint(figure: Figure) -> None:
        colours = {
            "training": "#8a8f98",
            "validation": _COLOURS["tuned"],
            "AUC": _COLOURS["tuned"],
            "UAUC": _MORE_COLOURS[0],
            "F1": _MORE_COLOURS[1],
            "liked": _COLOURS["tuned"],
            "not liked": _COLOURS["untuned"],
            "learning rate": _MORE_COLOURS[2],
        }
        grid = figure.subplots(-(-len(panels) // across), across, squeeze=False).flat
        for (title, curves), axes in zip(panels, grid, strict=False):
            for name, (steps, values) in curves.items():
                marker = None if name in ("training", "learning rate") else "o"
                axes.plot(steps, values, label=name, color=colours[name], marker=marker, markersize=4, linewidth=1.6)
            axes.set(xlabel="step", title=title)
            axes.grid(True)
            if len(curves) > 1 or title not in curves:
                axes.legend()
        for axes in grid:  # places without a panel
            axes.remove()

    last = ", ".join(
        f"last {name} {values[-1]:.3f}"
        for _, curves in panels
        for name, (_, values) in curves.items()
        if name != "learning rate"
    )
    alt = f"Training curves by step: {last}"
    return _draw("training", alt, 4.2 * across, 2.9 * -(-len(panels) // across), paint)


def _square(figure: Figure, xlabel: str, ylabel: str) -> Any:
    axes = figure.subplots()
    axes.set(xlabel=xlabel, ylabel=ylabel, xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.grid(True)
    return axes


def roc_curves(labels: Array, log_odds: Mapping[str, Array]) -> str | None:
    """ROC curves of several models on the same rows; None when there is one class only.

    Args:
        labels: [n] of 0 and 1.
        log_odds: model name → [n].
    """
    from sklearn.metrics import roc_curve

    areas = {name: auc(labels, odds) for name, odds in log_odds.items()}
    if any(area is None for area in areas.values()):
        return None

    def paint(figure: Figure) -> None:
        axes = _square(figure, "false positive rate", "true positive rate")
        axes.plot([0, 1], [0, 1], color=_INK, linewidth=0.8, alpha=0.4)
        for name, style in model_styles(log_odds).items():
            x, y, _ = roc_curve(labels, log_odds[name])
            axes.plot(*_thin(x, y), label=f"{name} (AUC {areas[name]:.3f})", linewidth=1.8, **style)
        axes.legend(loc="lower right")

    alt = "ROC curves: " + ", ".join(f"{name} AUC {area:.3f}" for name, area in areas.items())
    return _draw("roc", alt, 4.2, 4.2, paint)


def pr_curves(labels: Array, log_odds: Mapping[str, Array]) -> str | None:
    """Precision over recall of several models, the share of positives as the floor; None when one class only."""
    from sklearn.metrics import precision_recall_curve

    share = float(np.mean(labels))
    if not 0 < share < 1:
        return None
    areas = {name: pr_auc(labels, odds) for name, odds in log_odds.items()}

    def paint(figure: Figure) -> None:
        axes = _square(figure, "recall", "precision")
        axes.axhline(share, color=_INK, linewidth=0.8, alpha=0.4)
        for name, style in model_styles(log_odds).items():
            y, x, _ = precision_recall_curve(labels, log_odds[name])
            axes.plot(*_thin(x, y), label=f"{name} ({areas[name]:.3f})", linewidth=1.8, **style)
        axes.legend(loc="best")

    alt = "Precision-recall curves: " + ", ".join(f"{name} PR-AUC {area:.3f}" for name, area in areas.items())
    return _draw("pr", alt, 4.2, 4.2, paint)


def calibration_curves(labels: Array, log_odds: Mapping[str, Array], positive: str = "liked") -> str:
    """Share of positives over the mean score, by 15 equal-width bins; a dot's area grows with its bin's rows."""

    def paint(figure: Figure) -> None:
        axes = _square(figure, "mean score", f"share {positive}")
        axes.plot([0, 1], [0, 1], color=_INK, linewidth=0.8, alpha=0.4)
        for name, style in model_styles(log_odds).items():
            curve = reliability_curve(labels, probability(log_odds[name]))
            axes.plot(curve.mean_score, curve.positive_share, label=name, linewidth=1.4, **style)
            size = 6 + 90 * curve.count / curve.count.sum()
            axes.scatter(curve.mean_score, curve.positive_share, s=size, color=style["color"], linewidth=0)
        axes.legend(loc="upper left")

    return _draw("calibration", f"Calibration curves of {', '.join(log_odds)}", 4.2, 4.2, paint)


def confusion_matrices(labels: Array, log_odds: Mapping[str, Array], threshold: float = 0.5) -> str:
    """One 2 x 2 table of counts per model, shaded by the share within each label."""
    cells = {name: confusion(labels, predict(odds, threshold)) for name, odds in log_odds.items()}

    def paint(figure: Figure) -> None:
        columns = min(len(cells), 4)
        grid = figure.subplots(-(-len(cells) // columns), columns, squeeze=False).ravel()
        for axes in grid[len(cells) :]:
            axes.set_axis_off()
        styles = model_styles(cells)
        for axes, (name, cell) in zip(grid, cells.items(), strict=False):
            counts = np.array([[cell.tn, cell.fp], [cell.fn, cell.tp]])
            shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
            for (row, column), count in np.ndenumerate(counts):
                share = shares[row, column]
                corner = (column - 0.5, row - 0.5)
                _shade(axes, corner, styles[name]["color"], 0.06 + 0.5 * float(share))
                axes.text(column, row, f"{count:,}\n{share:.0%}", ha="center", va="center")
            axes.set(xlim=(-0.5, 1.5), ylim=(1.5, -0.5), aspect="equal", title=name)
            axes.set_xticks([0, 1], ["says no", "says yes"])
            axes.set_yticks([0, 1], ["not liked", "liked"], rotation=90, va="center")
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)

    columns, rows = min(len(cells), 4), -(-len(cells) // 4)
    alt = "Confusion: " + "; ".join(f"{name} tn {c.tn}, fp {c.fp}, fn {c.fn}, tp {c.tp}" for name, c in cells.items())
    return _draw("confusion", alt, 2.5 * columns + 0.3, 2.6 * rows, paint)


def _shade(axes: Any, corner: tuple[float, float], colour: str, alpha: float) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle(corner, 1, 1, facecolor=colour, alpha=alpha, linewidth=0))


def user_auc_histogram(user_ids: UserIds, labels: Array, log_odds: Mapping[str, Array]) -> str | None:
    """How many users have which AUC, in 20 bins, one outline per model; None when no user has both classes."""
    values = {name: auc_by_user(user_ids, labels, odds) for name, odds in log_odds.items()}
    values = {name: per_user[~np.isnan(per_user)] for name, per_user in values.items()}
    if not all(len(per_user) for per_user in values.values()):
        return None

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for name, style in model_styles(values).items():
            counts, edges = np.histogram(values[name], bins=20, range=(0, 1))
            mean = f"{name} (mean {values[name].mean():.3f})"
            axes.stairs(counts, edges, label=mean, linewidth=1.8, **style)
            axes.stairs(counts, edges, fill=True, color=style["color"], alpha=0.10)
        axes.set(xlabel="AUC within a user", ylabel="users", xlim=(0, 1))
        axes.grid(True, axis="y")
        axes.legend(loc="upper left")

    users = len(next(iter(values.values())))
    alt = f"Histogram of AUC within each of {users} users: " + ", ".join(
        f"{name} mean {per_user.mean():.3f}" for name, per_user in values.items()
    )
    return _draw("user-auc", alt, 5.6, 3.6, paint)
