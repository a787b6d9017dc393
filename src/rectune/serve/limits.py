"""What a service takes at most."""

from __future__ import annotations

from dataclasses import dataclass

TITLE = 2000
"""Characters of a title; a prompt has room for far less."""
EVENTS = 10_000
"""Events of all histories of a request; no prompt has room for as many."""
OPEN = 1000
"""Requests whose bodies are read or answered at once."""
HEAD_SECONDS = 10.0
"""In which a request's head must have arrived."""
BODY_SECONDS = 30.0
"""In which a request's body must have arrived."""
ANSWER_SECONDS = 30.0
"""In which a client must have taken what waits to be sent to it, some 64 KiB."""
HEAD_BYTES = 1 << 14
"""Of a request's head."""
TEXT_CHARACTERS = 32 << 20
"""Of texts whose tokens are kept; then all are forgotten, since requests bring new titles without end."""


@dataclass(frozen=True)
class Limits:
    """What whoever starts the service decides.

    Attributes:
        queue: requests that wait or are scored at once; the next one is told to come again.
        seconds: in which a request is answered, or told that it was not.
        candidates: of one request, or its pairs.
        body: bytes of one request.
    """

    queue: int = 128
    seconds: float = 60.0
    candidates: int = 1000
    body: int = 4 << 20
