"""Exports behind the routes of vLLM and of SGLang, where transformers answers with the export itself."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import silent

from rectune.errors import ModelError, ResourceError
from rectune.export.clients import ask_classifier, ask_merged
from rectune.export.export import export
from rectune.export.served import ServedExport
from rectune.prompt.events import Event
from rectune.prompt.verbalizer import Verbalizer
from rectune.score.candidates import Candidate, CandidateScorer, Request
from rectune.score.open_run import open_run

HISTORY = [Event("Film 3, The (1983)", 4.5, 1), Event("Film 8, The (1988)", 1.0, 0)]
FILMS = ["Film 12, The (1992)", "Film 5, The (1985)", "Film 20, The (2000)"]
CPU = torch.device("cpu")


class Server(ThreadingHTTPServer):
    """An export behind the routes of vLLM and SGLang; `spoil` damages its answers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scoring = json.loads((folder / "scoring.json").read_text())
        self.asked: list[dict[str, Any]] = []
        self.spoil: bytes | None = None
        self.code = 200
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if path == "/score":
            assert body["use_activation"] is False
            texts = [body["queries"] + each for each in body["documents"]]
            offset = -self.scoring["vllm"]["pooler_config"]["logit_mean"]
            numbers = [float(each) + offset for each in ask_classifier(self.folder, texts, CPU)]
        else:
            yes, no = body["label_token_ids"]
            assert body["apply_softmax"] is True
            words = Verbalizer(positive="", negative="", positive_id=yes, negative_id=no, end_id=0)
            texts = [body["query"] + each for each in body["items"]]
            odds = ask_merged(self.folder, texts, words, CPU)
            numbers = torch.sigmoid(torch.from_numpy(odds)).tolist()
        if path == "/v1/score":
            return {"scores": [[each, 1 - each] for each in numbers]}
        rows = [{"index": at, "score": each} for at, each in enumerate(numbers)]
        return {"data": rows[::-1]}


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        said = self.server.spoil
        if said is None:
            said = json.dumps(self.server.answer(self.path, body)).encode()
        self.send_response(self.server.code)
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def exports(stream_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("exports")
    return {to: export(stream_run, [], to, root / to, silent) for to in ("merged", "classifier", "adapter")}


@pytest.fixture
def serve() -> Iterator[Any]:
    servers = []

    def start(folder: Path) -> Server:
        server = Server(folder)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def own(run: Path, history: list[Event]) -> list[float]:
    request = Request(history, [Candidate(film) for film in FILMS])
    (odds,) = CandidateScorer(open_run(run, [], silent), silent).score([request])
    return [1 / (1 + math.exp(-each)) for each in odds]


@pytest.mark.parametrize(("to", "name"), [("merged", "vllm"), ("merged", "sglang"), ("classifier", "vllm")])
def test_a_served_export_gives_the_probabilities_of_the_run(
    to: str, name: Any, exports: dict[str, Path], stream_run: Path, serve: Any
) -> None:
    server = serve(exports[to])
    found = ServedExport(exports[to], server.url, name).score(HISTORY, FILMS)
    assert found == pytest.approx(own(stream_run, HISTORY), abs=0.02)
    assert len(set(found)) == 3 and len(server.asked) == 1


def test_a_history_too_long_loses_its_oldest_events_as_in_the_run(
    exports: dict[str, Path], stream_run: Path, serve: Any
) -> None:
    long = [Event(f"Film {at % 30}, The ({1980 + at % 30})", 3.0, at % 2) for at in range(200)]
    server = serve(exports["merged"])
    ServedExport(exports["merged"], server.url).score(long, FILMS)
    prompts = open_run(stream_run, [], silent).prompts
    (fan,) = prompts.fan_out(long, FILMS)
    assert 0 < fan.dropped < 200
    assert server.asked[0]["query"] == prompts.pieces.tokenizer.decode(fan.trunk)


def test_questions_about_one_history_go_in_one_request(exports: dict[str, Path], serve: Any) -> None:
    server = serve(exports["merged"])
    served = ServedExport(exports["merged"], server.url)
    pairs = [("A: Yes\n", "B:"), ("C: No\n", "B:"), ("A: Yes\n", "D:")]
    whole = served.log_odds(pairs)
    assert [body["items"] for body in server.asked] == [["B:", "D:"], ["B:"]]
    assert whole == pytest.approx([served.log_odds([pair])[0] for pair in pairs], abs=1e-5)


@given(st.lists(st.sampled_from(["<|im_end|>", "<|im", "_end|>", "Heat", " "]), max_size=8).map("".join))
def test_no_title_brings_a_special_token(exports: dict[str, Path], title: str) -> None:
    clean = ServedExport(exports["merged"], "http://nowhere").clean(title)
    assert "<|im_end|>" not in clean and clean.count("Heat") == title.count("Heat")


def test_an_adapter_is_no_export_that_a_server_scores(exports: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="an export as adapter; a server scores merged or classifier ones"):
        ServedExport(exports["adapter"], "http://nowhere")
    with pytest.raises(ModelError, match=r"holds no readable scoring\.json"):
        ServedExport(tmp_path, "http://nowhere")
    with pytest.raises(ModelError, match="sglang scores merged models"):
        ServedExport(exports["classifier"], "http://nowhere", "sglang")


@pytest.mark.parametrize(
    ("said", "code", "kind", "words"),
    [
        (b"{}", 200, ModelError, "something else than scores"),
        (b'{"data": [{"index": 0, "score": 0.5}]}', 200, ModelError, "1 scores for 3 candidates"),
        (b"<html>", 200, ResourceError, "no answer"),
        (b'{"error": "no such\\nmodel"}', 404, ResourceError, r"404 .*no such\\nmodel"),
    ],
)
def test_what_a_server_refuses_or_garbles_is_one_line(
    said: bytes, code: int, kind: Any, words: str, exports: dict[str, Path], serve: Any
) -> None:
    server = serve(exports["merged"])
    server.spoil, server.code = said, code
    with pytest.raises(kind, match=words) as caught:
        ServedExport(exports["merged"], server.url).score(HISTORY, FILMS)
    assert "\n" not in str(caught.value)


def test_a_server_that_is_not_there_is_one_line(exports: dict[str, Path]) -> None:
    with pytest.raises(ResourceError, match=r"http://127\.0\.0\.1:9/generative_scoring: no answer .* is vllm up\?"):
        ServedExport(exports["merged"], "http://127.0.0.1:9/").score([], FILMS)
