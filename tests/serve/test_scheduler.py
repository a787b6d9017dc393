"""Which questions are scored together, and that no question's fault is another's."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from rectune.errors import DataError
from rectune.score.candidates import Candidate, Request
from rectune.score.recommender import Recommender
from rectune.serve.scheduler import Job, Round, Scheduler, Slice, choose, kept_name

TITLES = ["Alien (1979)", "Fargo (1996)", "The Godfather", "Heat", "Four Rooms"]


def job(recommender: Recommender, history: list[Any], candidates: list[str], seconds: float = 60) -> Job:
    request = recommender.ask(history, candidates).request
    request = Request(request.history, request.candidates, kept_name(request.history))
    return Job(recommender.scorer, request, *recommender.scorer.tokens(request), time.monotonic() + seconds)


@pytest.fixture
def rounds() -> list[Round]:
    return []


@pytest.fixture
def scheduler(rounds: list[Round]) -> Iterator[Scheduler]:
    made = Scheduler(rounds.append)
    yield made
    made.stop()


def expected(recommender: Recommender, history: list[Any], candidates: list[str]) -> list[float]:
    (found,) = recommender.scorer.score([recommender.ask(history, candidates).request])
    return [float(odds) for odds in found]


def test_tokens_are_those_of_the_plain_prompts(alone: Recommender) -> None:
    request = alone.ask([("Heat", 5), ("Fargo", 1)], TITLES).request
    trunk, own = alone.scorer.tokens(request)
    for candidate, tokens in zip(request.candidates, own, strict=True):
        assert trunk + tokens == len(alone.run.prompts.build(request.history, candidate.text).tokens)


def test_jobs_are_taken_in_order_those_of_one_history_together_until_the_room_is_full(alone: Recommender) -> None:
    one, other = [("Heat", 5)], [("Fargo", 1)]
    first, second, third = job(alone, one, TITLES[:2]), job(alone, other, TITLES[:1]), job(alone, one, TITLES[2:3])
    # The third has its history with the first, and costs its candidate only.
    room = first.tokens + third.own[0]
    assert choose([first, second, third], room) == [Slice(first, 2), Slice(third, 1)]
    assert choose([first, second, third], room + second.tokens) == [Slice(first, 2), Slice(third, 1), Slice(second, 1)]
    assert choose([first, second, third], first.trunk + first.own[0]) == [Slice(first, 1)]
    assert choose([first, second], 1) == [Slice(first, 1)], "the first gets a candidate however long it is"
    assert choose([], 100) == []


def test_what_does_not_fit_leaves_its_room_to_a_shorter_one(alone: Recommender) -> None:
    first, long, short = (
        job(alone, [("Heat", 5)], ["Heat"]),
        job(alone, [("Fargo", 1)] * 9, ["Heat"]),
        job(alone, [], ["Heat"]),
    )
    room = first.tokens + short.tokens
    assert long.tokens > short.tokens
    assert choose([first, long, short], room) == [Slice(first, 1), Slice(short, 1)]


def test_jobs_of_two_runs_are_never_in_one_round(alone: Recommender) -> None:
    other = Recommender(alone.run, alone.data, lambda _line: None)
    mine, theirs = job(alone, [], ["Heat"]), job(other, [], ["Heat"])
    assert choose([mine, theirs], 10_000) == [Slice(mine, 1)]
    assert choose([theirs, mine], 10_000) == [Slice(theirs, 1)]


def test_a_large_job_is_scored_in_slices_between_which_a_small_one_has_its_turn(
    alone: Recommender, scheduler: Scheduler, rounds: list[Round], monkeypatch: pytest.MonkeyPatch
) -> None:
    history: list[Any] = [("Heat", 5), ("Fargo", 1)]
    large, small = job(alone, history, TITLES * 40), job(alone, [("Alien", 5)], TITLES[:2])
    budget = alone.scorer.budget
    monkeypatch.setattr(alone.scorer, "budget", type(budget)(large.trunk + 100, budget.kept, "test", False))
    done: list[str] = []
    large.answer.add_done_callback(lambda _found: done.append("large"))
    small.answer.add_done_callback(lambda _found: done.append("small"))
    scheduler.submit(large)
    scheduler.submit(small)
    scheduler.start()
    assert np.allclose(large.answer.result(60), expected(alone, history, TITLES * 40), atol=1e-4)
    assert np.allclose(small.answer.result(60), expected(alone, [("Alien", 5)], TITLES[:2]), atol=1e-4)
    assert done == ["small", "large"] and len(rounds) > 5
    assert sum(each.candidates for each in rounds) == 202
    assert scheduler.waiting == 0


def test_a_job_that_cannot_be_scored_fails_alone(alone: Recommender, scheduler: Scheduler) -> None:
    good = job(alone, [("Heat", 5)], TITLES)
    # One that slipped through the check of its length.
    bad = job(alone, [("Heat", 5)], ["Fargo"])
    bad.request = Request(bad.request.history, [Candidate("x" * 9000)], None)
    scheduler.submit(bad)
    scheduler.submit(good)
    scheduler.start()
    assert np.allclose(good.answer.result(60), expected(alone, [("Heat", 5)], TITLES), atol=1e-4)
    with pytest.raises(DataError, match="cutoff_len"):
        bad.answer.result(60)


def test_who_waits_no_more_is_not_scored(alone: Recommender, scheduler: Scheduler, rounds: list[Round]) -> None:
    late, taken_back, good = job(alone, [], TITLES, -1), job(alone, [], TITLES), job(alone, [], TITLES[:1])
    taken_back.answer.cancel()
    for each in (late, taken_back, good):
        scheduler.submit(each)
    scheduler.start()
    assert len(good.answer.result(60)) == 1
    with pytest.raises(TimeoutError):
        late.answer.result(60)
    assert [each.candidates for each in rounds] == [1]


def test_the_wait_is_what_waits_by_the_speed_so_far(alone: Recommender, scheduler: Scheduler) -> None:
    assert scheduler.wait_for(1000) is None
    scheduler.start()
    first = job(alone, [], TITLES)
    scheduler.submit(first)
    first.answer.result(60)
    deadline = time.monotonic() + 10
    while scheduler.wait_for(0) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    one = scheduler.wait_for(1000)
    assert one is not None and scheduler.wait_for(2000) == pytest.approx(2 * one)


def test_names_of_histories_differ_with_any_part_of_an_event(alone: Recommender) -> None:
    ask = [
        alone.ask(events, []).request.history
        for events in ([("Heat", 5)], [("Heat", 4)], [("Heat", 1)], [("Fargo", 5)], [])
    ]
    assert len({kept_name(history) for history in ask}) == 5
    assert kept_name(alone.ask([("Heat", 5)], ["Fargo"]).request.history) == kept_name(ask[0])
