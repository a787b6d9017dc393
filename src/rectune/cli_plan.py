"""The command `plan`."""

from __future__ import annotations

from typing import Annotated

import typer

from rectune.cli_options import ConfigPath, Overrides, aside, console, refuse_idle, say

PLAN_EXAMPLE = (
    "Example: rectune plan demo_cpu   ·   rectune plan qwen3_7b_movielens_qlora --memory-gib 24 "
    "model_name_or_path=FOLDER_WITH_CONFIG_JSON --processes 8"
)


def plan(
    config: ConfigPath,
    overrides: Overrides = None,
    memory_gib: Annotated[
        float | None, typer.Option(min=0.1, help="Plan for a CUDA card of this memory, in GiB, not for this machine.")
    ] = None,
    tflops: Annotated[
        float | None,
        typer.Option(min=0.001, help="Speed of matrix products to assume; measured here when left out."),
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, help="Plan for one of so many processes of accelerate or torchrun, each with a card.")
    ] = 1,
    sharded: Annotated[
        bool, typer.Option("--sharded", help="With --processes: they share the base model's blocks (FSDP2).")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What a training will hold in memory, part by part, whether it fits, and about how long it takes.

    Nothing is loaded but the model's configuration; lengths are those of the prepared dataset where there is one.
    """
    from rectune.config import load_config
    from rectune.shipped import find_config
    from rectune.train.show_plan import show_plan
    from rectune.world import World

    refuse_idle({"--sharded": sharded and processes == 1}, "without --processes")
    world = World(size=processes, local_size=processes, sharded=sharded)
    read = load_config(find_config(config), overrides)
    show_plan(read, memory_gib, tflops, as_json, aside if as_json else say, console(), world)
