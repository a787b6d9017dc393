import numpy as np
import polars as pl
import pytest

from rectune.baselines.rates import item_like_rate
from rectune.errors import DataError
from rectune.measure.classification import probability

TRAIN = pl.DataFrame(
    {"user_id": ["a", "a", "b", "b"], "item_id": ["x", "y", "x", "y"], "label": [1, 0, 1, 1]},
    schema_overrides={"label": pl.Int8},
)
EVENTS = pl.DataFrame({"user_id": ["b", "a", "new"], "item_id": ["y", "unseen", "x"]})


def test_an_items_rate_is_the_one_worked_out_by_hand_in_the_order_of_the_events():
    # The mean is 3/4; y is liked 1 of 2, x 2 of 2.
    rate = probability(item_like_rate(TRAIN, EVENTS, strength=4.0))
    np.testing.assert_allclose(rate, [(1 + 3) / 6, 3 / 4, (2 + 3) / 6])


def test_the_labels_of_the_scored_events_are_never_read():
    labelled = [EVENTS.with_columns(label=pl.lit(value)) for value in (0, 1)]
    np.testing.assert_array_equal(item_like_rate(TRAIN, labelled[0]), item_like_rate(TRAIN, labelled[1]))


@pytest.mark.parametrize("strength", [0.0, 5.0])
def test_log_odds_stay_finite_when_all_labels_agree(strength):
    assert np.isfinite(item_like_rate(TRAIN.with_columns(label=pl.lit(1)), EVENTS, strength)).all()


def test_missing_columns_and_empty_training_data_are_named():
    with pytest.raises(DataError, match="events: no column 'item_id'; found user_id"):
        item_like_rate(TRAIN, EVENTS.drop("item_id"))
    with pytest.raises(DataError, match="train: no rows"):
        item_like_rate(TRAIN.clear(), EVENTS)
    with pytest.raises(ValueError, match="strength: got -1"):
        item_like_rate(TRAIN, EVENTS, -1)
