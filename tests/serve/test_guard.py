"""Limits, over real sockets: what is too much, too slow, or not allowed."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from served import KEY, Here

from rectune.score import candidates as scoring
from rectune.score.recommender import Recommender
from rectune.serve import guard
from rectune.serve.metrics import Metrics
from rectune.serve.patient import Patient
from rectune.serve.refusal import Refused
from rectune.serve.service import Service

TITLES = ["Alien (1979)", "Fargo (1996)"]
BODY = {"query": "Heat: 5", "candidates": TITLES}


@pytest.fixture(scope="module")
def tight(serve_here: Callable[..., Here], run: Path) -> Here:
    """With a key, room for three requests, and little patience."""
    return serve_here(run, keys=(KEY,), queue=3, seconds=2.0)


@pytest.fixture
def client(tight: Here) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=tight.url, headers={"x-api-key": KEY}, timeout=60) as made:
        yield made


def test_without_the_key_only_health_and_readiness_are_told(tight: Here, client: httpx.Client) -> None:
    for headers in ({}, {"authorization": "Bearer no"}, {"x-api-key": KEY + "x"}):
        for path in ("/v1/rerank", "/v1/score", "/v1/recommend", "/v1/reload", "/openapi.json", "/metrics", "/none"):
            answer = httpx.post(f"{tight.url}{path}", json=BODY, headers=headers)
            assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
        assert httpx.get(f"{tight.url}/health", headers=headers).status_code == 200
        assert httpx.get(f"{tight.url}/ready", headers=headers).status_code == 200
    assert client.post("/v1/score", json=BODY).status_code == 200
    assert client.post("/v1/score", json=BODY, headers={"host": "rectune.example"}).status_code == 200
    assert "/v1/reload" in client.get("/openapi.json").json()["paths"]


def test_a_full_queue_says_when_to_come_again_and_a_late_answer_is_told(tight: Here, client: httpx.Client) -> None:
    # The model is held by somebody else, as by a pass that takes long.
    with scoring._ASKING, ThreadPoolExecutor(5) as threads:
        found = [threads.submit(client.post, "/v1/score", json=BODY) for _ in range(5)]
        answers = [each.result(30) for each in found]
        statuses = sorted(answer.status_code for answer in answers)
        assert statuses == [429, 429, 504, 504, 504]
        full = next(answer for answer in answers if answer.status_code == 429)
        assert int(full.headers["retry-after"]) >= 1 and "3 requests wait already" in full.json()["message"]
        late = next(answer for answer in answers if answer.status_code == 504)
        assert late.json()["message"].startswith("not answered within 2 s")
    assert client.post("/v1/score", json=BODY).status_code == 200
    assert tight.service._in_flight == 0


def test_what_would_come_too_late_is_refused_at_once(
    tight: Here, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = tight.service._scheduler
    with scoring._ASKING, ThreadPoolExecutor(1) as threads:
        first = threads.submit(client.post, "/v1/score", json=BODY)
        while not scheduler.waiting:
            time.sleep(0.01)
        monkeypatch.setattr(scheduler, "_speed", 0.5)  # tokens a second
        begun = time.monotonic()
        answer = client.post("/v1/score", json=BODY)
        assert answer.status_code == 429 and answer.headers["retry-after"] == "60" and time.monotonic() - begun < 1
        assert "tokens wait already" in answer.json()["message"]
        assert first.result(30).status_code == 504


def test_a_client_that_hangs_up_gives_its_place_back(tight: Here, client: httpx.Client) -> None:
    with scoring._ASKING:
        for _ in range(3):
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{tight.url}/v1/score", json=BODY, headers={"x-api-key": KEY}, timeout=0.3)
        end = time.monotonic() + 1.5
        while tight.service._in_flight and time.monotonic() < end:
            time.sleep(0.01)
        assert tight.service._in_flight == 0
    assert client.post("/v1/score", json=BODY).status_code == 200


def raw(url: str, *parts: bytes, wait: float = 0.0) -> bytes:
    """What comes back for these bytes."""
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(wait)
        found = b""
        while part := connection.recv(65536):
            found += part
    return found


def test_a_body_of_a_byte_a_moment_is_told_to_hurry_and_harms_nobody(
    tight: Here, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tight.server.config.app, "_seconds", 0.4)
    head = f"POST /v1/score HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\ncontent-length: 500\r\n\r\n".encode()
    with ThreadPoolExecutor(6) as threads:
        slow = [threads.submit(raw, tight.url, head, *[b"x"] * 4, wait=0.05) for _ in range(6)]
        assert client.post("/v1/score", json=BODY).status_code == 200
        for each in slow:
            answer = each.result(20)
            assert answer.startswith(b"HTTP/1.1 408") and b"did not arrive within 0.4 s" in answer


def test_a_head_that_never_ends_is_closed(tight: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Patient, "seconds", 0.3)
    assert raw(tight.url, b"POST /v1/score HT", b"TP/1.1\r\nhost", wait=0.05) == b""
    assert raw(tight.url) == b""
    # Behind a whole request, too.
    whole = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
    answer = raw(tight.url, whole, b"GET /hea", wait=0.1)
    assert answer.startswith(b"HTTP/1.1 200") and answer.count(b"HTTP/1.1") == 1
    assert raw(tight.url, b"GET / HTTP/1.1\r\n" + b"x: " + b"y" * 20_000).startswith(b"HTTP/1.1 400")


def test_a_request_longer_than_its_head_may_take_is_answered(tight: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Patient, "seconds", 0.2)
    body = json.dumps(BODY).encode()
    lines = ["POST /v1/score HTTP/1.1", "host: x", f"x-api-key: {KEY}", "content-type: application/json"]
    head = "\r\n".join([*lines, "connection: close", f"content-length: {len(body)}", "", ""]).encode()
    answer = raw(tight.url, head, body[:9], body[9:], wait=0.3)
    assert answer.startswith(b"HTTP/1.1 200")


def test_a_client_that_takes_nothing_of_its_answers_is_cut_off(tight: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Patient, "answer_seconds", 0.3)
    host, _, port = tight.url.removeprefix("http://").partition(":")
    asked = f"GET /openapi.json HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\n\r\n".encode()
    held = tight.server.server_state.connections
    before = set(held)
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(asked * 600)  # some 20 MB of answers, more than the system keeps for a client
        end = time.monotonic() + 20
        while not set(held) - before and time.monotonic() < end:
            time.sleep(0.01)
        (mine,) = set(held) - before
        while mine in held and time.monotonic() < end:
            time.sleep(0.02)
        assert mine not in held and tight.server.config.app._open == 0


def test_reading_ends_with_the_time_limit_and_holds_up_nobody(
    tight: Here, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = tight.service.serving.recommender._given
    read, many = given._event, {"history": [["Heat", 5]] * 1000, "candidates": TITLES}

    def slow(*told: Any) -> Any:
        time.sleep(0.05)
        return read(*told)

    monkeypatch.setattr(given, "_event", slow)
    answer = client.post("/v1/score", json=many)
    assert answer.status_code == 504 and answer.elapsed.total_seconds() < 10
    assert client.post("/v1/score", json=BODY).status_code == 200
    with pytest.raises(httpx.ReadTimeout):  # and with the client
        httpx.post(f"{tight.url}/v1/score", json=many, headers={"x-api-key": KEY}, timeout=0.3)
    begun = time.monotonic()
    assert client.post("/v1/score", json=BODY).status_code == 200 and time.monotonic() - begun < 1.5


def test_who_changes_the_run_while_it_is_loaded_gets_the_last_one(tight: Here) -> None:
    """Two signals shortly after each other, the first of which may have seen the run before."""
    one, other = tight.service.serving, replace(tight.service.serving, name="other")
    lying, loading, go = [one], threading.Event(), threading.Event()

    def load() -> Any:
        found = lying[0]
        loading.set()
        assert go.wait(20)
        return found

    service = Service(one, load, tight.service.limits, Metrics(), tight.service.journal)
    threads = [threading.Thread(target=service.reload, kwargs={"wait": wait}) for wait in (False, True)]
    threads[0].start()
    assert loading.wait(20)
    lying[0] = other
    threads[1].start()
    with pytest.raises(Refused, match="being loaded already"):
        service.reload()
    go.set()
    for thread in threads:
        thread.join(20)
    assert service.serving is other


def test_more_open_requests_than_can_be_held_are_refused(
    tight: Here, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "OPEN", 0)
    answer = client.post("/v1/score", json=BODY)
    assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
    assert client.get("/health").status_code == 200


def test_a_failure_nobody_foresaw_is_one_line_and_its_message_stays_here(
    tight: Here, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_given: Any) -> None:
        raise ValueError("about a film of nobody's business")

    monkeypatch.setattr(tight.service.serving.reader, "score", fail)
    answer = client.post("/v1/score", json=BODY)
    assert answer.status_code == 500 and answer.json()["message"].startswith("the service failed at this request")
    line = tight.last("failure", id=answer.json()["id"])
    assert line["kind"] == "ValueError"
    assert (
        any(place.startswith("test_guard.py:") for place in line["at"]) and "business" not in tight.journal.getvalue()
    )
    monkeypatch.undo()
    assert client.post("/v1/score", json=BODY).status_code == 200


def test_a_run_that_shows_ratings_answers_as_it_does_alone(
    serve_here: Callable[..., Here], make_run: Callable[..., Path]
) -> None:
    values = {"layout": "pointwise", "prompt_format": "chat", "history_shows": "rating", "cutoff_len": 1024,
              "prior": "none", "item_rate_text": False}  # fmt: skip
    run = make_run("pointwise", seed=6, **values)
    here, alone = serve_here(run, unknown="text"), Recommender.load(run, say=lambda _line: None)
    histories = ["Heat: 5\nToy Story: 4.5", "Heat: 5\nA film of next year: 1", ""]
    spoken = [[("Heat", 5), ("Toy Story", 4.5)], [("Heat", 5), ("A film of next year", 1)], []]
    documents = [*TITLES, "A film of next year"]
    found: list[Any] = [None] * 3

    def ask(at: int) -> None:
        answer = httpx.post(f"{here.url}/v1/score", json={"query": histories[at], "candidates": documents}, timeout=60)
        found[at] = [each["score"] for each in answer.json()["data"]]

    threads = [threading.Thread(target=ask, args=(at,)) for at in range(3)]
    for thread in threads:
        thread.start()
    for at, thread in enumerate(threads):
        thread.join()
        assert np.allclose(found[at], alone.score(spoken[at], documents, "text"), atol=1e-5)
    answer = httpx.post(f"{here.url}/v1/score", json={"query": "Heat: yes", "candidates": documents})
    assert answer.status_code == 422 and "has no rating, but this run's prompts show" in answer.json()["message"]
