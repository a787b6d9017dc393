"""Prepare and tokenise a large log, each step in a process of its own, and say how fast and in how much memory.

    python benchmarks/make_movielens.py /tmp/ml-32m                    # the size and shape of ml-32m
    python benchmarks/large_data.py /tmp/ml-32m --work /tmp/large --json benchmarks/large_data.json

Steps, chosen with --steps:

- prepare: `rectune prepare`, from ratings.csv to the dataset folder
- encode: streams of all training events and of 1,000 validation events, with SmolLM2's tokenizer
- again: the same, which finds everything in the cache
- train: three optimiser steps of SmolLM2-135M (or --model) on all training events
- kill: both stages on the first rows, killed a moment after every few pieces until they are through, against an
  uninterrupted run: every file must be the same
- peer: the protocol in pandas as one would write it (one frame, a loop over users, records in a list), on more and more
  of the same rows until it passes the limit; and rectune, with all JSON files, on as many as pandas can hold

Memory is the resident set of the process and its children, looked at five times a second; mapped files count in it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

GIB = 2**30
LIMIT = 6 * GIB
STEPS = ("prepare", "encode", "again", "train", "kill", "peer")


def resident(process: int) -> int:
    """Bytes that a process and its children have in memory."""
    import psutil

    try:
        root = psutil.Process(process)
        return sum(each.memory_info().rss for each in (root, *root.children(recursive=True)))
    except psutil.NoSuchProcess:
        return 0


def size_of(folder: Path) -> int:
    """Bytes of a folder's files."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.exists() else 0


def run(
    command: list[str],
    log: Path,
    places: tuple[Path, ...] = (),
    limit: int | None = None,
    kill_when: Callable[[], bool] | None = None,
    wait: float = 0.0,
) -> dict[str, Any]:
    """Run a command until it ends, passes the limit or is to be killed: seconds, CPU seconds, peak, exit code."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun, peak, disk, over, looks = time.perf_counter(), 0, 0, False, 0
    with log.open("ab") as stream:
        child = subprocess.Popen(command, stdout=stream, stderr=stream, start_new_session=True)
        while child.poll() is None:
            peak = max(peak, resident(child.pid))
            if looks % 25 == 0:
                disk = max(disk, sum(size_of(place) for place in places))
            looks += 1
            over = limit is not None and peak > limit
            if over or (kill_when is not None and kill_when()):
                time.sleep(wait)
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
                break
            time.sleep(0.2 if kill_when is None else 0.02)
    seconds = time.perf_counter() - begun
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    told: dict[str, Any] = {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "peak_gib": round(peak / GIB, 3),
        "code": child.returncode,
    }
    if places:
        told["most_disk_gib"] = round(max(disk, sum(map(size_of, places))) / GIB, 3)
    if limit is not None:
        told["over_limit"] = over
    return told


def speed(what: str, number: int, told: dict[str, Any]) -> dict[str, int]:
    """So much a second, and a second of processor time, which tells more on a machine that others use too."""
    return {f"{what}_per_second": round(number / told["seconds"]),
            f"{what}_per_cpu_second": round(number / max(told["cpu_seconds"], 0.1))}  # fmt: skip


def rectune(*words: str) -> list[str]:
    """A rectune command."""
    return [sys.executable, "-m", "rectune.cli", *words]


def step(name: str, *words: str) -> list[str]:
    """A step of this script in a process of its own."""
    return [sys.executable, __file__, "--child", name, *words]


def keys(source: Path, work: Path, *more: str) -> list[str]:
    """Overrides of the configuration that all steps share."""
    return [f"dataset={source}", f"dataset_dir={work / 'set'}", f"preprocessing_cache_dir={work / 'cache'}",
            f"output_dir={work / 'run'}", "prior=none", "blend=[]", "item_rate_text=false", "layout=stream",
            "cutoff_len=1024", "max_train_samples=null", "max_eval_samples=1000", *more]  # fmt: skip


def head(source: Path, target: Path, rows: int) -> Path:
    """The first rows of a set as a set."""
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(source / "movies.csv", target)
    with (source / "ratings.csv").open("rb") as whole, (target / "ratings.csv").open("wb") as part:
        for _, line in zip(range(rows + 1), whole, strict=False):
            part.write(line)
    return target


# --- children ---


def encode_child(overrides: list[str]) -> None:
    """Tokenise training and validation events, and print what came out."""
    from rectune.config import load_config
    from rectune.model.load import load_tokenizer
    from rectune.prompt.dataset import open_dataset
    from rectune.prompt.encode import encode, split_sample
    from rectune.prompt.layouts import prompts_for
    from rectune.prompt.pieces import Pieces
    from rectune.shipped import find_config

    config = load_config(find_config(Path("demo_cpu")), overrides)
    data = open_dataset(config, print)
    prompts = prompts_for(config, Pieces(load_tokenizer(config, print)))
    for split in ("train", "validation"):
        rows = split_sample(config, data.table, split)
        trees = encode(
            config, data.table, data.catalog, data.content_hash, prompts, rows, print, training=split == "train"
        )
        told = {"split": split, "labels": len(trees.labels), "sequences": len(trees), "tokens": len(trees.tokens)}
        print("RESULT " + json.dumps(told), flush=True)


def pandas_child(source: str, target: str, rows: str) -> None:
    """The seeds' protocol in pandas: sort, label, split each user, render every record, write the JSON files."""
    import pandas as pd

    history_len, threshold = 15, 4.0
    folder = Path(target)
    folder.mkdir(parents=True, exist_ok=True)
    ratings = pd.read_csv(Path(source) / "ratings.csv", nrows=int(rows))
    movies = pd.read_csv(Path(source) / "movies.csv")
    titles = dict(zip(movies["movieId"], movies["title"], strict=True))
    ratings = ratings.sort_values(["userId", "timestamp"], kind="stable")
    ratings["label"] = (ratings["rating"] >= threshold).map({True: "Yes", False: "No"})
    ratings["title"] = ratings["movieId"].map(titles)
    instruction = "Given the user's history, predict whether the user will like the candidate film. Answer Yes or No."
    system = "You are a film recommender."
    train, validation, test = [], [], []
    for user, events in ratings.groupby("userId", sort=False):
        if len(events) <= history_len:
            continue
        known = list(zip(events["title"], events["rating"], events["label"], events["timestamp"], strict=True))
        usable = len(known) - history_len
        tests = max(1, int(usable * 0.10))
        validations = max(1, int(usable * 0.05))
        for at in range(history_len, len(known)):
            title, _, label, moment = known[at]
            past = [event for event in known[at - history_len : at] if event[3] < moment]
            if at >= len(known) - tests:
                test.append({"user_id": user, "history_titles": [event[0] for event in past],
                             "history_ratings": [event[1] for event in past], "candidate_title": title,
                             "label": label})  # fmt: skip
                continue
            lines = "\n".join(f"{place}. {event[0]} ({event[1]}/5)" for place, event in enumerate(past, start=1))
            record = {"instruction": instruction, "input": f"History:\n{lines}\nCandidate: {title}\nWill they like it?",
                      "output": label, "system": system, "history": []}  # fmt: skip
            (validation if at >= len(known) - tests - validations else train).append(record)
    for name, records in (("train.json", train), ("eval.json", validation)):
        with (folder / name).open("w", encoding="utf-8") as stream:
            json.dump(records, stream, ensure_ascii=False, indent=2)
    with (folder / "test_raw.jsonl").open("w", encoding="utf-8") as stream:
        for record in test:
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")
    print("RESULT " + json.dumps({"train": len(train), "validation": len(validation), "test": len(test)}))


# --- steps ---


def results_of(log: Path) -> list[dict[str, Any]]:
    """What children have printed as results."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return [json.loads(line.removeprefix("RESULT ")) for line in lines if line.startswith("RESULT ")]


def fingerprint(work: Path) -> dict[str, Any]:
    """What both stages have left, by its content."""
    import hashlib

    meta = json.loads((work / "set" / "meta.json").read_text(encoding="utf-8"))
    files = [work / "set" / name for name in ("train.json", "eval.json", "test_raw.jsonl")]
    shards = sorted((work / "cache").glob("*/*.arrow"))
    digests = {str(file.relative_to(work)): hashlib.sha256(file.read_bytes()).hexdigest() for file in (*shards, *files)}
    return {"content_hash": meta["content_hash"], "sha256": meta["sha256"], "files": digests, "shards": len(shards)}


def pieces_in(place: Path) -> int:
    """Finished pieces of both stages."""
    return sum(1 for folder in (place / ".set.parts", place / "cache") for _ in folder.rglob("*.done"))


def killed(source: Path, work: Path, rows: int, part_rows: int, seed: int) -> dict[str, Any]:
    """Both stages on the first rows, killed a moment after every few pieces, against an uninterrupted run."""
    part = head(source, work / "kill-set", rows)
    found, kills = [], {"prepare": 0, "encode": 0}
    draw = random.Random(seed)
    said = ""
    for name in ("whole", "killed"):
        place = work / f"kill-{name}"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        log = place / "log"
        overrides = keys(part, place, "json_files=all", f"part_rows={part_rows}")
        for stage, command in (
            ("prepare", rectune("prepare", "demo_cpu", *overrides)),
            ("encode", step("encode", *overrides)),
        ):
            while True:
                some = pieces_in(place) + draw.randint(1, 9)
                after = None if name == "whole" else (lambda: pieces_in(place) >= some)  # noqa: B023
                told = run(command, log, kill_when=after, wait=draw.uniform(0, 0.2))
                if told["code"] == 0:
                    break
                if told["code"] != -signal.SIGKILL:
                    raise SystemExit(f"{stage} failed; see {log}")
                kills[stage] += 1
        found.append(fingerprint(place))
        said = log.read_text(encoding="utf-8", errors="replace")
    shutil.rmtree(part)
    return {"rows": rows, "part_rows": part_rows, "kills": kills, "equal": found[0] == found[1],
            "shards": found[0]["shards"], "went_on": said.count("going on with")}  # fmt: skip


def peers(source: Path, work: Path, sizes: list[int]) -> list[dict[str, Any]]:
    """pandas on more and more rows, then rectune on as many as it could hold."""
    found: list[dict[str, Any]] = []
    for rows in sizes:
        log = work / f"pandas-{rows}.log"
        log.unlink(missing_ok=True)
        told = run(step("pandas", str(source), str(work / "pandas"), str(rows)), log, limit=LIMIT)
        told |= {"who": "pandas", "rows": rows, **({} if told["over_limit"] else speed("rows", rows, told))}
        found.append(told)
        shutil.rmtree(work / "pandas", ignore_errors=True)
        print(json.dumps(told), flush=True)
        if told["over_limit"] or told["code"]:
            break
    most = max((each["rows"] for each in found if not each["code"]), default=0)
    if most:
        part = head(source, work / "peer-set", most)
        log = work / "rectune-peer.log"
        overrides = keys(part, work / "peer", "json_files=all", "part_rows=500000")
        told = run(rectune("prepare", "demo_cpu", *overrides), log)
        told |= {"who": "rectune, all JSON files", "rows": most, **speed("rows", most, told)}
        found.append(told)
        print(json.dumps(told), flush=True)
        shutil.rmtree(work / "peer", ignore_errors=True)
        shutil.rmtree(part)
    return found


def main() -> None:
    """Run the steps that are asked for."""
    if sys.argv[1:2] == ["--child"]:
        name, words = sys.argv[2], sys.argv[3:]
        encode_child(words) if name == "encode" else pandas_child(*words)
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="folder for all output, on a disk with some 20 GiB")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--steps", default=",".join(STEPS))
    parser.add_argument("--part-rows", type=int, default=2_000_000)
    parser.add_argument("--model", help="another model for the step train; tokenised for it first")
    parser.add_argument("--kill-rows", type=int, default=200_000)
    parser.add_argument("--peer-rows", default="1000000,2000000,4000000,8000000,16000000")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    work: Path = asked.work
    work.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = json.loads(asked.json.read_text()) if asked.json and asked.json.exists() else {}
    overrides = keys(asked.source, work, f"part_rows={asked.part_rows}")
    for name in asked.steps.split(","):
        log = work / f"{name}.log"
        log.unlink(missing_ok=True)
        if name == "prepare":
            told = run(rectune("prepare", "demo_cpu", *overrides), log, (work,))
            meta = json.loads((work / "set" / "meta.json").read_text(encoding="utf-8"))
            rows = meta["events"] + meta["left_out"]["their_events"] + meta["rejects"]["rows"]
            told |= {"rows": rows, **speed("rows", rows, told),
                     "content_hash": meta["content_hash"],
                     "dataset_gib": round(size_of(work / "set") / GIB, 3)}  # fmt: skip
        elif name in ("encode", "again"):
            told = run(step("encode", *overrides), log, (work / "cache",))
            told |= {each.pop("split"): each for each in results_of(log)}
            told |= speed("labels", told["train"]["labels"], told) | speed("tokens", told["train"]["tokens"], told)
        elif name == "train":
            model = [f"model_name_or_path={asked.model}"] if asked.model else []
            short = ("max_steps=3", "eval_strategy=no", "save_steps=3", "report_to=none", "baselines=quick", *model)
            told = run(rectune("train", "demo_cpu", *overrides, *short), log)
        elif name == "kill":
            told = killed(asked.source, work, asked.kill_rows, max(1, asked.kill_rows // 10), asked.seed)
        else:
            told = {"runs": peers(asked.source, work, [int(rows) for rows in asked.peer_rows.split(",")])}
        figures[name] = told
        print(name, json.dumps(told), flush=True)
        if told.get("code"):
            raise SystemExit(f"{name} failed; see {log}")
        if asked.json:
            asked.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
