"""What is fitted on validation makes scores probabilities, and never turns a ranking around."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rectune.baselines.questions import Floats, Log, Questions
from rectune.baselines.served import Served
from rectune.errors import ModelError
from rectune.measure.calibration import ece
from rectune.measure.classification import accuracy, confusion, log_loss, predict, probability
from rectune.score.calibrate import LEAST, RARER, calibrate
from rectune.score.settings import AdapterSettings, load_settings

PLAIN = AdapterSettings("x", None, {"prior": "none"}, {}, "hash")


def drawn(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and log-odds twice too large and one too high."""
    random = np.random.default_rng(seed)
    truth = random.normal(0, 1.5, n)
    labels = (random.uniform(size=n) < probability(truth)).astype(np.int64)
    return labels, 2.0 * truth + 1.0


def test_a_scale_and_a_shift_that_were_put_in_are_found_again() -> None:
    labels, odds = drawn(20_000)
    found = calibrate(PLAIN, labels, odds)
    assert found.temperature == pytest.approx(2.0, rel=0.05) and found.offset == pytest.approx(-0.5, abs=0.05)
    better = found.calibrated(odds)
    assert log_loss(labels, better) < log_loss(labels, odds) - 0.05
    assert ece(labels, probability(better)) < 0.02 < ece(labels, probability(odds))
    assert (np.argsort(better) == np.argsort(odds)).all()


def test_the_threshold_is_the_most_accurate_one_on_the_calibrated_scores() -> None:
    labels, odds = drawn(500)
    found = calibrate(PLAIN, labels, odds)
    better = found.calibrated(odds)
    best = accuracy(confusion(labels, predict(better, found.threshold)))
    for threshold in np.linspace(0.01, 0.99, 99):
        assert accuracy(confusion(labels, predict(better, float(threshold)))) <= best


@pytest.mark.parametrize(
    "labels",
    [np.tile([0, 1], LEAST // 2)[: LEAST - 1], np.r_[np.ones(RARER - 1), np.zeros(LEAST)], np.zeros(LEAST)],
)
def test_too_few_events_leave_the_scores_as_they_are(labels: np.ndarray) -> None:
    found = calibrate(replace(PLAIN, temperature=3.0, offset=1.0, threshold=0.2), labels.astype(int), labels * 1.0)
    assert (found.temperature, found.offset, found.threshold) == (1.0, 0.0, 0.5)


def test_of_class_weights_the_known_effect_is_taken_off_unless_an_offset_can_be_fitted(tmp_path: Path) -> None:
    weighted = PLAIN.with_loss_shift(1.25)
    assert weighted.calibrated(np.array([2.0, -0.5])).tolist() == [0.75, -1.75]
    assert weighted.correction_text == "log-odds + -1.25, what class weights or oversampling had added"
    few = calibrate(replace(weighted, temperature=3.0, offset=7.0), np.array([0, 1]), np.array([0.0, 1.0]))
    assert few == weighted
    few.save(tmp_path)
    assert load_settings(tmp_path) == weighted
    labels, odds = drawn(20_000)
    found, plain = calibrate(weighted, labels, odds + 1.25), calibrate(PLAIN, labels, odds + 1.25)
    assert (found.temperature, found.offset) == (plain.temperature, plain.offset)
    assert found.offset == pytest.approx(-(1.0 + 1.25) / 2, abs=0.05)


def test_scores_that_order_events_the_wrong_way_round_are_left_alone() -> None:
    labels, odds = drawn(1000)
    found = calibrate(PLAIN, labels, -odds)
    assert (found.temperature, found.offset, found.threshold) == (1.0, 0.0, 0.5)


def test_the_three_come_back_as_they_were_saved(tmp_path: Path) -> None:
    labels, odds = drawn(1000)
    found = calibrate(PLAIN, labels, odds)
    found.save(tmp_path)
    assert load_settings(tmp_path) == found


@pytest.mark.parametrize("change", [{"temperature": 0.0}, {"temperature": "2"}, {"offset": None}, {"offset": True}])
def test_a_calibration_that_cannot_be_applied_is_one_line(tmp_path: Path, change: dict[str, object]) -> None:
    replace(PLAIN, **change).save(tmp_path)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=f"{next(iter(change))} is .*, and this version cannot apply it"):
        load_settings(tmp_path)


class Told(Served):
    """A baseline whose file is its name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def score(self, log: Log, asked: Questions) -> Floats:
        raise AssertionError("what it says is given")

    def to_bytes(self) -> bytes:
        return self.name.encode()


SERVED = {name: Told(name) for name in ("stack", "network")}


def with_two_baselines(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Labels, a model's log-odds, and those of two baselines that see something else of the truth."""
    random = np.random.default_rng(seed)
    parts = random.normal(0, 1.0, (3, n))
    labels = (random.uniform(size=n) < probability(parts.sum(axis=0) - 0.3)).astype(np.int64)
    return labels, 2.0 * parts[0] + 1.0, {"stack": parts[1] * 4.0, "network": parts[2]}


def test_weights_that_were_put_in_are_found_again_and_held_with_their_baselines() -> None:
    labels, odds, joined = with_two_baselines(40_000)
    said: list[str] = []
    found = calibrate(PLAIN, labels, odds, SERVED, joined, said.append)
    weights = {"model": 0.5, "stack": 0.25, "network": 1.0, "offset": -0.8}
    assert found.blend == {name: pytest.approx(weight, rel=0.06, abs=0.02) for name, weight in weights.items()}
    assert found.fitted == {"stack": b"stack", "network": b"network"} and set(found.baselines) == set(SERVED)
    alone = calibrate(PLAIN, labels, odds)
    assert (found.temperature, found.offset) == (alone.temperature, alone.offset)
    np.testing.assert_array_equal(found.alone(odds), alone.calibrated(odds))
    assert log_loss(labels, found.calibrated(odds, joined)) < log_loss(labels, alone.calibrated(odds)) - 0.05
    assert said[0].startswith("blend: weights of the log-odds on 40,000 validation events: model 0.")


def test_fitting_again_drops_what_was_joined_before() -> None:
    labels, odds, joined = with_two_baselines(1000)
    before = calibrate(PLAIN, labels, odds, SERVED, joined)
    assert calibrate(before, labels, odds) == calibrate(PLAIN, labels, odds)
    # The stack stays where the model starts from it.
    started = replace(PLAIN, prompt={"prior": "stack"}).with_baselines({"stack": SERVED["stack"]})
    only = {"network": joined["network"]}
    both = calibrate(started, labels, odds, {"network": SERVED["network"]}, only)
    assert set(both.baselines) == {"stack", "network"} and set(both.blend) == {"model", "network", "offset"}
    assert set(calibrate(both, labels, odds).baselines) == {"stack"}


def test_too_few_events_for_a_blend_leave_the_model_alone_and_that_is_said() -> None:
    labels, odds, joined = with_two_baselines(150)
    said: list[str] = []
    found = calibrate(PLAIN, labels, odds, SERVED, joined, said.append)
    assert found == PLAIN and len(said) == 1 and said[0].startswith("blend: 150 validation events are too few")


def test_a_model_that_adds_nothing_has_no_weight_and_that_is_said() -> None:
    labels, odds, joined = with_two_baselines(2000)
    for own in (-odds, odds + np.where(labels == 1, -2.0, 2.0), np.ones(2000)):
        said: list[str] = []
        found = calibrate(PLAIN, labels, own, SERVED, joined, said.append)
        assert found.blend["model"] == 0 and min(found.blend["stack"], found.blend["network"]) > 0
        assert found.calibrated(own, joined).tolist() == found.calibrated(0 * own, joined).tolist()
        assert said[1].startswith("blend: the language model adds nothing to stack and network on validation")
