"""Pictures of a sweep, in one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

from rectune.files import write_text
from rectune.train.sweep_study import SweepStudy

PLOTS = "plots.html"
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;background:#fff;"
    "color:#222}img{max-width:100%;height:auto}figure{margin:2rem 0}figcaption{color:#555}"
)


def _picture(draw: Callable[[], Any], wide: bool) -> str:
    """A figure as a data address."""
    from matplotlib import pyplot, rc_context

    try:
        with rc_context(), warnings.catch_warnings():  # Optuna sets a style for good
            warnings.simplefilter("ignore")  # axes of a key that took one value only
            axes = draw()
        figure = (axes.flat[0] if hasattr(axes, "flat") else axes).figure
        figure.set_size_inches(12 if wide else 8, 4.5)
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=110, bbox_inches="tight")
    finally:
        pyplot.close("all")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def write_plots(study: SweepStudy, lines: list[str], told: bool) -> Path | None:
    """Write `plots.html`; nothing where fewer than two trials are complete.

    Args:
        study: the study.
        lines: what it says in words, above the pictures.
        told: whether there are enough trials for importances.
    """
    if len(study.complete()) < 2:
        return None
    import matplotlib

    matplotlib.use("Agg")
    from optuna.visualization import matplotlib as plots

    metric = study.metric
    wanted = [
        ("History", "each complete trial and the best so far",
         lambda: plots.plot_optimization_history(study.study, target_name=metric), False),
        ("Curves", "the metric at each evaluation; short ones were given up",
         lambda: plots.plot_intermediate_values(study.study), False),
        ("Slices", "each key by itself; darker trials are later",
         lambda: plots.plot_slice(study.study, target_name=metric), True),
    ]  # fmt: skip
    if len(study.space) > 1:
        wanted.append(
            ("Together", "a line for each complete trial, through all of its settings",
             lambda: plots.plot_parallel_coordinate(study.study, target_name=metric), True)
        )  # fmt: skip
    if told and len(study.space) > 1:
        evaluator = study.optuna.importance.FanovaImportanceEvaluator(seed=study.config.seed)
        wanted.append(
            ("What mattered", "share of the variance of the metric that each key explains (fANOVA)",
             lambda: plots.plot_param_importances(study.study, evaluator=evaluator, target_name=metric), False)
        )  # fmt: skip
    parts = [
        f'<figure><h2>{title}</h2><img alt="{escape(title)}: {escape(text)}" src="{_picture(draw, wide)}">'
        f"<figcaption>{escape(text)}</figcaption></figure>"
        for title, text, draw, wide in wanted
    ]
    words = "".join(f"<p>{escape(line)}</p>" for line in lines)
    write_text(
        study.folder / PLOTS,
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Sweep of {escape(str(study.config.output_dir))}'
        f"</title><style>{_STYLE}</style><h1>Sweep of {escape(str(study.config.output_dir))}</h1>{words}"
        f"{''.join(parts)}</html>\n",
    )
    return study.folder / PLOTS
