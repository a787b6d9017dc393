"""Parts done by processes of Ray: a pool of Ray Data's actors, each of which loads once what it needs.

Ray sends functions and results as pickles between its processes. Here it listens on the loopback device alone, asks for
a token that no other program knows, has no dashboard, and reports nothing about its use to anybody.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from rectune import errors
from rectune.errors import ConfigError, RectuneError, ResourceError
from rectune.files import runs
from rectune.quiet import quiet_libraries
from rectune.spread import Job, Make, Say, Told

_STORE = 128 << 20
"""Bytes of Ray's shared memory: numbers and a few words go through it, data through files."""
_ALONE = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # Ray calls a local cluster by an address of the network card, and listens on all of them, unless told that there
    # can be no other machine. The name is that of the systems where this is so from the start.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    # Else its processes step back behind all others of the machine, and a busy one starves them.
    "RAY_worker_niceness": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}
_LOOPBACK = "127.0.0.1"
_TEMPORARY = re.compile(r"rectune-ray-(\d+)-\w+")


class _Part:
    """What an actor is: makes the job when its first part comes, and does one part after the other."""

    def __init__(self, make: Make, threads: int, folder: str) -> None:
        os.chdir(folder)
        self._make, self._threads = make, threads
        self._said: list[str] = []
        self._job: Job | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Do the part whose number is the one row of a batch; a mistake of the user comes back as words."""
        (number,) = batch["number"].tolist()
        try:
            if self._job is None:
                quiet_libraries()
                import torch

                torch.set_num_threads(self._threads)
                self._job = self._make(self._said.append)
            told: Told = {"told": self._job(number)}
        except RectuneError as error:
            told = {"error": type(error).__name__, "words": str(error)}
        told["said"] = [*self._said]
        self._said.clear()
        return {"number": [number], "told": [json.dumps(told)]}


class _Size(NamedTuple):
    """What the pool has, and what each of its processes gets."""

    workers: int
    threads: int
    gpus: int


class Pool:
    """A `Spread` over processes of a Ray that runs."""

    def __init__(self, size: _Size, say: Say) -> None:
        self._size, self._say = size, say
        self._told: set[str] = set()

    def __call__(self, make: Make, numbers: Sequence[int], model: bool = False) -> Iterator[tuple[int, Told]]:
        """Do parts; see `Spread`.

        Raises:
            RectuneError: a part has raised it.
        """
        import ray.data

        if not numbers:
            return
        rows = ray.data.from_items([{"number": number} for number in numbers], override_num_blocks=len(numbers))
        done = rows.map_batches(
            _Part,
            batch_size=1,
            fn_constructor_args=(make, self._size.threads, str(Path.cwd())),
            # A part is given to a process that is free, so that none waits for one that has died.
            compute=ray.data.ActorPoolStrategy(
                size=min(self._size.workers, len(numbers)), max_tasks_in_flight_per_actor=1
            ),
            num_cpus=self._size.threads,
            num_gpus=1 if model and self._size.gpus else 0,
        )
        for row in done.iter_rows():
            told = json.loads(row["told"])
            for line in told["said"]:
                if line not in self._told:
                    self._told.add(line)
                    self._say(line)
            if "error" in told:
                raise getattr(errors, told["error"], RectuneError)(told["words"])
            yield int(row["number"]), told["told"]


@contextmanager
def ray_pool(workers: int, address: str | None, say: Say) -> Iterator[Pool]:
    """Start Ray on this machine, or join the one at an address, and end what was started.

    Args:
        workers: how many processes do parts.
        address: `HOST:PORT` of a cluster's head, or `auto` on a machine of it; None starts Ray here.
        say: prints one line.

    Raises:
        ConfigError: the address is none that can be joined, or there are fewer GPUs than workers.
        ResourceError: Ray is not installed or does not start.
    """
    check_pool(address)
    with ExitStack() as stack:
        options: dict[str, Any] = {"address": address}
        if address is None:
            cores = len(os.sched_getaffinity(0))
            folder = Path(stack.enter_context(_temporary()))
            own = _ALONE | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
            stack.enter_context(_environment(own | _threads(max(1, cores // workers))))
            options = {
                "num_cpus": max(cores, workers),
                "include_dashboard": False,
                "object_store_memory": _STORE,
                "_temp_dir": str(folder / "r"),  # which Ray opens to everybody
                "_node_ip_address": _LOOPBACK,
            }
        import ray
        import ray.data

        for handler in logging.getLogger("ray.data").handlers:
            handler.setLevel(logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = False
        stack.callback(ray.shutdown)
        try:
            with _hushed():
                ray.init(**options, log_to_driver=False, logging_level="ERROR")
        except Exception as error:
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            where = "on this machine" if address is None else f"at {address}"
            raise ResourceError(f"ray: cannot be used {where}: {said}") from error
        if address is None and ray.util.get_node_ip_address() != _LOOPBACK:
            raise ResourceError(
                "ray: does not keep to this machine's loopback device; start it in a process of its own"
            )
        yield Pool(_size(workers, address, say), say)


def check_pool(address: str | None) -> None:
    """Refuse what cannot be, before anything is loaded.

    Raises:
        ConfigError: the address is none that can be joined.
        ResourceError: Ray is not installed.
    """
    if find_spec("ray") is None:
        raise ResourceError("--workers: needs Ray, which is not installed: pip install 'ray[data]'")
    if address is not None and not re.fullmatch(r"auto|[^/\s]+:\d+", address):
        raise ConfigError(f"--ray: got {address!r}, allowed: auto, HOST:PORT; run it on a machine of the cluster")


def _size(workers: int, address: str | None, say: Say) -> _Size:
    """How the machines are shared out.

    Raises:
        ConfigError: there are fewer GPUs than workers, or fewer cores in a cluster.
    """
    import ray

    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cores, gpus = (sum(int(each.get(name, 0)) for each in found) for name in ("CPU", "GPU"))
    for name, number in (("GPU", gpus), ("core", cores)):
        if workers > number and (number or name == "core"):
            raise ConfigError(
                f"--workers: got {workers}, but Ray has {number} {name}{'s' * (number != 1)}, and each worker needs "
                "one of its own; start more machines, or give fewer workers"
            )
    threads = max(1, min(cores // workers, *(int(each.get("CPU", 0)) for each in found if each.get("CPU"))))
    each = f"{threads} thread{'s' * (threads != 1)}" + (" and a GPU" if gpus else "")
    say(f"ray: {workers} workers of {each} each, {'on this machine alone' if address is None else f'at {address}'}")
    return _Size(workers, threads, gpus)


def _threads(number: int) -> dict[str, str]:
    return {name: os.environ.get(name, str(number)) for name in ("POLARS_MAX_THREADS", "OMP_NUM_THREADS")}


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Variables that Ray and its processes read, for as long as they run."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _hushed() -> Iterator[None]:
    """Nothing on standard error: Ray's core writes there past Python that it has read its log level."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextmanager
def _temporary() -> Iterator[Path]:
    """A folder for Ray's sockets and logs that nobody else may look into; those of killed calls are removed.

    Its name is short, since a socket's path may have 107 bytes.
    """
    place = Path(tempfile.gettempdir())
    for old in place.glob("rectune-ray-*"):
        match = _TEMPORARY.fullmatch(old.name)
        if match is not None and not runs(int(match[1])):
            shutil.rmtree(old, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"rectune-ray-{os.getpid()}-", dir=place))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
