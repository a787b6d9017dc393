"""Which batches each of several processes computes, so that together they are those of one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import BatchSampler, DataLoader, Sampler

from rectune.world import World


class Share(Sampler[list[int]]):
    """Every n-th micro-batch of an order that is drawn alike in all n processes.

    Micro-batch m of process r is number m n + r of the whole order. An optimiser step of n processes thus takes the
    same sequences as one of a process with n times the micro-batch, or n times the accumulation. Where the last step
    of an epoch leaves nothing for a process it gets an empty batch, so that all take as many steps.

    Args:
        sequences: how many there are.
        batch_size: of a micro-batch.
        seed: of the order, which is that of a single process.
        world: the processes.
    """

    def __init__(self, sequences: Sequence[Any], batch_size: int, seed: int, world: World) -> None:
        self.order = SeedableRandomSampler(sequences, data_seed=seed)
        self.batches = BatchSampler(self.order, batch_size, drop_last=False)
        self.world = world

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch's order comes next."""
        self.order.set_epoch(epoch)

    def __len__(self) -> int:
        return -(-len(self.batches) // self.world.size)

    def __iter__(self) -> Iterator[list[int]]:
        mine: list[int] | None = None
        for number, batch in enumerate(self.batches):
            place = number % self.world.size
            if place == 0:
                mine = []
            if place == self.world.rank:
                mine = batch
            if place == self.world.size - 1 and mine is not None:
                yield mine
                mine = None
        if mine is not None:
            yield mine


class ShareLoader(DataLoader[Any]):
    """Loads a process's share; the Trainer tells it the epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch's order comes next."""
        share: Any = self.batch_sampler
        share.set_epoch(epoch)


def share_loader(
    sequences: Any, batch_size: int, seed: int, world: World, collate: Callable[[list[Any]], dict[str, torch.Tensor]]
) -> ShareLoader:
    """The micro-batches of this process; arguments as `Share` has them."""
    return ShareLoader(sequences, batch_sampler=Share(sequences, batch_size, seed, world), collate_fn=collate)
