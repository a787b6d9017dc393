"""Put prompts of many lengths into few sequences."""

from __future__ import annotations

import bisect

import numpy as np
import numpy.typing as npt


def pack(lengths: npt.NDArray[np.int64], capacity: int, seed: int) -> list[list[int]]:
    """Group sequences so that no group is longer than `capacity`, by best fit.

    The order is shuffled first, so that a pack does not hold one user's events only. Every index occurs exactly
    once. Best fit uses at most 1.7 times the fewest possible packs (Johnson et al. 1974).

    Args:
        lengths: int64 [n]; each at most `capacity`.
        capacity: tokens in a pack.
        seed: of the shuffle.

    Raises:
        ValueError: a length is above the capacity.

    >>> pack(np.array([6, 5, 4, 5]), 10, seed=0)
    [[2, 0], [1, 3]]
    """
    if len(lengths) and int(lengths.max()) > capacity:
        raise ValueError(f"a sequence of {int(lengths.max())} tokens does not fit a pack of {capacity}")
    packs: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, pack), sorted
    for index in np.random.default_rng(seed).permutation(len(lengths)).tolist():
        length = int(lengths[index])
        at = bisect.bisect_left(room, (length, -1))
        if at < len(room):
            left, chosen = room.pop(at)
            packs[chosen].append(index)
        else:
            left, chosen = capacity, len(packs)
            packs.append([index])
        bisect.insort(room, (left - length, chosen))
    return packs
