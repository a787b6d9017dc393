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
    assert found.temperature == pytest.approx(2.0, rel=0.06)
    assert found.blend == {"stack": pytest.approx(0.25, rel=0.06), "network": pytest.approx(1.0, rel=0.06)}
    assert found.offset == pytest.approx(-0.8, abs=0.06)
    assert found.fitted == {"stack": b"stack", "network": b"network"} and set(found.baselines) == set(SERVED)
    np.testing.assert_allclose(found.own(found.calibrated(odds, joined), joined), odds)
    alone = calibrate(PLAIN, labels, odds)
    assert found.alone == {"temperature": alone.temperature, "offset": alone.offset}
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
    assert set(both.baselines) == {"stack", "network"} and set(both.blend) == {"network"}
    assert set(calibrate(both, labels, odds).baselines) == {"stack"}


def test_where_no_blend_can_be_made_the_model_answers_alone_and_it_is_said() -> None:
    labels, odds, joined = with_two_baselines(1000)
    random = np.random.default_rng(5)
    truth = {"stack": np.where(labels == 1, 2.0, -2.0) + random.normal(0, 1, 1000), "network": joined["network"]}
    for case, given, line in (
        (labels[:150], odds[:150], "blend: 150 validation events, "),
        (labels, -odds, "blend: the model orders the validation events no better than chance"),
        (labels, -odds + 3.0 * truth["stack"], "blend: beside stack and network the model itself adds nothing"),
    ):
        said: list[str] = []
        others = {name: each[: len(case)] for name, each in truth.items()}
        found = calibrate(PLAIN, case, given, SERVED, others, said.append)
        assert found.blend == {} and found.alone is None and found.baselines == {}
        assert len(said) == 1 and said[0].startswith(line)
        assert found == calibrate(PLAIN, case, given)
