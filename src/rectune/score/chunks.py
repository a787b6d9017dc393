"""Chunks of scores that are kept until a call is done, and the bar that shows how far it is."""

from __future__ import annotations

from pathlib import Path

import polars as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def stored_chunk(file: Path) -> pl.DataFrame | None:
    """A chunk kept by an earlier call, or None when there is none or it is damaged."""
    try:
        return pl.read_parquet(file) if file.is_file() else None
    except (OSError, pl.exceptions.PolarsError):
        return None


def scoring_bar(console: Console) -> Progress:
    """A progress bar whose tasks have the field `note`; nothing is shown where the console is no terminal."""
    columns = (
        TextColumn("scoring"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )  # fmt: skip
    return Progress(*columns, console=console, disable=not console.is_terminal)
