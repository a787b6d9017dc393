"""The processes that train together: which one this is, what passes between them, and that they end together.

`accelerate launch` and `torchrun` start the same command several times. What is small (counts, flags, scores) passes
through gloo between the processes' main memories, which is the same on every device; gradients and sharded weights go
by the device's own backend. Waits that may be long, such as for tokenising, look at a key-value store, so that no
collective times out and a signal is not kept waiting.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from rectune.errors import PeerFailed, RectuneError, ResourceError

_LOOK = 0.05
"""Seconds between two looks into the store."""
_PRECEDENCE = 2.0
"""Seconds for which the others let the main process say first what all of them have met."""
_CLOSING = 20.0
"""Seconds for which the others wait until the main process has put its files in order: launchers kill the rest when
the first process ends with an error."""
_LOST = ("gloo", "connection closed by peer", "connection reset", "broken pipe", "nccl", "socket")
"""What the libraries' errors name when another process is gone."""
T = TypeVar("T")


class PeerLost(ResourceError):  # noqa: N818
    """Another process is gone, and nobody has said why."""


class World:
    """This process among those that train together. Without arguments it is the only one, and nothing passes.

    Attributes:
        rank, size: number of this process, from 0, and how many there are.
        local_size: how many of them run on this machine.
        backend: what gradients go by, in words.
        sharded: whether each holds only a part of the base model's blocks (FSDP2), so that all must make the same
            number of passes at the same time.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, local_rank: int = 0, local_size: int = 1, node: int = 0,
        backend: str = "", sharded: bool = False, store: Any = None,
    ) -> None:  # fmt: skip
        self.rank = rank
        self.size = size
        self.local_rank = local_rank
        self.local_size = local_size
        self.node = node
        self.backend = backend
        self.sharded = sharded
        self._store = store

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self.size == 1

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    # --- what passes between processes that stand at the same place; each of these waits for all ---

    def sum(self, values: Sequence[int]) -> list[int]:
        """Sums of whole numbers over all processes."""
        return list(values) if self.alone else [int(value) for value in self._reduced(values, "int64", "SUM")]

    def mean(self, value: float) -> float:
        """The mean of a number over all processes."""
        return value if self.alone else float(self._reduced([value], "float64", "SUM")[0]) / self.size

    def largest(self, values: Sequence[int]) -> list[int]:
        """The largest of each whole number over all processes."""
        return list(values) if self.alone else [int(value) for value in self._reduced(values, "int64", "MAX")]

    def any(self, flag: bool) -> bool:
        """Whether a flag is set in any process."""
        return bool(self.largest([int(flag)])[0])

    def sum_array(self, array: Any) -> Any:
        """The sum of a float64 array over all processes; exact where all but one hold zeros."""
        return array if self.alone else self._reduced(array, "float64", "SUM").numpy()

    def _reduced(self, values: Any, kind: str, how: str) -> Any:
        import torch
        from torch import distributed

        tensor = torch.as_tensor(values, dtype=getattr(torch, kind)).clone()
        distributed.all_reduce(tensor, getattr(distributed.ReduceOp, how))
        return tensor

    def gather(self, value: T) -> list[T]:
        """A small value of every process, in the order of their numbers."""
        if self.alone:
            return [value]
        from torch import distributed

        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, value)
        return found

    def sum_gradients(self, parameters: Any) -> None:
        """Add the gradients of all processes, in one message of the device's own backend."""
        if self.alone:
            return
        import torch
        from torch import distributed

        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        distributed.all_reduce(flat)
        at = 0
        for gradient in gradients:
            gradient.copy_(flat[at : at + gradient.numel()].view_as(gradient))
            at += gradient.numel()

    def share_parameters(self, parameters: Any) -> None:
        """Give all processes the main one's values of what is trained; cards may have rounded them otherwise."""
        if self.alone:
            return
        import torch
        from torch import distributed

        with torch.no_grad():
            for parameter in parameters:
                if parameter.requires_grad:
                    distributed.broadcast(parameter.data, src=0)

    # --- waits that may be long ---

    def _set(self, key: str) -> None:
        self._store.set(key, "1")

    def _wait(self, key: str) -> None:
        """Wait for a key.

        Raises:
            PeerFailed: another process has failed meanwhile.
        """
        pause = _LOOK
        while not self._store.check([key]):
            self._look_for_failure()
            time.sleep(pause)
            pause = min(1.0, 1.1 * pause)

    @contextmanager
    def main_first(self, stage: str) -> Iterator[None]:
        """Inside, the main process goes first, then one process of each other machine, then all others.

        What the first makes (a dataset, tokens, an unpacked model) the others find, also where each machine has a
        disk of its own.

        Args:
            stage: its name, used once.
        """
        if self.alone:
            yield
            return
        mine = f"{stage}/machine {self.node}"
        if not self.main:
            self._wait(f"{stage}/main" if self.local_rank == 0 else mine)
        yield
        if self.local_rank == 0:
            self._set(mine)
        if self.main:
            self._set(f"{stage}/main")

    @contextmanager
    def in_turn(self, stage: str) -> Iterator[None]:
        """Inside, the processes of a machine go one after another, so that only one holds what it needs in passing."""
        if self.alone:
            yield
            return
        if self.local_rank:
            self._wait(f"{stage}/turn {self.node}/{self.local_rank - 1}")
        yield
        self._set(f"{stage}/turn {self.node}/{self.local_rank}")

    def meet(self, stage: str) -> None:
        """Wait until all are here."""
        if self.alone:
            return
        if self._store.add(f"{stage}/here", 1) == self.size:
            self._set(f"{stage}/all")
        self._wait(f"{stage}/all")

    def from_main(self, stage: str, make: Callable[[], T] | None = None) -> T:
        """What the main process makes, in all of them; the others need not say how."""
        held: list[Any] = [None]
        with self.main_first(stage):
            if self.main and make is not None:
                held[0] = make()
        if not self.alone:
            from torch import distributed

            distributed.broadcast_object_list(held, src=0)
        made: T = held[0]
        return made

    # --- ending together ---

    def _failure(self) -> dict[str, Any] | None:
        """The first failure of any process, where there is one."""
        if not self._store.check(["failed"]):
            return None
        told: dict[str, Any] = json.loads(self._store.get("failed"))
        return told

    def _look_for_failure(self) -> None:
        told = self._failure()
        if told is not None and told["rank"] != self.rank:
            raise _peer(told)

    def _first_failure(self, error: BaseException) -> dict[str, Any]:
        """Post this process's failure, unless another one came first; the first of all."""
        patience = 0.0 if self.main else _PRECEDENCE
        if isinstance(error, PeerFailed) or (getattr(error, "shared", False) and not self.main):
            patience = _CLOSING  # whoever is to say why is about to
        elif isinstance(error, PeerLost):
            patience = _PRECEDENCE
        end = time.monotonic() + patience
        while (told := self._failure()) is None and time.monotonic() < end:
            time.sleep(_LOOK)
        if told is None:
            own = {"rank": self.rank, "code": getattr(error, "exit_code", 1), "message": str(error).partition("\n")[0]}
            told = json.loads(self._store.compare_set("failed", "", json.dumps(own)))
        return told

    @contextmanager
    def one_fate(self) -> Iterator[None]:
        """An error of one process ends all: the first to fail says why, and the others end quietly.

        Raises:
            PeerFailed: in place of whatever another process's failure has led to here.
        """
        if self.alone:
            yield
            return
        try:
            yield
        except Exception as error:
            if isinstance(error, PeerFailed) and str(error):
                raise
            found: Exception = error
            if _lost(error):
                found = PeerLost(
                    "another process of this run is gone without a word, killed perhaps or out of memory; the last "
                    "checkpoint is whole: run again with --resume"
                )
            try:
                told = self._first_failure(found)
            except RuntimeError:  # the store went with the main process
                raise found from error
            if told["rank"] != self.rank:
                raise _peer(told) from error
            if found is error:
                raise
            raise found from error

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Around all that a run does: the others end after the main process where it has said what ends them all."""
        if self.alone:
            yield
            return
        try:
            yield
        except RectuneError:
            with suppress(RuntimeError):
                if self.main:
                    self._set("closed")
                else:
                    told, end = self._failure(), time.monotonic() + _CLOSING
                    while told and told["rank"] == 0 and not self._store.check(["closed"]) and time.monotonic() < end:
                        time.sleep(_LOOK)
            raise
        self.meet("end")
        from torch import distributed

        distributed.destroy_process_group()


ALONE = World()
"""The world of one process."""


def _lost(error: BaseException) -> bool:
    """Whether an error is about another process that is gone."""
    if isinstance(error, RectuneError):
        return False
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in _LOST)


def _peer(told: dict[str, Any]) -> PeerFailed:
    """The failure of another process, as an error of this one."""
    error = PeerFailed(f"process {told['rank']}: {told['message']}")
    error.exit_code = int(told["code"])
    return error
