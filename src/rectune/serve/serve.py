"""`rectune serve`: a run as an HTTP service, from its start to the end of its last request."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rectune.errors import ConfigError, RectuneError, ResourceError
from rectune.score.given import Unknown
from rectune.serve.journal import Journal, JournalHandler
from rectune.serve.keys import VARIABLE, Keys, check_open, load_keys
from rectune.serve.limits import HEAD_BYTES, Limits

if TYPE_CHECKING:
    import uvicorn

    from rectune.serve.service import Service

_IDLE_SECONDS = 15
"""How long a connection may stay open between two requests."""
_LAST_SECONDS = 5
"""Beyond the time limit of a request, for sending the last answers."""
_LINGER_SECONDS = 0.5
"""Between the signal to stop and the end of listening."""
_BACKLOG = 1024
"""Connections that wait to be accepted."""

Say = Callable[[str], None]


def _check_installed(page: bool) -> None:
    """Say what to install before anything is loaded.

    Raises:
        ResourceError: a package of the extra `serve`, or `ui`, is missing.
    """
    missing = [
        name
        for name in ("fastapi", "uvicorn", "prometheus_client", *(["gradio"] if page else []))
        if find_spec(name) is None
    ]
    if missing:
        names = " ".join(missing).replace("_", "-")
        raise ResourceError(f"serve: needs packages that are not installed: pip install {names}")


def _bind(host: str, port: int) -> socket.socket:
    """A socket at an address, not yet listening.

    Raises:
        ConfigError: there is no such address, or another process has it.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError, OverflowError) as error:
        raise ConfigError(f"--host: {host} is no address of this machine ({error}); such as 127.0.0.1") from error
    try:
        # A process that was killed leaves its connections behind for a minute; the next one must not wait for them.
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        found.close()
        raise ConfigError(f"--port: {host}:{port} cannot be had ({error.strerror}); take another one") from error
    found.setblocking(False)
    return found


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextmanager
def _journaled(journal: Journal) -> Iterator[None]:
    """While open, what libraries log goes into the journal, and nowhere else."""
    root, handler = logging.getLogger(), JournalHandler(journal)
    before = root.handlers[:]
    root.handlers = [handler]
    try:
        yield
    finally:
        root.handlers = before


def serve(
    run: Path,
    overrides: Sequence[str],
    host: str,
    port: int,
    key_file: Path | None,
    unknown: Unknown,
    limits: Limits,
    page: bool,
    say: Say,
) -> None:
    """Serve a run until SIGTERM or Ctrl-C; SIGHUP loads what lies in its folder then.

    Args:
        run: a run folder, or a link to one.
        overrides: as `Recommender.load` takes them.
        host, port: where to listen; port 0 takes a free one.
        key_file: API keys, one a line; None takes the one of RECTUNE_API_KEY.
        unknown: what to do with unknown titles where a request does not say.
        limits: of requests.
        page: whether the page at /ui is there, too.
        say: prints one line.

    Raises:
        ConfigError: the address cannot be had, other machines may reach it without a key, or the keys are no good.
        RectuneError: the run cannot be opened.
    """
    _check_installed(page)
    keys = load_keys(key_file)
    check_open(host, keys)
    listening = _bind(host, port)
    try:
        from rectune.serve.metrics import Metrics
        from rectune.serve.service import Service, load_serving

        first = load_serving(run, overrides, unknown, limits, say)
        if page and first.recommender.data is None:
            raise ConfigError(
                "--ui: the page shows items of the run's dataset, which is not there; prepare it, or leave --ui out"
            )
        listening.listen(_BACKLOG)  # before this is said: from now on a connection waits for us
        say(f"serving: {first.name} at {_address(listening)} (adapter {first.adapter[:12]})")
        if page:
            say(f"page: {_address(listening)}/ui")
        say(f"API key: {'needed' if keys else f'none, since only this machine can ask; set {VARIABLE} for one'}")
        journal = Journal()
        again = partial(load_serving, run, overrides, unknown, limits, lambda line: journal.write("loading", line=line))
        service = Service(first, again, limits, Metrics(), journal)
        del first  # so that it can go when another one takes its place
        with _journaled(journal):
            whole = asyncio.run(_run(service, keys, listening, journal, page))
            ended = service.stop(_LAST_SECONDS if whole else 0)
        journal.close()
    finally:
        listening.close()
    say("stopped: every request that was in was answered" if whole else "stopped at once, as asked")
    if not ended:
        # Somebody's pass whose client has gone: the interpreter's end would abort its thread, and with it the process.
        sys.stdout.flush()
        os._exit(0)


def http_server(service: Service, keys: Keys, journal: Journal, page: bool = False) -> uvicorn.Server:
    """What listens and answers, with the page where it is wanted; started by its `serve`, with sockets."""
    import uvicorn

    from rectune.serve.api import make_app
    from rectune.serve.guard import Guard
    from rectune.serve.patient import Patient

    class Server(uvicorn.Server):
        """uvicorn's, which leaves the signals to us: it would end itself by the one that stops it."""

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    app = make_app(service, has_keys=bool(keys))
    if page:
        from rectune.serve.page import add_page

        app = add_page(app, service)
    # Its other HTTP protocol has no limit on the size of a head.
    config = uvicorn.Config(
        Guard(app, service, keys, journal),
        http=Patient, ws="none", lifespan="on" if page else "off", loop="asyncio", log_config=None, access_log=False,
        server_header=False, proxy_headers=False, h11_max_incomplete_event_size=HEAD_BYTES, backlog=_BACKLOG,
        timeout_keep_alive=_IDLE_SECONDS, timeout_graceful_shutdown=int(service.limits.seconds) + _LAST_SECONDS,
    )  # fmt: skip
    return Server(config)


async def _run(service: Service, keys: Keys, listening: socket.socket, journal: Journal, page: bool) -> bool:
    """Answer until a signal says otherwise, then what has come in by then; whether all of that was answered."""
    server, loop = http_server(service, keys, journal, page), asyncio.get_running_loop()

    def stop() -> None:
        if service.draining:
            server.force_exit = True
        service.drain()
        # For a moment those who come are told so, in place of finding a closed door.
        loop.call_later(_LINGER_SECONDS, setattr, server, "should_exit", True)
        journal.write("stopping")

    def load() -> None:
        try:
            service.reload(wait=True)
        except RectuneError:
            return  # written down, and the one before goes on

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    loop.add_signal_handler(signal.SIGHUP, lambda: threading.Thread(target=load, name="reload", daemon=True).start())
    service.start()
    journal.write("ready", process=os.getpid(), adapter=service.serving.adapter[:12])
    await server.serve(sockets=[listening])
    journal.write("stopped")
    return not server.force_exit
