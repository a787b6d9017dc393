"""A tiny run on films with real titles, served in a thread of this process or by a command line in its own."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from served import Here, Process, ask, silent, write_run

from rectune.config import parse_config
from rectune.score.recommender import Recommender
from rectune.serve.journal import Journal
from rectune.serve.keys import Keys
from rectune.serve.limits import Limits
from rectune.serve.metrics import Metrics
from rectune.serve.serve import http_server
from rectune.serve.service import Service, load_serving


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make_run(tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path, films: Path) -> Callable[..., Path]:
    """Run folders as training leaves them, with random adapters, all on one prepared dataset."""
    root = tmp_path_factory.mktemp("served")

    def make(name: str, seed: int = 5, **values: Any) -> Path:
        config = parse_config(
            {
                "model_name_or_path": str(tiny_qwen3), "dataset": str(films), "dataset_dir": str(root / "data"),
                "output_dir": str(root / name), "preprocessing_cache_dir": str(root / "cache"), "bf16": False,
                "report_to": "none", "layout": "stream", "prompt_format": "completion", "cutoff_len": 700,
                "history_shows": "label", "prior": "item_rate", "item_rate_text": True, **values,
            },
            origin="test",
        )  # fmt: skip
        if not (root / name).exists():
            write_run(config, root / name, str(tiny_qwen3), seed)
        return root / name

    return make


@pytest.fixture(scope="session")
def run(make_run: Callable[..., Path]) -> Path:
    return make_run("demo")


@pytest.fixture(scope="session")
def alone(run: Path) -> Recommender:
    """The same run, asked in this process, a question at a time."""
    return Recommender.load(run, say=silent)


# --- in a thread ---


@pytest.fixture(scope="session")
def serve_here() -> Iterator[Callable[..., Here]]:
    """Serves a run on a free port, with limits and keys."""
    open_ones: list[Here] = []

    def go(run: Path, keys: tuple[str, ...] = (), unknown: Any = "error", page: bool = False, **limits: Any) -> Here:
        bounds, written = Limits(**limits), StringIO()
        load = partial(load_serving, run, [], unknown, bounds, silent)
        service = Service(load(), load, bounds, Metrics(), Journal(written))
        listening = socket.create_server(("127.0.0.1", 0))
        server = http_server(service, Keys(keys), service.journal, page)
        service.start()
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_until_complete, args=[server.serve(sockets=[listening])], daemon=True)
        thread.start()
        here = Here(f"http://127.0.0.1:{listening.getsockname()[1]}", service, server, written, thread, loop)
        open_ones.append(here)
        return here

    yield go
    for here in open_ones:
        here.server.should_exit = True
        here.thread.join(20)
        here.service.stop()


@pytest.fixture(scope="session")
def here(serve_here: Callable[..., Here], run: Path) -> Here:
    return serve_here(run, candidates=50, body=200_000, queue=500)


@pytest.fixture(scope="session")
def client(here: Here) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=here.url, timeout=60) as made:
        yield made


# --- in a process of its own ---


@pytest.fixture(scope="session")
def forker() -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "POLARS_MAX_THREADS": "1"}
    pipe = subprocess.PIPE
    script = str(Path(__file__).with_name("forker.py"))
    with subprocess.Popen([sys.executable, script], env=environment, stdin=pipe, stdout=pipe, text=True) as process:
        yield process
        process.kill()


@pytest.fixture
def start(forker: subprocess.Popen[str], tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Starts `rectune serve` with these arguments and waits until it answers."""
    begun: list[Process] = []

    def go(*arguments: Any, ready: bool = True, **environment: str) -> Process:
        folder = tmp_path / f"served-{len(begun)}"
        folder.mkdir()
        line = {
            "arguments": ["serve", *map(str, arguments)], "out": str(folder / "out"), "err": str(folder / "err"),
            "environment": environment,
        }  # fmt: skip
        process = Process(ask(forker, line), folder, forker)
        begun.append(process)
        if ready:
            process.wait_for(lambda: process.lines("ready"))
            found = re.search(r"http://\S+", process.text("out"))
            assert found is not None
            process.url = found[0]
        return process

    yield go
    for process in begun:
        if not process.ended:
            process.send(signal.SIGKILL)
            process.end()
