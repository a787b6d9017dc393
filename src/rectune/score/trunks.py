"""Trunks kept between requests: the keys and values of users' histories, the least recently used dropped first."""

from __future__ import annotations

from collections import OrderedDict

from rectune.model.prefix import Keys


def common_length(one: list[int], other: list[int]) -> int:
    """How many tokens two lists begin with alike.

    >>> common_length([1, 2, 3], [1, 2, 4, 5]), common_length([1], [1, 2])
    (2, 1)
    """
    for at, (mine, theirs) in enumerate(zip(one, other, strict=False)):
        if mine != theirs:
            return at
    return min(len(one), len(other))


class Trunks:
    """A bounded store of trunks by user.

    Args:
        limit: bytes of keys and values held at most; a trunk larger than that is not kept.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: OrderedDict[str, tuple[list[int], Keys]] = OrderedDict()
        # Counted along: a full store holds thousands of trunks, each of many tensors, and every new one asks.
        self._sizes: dict[str, int] = {}
        self._size = 0

    def __len__(self) -> int:
        return len(self._held)

    @property
    def size(self) -> int:
        """Bytes held."""
        return self._size

    def beginning(self, user: str, tokens: list[int]) -> Keys | None:
        """Keys of the longest beginning of these tokens that is held for the user, or None."""
        if user not in self._held:
            return None
        self._held.move_to_end(user)
        held, keys = self._held[user]
        length = common_length(held, tokens)
        return keys.first(length) if length else None

    def keep(self, user: str, tokens: list[int], keys: Keys) -> None:
        """Hold a user's trunk in place of an earlier one, and drop others until the limit is kept."""
        self._drop(user)
        size = keys.size
        if size > self._limit:
            return
        self._held[user] = (tokens, keys)
        self._sizes[user] = size
        self._size += size
        while self._size > self._limit:
            self._drop(next(iter(self._held)))

    def _drop(self, user: str) -> None:
        if self._held.pop(user, None) is not None:
            self._size -= self._sizes.pop(user)

    def clear(self) -> None:
        """Drop everything."""
        self._held.clear()
        self._sizes.clear()
        self._size = 0
