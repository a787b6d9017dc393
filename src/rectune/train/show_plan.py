"""The stage `plan`: a run's memory and time as a table or as JSON, before anything is loaded or paid for."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rich.console import Console

from rectune.config import Config
from rectune.data.columns import TRAIN, VALIDATION
from rectune.data.folder import META
from rectune.errors import DataError, ModelError, ResourceError
from rectune.model.lora import as_earlier_adapter
from rectune.model.shape import model_shape
from rectune.train.accord import check_sharding
from rectune.train.pace import Pace, estimate_pace
from rectune.train.plan import GIB, Machine, Plan
from rectune.train.workload import Workload, bounded_workload, pack_rows, workload_of
from rectune.world import ALONE, World

Say = Callable[[str], None]

_CARD_TFLOPS = 100.0
"""Dense bfloat16 products of a card one does not have, where no --tflops is given; a 4090 has some 165 on paper."""


def _workload(config: Config, say: Say) -> Workload:
    """From the prepared dataset, where it lies there and the model's tokenizer can be had; else the upper bound."""
    if not (config.dataset_folder() / META).is_file():
        return bounded_workload(config)
    from rectune.model.load import load_tokenizer
    from rectune.prompt.dataset import open_dataset
    from rectune.prompt.encode import encode, split_sample
    from rectune.prompt.layouts import prompts_for
    from rectune.prompt.pieces import Pieces
    from rectune.train.oversample import oversampled

    config = (
        config.with_overrides(prior="none", sweep={}) if config.prior == "stack" else config
    )  # a prior changes no length
    try:
        prompts = prompts_for(config, Pieces(load_tokenizer(config, say)))
        data = open_dataset(config, say)
    except (ModelError, ResourceError, DataError) as error:
        bound = bounded_workload(config)
        return replace(bound, source=f"{bound.source} with this model's tokenizer ({error})")
    trees, held_out = (
        encode(config, data.table, data.catalog, data.content_hash, prompts, rows, say, training=split == TRAIN)
        for split in (TRAIN, VALIDATION)
        for rows in (split_sample(config, data.table, split),)
    )
    if config.oversample != "none":
        trees = trees.select(oversampled(config, trees.labels, say).rows)
    return workload_of(config, trees, held_out, pack_rows(config, trees))


def _seconds(value: float) -> str:
    if value < 120:
        return f"{value:.1f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


def as_record(plan: Plan, pace: Pace) -> dict[str, Any]:
    """Everything that the table shows, for `--json`; memory in bytes, time in seconds."""
    found, side = plan.footprint(), plan.work.training
    return {
        "model": plan.config.model_name_or_path,
        "device": plan.machine.device.type,
        "dtype": str(plan.machine.dtype).removeprefix("torch."),
        "attention": plan.machine.kernel,
        "lengths_from": plan.work.source,
        "longest_row": side.longest,
        "parts": found.parts,
        "training": found.training,
        "evaluation": found.evaluation,
        "total": found.total,
        "full_logits": found.full_logits,
        "memory": plan.machine.room,
        "memory_is": plan.machine.said,
        "fits": plan.fits,
        "largest_per_device_train_batch_size": plan.largest_batch(),
        "processes": plan.machine.processes,
        "sharded": plan.machine.sharded,
        "sequences_per_step": plan.step_size,
        "tokens_per_step": pace.tokens_per_step,
        "estimate": {
            "basis": pace.basis,
            "seconds_per_step": pace.step_seconds,
            "tokens_per_second": pace.tokens_per_second,
            "steps": pace.steps,
            "run_seconds": pace.run_seconds,
        },
        "changes": []
        if plan.fits
        else [
            {"changes": each.changes, "total": each.total, "fits": each.fits, "least": each.least}
            for each in plan.remedies()
        ],
    }


def _table(plan: Plan, console: Console) -> None:
    """Components and totals."""
    from rich.table import Table

    found, rows = plan.footprint(), plan.work.training.batch(plan.config.per_device_train_batch_size)
    notes = {
        "weights": _weights_note(plan),
        "adapter": f"{sum(plan.shape.adapter_sizes(plan.config)):,} numbers in float32",
        "gradients": "of the adapter",
        "optimiser": plan.config.optim,
        "activations": f"{rows.count} rows of {rows.length:,} tokens"
        + (", recomputed in the backward pass" if plan.config.gradient_checkpointing else ""),
        "logits": f"{rows.answers:,} answers only; at every token {found.full_logits / GIB:.2f} GiB",
        "mask": plan.machine.kernel,
        "workspace": "the backward pass of one block",
        "allocator slack": "what the allocator keeps beside what is in use",
        "program": "the card's context" if plan.machine.device.type == "cuda" else "Python, libraries and data, now",
    }
    table = Table("part", "GiB", "what", title=f"Memory of {plan.config.model_name_or_path} on {plan.machine.device}")
    for name, size in found.parts.items():
        table.add_row(name, f"{size / GIB:.3f}", notes[name])
    table.add_section()
    table.add_row("training", f"{found.training / GIB:.3f}", "the peak of a step")
    if found.evaluation:
        size = plan.config.per_device_eval_batch_size
        table.add_row("evaluation", f"{found.evaluation / GIB:.3f}", f"per_device_eval_batch_size={size}")
    table.add_row("there are", f"{plan.machine.room / GIB:.3f}", plan.machine.said)
    console.print(table)


def _weights_note(plan: Plan) -> str:
    shape, config = plan.shape, plan.config
    precision = str(plan.machine.dtype).removeprefix("torch.")
    if config.use_qlora or config.quantization_bit is not None:
        bits = 8 if config.quantization_bit == 8 else 4
        rest = (shape.parameters - shape.linear_parameters) * plan.machine.dtype.itemsize
        return f"{bits} bits with their scales; embedding, norms and head {rest / GIB:.2f} GiB in {precision}"
    return f"{shape.parameters:,} numbers in {precision}"


def show_plan(
    config: Config,
    memory_gib: float | None,
    tflops: float | None,
    as_json: bool,
    say: Say,
    console: Console,
    world: World = ALONE,
) -> Plan:
    """Print the plan of a run.

    Args:
        config: all keys.
        memory_gib: plan for a CUDA card of this memory in place of this machine.
        tflops: speed of matrix products to assume in place of measuring it.
        as_json: print JSON alone; `say` must then not print to the same place.
        say: prints one line.
        console: where the table goes.
        world: the processes that are to train; the plan is of one of them.

    Raises:
        ConfigError: they are to share a model that cannot be sharded.
        ModelError, ResourceError: the model's configuration is missing, damaged, out of reach or of another family.
    """
    check_sharding(config, world)
    machine = Machine.of(config, memory_gib, world)
    work, config = _workload(config, say), as_earlier_adapter(config)
    plan = Plan(config, model_shape(config, say), work, machine)
    assumed = _CARD_TFLOPS if memory_gib is not None and tflops is None else tflops
    pace = estimate_pace(
        config, plan.shape, plan.work, machine.device, machine.dtype, assumed, tflops is not None, world.size
    )
    if as_json:
        print(json.dumps(as_record(plan, pace), indent=2))
        return plan
    _table(plan, console)
    steps = "" if pace.run_seconds is None else f"; {pace.steps:,} steps in {_seconds(pace.run_seconds)}"
    if not world.alone:
        held = "its part of the blocks, and the rest whole" if world.sharded else "the whole model"
        rows, times = config.per_device_train_batch_size, config.gradient_accumulation_steps
        say(
            f"processes: {world.size}, of which each holds the above ({held}); a step takes {world.size} x {rows} x "
            f"{times} = {plan.step_size} sequences. The time of what passes between them is left out"
        )
    say(f"lengths: from {plan.work.source}; longest row {plan.work.training.longest:,}")
    say(
        f"estimate: {pace.tokens_per_step:,.0f} tokens a step, {_seconds(pace.step_seconds)} a step, "
        f"{pace.tokens_per_second:,.0f} tokens/s{steps}, evaluations left out ({pace.basis})"
    )
    largest = plan.largest_batch()
    if plan.fits:
        say(f"fits: per_device_train_batch_size may be up to {largest:,}")
    else:
        say(plan.in_parts() or plan.refusal())
    return plan
