"""What a prompt is made from, and what comes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Event(NamedTuple):
    """One event of a history: the item's text, its rating and its 0/1 label."""

    title: str
    rating: float | None
    label: int


@dataclass(frozen=True)
class Prompt:
    """A prompt that ends where the answer begins.

    Attributes:
        tokens: its token ids.
        dropped: how many of the oldest events were left out to fit.
    """

    tokens: list[int]
    dropped: int
