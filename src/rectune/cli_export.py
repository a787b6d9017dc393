"""The command `export`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from rectune.cli_options import Overrides, RunPath, say

EXPORT_EXAMPLE = "Example: rectune export output/demo --to merged   ·   rectune export output/demo --to classifier"


class To(StrEnum):
    """The forms of a tuned model."""

    ADAPTER = "adapter"
    MERGED = "merged"
    CLASSIFIER = "classifier"


def export(
    run: RunPath,
    to: Annotated[To, typer.Option(help="The form of the export.")],
    overrides: Overrides = None,
    output: Annotated[Path | None, typer.Option(help="Folder to write; default RUN/export/TARGET.")] = None,
) -> None:
    """The tuned model for other programs, checked against the trained one on 200 pairs before it gets its name."""
    from rectune.export.export import export as stage

    stage(run, overrides or [], to.value, output, say)
