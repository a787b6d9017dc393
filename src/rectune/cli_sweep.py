"""The command `sweep`."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer

from rectune.cli_options import ConfigPath, Overrides, aside, console, say

SWEEP_EXAMPLE = (
    "Example: rectune sweep demo_cpu --trials 12 max_train_samples=4000   ·   rectune sweep demo_cpu --trials 20 "
    "'sweep={learning_rate: {low: 1e-4, high: 1e-3, log: true}, lora_rank: [8, 16]}'"
)


class Metric(StrEnum):
    """What may be optimised."""

    AUC = "auc"
    UAUC = "uauc"
    PR_AUC = "pr_auc"
    LOSS = "loss"
    BRIER = "brier"
    ECE = "ece"
    ACCURACY = "accuracy"
    PRECISION = "precision"
    RECALL = "recall"
    F1 = "f1"


def sweep(
    config: ConfigPath,
    overrides: Overrides = None,
    trials: Annotated[int, typer.Option(min=1, help="Trials in all; those of earlier calls count.")] = 12,
    metric: Annotated[Metric, typer.Option(help="Validation metric of the best; the pruning goes by it too.")] = (
        Metric.AUC
    ),
    timeout: Annotated[
        float | None, typer.Option(min=1, metavar="SECONDS", help="Stop after this time, with a checkpoint.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove an earlier sweep in output_dir.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what study.json holds.")] = False,
) -> None:
    """Try learning rates, ranks and more, and say which settings to believe.

    The space is the configuration's key `sweep`; without it learning rate, rank, dropout and batch vary. Bad trials are
    given up early. A sweep that was stopped or killed goes on with the same command.
    """
    from rich.console import Console

    from rectune.config import load_config
    from rectune.shipped import find_config
    from rectune.train.sweep import sweep as stage

    found = stage(
        load_config(find_config(config), overrides), trials, metric.value, timeout, overwrite,
        aside if as_json else say, Console(stderr=True) if as_json else console(),
    )  # fmt: skip
    if as_json:
        say(json.dumps(found, indent=2, ensure_ascii=False))
