"""The command `export`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from rectune.cli_options import Overrides, RunPath, say
from rectune.errors import ConfigError

EXPORT_EXAMPLE = (
    "Example: rectune export output/demo --to merged   ·   "
    "rectune export output/demo --to gguf --gguf-type f16 --gguf-type q8_0"
)


class To(StrEnum):
    """The forms of a tuned model."""

    ADAPTER = "adapter"
    MERGED = "merged"
    MERGED_4BIT = "merged-4bit"
    GGUF = "gguf"
    CLASSIFIER = "classifier"


class GgufType(StrEnum):
    """How a GGUF stores its weights."""

    F16 = "f16"
    Q8_0 = "q8_0"
    Q4_K_M = "q4_k_m"


def export(
    run: RunPath,
    to: Annotated[To, typer.Option(help="The form of the export.")],
    overrides: Overrides = None,
    gguf_type: Annotated[
        list[GgufType] | None,
        typer.Option(help="With --to gguf: q8_0 if left out; may be given several times. q4_k_m needs llama.cpp."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder to write; default RUN/export/TARGET.")] = None,
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="Export a quantised form although it costs much; the card says so.")
    ] = False,
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Upload it to this private repository of the model hub.")
    ] = None,
) -> None:
    """The tuned model for other programs, checked against the trained one on 200 pairs before it gets its name."""
    from rectune.export.export import export as stage

    if gguf_type and to is not To.GGUF:
        raise ConfigError("--gguf-type: does nothing without --to gguf; leave it out")
    if accept_loss and to not in (To.GGUF, To.MERGED_4BIT):
        raise ConfigError("--accept-loss: does nothing without --to gguf or --to merged-4bit; leave it out")
    kinds = list(dict.fromkeys(kind.value for kind in gguf_type or [GgufType.Q8_0]))
    stage(run, overrides or [], to.value, output, say, kinds, push_to_hub, accept_loss)
