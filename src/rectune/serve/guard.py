"""What every request passes first: keys, sizes, patience, and one line about it in the journal.

It stands around the whole application and reads bodies itself, so that nothing else ever holds more of a request than
is allowed, or waits for a client that sends a byte a second.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from rectune.serve.journal import Journal
from rectune.serve.keys import Keys, named_locally
from rectune.serve.limits import BODY_SECONDS, OPEN
from rectune.serve.service import Service

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

FREE = ("/health", "/ready")
"""Asked by whoever starts and stops processes, without a key; they tell nothing else."""
ALWAYS = (*FREE, "/metrics")
"""Answered while the service drains, too."""
PAGE = "/ui"
"""Where the page is."""
_SWALLOWED = 16 << 20
"""Bytes of a body that is too large which are read and thrown away: most clients read no answer before all is sent."""


_POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'"
_CONFINED = [(b"content-security-policy", _POLICY.encode()), (b"referrer-policy", b"no-referrer")]
"""What the page's browser is told: nothing from any other host, and in nobody else's frame."""


class Refusal(Exception):  # noqa: N818
    """A request that goes no further."""

    def __init__(self, status: int, line: str, **headers: str) -> None:
        super().__init__(line)
        self.status = status
        self.headers = headers


class Guard:
    """The application with its guard.

    Args:
        app: what answers.
        service: says whether it drains, and what is allowed.
        keys: that open it.
        journal: gets a line about each request.
        seconds: in which a body must have arrived.
    """

    def __init__(self, app: App, service: Service, keys: Keys, journal: Journal, seconds: float = BODY_SECONDS) -> None:
        self._app, self._service, self._keys, self._journal, self._seconds = app, service, keys, journal, seconds
        self._open = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Let a request in, or answer it here."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        if scope["type"] != "http":
            return
        started = time.monotonic()
        identity = uuid.uuid4().hex
        # What the routes add to the line about their request.
        state = scope.setdefault("state", {})
        state.update(id=identity, told={})
        status = 0
        begun = False

        async def sending(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                begun, status = True, message["status"]
                own = [(b"x-request-id", identity.encode()), *(_CONFINED if scope["path"].startswith(PAGE) else [])]
                message["headers"] = [*message.get("headers", []), *own]
            await send(message)

        task = asyncio.current_task()
        if scope["path"].startswith(PAGE) and task is not None:
            self._service.watched.add(task)
            task.add_done_callback(self._service.watched.discard)
        self._open += 1
        try:
            self._admit(scope)
            body = await self._body(scope, receive)
            await self._app(scope, _replay(body, receive), sending)
        except Refusal as refusal:
            await respond(sending, identity, refusal.status, str(refusal), refusal.headers)
        except asyncio.CancelledError:
            if task not in self._service.watched or not self._service.draining:
                raise
        except Exception as error:
            self._journal.failed("request", error, id=identity)
            if not begun:
                await respond(sending, identity, 500, "the service failed at this request; its journal says where", {})
        finally:
            self._open -= 1
            seconds = time.monotonic() - started
            route = getattr(scope.get("route"), "path", "none")
            self._service.metrics.requests.labels(route, str(status)).inc()
            self._service.metrics.seconds.labels(route).observe(seconds)
            self._journal.write(
                "request", id=identity, route=route, method=_method(scope), status=status,
                ms=round(1000 * seconds, 1), **state["told"],
            )  # fmt: skip

    def _admit(self, scope: MutableMapping[str, Any]) -> None:
        """Refuse what is known from the head alone.

        Raises:
            Refusal: no key, another machine's name, draining, or too much at once.
        """
        path, headers = scope["path"], scope["headers"]
        if path not in FREE:
            if self._keys and not self._keys.open(headers):
                # A browser asks its user for name and password; the password is the key.
                kind = 'Basic realm="rectune: an API key as password"' if path.startswith(PAGE) else "Bearer"
                raise Refusal(
                    401, "no valid API key; send one as `Authorization: Bearer KEY` or `X-API-Key: KEY`",
                    **{"www-authenticate": kind}, connection="close",
                )  # fmt: skip
            if not self._keys and not named_locally(headers):
                raise Refusal(
                    403, "without an API key this service is called by a name of its own machine only, such as "
                    "127.0.0.1 or localhost", connection="close",
                )  # fmt: skip
        if self._service.draining and path not in ALWAYS:
            raise Refusal(503, "the service is stopping; ask another one", **{"retry-after": "5"}, connection="close")
        if self._open > OPEN and path not in FREE:
            raise Refusal(
                503, f"{OPEN:,} requests are open already; come again", **{"retry-after": "1"}, connection="close"
            )

    async def _body(self, scope: MutableMapping[str, Any], receive: Receive) -> bytes:
        """A request's body, whole.

        Raises:
            Refusal: it is too large, too slow, or never ends.
        """
        most = self._service.limits.body
        line = f"the request is larger than the {most:,} bytes that are allowed; send several requests"
        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if length.isdigit() and int(length[:18]) > _SWALLOWED:
            raise Refusal(413, line, connection="close")
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refusal(499, "the client has hung up")
                    more = message.get("more_body", False)
                    size += len(message.get("body", b""))
                    if size > _SWALLOWED:
                        break
                    if size <= most:
                        parts.append(message.get("body", b""))
                    else:
                        parts.clear()
        except TimeoutError:
            raise Refusal(
                408, f"the request's body did not arrive within {self._seconds:g} s", connection="close"
            ) from None
        if size > most:
            raise Refusal(413, line, connection="close")
        return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """What the application receives: the body, then whatever comes."""
    given = False

    async def replayed() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


def _method(scope: MutableMapping[str, Any]) -> str:
    known = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH")
    return scope["method"] if scope["method"] in known else "other"


async def respond(send: Send, identity: str, status: int, line: str, headers: dict[str, str]) -> None:
    """Answer with one line of JSON that says what is wrong."""
    # ASCII, so that half a character out of a request cannot make an answer that cannot be sent.
    body = json.dumps({"id": identity, "message": line}).encode("ascii")
    told = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    found = [(name.encode(), value.encode()) for name, value in told.items()]
    await send({"type": "http.response.start", "status": status, "headers": found})
    await send({"type": "http.response.body", "body": body})
