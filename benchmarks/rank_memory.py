"""What scoring one user's many candidates takes in memory, beside the budget it was given.

python benchmarks/rank_memory.py output/demo --candidates 20000
"""

from __future__ import annotations

import argparse
import random
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import torch

from rectune.prompt.events import Event
from rectune.score.candidates import Candidate, CandidateScorer, Request
from rectune.score.open_run import OpenRun, open_run

_MIB = 1 << 20


class Peak:
    """The most memory in use while open: of the process, or of the GPU where the model lies there."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._process = psutil.Process()
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self.most = 0

    def now(self) -> int:
        """Bytes in use."""
        return torch.cuda.memory_allocated() if self._cuda else int(self._process.memory_info().rss)

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self.most = max(self.most, self.now())

    def __enter__(self) -> Peak:
        self.most = self.now()
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            self._watcher.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._done.set()
        self.most = torch.cuda.max_memory_allocated() if self._cuda else max(self.most, self.now())


def measure(run: OpenRun, request: Request, memory_gib: float | None) -> None:
    """Score one request under one budget and print what it took."""
    scorer = CandidateScorer(replace(run, config=run.config.with_overrides(scoring_memory_gib=memory_gib)), print)
    scorer.score([Request(request.history, request.candidates[:50])])
    with Peak(run.loaded.device) as peak:
        before, started = peak.now(), time.perf_counter()
        scorer.score([request])
        seconds = time.perf_counter() - started
    given = (scorer.budget.kept * 2) / _MIB
    took = (peak.most - before) / _MIB
    print(
        f"{len(request.candidates):,} candidates, budget {given:,.0f} MiB ({scorer.budget.reason}; "
        f"{scorer.budget.tokens:,} tokens a pass): peak {took:,.0f} MiB more than before, "
        f"{'under' if took <= given else 'OVER'} the budget; {len(request.candidates) / seconds:,.0f} candidates/s"
    )


def main() -> None:
    """Measure under several budgets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--candidates", type=int, default=20_000)
    parser.add_argument("--history", type=int, default=15)
    parser.add_argument("--memory", type=float, nargs="*", default=[0.25, 1.0], help="GiB; the default comes last")
    args = parser.parse_args()
    run = open_run(args.run, args.overrides, print)
    draw = random.Random(0)
    words = [
        "Night",
        "Day",
        "City",
        "River",
        "Stone",
        "Glass",
        "Heart",
        "King",
        "Return",
        "Shadow",
        "Summer",
        "Train",
        "Letter",
        "Garden",
        "Winter",
        "Song",
    ]

    def title() -> str:
        return " ".join(draw.choices(words, k=draw.randint(1, 6)))

    history = [Event(title(), 4.0, draw.randint(0, 1)) for _ in range(args.history)]
    request = Request(history, [Candidate(title()) for _ in range(args.candidates)])
    for memory in [*args.memory, None]:
        measure(run, request, memory)


if __name__ == "__main__":
    main()
