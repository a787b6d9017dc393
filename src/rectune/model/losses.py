"""What an answer costs in training: cross-entropy of its label word, weighted, smoothed or focused.

Without an option it is the plain cross-entropy, the same bits whatever stands below.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from rectune.config import Config
from rectune.errors import DataError
from rectune.model.answers import Words, head_weight, label_logits, word_losses

_LEAST = 1e-12
"""Keeps the slope of the focal factor finite where an answer is certain."""


def label_losses(
    model: Any, hidden: torch.Tensor, labels: torch.Tensor, prior: torch.Tensor, words: Words, over: str
) -> torch.Tensor:
    """Cross-entropy of label words at answer positions, with a prior added to their log-odds, in float32: [answers].

    Args:
        hidden: [answers, hidden] from `hidden_at`.
        labels: int64 [answers]; the label tokens.
        prior: float32 [answers]; added to the positive word's logit.
        words: the two label tokens.
        over: `vocabulary` (softmax over all tokens) or `labels` (over the two words).
    """
    if over == "labels":
        logits = label_logits(model, hidden, words.negative_id, words.positive_id)
        log_odds = logits[:, 1] - logits[:, 0] + prior
        return functional.binary_cross_entropy_with_logits(
            log_odds, (labels == words.positive_id).float(), reduction="none"
        )
    if not bool(prior.any()):
        return word_losses(model, hidden, labels)
    logits = functional.linear(hidden, head_weight(model)).float()
    logits[:, words.positive_id] = logits[:, words.positive_id] + prior
    return functional.cross_entropy(logits, labels, reduction="none")


def _word_costs(model: Any, hidden: torch.Tensor, prior: torch.Tensor, words: Words, over: str) -> torch.Tensor:
    """-log P of the two label words at each answer, prior added, in float32: [answers, 2], negative first."""
    if over == "labels":
        logits = label_logits(model, hidden, words.negative_id, words.positive_id)
        log_odds = logits[:, 1] - logits[:, 0] + prior
        return functional.softplus(torch.stack([log_odds, -log_odds], dim=1))
    logits = functional.linear(hidden, head_weight(model)).float()
    two = logits[:, [words.negative_id, words.positive_id]]
    if bool(prior.any()):
        logits[:, words.positive_id] = logits[:, words.positive_id] + prior
        two = torch.stack([two[:, 0], two[:, 1] + prior], dim=1)
    return torch.logsumexp(logits, dim=1, keepdim=True) - two


def weights_for(class_weights: str | list[float], negatives: int, positives: int) -> tuple[float, float] | None:
    """Weights of a negative and of a positive answer, whose mean over the training answers is 1; None without any.

    A loss is divided by the number of answers of a step, not by their weights, so that weighting also works where a
    step holds answers of one label only; with a mean of 1 the learning rate means what it meant.

    Args:
        class_weights: `none`, `balanced` (both labels weigh the same in sum), or two numbers whose ratio counts.
        negatives, positives: training answers of each label.

    Raises:
        DataError: there is nothing to balance.

    >>> weights_for("balanced", 30, 10)
    (0.6666666666666666, 2.0)
    >>> weights_for([1.0, 3.0], 10, 10)
    (0.5, 1.5)
    """
    if class_weights == "none":
        return None
    total = negatives + positives
    if isinstance(class_weights, str):
        if not negatives or not positives:
            raise DataError(
                f"class_weights: balanced, but the {total:,} training events all have the same label; use none"
            )
        return total / (2 * negatives), total / (2 * positives)
    negative, positive = class_weights
    mean = (negatives * negative + positives * positive) / total
    return negative / mean, positive / mean


@dataclass(frozen=True)
class AnswerLoss:
    """What each answer costs.

    Attributes:
        over: `vocabulary` or `labels`: among which words P is.
        weights: of negative and positive answers; None weighs all alike.
        smoothing: share of the target spread evenly over the two label words (Szegedy et al. 2016), never over the
            rest of the vocabulary, which is no answer.
        gamma: the cost -log P of a label is multiplied by (1 - P)^gamma (Lin et al. 2017), so that sure answers
            count less.
        sampling: what oversampling one of two labels adds to the log-odds.
    """

    over: str
    weights: tuple[float, float] | None = None
    smoothing: float = 0.0
    gamma: float = 0.0
    sampling: float = 0.0

    @property
    def shift(self) -> float:
        """What weights (log of their ratio) and oversampling add to the log-odds of a model that has learned all."""
        return self.sampling + (0.0 if self.weights is None else math.log(self.weights[1] / self.weights[0]))

    def __call__(
        self, model: Any, hidden: torch.Tensor, labels: torch.Tensor, prior: torch.Tensor, words: Words
    ) -> torch.Tensor:
        """The cost of each answer in float32, [answers]; arguments as `label_losses` has them."""
        if self.weights is None and not self.smoothing and not self.gamma:
            return label_losses(model, hidden, labels, prior, words, self.over)
        positive = labels == words.positive_id
        if not self.smoothing and not self.gamma:
            losses = label_losses(model, hidden, labels, prior, words, self.over)
        else:
            costs = _word_costs(model, hidden, prior, words, self.over)
            own = costs.gather(1, positive.long()[:, None])[:, 0]
            # The mean of both words' costs takes the share of the target that is spread.
            losses = (1 - self.smoothing) * own + self.smoothing * costs.mean(dim=1) if self.smoothing else own
            if self.gamma:
                losses = losses * (-torch.expm1(-own)).clamp_min(_LEAST) ** self.gamma
        if self.weights is None:
            return losses
        negative, other = self.weights
        return losses * torch.where(positive, other, negative)


def loss_of(config: Config, labels: npt.NDArray[np.integer[Any]], say: Callable[[str], None]) -> AnswerLoss:
    """The loss of a configuration, for training answers with these labels, [n] of 0 and 1.

    Raises:
        DataError: weights are to be balanced, and there is one label only.
    """
    positives = int(labels.sum())
    weights = weights_for(config.class_weights, len(labels) - positives, positives)
    over = config.loss_over
    if config.prompt_format == "classifier" and over == "vocabulary":
        over = "labels"
        say("loss: over the two labels (prompt_format: classifier), since a classification head knows no other token")
    loss = AnswerLoss(over, weights, config.label_smoothing, config.focal_gamma)
    if weights is not None:
        say(
            f"loss: a {config.negative_label} weighs {weights[0]:.3g} and a {config.positive_label} {weights[1]:.3g}, "
            f"which moves log-odds by {loss.shift:+.3g}; scores have it taken off"
        )
    return loss
