"""Training speed side by side: TRL's SFTTrainer, rectune's pointwise layout and rectune's stream layout.

Same machine, model and data; each contender alone in a process of its own. TRL runs with the fastest settings that a
recorded search finds for it, once with an adapter on all layers and once with the adapter of the stream's config.

  python benchmarks/train_speed.py --json benchmarks/train_speed.json
  python benchmarks/train_speed.py --reuse-search --steps 10
  python benchmarks/train_speed.py --contenders pointwise,stream --config demo_cpu --set per_device_train_batch_size=4
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import peer_trl
from matmul_peak import Shapes, measure_peak, training_flops
from step_recorder import Recorder, machine, peak_gib

from rectune.config import Config, load_config, parse_config
from rectune.errors import ConfigError, RectuneError
from rectune.files import write_json
from rectune.shipped import find_config

HERE = Path(__file__).parent
CONTENDERS = ("trl", "pointwise", "stream")
SAMPLE = 512
"""Pointwise events drawn for TRL and for rectune's pointwise layout, the same ones."""
_STREAM_STEPS = 4
"""A step of the stream holds fewer tokens than one of the prompts, so more of them are timed."""
PACKAGES = ("rectune", "torch", "transformers", "peft", "trl", "accelerate", "datasets")
ALL, SAME = "all layers", "the stream's adapter"
_ADAPTER_KEYS = ("lora_rank", "lora_alpha", "lora_dropout", "lora_target", "lora_layers")


def run_one(job_file: Path) -> None:
    """The child process: run one job, alone, and write its result."""
    job = json.loads(job_file.read_text(encoding="utf-8"))
    from transformers import AutoConfig

    from rectune.model.load import resolve_source

    shapes = Shapes.of(AutoConfig.from_pretrained(resolve_source(job["model"], print)[0]))
    if job["kind"] == "peak":
        result = measure_peak(shapes) | {"machine": machine()}
    else:
        recorder = Recorder(job["warmup"], job["places"])
        recorder.install()
        extra = peer_trl.run(job) if job["kind"] == "trl" else _run_rectune(job)
        result = recorder.summary() | extra
        if job.get("settings", {}).get("train_sampling_strategy") == "group_by_length":
            # A few grouped steps hold prompts of about one length: take the mean length of the whole sample.
            result["tokens_per_label"] = result["sample_tokens_per_label"]
            result["labels_per_s"] = result["tokens_per_s"] / result["sample_tokens_per_label"]
        counts = (result["tokens"], result["pairs"], result["places"])
        result["tflops_per_s"] = 1e-12 * training_flops(shapes, job["adapter"], *counts) / result["seconds"]
        result["peak_gib"] = peak_gib()
    write_json(Path(job["result"]), result)


def _run_rectune(job: dict[str, Any]) -> dict[str, Any]:
    """Train with the package's own stage."""
    from rich.console import Console

    from rectune.train.train import train

    train(parse_config(job["config"], origin="benchmark"), print, Console(), overwrite=True)
    return {}


def run_alone(job: dict[str, Any], folder: Path, limit: float) -> dict[str, Any]:
    """Run one job in a process of its own, which ends with this one.

    Raises:
        RuntimeError: it failed or took longer than `limit` seconds; one line, without paths.
    """
    job = {**job, "result": str(folder / "result.json"), "folder": str(folder)}
    Path(job["result"]).unlink(missing_ok=True)
    write_json(folder / "job.json", job)
    log = folder / "log.txt"
    with log.open("w", encoding="utf-8") as stream:
        command = [sys.executable, str(Path(__file__).resolve()), "--one", str(folder / "job.json")]
        child = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            status = child.wait(limit)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"stopped after {limit:.0f} s") from None
        finally:
            if child.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    if status == 0:
        return dict(json.loads(Path(job["result"]).read_text(encoding="utf-8")))
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no output"]
    reason = f"killed by signal {-status}, out of memory?" if status < 0 else lines[-1]
    raise RuntimeError(re.sub(r"(?<!\w)/[\w./-]*/", "", reason)[:400])


class Benchmark:
    """One run of the benchmark: the parent process, which measures nothing itself."""

    def __init__(self, args: argparse.Namespace, work: Path) -> None:
        from rich.console import Console

        self.args, self.work = args, work
        wide = Console()
        self.console = wide if wide.width >= 110 else Console(width=110)
        overrides = ["layout=stream", *args.set] if "stream" in args.contenders else args.set
        asked = load_config(find_config(Path(args.config)), overrides)
        self.adapters = {ALL: self._adapter(asked) | {"lora_target": "all", "lora_layers": "all"}}
        if self._adapter(asked) != self.adapters[ALL]:
            self.adapters[SAME] = self._adapter(asked)
        self.stream = self._for_timing(asked, "stream")
        texts = {key: getattr(asked, key) for key in ("model_name_or_path", "dataset", "seed", "bf16")}
        batch = {"per_device_train_batch_size": args.pointwise_batch, "gradient_accumulation_steps": 1}
        values = {"layout": "pointwise", "max_train_samples": SAMPLE, **texts, **batch, **self._adapter(asked)}
        self.pointwise = self._for_timing(parse_config(values, "benchmark"), "pointwise")
        self.base = {"model": asked.model_name_or_path, "seed": asked.seed, "warmup": 1}

    @staticmethod
    def _adapter(config: Config) -> dict[str, Any]:
        return {key: getattr(config, key) for key in _ADAPTER_KEYS}

    def _for_timing(self, config: Config, layout: str) -> Config:
        """The same training without evaluation, checkpoints and curves, for a few steps, in the working folder."""
        return config.with_overrides(
            dataset_dir=self.args.dataset_dir / layout,
            output_dir=self.work / layout,
            preprocessing_cache_dir=self.work / "cache",
            max_steps=self.args.steps * (_STREAM_STEPS if layout == "stream" else 1) + 1,
            max_eval_samples=16,
            eval_strategy="no",
            save_steps=10**9,
            report_to="none",
            gen_eval_samples=0,
            early_stopping_patience=0,
            loss_plateau_patience=0,
        )

    def say(self, text: str) -> None:
        """One line with the time."""
        self.console.print(f"{datetime.datetime.now():%H:%M:%S} {text}", markup=False, highlight=False)

    def rectune(self, config: Config) -> dict[str, Any]:
        """Measure the package with one configuration."""
        places = {"pointwise": 2, "stream": 0 if getattr(config, "loss_over", "") == "labels" else 1}[config.layout]
        job = {"kind": "rectune", "adapter": self._adapter(config), "places": places}
        return run_alone(self.base | job | {"config": config.model_dump(mode="json")}, self.work, self.args.limit)

    def trl(self, settings: dict[str, Any], adapter: str, limit: float, steps: int) -> dict[str, Any]:
        """Measure TRL with some settings."""
        job = {"kind": "trl", "adapter": self.adapters[adapter], "settings": settings, "steps": steps + 1, "places": 0}
        data = {"records": str(self.work / "records.json"), "cutoff_len": self.pointwise.cutoff_len}
        return run_alone(self.base | job | data, self.work, limit)

    def draw_records(self) -> None:
        """Write the Alpaca records of the events that the pointwise layout trains on: the drawing of `sample_rows`."""
        import numpy as np

        file = self.pointwise.dataset_folder() / "train.json"
        records = json.loads(file.read_text(encoding="utf-8"))
        drawn = np.sort(np.random.default_rng(self.pointwise.seed).permutation(len(records))[:SAMPLE])
        write_json(self.work / "records.json", [records[index] for index in drawn])

    def search(self) -> dict[str, Any]:
        """TRL's fastest settings, searched for and recorded, or read from an earlier search."""
        file = self.args.search_file
        about = {"model": self.base["model"], "cutoff_len": self.pointwise.cutoff_len, "adapters": self.adapters}
        if self.args.reuse_search:
            if not file.is_file():
                raise ConfigError(f"--reuse-search: {file}: no such file; run once without it")
            found = json.loads(file.read_text(encoding="utf-8"))
            if found.get("about") != about:
                raise ConfigError(f"{file}: was searched for another model or adapter; run without --reuse-search")
            if found["made"]["machine"] != self.made["machine"]:
                self.say(f"{file}: was searched on another machine ({found['made']['machine']}); it is used as it is")
            return dict(found)

        def trial(settings: dict[str, Any], adapter: str, limit: float) -> dict[str, Any]:
            steps = peer_trl.timed_steps(settings, self.args.trial_examples)
            result = self.trl(settings, adapter, limit, steps)
            return {key: value for key, value in result.items() if key != "pairs"}

        found = peer_trl.Search(trial, self.args.search_budget, self.args.try_compile, self.say).run([*self.adapters])
        write_json(file, {"made": self.made, "about": about} | found)
        self.say(f"search: {len(found['trials'])} trials in {found['took_s']:.0f} s, recorded in {file}")
        return found

    def run(self) -> dict[str, Any]:
        """Measure everything; the result is what `--json` writes."""
        from rectune.data.prepare import prepare

        self.say("the machine's matmul peak")
        peak = run_alone(self.base | {"kind": "peak"}, self.work, self.args.limit)
        self.made = {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": shlex.join(["python", "benchmarks/train_speed.py", *sys.argv[1:]]),
            "machine": peak.pop("machine"),
            "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
        }
        for name, config in (("pointwise", self.pointwise), ("stream", self.stream)):
            if name in self.args.contenders or (name == "pointwise" and "trl" in self.args.contenders):
                prepare(config, say=self.say)
        rows: list[dict[str, Any]] = []

        def add(name: str, adapter: str, settings: dict[str, Any], result: dict[str, Any]) -> None:
            result["utilisation"] = result["tflops_per_s"] / peak["tflops"]
            rows.append({"contender": name, "adapter": adapter, "settings": settings, **result})
            self.say(f"{name}, {adapter}: {result['labels_per_s']:.2f} labels/s")

        if "trl" in self.args.contenders:
            self.draw_records()
            found = self.search()
            kinds = {"trl, head patched": found["best"], "trl as shipped": found["best_shipped"]}
            for adapter in self.adapters:
                for name, best in kinds.items():
                    if (best[adapter]["head"] == "labelled") == (name == "trl, head patched"):
                        result = self.trl(best[adapter], adapter, self.args.limit, self.args.steps)
                        add(name, adapter, best[adapter], result)
        own = SAME if SAME in self.adapters else ALL
        for name, config in (("pointwise", self.pointwise), ("stream", self.stream)):
            if name in self.args.contenders:
                shown = config.model_dump(mode="json", exclude={"dataset_dir", "output_dir", "preprocessing_cache_dir"})
                add(f"rectune {name}", own, shown, self.rectune(config))
        return {"made": self.made, "adapters": self.adapters, "peak": peak, "rows": rows, "ratios": ratios(rows)}


def ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How much faster rectune's layouts make labels than TRL, split into speed per token and tokens per label."""
    peers = [row for row in rows if row["contender"].startswith("trl")]
    fastest = max(peers, key=lambda row: row["labels_per_s"], default=None)
    found = []
    for own in (row for row in rows if row not in peers):
        for peer in peers:
            found.append(
                {
                    "of": own["contender"],
                    "to": f"{peer['contender']}, {peer['adapter']}",
                    "same_adapter": peer["adapter"] == own["adapter"],
                    "fastest_trl": peer is fastest,
                    "labels_per_s": own["labels_per_s"] / peer["labels_per_s"],
                    "tokens_per_s": own["tokens_per_s"] / peer["tokens_per_s"],
                    "fewer_tokens_per_label": peer["tokens_per_label"] / own["tokens_per_label"],
                }
            )
    return found


def show(report: dict[str, Any], console: Any) -> None:
    """Print the report for people."""
    from rich.table import Table

    made, peak = report["made"], report["peak"]
    table = Table("contender", "adapter on", title="Training speed")
    for heading in ("labels/s", "tokens/s", "tokens/label", "padding", "peak GiB", "utilisation"):
        table.add_column(heading, justify="right")
    for row in report["rows"]:
        memory = row["peak_gib"].get("gpu", row["peak_gib"]["process"])
        padding = row["padding"] / (row["padding"] + row["tokens"])
        figures = [f"{row['labels_per_s']:.2f}", f"{row['tokens_per_s']:,.0f}", f"{row['tokens_per_label']:.1f}"]
        table.add_row(
            row["contender"], row["adapter"], *figures, f"{padding:.0%}", f"{memory:.2f}", f"{row['utilisation']:.0%}"
        )
    console.print(table)
    for ratio in report["ratios"]:
        said = {"same_adapter": "same adapter", "fastest_trl": "its fastest"}
        notes = ", ".join(text for key, text in said.items() if ratio[key])
        console.print(
            f"{ratio['of']} / {ratio['to']}{f' ({notes})' if notes else ''}: "
            f"{ratio['labels_per_s']:.2f} times the labels/s "
            f"= {ratio['tokens_per_s']:.2f} (tokens/s) x {ratio['fewer_tokens_per_label']:.2f} (tokens per label)",
            soft_wrap=True,
        )
    for row in report["rows"]:
        if row["contender"].startswith("trl"):
            text = ", ".join(f"{key}={value}" for key, value in row["settings"].items())
            console.print(f"{row['contender']}, {row['adapter']}: {text}", soft_wrap=True)
    console.print(
        f"utilisation: needed operations / time, of {peak['tflops']:.2f} TFLOP/s (best bfloat16 F.linear of "
        f"the model's shapes)\nmachine: {made['machine']}\nversions: "
        + ", ".join(f"{name} {number}" for name, number in made["versions"].items())
        + f"\ndate: {made['date']}\ncommand: {made['command']}",
        soft_wrap=True,
        highlight=False,
    )


def _arguments() -> argparse.Namespace:
    head, _, examples = (__doc__ or "").rpartition("\n\n")
    parser = argparse.ArgumentParser(
        description=head, epilog="examples:\n" + examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def add(name: str, what: str, **how: Any) -> None:
        default = how.get("default")
        parser.add_argument(name, help=what if default in (None, []) else f"{what} (default: {default})", **how)

    add("--contenders", f"which, with commas: {', '.join(CONTENDERS)}", default=",".join(CONTENDERS))
    add("--config", "configuration of the stream, and of model, data and adapter for all", default="demo_cpu")
    add("--set", "override a key of --config; may be repeated", action="append", default=[], metavar="KEY=VALUE")
    add("--dataset-dir", "where the prepared datasets lie or are made", type=Path, default=Path("data/benchmark"))
    add("--steps", "timed optimiser steps of each contender, after one of warm-up", type=int, default=6)
    add("--pointwise-batch", "batch size of rectune's pointwise layout", type=int, default=8)
    add("--limit", "seconds after which a contender is stopped", type=float, default=1200.0)
    add("--search-file", "where TRL's search is recorded", type=Path, default=Path("benchmarks/trl_search.json"))
    add("--search-budget", "seconds for TRL's search; 0 tries its start only", type=float, default=720.0)
    add("--trial-examples", "examples timed in each trial of the search, at least", type=int, default=16)
    add("--try-compile", "let the search try torch_compile, too, which may take minutes", action="store_true")
    add("--reuse-search", "take TRL's settings from --search-file", action="store_true")
    add("--json", "also write everything measured to this file", type=Path)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.contenders = [name for name in args.contenders.split(",") if name]
    unknown = [name for name in args.contenders if name not in CONTENDERS]
    if unknown or not args.contenders:
        parser.error(f"--contenders: got {', '.join(unknown) or 'none'}, allowed: {', '.join(CONTENDERS)}")
    for key in ("steps", "pointwise_batch", "trial_examples"):
        if getattr(args, key) < 1:
            parser.error(f"--{key.replace('_', '-')}: got {getattr(args, key)}, allowed: 1 or more")
    return args


def main() -> None:
    """Run what the command line asks for."""
    args = _arguments()
    if args.one is not None:
        run_one(args.one)
        return
    try:
        with tempfile.TemporaryDirectory(prefix="train_speed_") as work:
            benchmark = Benchmark(args, Path(work))
            report = benchmark.run()
        show(report, benchmark.console)
        if args.json is not None:
            write_json(args.json, report)
            benchmark.say(f"written: {args.json}")
    except (RectuneError, RuntimeError) as error:
        raise SystemExit(f"train_speed: {error}") from error
    except KeyboardInterrupt:
        print("stopped; the contender was ended and nothing was written but a search already recorded", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
