"""Ask an export behind vLLM or SGLang 200 real pairs and compare with the trained model.

python scripts/check_served.py RUN RUN/export/classifier --url http://127.0.0.1:8000 --server vllm

Ends with 1 where the answers differ by more than an export may (docs/exports.md). One request holds all candidates
of one history; requests go one at a time unless --clients says otherwise.
"""

from __future__ import annotations

import argparse
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from rectune.errors import RectuneError
from rectune.export.forms import HALF, ask_trained, compared
from rectune.export.pairs import pairs_of
from rectune.export.prompt_template import template_of
from rectune.export.served import SERVERS, ServedExport
from rectune.score.open_run import open_run


def check(run_folder: Path, served: ServedExport, clients: int) -> int:
    """Print how far the server's answers are from the trained model's, and how fast they came.

    Returns:
        0 where they agree, else 1.
    """
    run = open_run(run_folder, [], print)
    pairs = pairs_of(run, template_of(run.prompts), print)
    trained = ask_trained(run, run.model, pairs)
    groups: dict[str, list[int]] = {}
    for at, (query, _) in enumerate(pairs.asked):
        groups.setdefault(query, []).append(at)
    found = np.empty(len(pairs.asked))
    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        asked = [[pairs.asked[at] for at in own] for own in groups.values()]
        for own, scores in zip(groups.values(), pool.map(served.log_odds, asked), strict=True):
            found[own] = scores
    seconds = time.perf_counter() - start
    scale = run.settings.temperature if served.classifier else 1.0
    parity = compared(found * scale, trained, pairs)
    print(f"{served.server}: {parity.line()}")
    print(f"{len(found)} pairs of {len(groups)} histories in {seconds:.1f} s, {clients} requests at a time")
    problem = parity.problem(HALF)
    print(f"does not answer as the trained model: {problem}" if problem else "answers as the trained model")
    return int(problem is not None)


def main() -> int:
    """Read the arguments and check; an error is one line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, help="the run folder that was exported")
    parser.add_argument("export", type=Path, help="the folder that the server serves")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="where it listens (%(default)s)")
    parser.add_argument("--server", choices=SERVERS, default="vllm")
    parser.add_argument("--model", help="what the server calls the model, where it must be named")
    parser.add_argument("--clients", type=int, default=1, help="requests at a time (%(default)s)")
    args = parser.parse_args()
    try:
        served = ServedExport(args.export, args.url, args.server, os.environ.get("RECTUNE_API_KEY"), model=args.model)
        return check(args.run, served, args.clients)
    except RectuneError as error:
        print(f"error: {error}")
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
