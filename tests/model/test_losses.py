"""What an answer costs, worked out by hand: weights, smoothing, focus, alone and with a prior."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rectune.config import parse_config
from rectune.errors import DataError
from rectune.model.losses import AnswerLoss, label_losses, loss_of, weights_for
from rectune.prompt.verbalizer import Verbalizer

WORDS = Verbalizer("Yes", "No", positive_id=2, negative_id=0, end_id=3)


class Head(torch.nn.Module):
    """A head whose logits are the hidden numbers themselves, over 4 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 4, bias=False)
        with torch.no_grad():
            self.linear.weight.copy_(torch.eye(4))

    def get_output_embeddings(self) -> torch.nn.Linear:
        return self.linear


# Yes, then No, then No; tokens No, other, Yes, end.
LOGITS = torch.tensor([[1.0, 2.0, 4.0, 0.0], [3.0, -1.0, 5.0, 0.0], [2.0, 0.0, -1.0, 1.0]])
LABELS = torch.tensor([2, 0, 0])
PRIOR = torch.tensor([0.5, -2.0, 1.0])
NONE = torch.zeros(3)


def log_odds(prior: torch.Tensor) -> list[float]:
    """Yes over No by hand: 4 - 1, 5 - 3, -1 - 2, and the prior."""
    return [float(3.0 + prior[0]), float(2.0 + prior[1]), float(-3.0 + prior[2])]


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def chances(over: str, prior: torch.Tensor) -> list[tuple[float, float]]:
    """P(No) and P(Yes) at each answer by hand: among the two words, or among all four tokens."""
    if over == "labels":
        return [(1 - sigmoid(odds), sigmoid(odds)) for odds in log_odds(prior)]
    rows = [[a, b, c + float(shift), d] for (a, b, c, d), shift in zip(LOGITS.tolist(), prior, strict=True)]
    sums = [sum(map(math.exp, row)) for row in rows]
    return [(math.exp(row[0]) / total, math.exp(row[2]) / total) for row, total in zip(rows, sums, strict=True)]


def losses(loss: AnswerLoss, prior: torch.Tensor) -> list[float]:
    found: list[float] = loss(Head(), LOGITS, LABELS, prior, WORDS).tolist()
    return found


BOTH = pytest.mark.parametrize("over", ["labels", "vocabulary"])
PRIORS = pytest.mark.parametrize("prior", [NONE, PRIOR], ids=["plain", "prior"])


@BOTH
@PRIORS
def test_without_an_option_the_loss_has_the_same_bits_as_cross_entropy(over: str, prior: torch.Tensor) -> None:
    plain = label_losses(Head(), LOGITS, LABELS, prior, WORDS, over)
    assert torch.equal(AnswerLoss(over)(Head(), LOGITS, LABELS, prior, WORDS), plain)


@BOTH
@PRIORS
def test_a_weighted_answer_costs_its_weight_times_as_much(over: str, prior: torch.Tensor) -> None:
    plain = losses(AnswerLoss(over), prior)
    by_hand = [1.5 * plain[0], 0.75 * plain[1], 0.75 * plain[2]]
    assert losses(AnswerLoss(over, weights=(0.75, 1.5)), prior) == pytest.approx(by_hand)


@BOTH
@PRIORS
def test_a_smoothed_target_is_spread_over_the_two_label_words_alone(over: str, prior: torch.Tensor) -> None:
    # Of a share of 0.2 each word gets 0.1, so the right one is wanted with 0.9.
    by_hand = [
        -0.9 * math.log((no, yes)[label]) - 0.1 * math.log((no, yes)[1 - label])
        for (no, yes), label in zip(chances(over, prior), [1, 0, 0], strict=True)
    ]
    assert losses(AnswerLoss(over, smoothing=0.2), prior) == pytest.approx(by_hand, rel=1e-5)


@BOTH
@PRIORS
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_a_focused_loss_is_multiplied_by_what_is_missing_to_certainty(
    over: str, prior: torch.Tensor, gamma: float
) -> None:
    by_hand = [
        -((1 - (no, yes)[label]) ** gamma) * math.log((no, yes)[label])
        for (no, yes), label in zip(chances(over, prior), [1, 0, 0], strict=True)
    ]
    assert losses(AnswerLoss(over, gamma=gamma), prior) == pytest.approx(by_hand, rel=1e-5)


@BOTH
def test_weights_also_weigh_smoothed_and_focused_losses(over: str) -> None:
    for options in ({"smoothing": 0.2}, {"gamma": 2.0}):
        plain = losses(AnswerLoss(over, **options), PRIOR)
        weighed = losses(AnswerLoss(over, weights=(0.5, 3.0), **options), PRIOR)
        assert weighed == pytest.approx([3.0 * plain[0], 0.5 * plain[1], 0.5 * plain[2]])


def test_torchs_own_smoothing_among_two_words_is_the_same() -> None:
    expected = torch.nn.functional.cross_entropy(
        LOGITS[:, [0, 2]], torch.tensor([1, 0, 0]), reduction="none", label_smoothing=0.3
    )
    assert losses(AnswerLoss("labels", smoothing=0.3), NONE) == pytest.approx(expected.tolist(), rel=1e-6)


@BOTH
@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_the_gradient_of_a_certain_answer_is_a_number(over: str, gamma: float) -> None:
    hidden = torch.tensor([[-500.0, 0.0, 500.0, 0.0]] * 2, requires_grad=True)
    loss = AnswerLoss(over, gamma=gamma)(Head(), hidden, torch.tensor([2, 0]), torch.zeros(2), WORDS)
    loss.sum().backward()
    assert hidden.grad is not None and torch.isfinite(hidden.grad).all()
    assert loss.tolist() == pytest.approx([0.0, 1000.0], abs=1e-6)


@BOTH
@given(
    logits=st.lists(st.floats(-20, 20), min_size=4, max_size=4),
    prior=st.floats(-5, 5),
    yes=st.booleans(),
)
def test_focus_of_nothing_and_weights_of_one_are_cross_entropy(
    over: str, logits: list[float], prior: float, yes: bool
) -> None:
    values = torch.tensor([logits], dtype=torch.float32)
    given = values, torch.tensor([2 if yes else 0]), torch.tensor([prior], dtype=torch.float32), WORDS
    plain = label_losses(Head(), *given, over)
    near = AnswerLoss(over, weights=(1.0, 1.0), gamma=1e-9)(Head(), *given)
    assert near.tolist() == pytest.approx(plain.tolist(), rel=1e-4, abs=1e-5)


def test_balanced_weights_give_both_labels_the_same_sum_and_a_mean_of_one() -> None:
    # 60 against 20: 80 / 120 and 80 / 40.
    weights = weights_for("balanced", 60, 20)
    assert weights == pytest.approx((2 / 3, 2.0))
    # 1 and 3 over 60 and 20 have a mean of 1.5.
    assert weights_for([1.0, 3.0], 60, 20) == pytest.approx((2 / 3, 2.0))
    assert weights_for("none", 60, 20) is None
    with pytest.raises(DataError, match="the 7 training events all have the same label; use none"):
        weights_for("balanced", 0, 7)


def test_weights_move_the_best_log_odds_by_the_log_of_their_ratio() -> None:
    """The best constant answer to 30 Yes and 70 No is log(30 / 70), and with weights that plus the shift."""
    loss = AnswerLoss("labels", weights=(0.5, 2.0))
    assert loss.shift == pytest.approx(math.log(4))
    head = torch.nn.Parameter(torch.zeros(4))
    labels = torch.tensor([2] * 30 + [0] * 70)
    optimizer = torch.optim.LBFGS([head], max_iter=100, tolerance_grad=1e-9)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        found = loss(Head(), head.expand(100, 4), labels, torch.zeros(100), WORDS).mean()
        found.backward()  # type: ignore[no-untyped-call]
        return found

    optimizer.step(closure)
    assert float(head[2] - head[0]) - loss.shift == pytest.approx(math.log(30 / 70), abs=1e-4)


def test_a_configuration_says_what_its_weights_do() -> None:
    lines: list[str] = []
    config = parse_config({"class_weights": "balanced", "label_smoothing": 0.1}, origin="test")
    loss = loss_of(config, np.array([1, 0, 0, 0]), lines.append)
    assert loss == AnswerLoss("vocabulary", pytest.approx((2 / 3, 2.0)), 0.1, 0.0)  # type: ignore[arg-type]
    assert lines == ["loss: a No weighs 0.667 and a Yes 2, which moves log-odds by +1.1; scores have it taken off"]
    assert loss_of(parse_config({}, origin="test"), np.array([1, 0]), lines.append) == AnswerLoss("vocabulary")
    assert len(lines) == 1
