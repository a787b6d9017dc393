"""What happens in a contender's process of rank_speed.py: the reference, the check against it, the clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from rank_contenders import Forward, Generate, Ours, Settings
from rank_requests import Asked, Job, bench_config, draw_requests, plain_model, shape_of, tokenizer_of
from step_recorder import machine, peak_gib

from rectune.prompt.layouts import Prompts, prompts_for
from rectune.prompt.pieces import Pieces
from rectune.quiet import quiet_libraries

CHECKED = (2, 4)
"""Users, and candidates of each, that every contender is checked on at each length of history."""


def reference(job: Job, prompts: Prompts) -> Job:
    """What is right: each plain prompt alone, float32, by plain transformers.

    Returns:
        For each length of history the log-odds, the most probable next token and how far its logit leads.
    """
    model, words = plain_model(job, torch.float32, "sdpa"), prompts.verbalizer
    found: Job = {}
    for history in sorted({history for history, _, _ in job["loads"]}):
        odds, tokens, gaps = [], [], []
        for each in draw_requests(job, prompts, history, *CHECKED):
            for prompt in each.prompts:
                with torch.inference_mode():
                    logits = model(input_ids=torch.tensor([prompt], device=model.device)).logits[0, -1]
                best, following = logits.topk(2)[0].tolist()
                odds.append(float(logits[words.positive_id] - logits[words.negative_id]))
                tokens.append(int(logits.argmax()))
                gaps.append(best - following)
        found[str(history)] = {"log_odds": odds, "token": tokens, "gap": gaps}
    return found


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_of(action: Callable[[], object]) -> float:
    """How long this takes."""
    _wait()
    start = time.perf_counter()
    action()
    _wait()
    return time.perf_counter() - start


def fitting(contender: Any, asked: list[Asked], speed: float, budget: float, step: int) -> list[Asked]:
    """As many whole requests as fit `budget` seconds, or a part of the first one, in whole batches.

    Args:
        speed: tokens per second as the contender counts them.
    """
    ends = np.cumsum([contender.tokens(each) for each in asked]) / speed
    whole = int((ends <= budget).sum())
    if whole:
        return asked[:whole]
    first = asked[0]
    share = int(len(first.prompts) * budget / ends[0]) // step * step
    return [first.head(min(max(share, step), len(first.prompts)))]


def _search(contender: Any, asked: Asked, choices: list[Settings]) -> list[Job]:
    """Try each of the settings on one batch, the better of two attempts; what fails is recorded, too."""
    trials = []
    for settings in choices:
        part = [asked.head(contender.step(settings))]
        try:
            contender.use(settings)
            took = min(seconds_of(lambda part=part: contender.answer(part)) for _ in range(2))
            trials.append({"settings": settings, "pairs_per_s": len(part[0].prompts) / took})
        except (RuntimeError, ValueError) as error:  # out of memory, or a kernel that is not to be had
            trials.append({"settings": settings, "error": " ".join(str(error).split())[:200]})
            if torch.cuda.is_available():
                torch.cuda.empty_cache()  # what the failed attempt held
    return trials


def measure(job: Job, contender: Any, prompts: Prompts) -> Job:
    """Check a contender at each length of history, find its settings, and time every load."""
    rows, checks, searches = [], {}, {}
    for history in sorted({history for history, _, _ in job["loads"]}):
        largest = max(count for length, _, count in job["loads"] if length == history)
        choices = contender.choices()
        trial = draw_requests(job, prompts, history, 1, min(largest, 512))[0]
        searches[str(history)] = _search(contender, trial, choices) if job["search"] and len(choices) > 1 else []
        done = [each for each in searches[str(history)] if "error" not in each]
        best = max(done, key=lambda each: each["pairs_per_s"])["settings"] if done else choices[0]
        contender.use(best)
        known = draw_requests(job, prompts, history, *CHECKED)
        start = time.perf_counter()
        check = checks[str(history)] = contender.wrong(known, job["expected"][str(history)])
        speed = sum(map(contender.tokens, known)) / (time.perf_counter() - start)
        if check["problem"]:
            raise RuntimeError(f"history of {history}: {check['problem']}: wrong, so not timed")
        for users, count in sorted({(users, count) for length, users, count in job["loads"] if length == history}):
            asked = draw_requests(job, prompts, history, users, count)
            part = fitting(contender, asked, speed, job["seconds"], contender.step(best))
            if job["search"]:
                contender.answer(part)  # not counted
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            took = [seconds_of(lambda part=part: contender.answer(part)) for _ in range(job["repeats"])]
            rows.append(_row(job, history, users, count, asked, part, took, best) | {"peak_gib": peak_gib()})
            speed = max(speed, sum(map(contender.tokens, part)) / statistics.median(took))
    return {"rows": rows, "checks": checks, "searches": searches}


def _row(
    job: Job, history: int, users: int, count: int, asked: list[Asked], part: list[Asked], took: list[float], best: Job
) -> Job:
    pairs = sum(len(each.prompts) for each in part)
    middle = statistics.median(took)
    whole = len(part[0].prompts) == count
    return {
        "contender": job["kind"],
        "layout": job["config"]["layout"],
        "history": history,
        "users": users,
        "candidates": count,
        "settings": best,
        "pairs_timed": pairs,
        "pairs_asked": users * count,
        "requests_timed": len(part) if whole else 0,
        "seconds": [round(each, 5) for each in took],
        "pairs_per_s": pairs / middle,
        "ms_per_request": 1e3 * middle / len(part) if whole else None,
        **shape_of(asked),
    }


def under_load(job: Job, contender: Any, prompts: Prompts) -> list[Job]:
    """Latency at a rate of requests: Poisson arrivals, one worker, which takes all that wait, 64 at most, at once."""
    history, count = job["loads"][0][0], 100
    asked = draw_requests(job, prompts, history, min(64, max(users for _, users, _ in job["loads"])), count)
    contender.use({})
    contender.answer(asked[:4])
    found = []
    for rate in job["rates"]:
        draw = np.random.default_rng(job["seed"])
        due = np.cumsum(draw.exponential(1 / rate, max(10, round(rate * job["load_seconds"]))))
        ends, sizes, next_one = np.empty(len(due)), [], 0
        start = time.perf_counter()
        while next_one < len(due):
            now = time.perf_counter() - start
            if due[next_one] > now:
                time.sleep(due[next_one] - now)
                continue
            stop = min(int(np.searchsorted(due, now, side="right")), next_one + 64)
            contender.answer([asked[at % len(asked)] for at in range(next_one, stop)])
            _wait()
            ends[next_one:stop] = time.perf_counter() - start
            sizes.append(stop - next_one)
            next_one = stop
        waited = 1e3 * (ends - due)
        found.append(
            {
                "rate": rate, "requests": len(due), "history": history, "candidates": count,
                "served_per_s": len(due) / float(ends[-1]), "batch_mean": statistics.mean(sizes),
                **{f"p{share}_ms": float(np.percentile(waited, share)) for share in (50, 95, 99)},
            }
        )  # fmt: skip
    return found


def run_job(job: Job, pipe: Any) -> None:
    """The child process: do one job and send its result, or `error` in one line."""
    quiet_libraries()
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    try:
        prompts = prompts_for(bench_config(job), Pieces(tokenizer_of(job)))
        kind = job["kind"]
        if kind == "reference":
            result = {"expected": reference(job, prompts), "machine": machine(), "threads": torch.get_num_threads()}
        else:
            if kind == "llama":
                from rank_llama import LlamaCpp

                contender: Any = LlamaCpp(job, prompts)
            else:
                makers = {"generate": Generate, "forward": Forward, "forward-last": Forward, "ours": Ours}
                contender = makers[kind](job, prompts)
            result = measure(job, contender, prompts)
            if kind == "ours" and job["rates"]:
                result["load"] = under_load(job, contender, prompts)
    except Exception as error:  # whatever a library raises becomes one line of the table
        result = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:400]}
    pipe.send(result)
    pipe.close()
