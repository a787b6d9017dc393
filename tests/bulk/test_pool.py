"""Ray with two processes on this machine: killed ones, a killed driver, and what it leaves and opens."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from rectune.bulk import divide
from rectune.bulk.score import score_in_parts
from rectune.config import parse_config
from rectune.errors import ModelError
from rectune.score import pairs as stage
from rectune.spread import one_process

pytest.importorskip("ray")

LIMIT = 600
"""Seconds after which a command is killed with all that it has started; an idle machine takes a twentieth of that."""


def silent(_line: str) -> None:
    """Say nothing."""


class Command:
    """`rectune` in a process of its own, with all that it starts."""

    def __init__(self, arguments: list[object], place: Path, **environment: object) -> None:
        self.out, self.err = place / "out.txt", place / "err.txt"
        self.seen: dict[int, psutil.Process] = {}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "ray_command.py"), *map(str, arguments)],
            env={**os.environ, "OMP_NUM_THREADS": "1", **{key: str(value) for key, value in environment.items()}},
            stdout=self.out.open("w"),
            stderr=self.err.open("w"),
            start_new_session=True,
        )

    def wait_for(self, there: Callable[[], object]) -> None:
        """Until something is there; what the command has started is looked at meanwhile."""
        until = time.monotonic() + LIMIT
        while not there():
            self.look()
            assert self.process.poll() is None and time.monotonic() < until, self.told()
            time.sleep(0.2)
        self.look()

    def look(self) -> None:
        try:
            found = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return
        self.seen.update({each.pid: each for each in found})

    def end(self) -> int:
        """Its exit code."""
        try:
            return self.process.wait(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            pytest.fail(f"it does not end: {self.told()}")

    def folders(self) -> list[Path]:
        """Where its Ray has sockets and logs."""
        return list(Path(tempfile.gettempdir()).glob(f"rectune-ray-{self.process.pid}-*"))

    def told(self) -> str:
        return self.out.read_text() + self.err.read_text()

    def alive(self) -> list[str]:
        """What it has started and what runs still, after a while."""

        def runs(each: psutil.Process) -> bool:
            try:
                return each.is_running() and each.status() != psutil.STATUS_ZOMBIE  # which nobody has asked for yet
            except psutil.NoSuchProcess:
                return False

        until = time.monotonic() + LIMIT / 5
        while (left := [each for each in self.seen.values() if runs(each)]) and time.monotonic() < until:
            time.sleep(0.5)
        return [str(each) for each in left]

    def kill(self) -> None:
        self.look()
        for each in [*self.seen.values(), self.process]:
            with suppress(psutil.NoSuchProcess):
                each.kill()


@pytest.fixture
def start(tiny_run: Path, pairs: Path, tmp_path: Path) -> Iterator[Callable[..., Command]]:
    started: list[Command] = []

    def go(run: Path = tiny_run, **environment: object) -> Command:
        asked = ["score", run, "--pairs", pairs, "--as-of", "test", "--output", tmp_path / "out", "--workers", 2]
        started.append(Command(asked, tmp_path, **environment))
        return started[-1]

    yield go
    for each in started:
        each.kill()


@pytest.fixture
def by_one_process(tiny_run: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The files that one process makes, which has never heard of Ray."""
    monkeypatch.setattr(divide, "LINES", 60)
    monkeypatch.setattr(stage, "CHUNK", 12)
    alone = partial(one_process, silent)
    score_in_parts(tiny_run, [], pairs, tmp_path / "whole", "test", alone, silent, Console(quiet=True))
    return contents(tmp_path / "whole")


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("part-*.parquet")}


def listening(processes: list[psutil.Process]) -> set[str]:
    """The addresses at which processes take connections."""
    found = set()
    for process in processes:
        try:
            found |= {each.laddr.ip for each in process.net_connections("inet") if each.status == psutil.CONN_LISTEN}
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def test_a_worker_killed_midway_loses_nothing_and_ray_keeps_to_itself(
    start: Any, tmp_path: Path, by_one_process: dict[str, bytes]
) -> None:
    mark = tmp_path / "mark"
    # In its second chunk of part 1, which has four users, a worker dies of SIGKILL.
    command = start(DOING="die", AT_PART=1, AT_CALL=2, MARK=mark)
    command.wait_for(mark.exists)
    (folder,) = command.folders()
    assert folder.stat().st_mode & 0o077 == 0
    open_at = listening([*command.seen.values(), psutil.Process(command.process.pid)])
    assert open_at and open_at <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    (server,) = [each for each in command.seen.values() if each.is_running() and each.name() == "gcs_server"]
    told = server.environ()
    assert told["RAY_USAGE_STATS_ENABLED"] == "0" and told["RAY_AUTH_MODE"] == "token"
    assert command.end() == 0, command.told()
    said = command.told()
    assert "ray: 2 workers of 1 thread each, on this machine alone" in said
    assert re.search(r"part 1: going on behind the \d+ pairs that a process had scored before it ended", said)
    assert contents(tmp_path / "out") == by_one_process
    assert json.loads((tmp_path / "out" / "part-00001.json").read_text())["kept"] > 0
    assert command.alive() == [] and command.folders() == []


@pytest.mark.slow
def test_a_killed_driver_takes_its_workers_along_and_the_same_command_goes_on(
    start: Any, tmp_path: Path, by_one_process: dict[str, bytes]
) -> None:
    mark = tmp_path / "mark"
    command = start(DOING="wait", AT_PART=3, AT_CALL=1, MARK=mark)
    command.wait_for(lambda: mark.exists() and len(contents(tmp_path / "out")) >= 2)
    os.kill(command.process.pid, signal.SIGKILL)
    assert command.end() == -signal.SIGKILL and command.alive() == []
    kept = contents(tmp_path / "out")
    assert "part-00003.parquet" not in kept and len(kept) < len(by_one_process)
    again = start()
    assert again.end() == 0, again.told()
    assert f"parts: {len(kept)} of {len(by_one_process)} were scored by an earlier call" in again.told()
    assert contents(tmp_path / "out") == by_one_process


@pytest.mark.slow
def test_ctrl_c_ends_all_processes_keeps_the_parts_and_says_so(
    start: Any, tmp_path: Path, by_one_process: dict[str, bytes]
) -> None:
    mark = tmp_path / "mark"
    command = start(DOING="wait", AT_PART=3, AT_CALL=1, MARK=mark)
    command.wait_for(lambda: mark.exists() and len(contents(tmp_path / "out")) >= 2)
    os.killpg(command.process.pid, signal.SIGINT)  # as a terminal does it
    assert command.end() == 130, command.told()
    assert command.alive() == [] and command.folders() == []
    kept = contents(tmp_path / "out")
    assert f"stopped with {len(kept)} of {len(by_one_process)} parts scored" in command.told()
    assert "Traceback" not in command.told()
    assert all(by_one_process[name] == content for name, content in kept.items())


@pytest.mark.slow
def test_a_mistake_that_a_worker_finds_is_one_line(start: Any, tiny_run: Path, tmp_path: Path) -> None:
    # The command reads no weights: what is damaged in them is found where they are loaded.
    shutil.copytree(tiny_run, tmp_path / "run")
    weights = tmp_path / "run" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    command = start(tmp_path / "run")
    assert command.end() == ModelError.exit_code, command.told()
    said = command.err.read_text()
    assert said.count("\n") == 1 and said.startswith("error: ") and "adapter_model.safetensors" in said
    assert command.alive() == []


@pytest.mark.slow
def test_a_log_prepared_by_two_processes_is_the_one_prepared_by_one(movielens: Path, tmp_path: Path) -> None:
    from rectune.data.prepare import prepare

    (tmp_path / "config.yaml").write_text(
        f"dataset: {movielens}\ndataset_dir: {tmp_path / 'two'}\nhistory_len: 3\npart_rows: 40\n"
    )
    command = Command(["prepare", tmp_path / "config.yaml", "--workers", 2], tmp_path)
    assert command.end() == 0, command.told()
    assert "ray: 2 workers" in command.told() and "are prepared in parts" in command.told()
    one = prepare(parse_config({"dataset": str(movielens), "dataset_dir": str(tmp_path / "one"), "history_len": 3,
                                "part_rows": 40}, "test"), say=silent)  # fmt: skip
    files = {file.name: file.read_bytes() for file in one.iterdir()}
    assert len(files) == 9 and {file.name: file.read_bytes() for file in (tmp_path / "two").iterdir()} == files
    assert command.alive() == [] and not list(tmp_path.glob(".two.parts*"))
