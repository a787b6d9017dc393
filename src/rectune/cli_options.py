"""What the commands have in common: options and their allowed values, and where lines go."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from rectune.errors import ConfigError

ConfigPath = Annotated[Path, typer.Argument(help="YAML file, or the name of a shipped configuration.")]
IgnorePlan = Annotated[
    bool, typer.Option("--ignore-plan", help="Go on where the plan says that the run does not fit the memory.")
]
RunPath = Annotated[Path, typer.Argument(help="Run folder (output_dir of a training) or one of its checkpoints.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides of configuration keys.")
]


def say(text: str) -> None:
    """Print one line for a person, as it is."""
    print(text, flush=True)


def console() -> Any:
    """Where tables and progress go."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 110)


def aside(text: str) -> None:
    """Print one line for a person where standard output holds JSON."""
    print(text, file=sys.stderr, flush=True)


Workers = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", help="Divide the work by user among so many processes (Ray); a killed call goes on."
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="With --workers: those of a Ray cluster, HOST:PORT of its head or auto; without it, of this machine.",
    ),
]


class Split(StrEnum):
    """What may be measured."""

    TEST = "test"
    VALIDATION = "validation"


class AsOf(StrEnum):
    """How far a history goes."""

    NOW = "now"
    TEST = "test"
    VALIDATION = "validation"


class Mode(StrEnum):
    """How a model is asked."""

    LOGITS = "logits"
    GENERATE = "generate"


SplitOption = Annotated[Split, typer.Option(help="The events to ask about.")]
ModeOption = Annotated[Mode, typer.Option(help="generate adds greedy answers of 8 tokens.")]


class Protocol(StrEnum):
    """What an evaluation asks."""

    ONLINE = "online"
    TOPK = "topk"


class Unknown(StrEnum):
    """What to do with a title that the catalog does not hold."""

    ERROR = "error"
    TEXT = "text"


class RetrieverName(StrEnum):
    """The first of two stages."""

    MF = "mf"
    ITEM_KNN = "item_knn"
    POPULARITY = "popularity"


RunOrConfig = Annotated[
    Path, typer.Argument(metavar="RUN", help="Run folder; or a configuration, for its untuned base model.")
]


def refuse_idle(given: dict[str, object], doing: str) -> None:
    """Refuse options that would do nothing, before anything is loaded.

    Raises:
        ConfigError: one of them was given.
    """
    idle = [name for name, value in given.items() if value]
    if idle:
        raise ConfigError(f"{idle[0]}: does nothing {doing}; leave it out")
