"""Who does the parts of a long piece of work: this process, one after the other, or others (`bulk/pool.py`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Protocol

Say = Callable[[str], None]
Told = dict[str, Any]
"""What is known of a finished part: JSON."""
Job = Callable[[int], Told]
"""Does the part of a number, whole or not at all."""
Make = Callable[[Say], Job]
"""Makes a job, with whatever it loads once for all its parts; can be sent to another process."""


class Spread(Protocol):
    """Does parts, in whatever order, and yields each one's number and what is told of it as soon as it is done."""

    def __call__(self, make: Make, numbers: Sequence[int], model: bool = False) -> Iterator[tuple[int, Told]]:
        """Do these parts.

        Args:
            make: makes what does them.
            numbers: which ones.
            model: whether a part runs a model, and so needs a GPU where there are any.
        """
        ...


Workers = Callable[[], AbstractContextManager[Spread]]
"""Starts what does parts, and ends it."""


def here(make: Make, numbers: Sequence[int], model: bool = False, say: Say = print) -> Iterator[tuple[int, Told]]:
    """Do parts in this process, one after the other."""
    job = make(say) if numbers else None
    for number in numbers:
        assert job is not None
        yield number, job(number)


@contextmanager
def one_process(say: Say = print) -> Iterator[Spread]:
    """No other process than this one."""
    yield partial(here, say=say)
