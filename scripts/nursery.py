"""A nursery for runs that are to be killed: it imports everything once and forks a process for each command line.

Lines in, as JSON: `arguments`, `out` and `err` (files), `watched` (folders), `die` (see `_watch`), `terminal` (of a
pseudo-terminal, in place of the files), `nohup` (ignores SIGHUP from the start), `processes` (that many, as `torchrun`
would start them; the one that is told of is number 0), `environment` (more variables). Lines out: the process id, then
its exit code (negative for a signal), then what it did in the watched folders and the parts of a training that it
entered and left, in order, as JSON.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

_TOUCHING = ("os.rename", "os.remove", "os.mkdir", "os.rmdir")


def _watch(folders: list[str], die: dict[str, Any] | None, events: int) -> None:
    """Write down every file opened for writing, moved, made or removed below some folders, and die at one of them.

    Args:
        folders: watched, with all below.
        die: `at` is the number of the event, from 0, or a pattern that its path is searched for; `after` the seconds
            after it. A process of its own does the killing, so that no lock of this interpreter can delay it.
        events: descriptor that gets a line per event, before it happens.
    """
    killer = None
    if die is not None:
        reading, writing = os.pipe()
        victim = os.getpid()
        if os.fork() == 0:
            os.close(writing)
            os.close(events)
            if os.read(reading, 1):
                time.sleep(die["after"])
                os.kill(victim, signal.SIGKILL)
            os._exit(0)
        os.close(reading)
        killer = writing
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event == "open":
            path, flags = arguments[0], arguments[2]
            if not isinstance(path, str) or not (flags or 0) & (os.O_WRONLY | os.O_RDWR):
                return
        elif event in _TOUCHING:
            path = os.fspath(arguments[0])
        else:
            return
        inside = next((folder for folder in folders if str(path).startswith(folder)), None)
        if inside is None:
            return
        short = str(path)[len(inside) :]
        os.write(events, f"{event} {short}\n".encode())
        if die is not None and killer is not None and (die["at"] == count or _found(die["at"], short)):
            os.write(killer, b"x")
            if not die["after"]:
                time.sleep(60)
        count += 1

    sys.addaudithook(hook)


def _found(pattern: int | str, path: str) -> bool:
    return isinstance(pattern, str) and re.search(pattern, path) is not None


def _mark(owner: Any, name: str, place: str, events: int) -> None:
    """Write down when a function begins and ends, so that a death can be placed."""
    inner = getattr(owner, name)

    def marked(*arguments: Any, **named: Any) -> Any:
        os.write(events, f"enter {place}\n".encode())
        result = inner(*arguments, **named)
        os.write(events, f"leave {place}\n".encode())
        return result

    setattr(owner, name, marked)


def _mark_places(events: int) -> None:
    from rectune.train import train
    from rectune.train.trainer import AnswerTrainer

    for owner, name, place in (
        (train, "prepare_start", "looking for a checkpoint"),
        (train, "open_dataset", "preparing the data"),
        (train, "load_for_training", "loading the model"),
        (train, "encode", "tokenising"),
        (train, "go_back", "going back to a checkpoint"),
        (AnswerTrainer, "_load_from_checkpoint", "loading a checkpoint"),
        (AnswerTrainer, "_load_optimizer_and_scheduler", "loading a checkpoint"),
        (AnswerTrainer, "_load_rng_state", "loading a checkpoint"),
        (AnswerTrainer, "_inner_training_loop", "between two steps"),
        (AnswerTrainer, "training_step", "in a step"),
        (AnswerTrainer, "evaluate", "in evaluation"),
        (AnswerTrainer, "_save_checkpoint", "saving a checkpoint"),
        (train, "publish", "publishing"),
        (train, "publish_tokenizer", "publishing"),
    ):
        _mark(owner, name, place, events)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _start_others(asked: dict[str, Any]) -> list[int]:
    """Become number 0 of several processes, and fork the others, whose files are `out` and `err` with their number.

    None of them outlives five minutes, whatever becomes of the others.
    """
    size = asked["processes"]
    os.environ |= {
        "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "RANK": "0", "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    others = []
    for rank in range(1, size):
        child = os.fork()
        if child == 0:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            asked |= {name: f"{asked[name]}{rank}" for name in ("out", "err")}
            others = []
            break
        others.append(child)
    signal.alarm(300)
    return others


def serve() -> None:
    """Fork a child for each line of standard input, and tell how it ended."""
    from rectune.quiet import quiet_libraries

    quiet_libraries()
    import peft  # noqa: F401
    import transformers.integrations  # noqa: F401

    import rectune.report.evaluate
    import rectune.train.callbacks
    import rectune.train.generations
    import rectune.train.monitor
    import rectune.train.stopping
    import rectune.train.trainer  # noqa: F401
    from rectune.cli import main

    for line in sys.stdin:
        asked = json.loads(line)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            os.environ |= asked.get("environment", {})
            others = _start_others(asked) if asked.get("processes") else []
            if asked.get("terminal"):
                os.setsid()  # what a session's leader opens becomes its terminal
                for stream in range(3):
                    os.dup2(os.open(asked["terminal"], os.O_RDWR), stream)
            else:
                for name, stream in (("out", 1), ("err", 2)):
                    os.dup2(os.open(asked[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
            if asked.get("nohup"):
                signal.signal(signal.SIGHUP, signal.SIG_IGN)
            if asked.get("watched"):
                _watch(asked["watched"], asked.get("die"), writing)
                _mark_places(writing)
            code = 0
            try:
                main(asked["arguments"])
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else 1
            except BaseException:
                import traceback

                traceback.print_exc()
                code = 1
            sys.stdout.flush()
            sys.stderr.flush()
            for other in others:
                ended = os.waitstatus_to_exitcode(os.waitpid(other, 0)[1])
                code = code if ended == code else 99  # which no process of ours ends with by itself
            os._exit(code)
        os.close(writing)
        print(child, flush=True)
        with os.fdopen(reading, "rb") as stream:
            events = stream.read().decode().splitlines()
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        print(json.dumps(events), flush=True)


class Victim(NamedTuple):
    """A `rectune` in a process of its own, to be killed."""

    process: int
    nursery: subprocess.Popen[str]

    def send(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.process, number)

    def end(self) -> tuple[int, list[str]]:
        """Wait for its end; its exit code, negative for a signal, and what it did in the watched folders."""
        assert self.nursery.stdout is not None
        return int(self.nursery.stdout.readline()), json.loads(self.nursery.stdout.readline())


def open_nursery(environment: dict[str, str]) -> subprocess.Popen[str]:
    """Start a nursery on one thread, so that nothing but itself runs when it forks."""
    environment = {**environment, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "POLARS_MAX_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, __file__], env=environment, stdin=pipe, stdout=pipe, text=True)


def start(nursery: subprocess.Popen[str], arguments: list[str], out: Path, err: Path, **asked: Any) -> Victim:
    """Start a command line in a nursery."""
    assert nursery.stdin is not None and nursery.stdout is not None
    line = {"arguments": arguments, "out": str(out), "err": str(err), **asked}
    nursery.stdin.write(json.dumps(line) + "\n")
    nursery.stdin.flush()
    return Victim(int(nursery.stdout.readline()), nursery)


if __name__ == "__main__":
    serve()
