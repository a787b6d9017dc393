"""Trunks are found by what they begin with, and the least recently used go first."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rectune.model.prefix import Keys
from rectune.score.trunks import Trunks, common_length


def keys_of(length: int) -> Keys:
    """Keys of one layer whose numbers are their places: 16 bytes a token."""
    places = torch.arange(length, dtype=torch.float32).view(1, length, 1).expand(1, length, 2)
    return Keys([(places, places)])


def test_a_trunk_is_found_up_to_where_it_differs() -> None:
    trunks = Trunks(10_000)
    trunks.keep("ann", [1, 2, 3, 4], keys_of(4))
    found = trunks.beginning("ann", [1, 2, 3, 9, 9])
    assert found is not None and len(found) == 3
    assert found.layers[0][0][0, :, 0].tolist() == [0, 1, 2]
    assert trunks.beginning("ann", [9]) is None
    assert trunks.beginning("bob", [1, 2]) is None


def test_the_least_recently_used_trunk_goes_first() -> None:
    trunks = Trunks(3 * 4 * 16)
    for user in ("ann", "bob", "cat"):
        trunks.keep(user, [1, 2, 3, 4], keys_of(4))
    assert trunks.beginning("ann", [1]) is not None  # ann was used last
    trunks.keep("dan", [1, 2, 3, 4], keys_of(4))
    assert trunks.beginning("bob", [1]) is None
    assert len(trunks) == 3 and trunks.size == 3 * 4 * 16


def test_a_trunk_beyond_the_limit_is_not_kept_and_drops_nobody_else() -> None:
    trunks = Trunks(5 * 16)
    trunks.keep("ann", [1], keys_of(1))
    trunks.keep("bob", [1] * 6, keys_of(6))
    assert trunks.beginning("bob", [1]) is None and trunks.beginning("ann", [1]) is not None
    trunks.clear()
    assert len(trunks) == 0


@given(users=st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 9)), max_size=30), limit=st.integers(0, 20))
def test_the_limit_is_never_passed(users: list[tuple[str, int]], limit: int) -> None:
    trunks = Trunks(16 * limit)
    for user, length in users:
        trunks.keep(user, [0] * length, keys_of(length))
        assert trunks.size == sum(keys.size for _, keys in trunks._held.values()) <= 16 * limit
        assert (trunks.beginning(user, [0]) is not None) == (length <= limit)


def test_a_full_store_costs_no_more_than_an_empty_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service keeps thousands of histories; to add up all of them for each new one took 0.2 s."""
    asked = []
    size = Keys.size.fget
    assert size is not None
    monkeypatch.setattr(Keys, "size", property(lambda keys: asked.append(1) or size(keys)))
    trunks = Trunks(50 * 16)
    for number in range(200):
        trunks.keep(f"user {number}", [1], keys_of(1))
        assert trunks.size == min(number + 1, 50) * 16
    assert len(asked) == 200


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_the_common_length_is_the_longest_shared_beginning(one: list[int], other: list[int]) -> None:
    length = common_length(one, other)
    assert one[:length] == other[:length]
    assert length == min(len(one), len(other)) or one[length] != other[length]
