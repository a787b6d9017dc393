"""`rectune serve` in a process of its own: starting, stopping, dying, and another adapter."""

from __future__ import annotations

import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from served import KEY, Process, silent

from rectune.score.recommender import Recommender

QUESTION = {
    "query": "Toy Story (1995): 5\nHeat (1995): 2",
    "candidates": ["Alien (1979)", "Fargo (1996)", "The Godfather"],
}
HISTORY = [("Toy Story (1995)", 5), ("Heat (1995)", 2)]
Start = Callable[..., Process]


def scores(answer: httpx.Response) -> list[float]:
    assert answer.status_code == 200, answer.text
    return [each["score"] for each in answer.json()["data"]]


@contextmanager
def under_load(url: str, headers: dict[str, str], clients: int = 4) -> Iterator[list[Any]]:
    """Clients that ask without a pause; every answer, or what went wrong in its place."""
    answers: list[Any] = []
    over = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=url, headers=headers, timeout=60) as client:
            while not over.is_set():
                try:
                    answers.append(client.post("/v1/score", json=QUESTION))
                except httpx.HTTPError as error:
                    answers.append(error)
                    time.sleep(0.02)

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        over.set()
        for thread in threads:
            thread.join(60)


def more_than(answers: list[Any], count: int) -> None:
    end = time.monotonic() + 60
    while len(answers) <= count and time.monotonic() < end:
        time.sleep(0.01)
    assert len(answers) > count


# --- starting ---


def test_other_machines_are_not_let_in_without_a_key(start: Start, run: Path) -> None:
    process = start(run, "--host", "0.0.0.0", "--port", "0", ready=False)
    assert process.end() == 2
    line = "error: --host: got 0.0.0.0, which other machines may reach, and there is no API key; set RECTUNE_API_KEY"
    assert process.text("err").startswith(line) and process.text("err").count("\n") == 1


def test_a_port_that_is_taken_and_a_run_that_is_none_are_one_line(start: Start, run: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = start(run, "--port", port, ready=False)
        assert process.end() == 2
    assert (
        process.text("err")
        == f"error: --port: 127.0.0.1:{port} cannot be had (Address already in use); take another one\n"
    )
    process = start(tmp_path / "none", "--port", "0", ready=False)
    assert process.end() == 2 and "no such run folder" in process.text("err")


# --- stopping ---


def test_sigterm_answers_what_is_in_and_refuses_what_comes(start: Start, run: Path) -> None:
    process = start(run, "--port", "0")
    with httpx.Client(base_url=process.url, timeout=60) as client:
        assert client.get("/ready").status_code == 200
        with under_load(process.url, {}, clients=8) as answers:
            more_than(answers, 20)
            process.send(signal.SIGTERM)
            assert process.end() == 0
            done = len(answers)
    expected = scores(answers[0])
    answered = [answer for answer in answers if isinstance(answer, httpx.Response) and answer.status_code == 200]
    assert all(np.allclose(scores(answer), expected, atol=1e-5) for answer in answered)
    # Whoever is not answered was told to ask elsewhere, or was never heard: no 200 of the journal is missing (below).
    for answer in answers[:done]:
        if isinstance(answer, httpx.Response):
            assert answer.status_code in (200, 503)
        else:
            assert isinstance(answer, (httpx.NetworkError, httpx.RemoteProtocolError)), answer
    told = [answer for answer in answers if isinstance(answer, httpx.Response) and answer.status_code == 503]
    assert told and all("stopping" in answer.json()["message"] for answer in told)
    assert "stopped: every request that was in was answered" in process.text("out")
    asked = [line for line in process.lines("request") if line["route"] == "/v1/score"]
    assert {line["status"] for line in asked} <= {200, 503, 499}
    assert sum(line["status"] == 200 for line in asked) == len(answered)


def test_a_second_signal_ends_it_in_the_middle_of_a_pass(start: Start, run: Path) -> None:
    process = start(run, "--port", "0", "--max-candidates", "20000", "--time-limit", "500")
    body = {**QUESTION, "candidates": QUESTION["candidates"] * 4000}

    def ask() -> None:
        with suppress(httpx.HTTPError):
            httpx.post(f"{process.url}/v1/score", json=body, timeout=60)

    asking = threading.Thread(target=ask)
    asking.start()
    with httpx.Client(base_url=process.url, timeout=60) as client:
        process.wait_for(lambda: "rectune_round_seconds_count 0.0" not in client.get("/metrics").text)
    process.send(signal.SIGTERM)
    process.wait_for(lambda: process.lines("stopping"))
    process.send(signal.SIGTERM)
    assert process.end() == 0, process.text("err")
    asking.join(60)
    assert "stopped at once, as asked" in process.text("out") and "terminate" not in process.text("err")


def test_a_process_that_is_killed_starts_again_on_its_port_under_load(start: Start, run: Path) -> None:
    process = start(run, "--port", "0")
    port = process.url.rpartition(":")[2]
    with under_load(process.url, {}) as answers:
        more_than(answers, 10)
        process.send(signal.SIGKILL)
        assert process.end() == -signal.SIGKILL
        again = start(run, "--port", port)
        more_than(answers, len(answers) + 10)
    found = [answer for answer in answers if isinstance(answer, httpx.Response)]
    assert isinstance(answers[-1], httpx.Response) and again.url == process.url
    assert all(np.allclose(scores(answer), scores(found[0]), atol=1e-5) for answer in found)


# --- another adapter ---


@pytest.fixture
def link(run: Path, make_run: Callable[..., Path], tmp_path: Path) -> Path:
    """A link to a run, to be pointed to another."""
    make_run("other", seed=8)
    (tmp_path / "current").symlink_to(run)
    return tmp_path / "current"


def point(link: Path, target: Path) -> None:
    link.with_name("next").symlink_to(target)
    link.with_name("next").replace(link)


def test_another_adapter_takes_over_without_a_lost_request_and_a_damaged_one_does_not(
    start: Start, link: Path, run: Path, make_run: Callable[..., Path], tmp_path: Path
) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# for the tests\n{KEY}\n", encoding="utf-8")
    headers = {"authorization": f"Bearer {KEY}"}
    process = start(link, "--port", "0", "--api-key-file", file)
    other, damaged = make_run("other", seed=8), tmp_path / "damaged"
    shutil.copytree(other, damaged)
    weights = bytearray((damaged / "adapter_model.safetensors").read_bytes())
    weights[-3] ^= 1
    (damaged / "adapter_model.safetensors").write_bytes(bytes(weights))

    with httpx.Client(base_url=process.url, timeout=60) as client, under_load(process.url, headers) as answers:
        more_than(answers, 10)
        assert client.post("/v1/reload", json={}).status_code == 401
        point(link, damaged)
        refused = client.post("/v1/reload", json={}, headers=headers)
        assert refused.status_code == 503 and "damaged" in refused.json()["message"]
        process.send(signal.SIGHUP)
        process.wait_for(lambda: len(process.lines("reload")) == 2)
        before = len(answers)
        more_than(answers, before + 8)
        assert answers[-1].json()["data"] and {line["result"] for line in process.lines("reload")} == {"refused"}
        point(link, other)
        loaded = client.post("/v1/reload", json={}, headers=headers)
        assert loaded.status_code == 200, loaded.text
        after = len(answers)
        more_than(answers, after + 12)
        point(link, run)
        process.send(signal.SIGHUP)
        process.wait_for(lambda: len(process.lines("reload")) == 4)
        last = len(answers)
        more_than(answers, last + 12)
        metrics = client.get("/metrics", headers=headers).text
    assert 'rectune_reloads_total{result="loaded"} 2.0' in metrics
    assert 'rectune_reloads_total{result="refused"} 2.0' in metrics

    candidates = ["Alien (1979)", "Fargo (1996)", "The Godfather"]
    old = Recommender.load(run, say=silent).score(HISTORY, candidates)
    new = Recommender.load(other, say=silent).score(HISTORY, candidates)
    assert not np.allclose(old, new, atol=1e-3)
    # All were answered, each by one of the two and never by a mixture.
    which = [np.allclose(scores(answer), new, atol=1e-5) for answer in answers]
    assert all(made or np.allclose(scores(answer), old, atol=1e-5) for made, answer in zip(which, answers, strict=True))
    assert not any(which[:before]) and all(which[after + 4 : last - 4]) and not any(which[-4:])
    assert (
        loaded.json()["adapter"] != httpx.codes.OK
        and process.lines("reload")[2]["adapter"] == loaded.json()["adapter"][:12]
    )


def test_files_that_are_overwritten_while_it_serves_change_nothing(
    start: Start, run: Path, tiny_qwen3: Path, tmp_path: Path
) -> None:
    copy, base = tmp_path / "run", tmp_path / "base"
    shutil.copytree(run, copy)
    shutil.copytree(tiny_qwen3, base)
    process = start(copy, f"model_name_or_path={base}", "--port", "0")
    with httpx.Client(base_url=process.url, timeout=60) as client, under_load(process.url, {}) as answers:
        more_than(answers, 5)
        expected = scores(client.post("/v1/score", json=QUESTION))
        # Cut to nothing and written anew, in place: a mapped file would end the process with SIGBUS.
        for file in (copy / "adapter_model.safetensors", base / "model.safetensors", copy / "rectune.json"):
            with file.open("r+b") as stream:
                stream.truncate(0)
                stream.write(b"x" * 100)
        more_than(answers, len(answers) + 12)
        assert np.allclose(scores(client.post("/v1/score", json=QUESTION)), expected, atol=1e-6)
        process.send(signal.SIGHUP)
        refused = process.wait_for(lambda: process.lines("reload"))
        assert refused[0]["result"] == "refused" and "damaged" in refused[0]["reason"]
        assert np.allclose(scores(client.post("/v1/score", json=QUESTION)), expected, atol=1e-6)
    assert all(np.allclose(scores(answer), expected, atol=1e-6) for answer in answers)
