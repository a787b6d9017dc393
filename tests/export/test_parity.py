"""What an export's answers may cost, and what is another model."""

from __future__ import annotations

import numpy as np
import pytest

from rectune.errors import ModelError
from rectune.export.parity import Parity

TRAINED = np.linspace(-2, 2, 100)
UNTUNED = TRAINED - 1.0
LABELS = (np.arange(100) % 3 > 0).astype(np.int32)


def of(exported: np.ndarray) -> Parity:
    return Parity.of(exported, TRAINED, UNTUNED, LABELS)


def test_rounding_costs_nothing_and_a_changed_order_or_a_shift_does() -> None:
    draw = np.random.default_rng(0).normal(size=100)
    assert not of(TRAINED).costly and not of(TRAINED + 0.09).costly
    assert not of(TRAINED + 0.2 * draw).costly
    assert of(TRAINED + 0.7 * draw).costly  # another order, by less than the adapter does
    shifted = of(TRAINED - 1.1)  # the order of the trained model, and more than its adapter off
    assert shifted.rank == pytest.approx(1) and shifted.costly
    assert of(np.zeros(100)).costly  # no order at all


def test_a_loss_can_be_accepted_and_a_stranger_cannot() -> None:
    draw = np.random.default_rng(0).normal(size=100)
    dear = of(TRAINED + 0.7 * draw)
    with pytest.raises(
        ModelError, match=r"x: the weights are right, .*0.95 or more.* --accept-loss, which the model card"
    ):
        dear.check_loss("x", accept=False)
    dear.check_loss("x", accept=True)
    of(TRAINED).check_loss("x", accept=False)
    for other in (draw, -TRAINED, np.zeros(100), np.full(100, np.nan)):
        with pytest.raises(ModelError, match="x: its answers have little to do with the trained model's"):
            of(other).check_loss("x", accept=True)


def test_auc_of_both_is_told_where_the_pairs_have_two_labels() -> None:
    assert of(TRAINED).auc == of(2 * TRAINED).auc_exported is not None
    assert "AUC on these pairs" in of(TRAINED).line()
    alike = Parity.of(TRAINED, TRAINED, UNTUNED, np.zeros(100, dtype=np.int32))
    assert alike.auc is None and "AUC" not in alike.line()
