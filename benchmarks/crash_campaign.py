"""Kill training runs at random moments, resume each to its end, and compare the adapters byte by byte.

    python benchmarks/crash_campaign.py                     about 120 runs of a tiny random Qwen3 on one core
    python benchmarks/crash_campaign.py --real              a few kills of SmolLM2-135M on ML-100K

Each run has a folder, a dataset and a cache of its own, so that preparing and tokenising are among what is killed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
SCRIPTS = HERE.parent / "scripts"
ADAPTER = "adapter_model.safetensors"

SHORT: dict[str, Any] = {
    "history_len": 3, "system_prompt": "", "instruction": "Will I like it?", "history_header": "",
    "candidate_header": "Film:", "question": "Yes or No?", "cutoff_len": 256, "report_to": "none", "baselines": "quick",
    "learning_rate": 0.01, "save_steps": 4, "eval_steps": 3, "logging_steps": 2, "early_stopping_patience": 0,
    "metric_for_best_model": "auc", "max_train_samples": 64, "max_eval_samples": 16,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "pointwise, float32, accumulation 3, 2.5 epochs": {
        "layout": "pointwise", "bf16": False, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 3,
        "num_train_epochs": 2.5,
    },
    "pointwise, packed, bfloat16": {
        "layout": "pointwise", "bf16": True, "packing": True, "cutoff_len": 512, "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2, "num_train_epochs": 2, "save_total_limit": 1,
    },
    "stream, float32, accumulation 2, 2 epochs": {
        "layout": "stream", "bf16": False, "cutoff_len": 128,
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "num_train_epochs": 2,
    },
    "stream, packed, bfloat16, evaluated by epoch": {
        "layout": "stream", "bf16": True, "packing": True, "cutoff_len": 128,
        "per_device_train_batch_size": 1, "gradient_accumulation_steps": 3, "num_train_epochs": 2,
        "eval_strategy": "epoch",
    },
    "pointwise, float32, never evaluated": {
        "layout": "pointwise", "bf16": False, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4,
        "max_steps": 14, "eval_strategy": "no",
    },
}  # fmt: skip
REAL: dict[str, dict[str, Any]] = {
    "SmolLM2-135M on ML-100K": {
        "max_train_samples": 60, "max_eval_samples": 20, "save_steps": 2, "eval_steps": 3, "max_steps": 6,
        "logging_steps": 1, "report_to": "none", "cutoff_len": 128, "packing": False, "lora_dropout": 0.05,
        "per_device_train_batch_size": 1,
    },
}  # fmt: skip


def load_script(name: str) -> Any:
    """A file of scripts/ as a module."""
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


nursery_script = load_script("nursery")


@dataclass
class Reference:
    """An uninterrupted run: what the others must end with, and what it did on the way.

    Attributes:
        values: the configuration's keys, without folders.
        digests: name → hash of what must be equal.
        seconds: how long it took.
        events: what it did, as the nursery writes it down.
        size: bytes of its folder.
    """

    values: dict[str, Any]
    digests: dict[str, str]
    seconds: float
    events: list[str]
    size: int


@dataclass
class Outcome:
    """What became of one run."""

    case: str
    kind: str
    places: list[str] = field(default_factory=list)
    equal: bool = False
    wrong: list[str] = field(default_factory=list)
    folder: str = ""


def history(run: Path) -> str:
    """The log of a run without what its clock and its machine wrote into it."""
    logs = json.loads((run / "log_history.json").read_text(encoding="utf-8"))
    clocks = ("runtime", "per_second")

    def kept(key: str) -> bool:
        trained = key in ("step", "epoch", "loss", "grad_norm", "learning_rate")
        return trained or (key.startswith("eval_") and not key.endswith(clocks))

    told = [{key: value for key, value in log.items() if kept(key)} for log in logs if "train_loss" not in log]
    return json.dumps(told, sort_keys=True)


def digests(run: Path) -> dict[str, str]:
    """Hashes of what a run must end with: adapter, best adapter, settings, and its whole log."""
    names = (ADAPTER, f"best/{ADAPTER}", "rectune.json", "adapter_config.json", "adapter.sha256", "tokenizer.json")
    found = {name: hashlib.sha256((run / name).read_bytes()).hexdigest() for name in names}
    return found | {"log": hashlib.sha256(history(run).encode()).hexdigest()}


def place_of(events: list[str]) -> str:
    """Where in a training a process was when its last event was written down."""
    inside: list[str] = []
    last = ""
    for event in events:
        kind, _, rest = event.partition(" ")
        if kind == "enter":
            inside.append(rest)
            last = ""
        elif kind == "leave":
            inside.pop()
            last = ""
        else:
            last = rest
    if inside:
        keeping = inside[-1] == "in evaluation" and ".best." in last
        return "keeping the best adapter" if keeping else inside[-1]
    entered = [event for event in events if event.startswith(("enter", "leave"))]
    if not entered:
        return "starting"
    return "publishing" if entered[-1] == "leave publishing" else "between two parts"


class Campaign:
    """Runs, kills, resumes and compares."""

    def __init__(self, work: Path, seed: int, base: dict[str, Any], config: str | None) -> None:
        self.work = work
        self.draw = random.Random(seed)
        self.base = base
        self.shipped = config
        self.nursery = nursery_script.open_nursery(dict(os.environ))
        self.number = 0

    def folder(self) -> Path:
        """A fresh folder for a run with its data and cache."""
        self.number += 1
        folder = self.work / f"{self.number:04d}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def start(self, folder: Path, values: dict[str, Any], *more: str, **asked: Any) -> Any:
        """Start `rectune train` in a process of its own."""
        own = {**self.base, **values, "output_dir": str(folder / "run")}
        if self.shipped is None:
            own |= {"dataset_dir": str(folder / "data"), "preprocessing_cache_dir": str(folder / "cache")}
        given = folder / "given.yaml"
        given.write_text(yaml.safe_dump(own), encoding="utf-8")
        return nursery_script.start(
            self.nursery, ["train", str(given), *more], folder / "out", folder / "err", watched=[str(folder)], **asked
        )

    def reference(self, values: dict[str, Any]) -> Reference:
        """Train without interruption, twice: two such runs must be equal, or nothing could be shown."""
        found = []
        for _ in range(2):
            folder = self.folder()
            begun = time.monotonic()
            code, events = self.start(folder, values).end()
            if code != 0:
                raise SystemExit(f"the uninterrupted run failed ({code}): {(folder / 'err').read_text()[-2000:]}")
            seconds = time.monotonic() - begun
            size = sum(path.stat().st_size for path in (folder / "run").rglob("*") if path.is_file())
            found.append(Reference(values, digests(folder / "run"), seconds, events, size))
            shutil.rmtree(folder)
        if found[0].digests != found[1].digests:
            raise SystemExit("two uninterrupted runs differ, so nothing can be compared")
        return found[1]

    def kill_at_random(self, folder: Path, reference: Reference, *more: str) -> tuple[int, list[str]]:
        """Kill at a moment drawn evenly over the time that an uninterrupted run takes."""
        victim = self.start(folder, reference.values, *more)
        time.sleep(self.draw.uniform(0, reference.seconds))
        with contextlib.suppress(ProcessLookupError):  # it may have been faster
            victim.send(signal.SIGKILL)
        code, events = victim.end()
        return int(code), events

    def kill_in(self, folder: Path, reference: Reference, where: str, *more: str) -> tuple[int, list[str]]:
        """Kill at, or up to 4 ms after, a random touch of a file made in some part of a training."""
        files = [event for event in reference.events if not event.startswith(("enter ", "leave "))]
        wanted, seen = [], 0
        for at, event in enumerate(reference.events):
            if event.startswith(("enter ", "leave ")):
                continue
            if place_of(reference.events[: at + 1]) == where:
                wanted.append(seen)
            seen += 1
        number = self.draw.choice(wanted or range(len(files)))
        after = self.draw.choice([0.0, self.draw.uniform(0, 0.004)])
        code, events = self.start(folder, reference.values, *more, die={"at": number, "after": after}).end()
        return int(code), events

    def resume(self, folder: Path, reference: Reference, outcome: Outcome) -> None:
        """Go on to the end, and compare."""
        code, _ = self.start(folder, reference.values, "--resume").end()
        outcome.folder = folder.name
        if code != 0:
            outcome.wrong.append(f"--resume ended with {code}: {(folder / 'err').read_text()[-600:]}")
            return
        found = digests(folder / "run")
        outcome.wrong += [name for name, digest in reference.digests.items() if found[name] != digest]
        left = [str(path) for path in folder.rglob(".*.tmp")]
        outcome.wrong += [f"left behind: {path}" for path in left]
        outcome.equal = not outcome.wrong

    def killed_run(self, case: str, reference: Reference, where: str | None) -> Outcome:
        """One run, killed once or several times in a row, then resumed to its end."""
        outcome = Outcome(case, "random moment" if where is None else f"aimed: {where}")
        while True:
            folder = self.folder()
            code, events = (
                self.kill_at_random(folder, reference) if where is None else self.kill_in(folder, reference, where)
            )
            if code == -signal.SIGKILL:
                break
            shutil.rmtree(folder)  # it ended before its moment came
        outcome.places.append(place_of(events))
        while len(outcome.places) < 4 and self.draw.random() < 0.35:
            code, events = self.kill_at_random(folder, reference, "--resume")
            if code != -signal.SIGKILL:
                break
            outcome.places.append(f"resumed, then {place_of(events)}")
        self.resume(folder, reference, outcome)
        return outcome

    def flipped_run(self, case: str, reference: Reference) -> Outcome:
        """A run killed late, with one bit turned in a file of its newest checkpoint."""
        from rectune.train.checkpoints import checkpoint_folders, problem_with

        outcome = Outcome(case, "bit turned in a checkpoint")
        while True:
            folder = self.folder()
            victim = self.start(folder, reference.values)
            time.sleep(reference.seconds * self.draw.uniform(0.6, 1.0))
            with contextlib.suppress(ProcessLookupError):
                victim.send(signal.SIGKILL)
            victim.end()
            whole = [path for path in checkpoint_folders(folder / "run") if problem_with(path) is None]
            if whole:
                break
            shutil.rmtree(folder)
        file = self.draw.choice(sorted(path for path in whole[0].rglob("*") if path.is_file() and path.stat().st_size))
        data = bytearray(file.read_bytes())
        data[self.draw.randrange(len(data))] ^= 1 << self.draw.randrange(8)
        file.write_bytes(bytes(data))
        outcome.places.append(str(file.relative_to(whole[0])))
        if len(whole) == 1 and (folder / "run" / ADAPTER).is_file():
            return self.refused_run(folder, reference, outcome)
        self.resume(folder, reference, outcome)
        said = f"{whole[0].name} is passed over" in (folder / "out").read_text()
        if not said and problem_with(whole[0]) is not None:
            outcome.wrong.append("the damage was not told")
            outcome.equal = False
        return outcome

    def refused_run(self, folder: Path, reference: Reference, outcome: Outcome) -> Outcome:
        """A published run whose only checkpoint is damaged: --resume must not start it over, but leave it alone."""
        outcome.places[-1] += ", the only checkpoint of a published run: refused"
        outcome.folder = folder.name
        code, _ = self.start(folder, reference.values, "--resume").end()
        told = (folder / "err").read_text()
        if code != 2 or "without a usable checkpoint to go on from" not in told:
            outcome.wrong.append(f"--resume ended with {code}: {told[-600:]}")
        for name in (ADAPTER, f"best/{ADAPTER}"):
            if hashlib.sha256((folder / "run" / name).read_bytes()).hexdigest() != reference.digests[name]:
                outcome.wrong.append(name)
        outcome.equal = not outcome.wrong
        return outcome

    def full_disk_run(self, case: str, reference: Reference) -> Outcome | None:
        """A run on a small disk that fills up, gets more room, and goes on; None where none can be mounted."""
        from rectune.train.checkpoints import checkpoint_folders, problem_with

        outcome = Outcome(case, "disk full")
        while True:
            folder = self.folder()
            run = folder / "run"
            run.mkdir()
            size = self.draw.randrange(reference.size // 8, reference.size)
            mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(run)]
            if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
                return None
            try:
                code, events = self.start(folder, reference.values).end()
                if code == 0:
                    continue  # it had room enough: a smaller one
                outcome.places.append(place_of(events))
                told = (folder / "err").read_text()
                if code != 5 or "the disk is full" not in told or "--resume" not in told or len(told.splitlines()) != 1:
                    outcome.wrong.append(f"ended with {code}: {told[-600:]}")
                outcome.wrong += [f"left behind: {path.name}" for path in run.rglob(".*.tmp")]
                outcome.wrong += [
                    f"{path.name}: {problem_with(path)}" for path in checkpoint_folders(run) if problem_with(path)
                ]
                subprocess.run(["mount", "-o", f"remount,size={reference.size * 4}", str(run)], check=True)
                self.resume(folder, reference, outcome)
                return outcome
            finally:
                subprocess.run(["umount", "-l", str(run)], check=True)


def show(outcomes: list[Outcome]) -> str:
    """Tables in Markdown: by kind and configuration, and by where the kills fell."""
    lines = ["| configuration | " + " | ".join(kinds := ["random", "aimed", "bit turned", "disk full"]) + " | equal |"]
    lines.append("|---" * (len(kinds) + 2) + "|")
    for case in dict.fromkeys(outcome.case for outcome in outcomes):
        own = [outcome for outcome in outcomes if outcome.case == case]
        counts = [str(sum(outcome.kind.startswith(kind) for outcome in own)) for kind in kinds]
        lines.append(f"| {case} | {' | '.join(counts)} | {sum(outcome.equal for outcome in own)} of {len(own)} |")
    placed = Counter(
        place for outcome in outcomes if outcome.kind.startswith(("random", "aimed")) for place in outcome.places
    )
    lines += [
        "",
        "| killed | kills |",
        "|---|---|",
        *(f"| {place} | {count} |" for place, count in placed.most_common()),
    ]
    return "\n".join(lines)


def main() -> None:
    """Run the campaign, print its tables, and fail when one adapter differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=110, help="killed runs (with --real: at most 4)")
    parser.add_argument("--flips", type=int, default=15, help="runs with a damaged checkpoint")
    parser.add_argument("--disks", type=int, default=10, help="runs on a disk that fills up; needs root on Linux")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--real", action="store_true", help="SmolLM2-135M on ML-100K in place of the tiny model")
    parser.add_argument("--work", type=Path, help="where runs lie; default: a temporary folder")
    parser.add_argument("--json", type=Path, help="also write every outcome here")
    asked = parser.parse_args()
    begun = time.monotonic()
    work = asked.work or Path(tempfile.mkdtemp(prefix="crash-"))
    if asked.real:
        shipped = yaml.safe_load((HERE.parent / "configs" / "demo_cpu.yaml").read_text(encoding="utf-8"))
        base, cases = (
            {**shipped, "dataset_dir": str(work / "data"), "preprocessing_cache_dir": str(work / "cache")},
            REAL,
        )
        asked.runs, asked.flips, asked.disks = min(asked.runs, 4), 0, 0
    else:
        tiny = load_script("build_tiny_qwen3")
        tiny.write_tiny_qwen3(work / "model", tiny.tiny_tokenizer())
        tiny.write_movielens(work / "movielens")
        base, cases = {**SHORT, "model_name_or_path": str(work / "model"), "dataset": str(work / "movielens")}, CASES
    campaign = Campaign(work, asked.seed, base, "demo_cpu" if asked.real else None)
    references = {}
    for case, values in cases.items():
        references[case] = campaign.reference(values)
        print(f"uninterrupted: {case}: {references[case].seconds:.1f} s", flush=True)
    names = list(cases)
    aims = ["saving a checkpoint", "keeping the best adapter", "publishing", "tokenising", "preparing the data"]
    outcomes: list[Outcome] = []

    def add(outcome: Outcome | None) -> None:
        if outcome is None:
            return
        outcomes.append(outcome)
        told = "equal" if outcome.equal else f"DIFFERS: {outcome.wrong}"
        print(f"{len(outcomes):4d}  {outcome.case}; {outcome.kind}; {', '.join(outcome.places)}: {told}", flush=True)
        if outcome.equal:
            shutil.rmtree(work / outcome.folder, ignore_errors=True)

    jobs: list[Callable[[], Outcome | None]] = []
    for number in range(asked.runs):
        case = names[number % len(names)]
        where = aims[(number // 2 + number // 10) % len(aims)] if number % 2 == 1 else None
        if where == "keeping the best adapter" and cases[case].get("eval_strategy") == "no":
            where = "saving a checkpoint"
        jobs.append(partial(campaign.killed_run, case, references[case], where))
    for what, count in ((campaign.flipped_run, asked.flips), (campaign.full_disk_run, asked.disks)):
        for number in range(count):
            case = names[number % len(names)]
            jobs.append(partial(what, case, references[case]))
    campaign.draw.shuffle(jobs)
    for job in jobs:
        add(job())
    campaign.nursery.kill()
    failed = [outcome for outcome in outcomes if not outcome.equal]
    kills = sum(len(outcome.places) for outcome in outcomes if outcome.kind.startswith(("random", "aimed")))
    print(f"\n{show(outcomes)}\n")
    print(
        f"{len(outcomes)} runs, {kills} kills, {len(failed)} different; {(time.monotonic() - begun) / 60:.1f} minutes"
    )
    if asked.json is not None:
        told = [vars(outcome) for outcome in outcomes]
        asked.json.write_text(json.dumps({"seed": asked.seed, "outcomes": told}, indent=1) + "\n", encoding="utf-8")
    if not failed and asked.work is None:
        shutil.rmtree(work)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
