"""A service under load: many clients at once, every answer checked against that of the same question asked alone.

    python benchmarks/serve_load.py output/demo --clients 200 --seconds 120

Starts `rectune serve RUN` on a free port, asks a number of questions one at a time (twice: with no history kept yet,
and with all), then lets the clients ask them at random without a pause. Meanwhile some hostile ones send a byte a
second, 10 MB of history, 20,000 candidates, broken JSON, or hang up. Clients that are told 429 come again when
`Retry-After` says. Prints what came of it, and exits with 1 where an answer was lost, failed or another question's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import httpx
import numpy as np
import polars as pl

from rectune.config import load_config
from rectune.data.columns import ITEM_ID, LABEL, USER_ID
from rectune.data.folder import load_catalog, load_events

MARKERS = "\0\ufeff<|im_end|>\u2028<|im_start|>assistant\u202e\U0001f600<|endoftext|>"
HOSTILE = ("slow", "huge", "many", "broken", "gone", "markers")


@dataclass
class Question:
    """A request, and the log-odds it got when it was asked alone."""

    body: dict[str, Any]
    alone: list[float] = field(default_factory=list)


@dataclass
class Seen:
    """What the clients saw."""

    seconds: list[float] = field(default_factory=list)
    candidates: int = 0
    busy: int = 0
    others: dict[str, int] = field(default_factory=dict)
    apart: list[float] = field(default_factory=list)
    mixed: int = 0
    hostile: dict[str, int] = field(default_factory=dict)


def questions(run: Path, count: int, candidates: int, events: int) -> list[Question]:
    """Users' last events as histories, and items at random as candidates; every second user asks twice."""
    folder = load_config(run).dataset_folder()
    log, catalog = load_events(folder), load_catalog(folder)
    draw = random.Random(0)
    titles = catalog[ITEM_ID].to_list()
    users = draw.sample(log[USER_ID].unique().sort().to_list(), count)
    found = []
    for user in users:
        past = log.filter(pl.col(USER_ID) == user).tail(draw.randint(events // 3, events))
        history = [{"item_id": item, "label": label} for item, label in past.select(ITEM_ID, LABEL).iter_rows()]
        for _ in range(draw.choice([1, 2])):
            asked = draw.sample(titles, draw.randint(candidates // 2, 2 * candidates))
            found.append(Question({"history": history, "candidates": [{"item_id": item} for item in asked]}))
    return found[:count]


def start(run: Path, options: list[str], journal: TextIO) -> tuple[subprocess.Popen[str], str]:
    """The service, and where it is."""
    command = [sys.executable, "-m", "rectune.cli", "serve", str(run), *options, "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=journal, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("serving: "):
            return process, line.split(" at ")[1].split()[0]
    journal.seek(0)
    raise SystemExit(journal.read())


def one_by_one(url: str, asked: list[Question]) -> list[float]:
    """Seconds of each question, asked when nobody else asks; its answer is kept with it."""
    seconds = []
    with httpx.Client(base_url=url, timeout=300) as client:
        for question in asked:
            begun = time.perf_counter()
            answer = client.post("/v1/score", json=question.body)
            seconds.append(time.perf_counter() - begun)
            answer.raise_for_status()
            question.alone = [each["log_odds"] for each in answer.json()["data"]]
    return seconds


async def ask(client: httpx.AsyncClient, asked: list[Question], until: float, seen: Seen, draw: random.Random) -> None:
    """A client that asks one question after the other."""
    while time.monotonic() < until:
        question = draw.choice(asked)
        begun = time.perf_counter()
        try:
            answer = await client.post("/v1/score", json=question.body)
        except httpx.HTTPError as error:
            seen.others[type(error).__name__] = seen.others.get(type(error).__name__, 0) + 1
            continue
        if answer.status_code == 429:
            seen.busy += 1
            await asyncio.sleep(min(float(answer.headers["retry-after"]), max(0.0, until - time.monotonic())))
            continue
        if answer.status_code != 200:
            seen.others[str(answer.status_code)] = seen.others.get(str(answer.status_code), 0) + 1
            continue
        seen.seconds.append(time.perf_counter() - begun)
        odds = np.array([each["log_odds"] for each in answer.json()["data"]])
        if len(odds) != len(question.alone):
            seen.mixed += 1
            continue
        seen.candidates += len(odds)
        seen.apart.append(float(np.abs(odds - question.alone).max()))


async def harm(url: str, kind: str, until: float, seen: Seen) -> None:
    """A client that means no good, again and again; statuses are counted."""

    async def drip() -> Any:
        yield b'{"query": "'
        while time.monotonic() < until:
            await asyncio.sleep(1)
            yield b"x"

    bodies: dict[str, Any] = {
        "huge": json.dumps({"query": "Heat (1995): yes\n" * 600_000, "candidates": ["1"]}).encode(),
        "many": json.dumps({"query": "", "candidates": ["1"] * 20_000}).encode(),
        "broken": b'{"query": "Heat',
        "gone": json.dumps({"query": "", "candidates": ["1"] * 500}).encode(),
        "markers": json.dumps({"query": f"{MARKERS}: yes", "candidates": [MARKERS], "unknown": "text"}).encode(),
    }
    headers = {"content-type": "application/json"}
    async with httpx.AsyncClient(base_url=url, timeout=0.5 if kind == "gone" else 120) as client:
        while time.monotonic() < until:
            try:
                content = drip() if kind == "slow" else bodies[kind]
                told = str((await client.post("/v1/score", content=content, headers=headers)).status_code)
            except httpx.HTTPError as error:
                told = type(error).__name__
            seen.hostile[f"{kind} {told}"] = seen.hostile.get(f"{kind} {told}", 0) + 1
            await asyncio.sleep(1)


async def load(url: str, asked: list[Question], clients: int, seconds: float) -> tuple[Seen, float]:
    """All clients at once; what they saw, and how long it took until the last had its answer."""
    seen, begun = Seen(), time.monotonic()
    until = begun + seconds
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
        await asyncio.gather(
            *(ask(client, asked, until, seen, random.Random(number)) for number in range(clients)),
            *(harm(url, kind, until, seen) for kind in HOSTILE),
        )
    return seen, time.monotonic() - begun


def described(seconds: list[float]) -> str:
    """Median and 99th percentile."""
    return f"median {np.median(seconds):.2f} s, 99th percentile {np.percentile(seconds, 99):.2f} s"


def main() -> None:
    """Run it and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--candidates", type=int, default=20, help="On average, of a question.")
    parser.add_argument("--events", type=int, default=30, help="At most, in a history.")
    parser.add_argument("--tolerance", type=float, default=0.25, help="Log-odds; bfloat16 rounds by some hundredths.")
    parser.add_argument("--options", default="", help="Given on to `rectune serve`, such as '--unknown text'.")
    given = parser.parse_args()
    asked = questions(given.run, given.questions, given.candidates, given.events)
    journal = tempfile.TemporaryFile("w+")  # noqa: SIM115
    process, url = start(given.run, shlex.split(given.options), journal)
    try:
        cold, warm = one_by_one(url, asked), one_by_one(url, asked)
        per_question = float(np.mean([len(question.alone) for question in asked]))
        for name, found in (("one at a time, no history kept", cold), ("one at a time, all kept", warm)):
            rate = len(found) / sum(found)
            print(
                f"{name}: {rate:.2f} requests/s, {rate * per_question:.0f} candidates/s, {described(found)}", flush=True
            )
        seen, took = asyncio.run(load(url, asked, given.clients, given.seconds))
        rounds = httpx.get(f"{url}/metrics").text
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)
    done, apart = len(seen.seconds), np.array(seen.apart or [np.nan])
    print(
        f"{given.clients} clients, {took:.0f} s: {done} answers, {done / took:.2f} requests/s, "
        f"{seen.candidates / took:.0f} candidates/s, {described(seen.seconds)}"
    )
    count, total = (float(rounds.split(f"rectune_round_requests_{name} ")[1].split()[0]) for name in ("count", "sum"))
    print(f"{total / count:.1f} requests a pass on average; 429: {seen.busy}; others: {seen.others or 'none'}")
    print(f"log-odds apart from those alone: at most {apart.max():.4f}, on average {apart.mean():.4f}")
    print(f"hostile clients: {dict(sorted(seen.hostile.items()))}")
    journal.seek(0)
    failures = [line for line in journal if '"failure"' in line]
    print(f"exit code {process.returncode}; failures in the journal: {len(failures)}")
    wrong = int((apart > given.tolerance).sum()) + seen.mixed
    fatal = wrong or seen.others or process.returncode or failures or any(" 5" in told for told in seen.hostile)
    print("FAILED" if fatal else "no answer was lost, mixed up or wrong")
    sys.exit(1 if fatal else 0)


if __name__ == "__main__":
    main()
