"""What a prompt is made from, and what comes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Event(NamedTuple):
    """One event of a history: the item's text, its rating and its 0/1 label, and where a prior asks for it its id."""

    title: str
    rating: float | None
    label: int
    item_id: str | None = None


@dataclass(frozen=True)
class Prompt:
    """A prompt that ends where the answer begins.

    Attributes:
        tokens: its token ids.
        dropped: how many of the oldest events were left out to fit.
    """

    tokens: list[int]
    dropped: int


@dataclass(frozen=True)
class Fan:
    """Prompts of several candidates that share everything before the candidate.

    Attributes:
        trunk: token ids that all of them begin with.
        dropped: how many of the oldest events were left out to fit.
        which: the candidates' places in the list that was asked about.
        branches: token ids of each one's rest; the answer is read at the last.
    """

    trunk: list[int]
    dropped: int
    which: list[int]
    branches: list[list[int]]


def fans_of(branches: Sequence[list[int]], dropped: Sequence[int], trunk: Callable[[int], list[int]]) -> list[Fan]:
    """Fans of candidates, one for each number of events left out.

    Args:
        branches: token ids of each candidate.
        dropped: how many of the oldest events each one's prompt leaves out.
        trunk: token ids before the candidate, for that number.
    """
    of: dict[int, list[int]] = {}
    for index, first in enumerate(dropped):
        of.setdefault(first, []).append(index)
    return [Fan(trunk(first), first, which, [branches[at] for at in which]) for first, which in of.items()]
