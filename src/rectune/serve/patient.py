"""HTTP with an end to patience: a request's head must arrive in time, and fit, and its answer must be taken."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from rectune.serve.limits import ANSWER_SECONDS, HEAD_SECONDS


class Patient(H11Protocol):
    """uvicorn's protocol, which waits for a request's first line for ever, with a time limit.

    The limit runs while no request is under way: from the connection's beginning, and from the first byte behind an
    answer. Where the client sends nothing at all between two requests, uvicorn's own limit ends the connection.

    A client that takes nothing of its answer would keep it, and its place among the open requests, for as long as it
    likes: closing a connection waits for what is still to be sent, so such a one is cut off.
    """

    seconds = HEAD_SECONDS
    answer_seconds = ANSWER_SECONDS
    _limit: asyncio.TimerHandle | None = None
    _taking: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there."""
        super().connection_made(transport)
        self._limit = self.loop.call_later(self.seconds, self._too_slow)

    def data_received(self, data: bytes) -> None:
        """Bytes of a head or a body."""
        if self._limit is None and self.conn.their_state is h11.IDLE:
            self._limit = self.loop.call_later(self.seconds, self._too_slow)
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._patient_again()

    def pause_writing(self) -> None:
        """More of an answer waits than should."""
        super().pause_writing()
        self._taking = self.loop.call_later(self.answer_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has taken most of it."""
        super().resume_writing()
        self._taken()

    def timeout_keep_alive_handler(self) -> None:
        """Nothing has come for long; what lies here yet is taken soon or never."""
        super().timeout_keep_alive_handler()
        self.loop.call_later(self.answer_seconds, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._patient_again()
        self._taken()
        super().connection_lost(exc)

    def _patient_again(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None

    def _taken(self) -> None:
        if self._taking is not None:
            self._taking.cancel()
            self._taking = None

    def _too_slow(self) -> None:
        self._limit = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.close()
