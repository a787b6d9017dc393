"""Oversampling reaches its share exactly, repeats nothing but the rarest class, and says what it does to scores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rectune.config import parse_config
from rectune.train.oversample import oversample, oversampled


@given(st.integers(1, 60), st.integers(1, 300), st.sampled_from([0.2, 0.3, 0.5, 0.7]), st.integers(0, 9))
def test_the_share_is_the_nearest_that_whole_numbers_can_have(rare: int, common: int, share: float, seed: int) -> None:
    labels = np.array([1] * rare + [0] * common)
    found = oversample(labels, share, 2, seed)
    taken = labels[found.rows]
    of_rarest = int((taken == found.rarest).sum())
    if rare == common:
        assert found.rarest == 0  # the first of equally rare ones
    few, many = min(rare, common), max(rare, common)
    if few / (few + many) >= share or round(many * share / (1 - share)) <= few:
        assert found.rows.tolist() == list(range(len(labels))) and not found.shift.any()
        return
    assert abs(of_rarest - many * share / (1 - share)) <= 0.5 + 1e-9 and len(taken) - of_rarest == many
    times = np.bincount(found.rows, minlength=len(labels))
    assert (times[labels != found.rarest] == 1).all()  # the others are seen once
    own = times[labels == found.rarest]
    assert own.max() - own.min() <= 1  # and each of these as often as any other, or once more
    assert found.shift[found.rarest] == pytest.approx(np.log(of_rarest / few))


def test_half_and_half_is_exact() -> None:
    labels = np.array([0] * 18 + [1] * 2)
    taken = labels[oversample(labels, 0.5, 2, seed=1).rows]
    assert (taken == 0).sum() == (taken == 1).sum() == 18


def test_what_it_adds_to_the_log_odds_has_the_sign_of_the_rarer_class() -> None:
    assert oversample(np.array([1, 0, 0, 0]), 0.5, 2, 0).log_odds == pytest.approx(np.log(3))
    assert oversample(np.array([0, 1, 1, 1]), 0.5, 2, 0).log_odds == pytest.approx(-np.log(3))


def test_of_many_classes_only_the_rarest_is_repeated() -> None:
    labels = np.array([0] * 10 + [1] * 6 + [2] * 2)
    found = oversample(labels, 0.5, 3, seed=0)
    assert np.bincount(labels[found.rows]).tolist() == [10, 6, 16]
    assert found.shift == pytest.approx([0, 0, np.log(8)])


def test_a_class_that_is_not_there_is_not_the_rarest() -> None:
    found = oversample(np.array([0, 0, 0, 1]), 0.5, 3, seed=0)
    assert found.rarest == 1 and np.bincount(np.array([0, 0, 0, 1])[found.rows]).tolist() == [3, 3]


def test_what_is_done_is_said() -> None:
    config = parse_config({"task": "classify", "labels": {"Rare": "R", "Common": "C"}, "oversample": 0.3}, "test")
    said: list[str] = []
    oversampled(config, np.array([0] * 70 + [1] * 10), said.append)
    assert said == [
        "oversample: 10 texts of Rare are seen 30 times, 30.0% of 100 in place of 12.5%, which moves their log-odds by "
        "+1.1; scores have it taken off"
    ]
    oversampled(config, np.array([0] * 70 + [1] * 40), said.append)
    assert said[1] == "oversample: Rare is 36.4% of the training texts already, so none is repeated"


def test_the_taken_off_shift_gives_back_the_natural_rate() -> None:
    """A model that knows nothing but the classes' shares learns those of what it sees; corrected, they are nature's."""
    labels = np.array([0] * 90 + [1] * 10)
    found = oversample(labels, 0.5, 2, seed=0)
    seen = labels[found.rows].mean()
    corrected = np.log(seen / (1 - seen)) - found.log_odds
    assert 1 / (1 + np.exp(-corrected)) == pytest.approx(0.1)
