"""Read answers: hidden states at answer positions only, times the rows of the head that are needed.

Nothing of shape [batch, length, vocabulary] is ever made. This is the one place that turns a model's output into
logits of labels, be they two words of the vocabulary or the classes of a classification head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch.nn import functional

from rectune.errors import ModelError

HEAD = "score"
"""What transformers calls a classification head, and so the adapter's file."""


class Words(Protocol):
    """Whatever knows the two label tokens."""

    @property
    def positive_id(self) -> int:
        """Token of the positive label word."""

    @property
    def negative_id(self) -> int:
        """Token of the negative label word."""


def _bare(model: Any) -> Any:
    """The causal language model itself, with or without an adapter attached."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def backbone_of(model: Any) -> tuple[Any, Any]:
    """The causal language model itself, and what lies below its output head."""
    bare = _bare(model)
    return bare, getattr(bare, bare.base_model_prefix)


def head_weight(model: Any) -> torch.Tensor:
    """The output head's weight, [vocabulary, hidden].

    Raises:
        ModelError: the head is not a plain linear layer without bias.
    """
    head = _bare(model).get_output_embeddings()
    weight = getattr(head, "weight", None)
    matrix = isinstance(weight, torch.Tensor) and weight.ndim == 2 and weight.is_floating_point()
    if not isinstance(weight, torch.Tensor) or not matrix or getattr(head, "bias", None) is not None:
        raise ModelError(f"{type(_bare(model)).__name__}: its output head is not a plain linear layer, which is needed")
    return weight


def hidden_at(
    model: Any,
    input_ids: torch.Tensor,
    rows: torch.Tensor,
    positions: torch.Tensor,
    mask: Any = None,
    position_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """Last hidden states at chosen places.

    Args:
        model: a causal language model, with or without an adapter.
        input_ids: int64 [batch, length]; padded on the right, where causal attention never looks from a prompt.
        rows: int64 [answers]; the batch row of each place.
        positions: int64 [answers]; its index in that row.
        mask: as `attention_mask` makes it, for rows that hold several prompts; None for one prompt a row.
        position_ids: int64 [batch, length]; None counts from 0 in each row.

    Returns:
        [answers, hidden] in the model's dtype.
    """
    bare, backbone = backbone_of(model)
    # The adapter's matrices are float32; autocast multiplies them in the base model's precision, 1.4 times as fast.
    mixed = torch.autocast(input_ids.device.type, bare.dtype, enabled=bare.dtype != torch.float32)
    with mixed:
        output = backbone(input_ids=input_ids, attention_mask=mask, position_ids=position_ids, use_cache=False)
    hidden: torch.Tensor = output.last_hidden_state[rows, positions]
    return hidden


def classification_weight(model: Any) -> torch.Tensor | None:
    """The weight of a model's classification head, [2, hidden], negative first; None where it has none.

    With the adapter switched off it is the head as it was before training.
    """
    head = getattr(_bare(model), HEAD, None)
    return None if head is None else head.weight


def label_logits(model: Any, hidden: torch.Tensor, negative_id: int, positive_id: int) -> torch.Tensor:
    """Logits of the two labels in float32: [answers, 2], negative first.

    They come from the two words' rows of the output head, or from the classification head where there is one.
    """
    rows = classification_weight(model)
    if rows is None:
        return token_logits(model, hidden, [negative_id, positive_id])
    return functional.linear(hidden.float(), rows.float())


def token_logits(model: Any, hidden: torch.Tensor, ids: Sequence[int]) -> torch.Tensor:
    """Logits of chosen tokens in float32, [answers, ids], from their rows of the output head."""
    return functional.linear(hidden.float(), head_weight(model)[list(ids)].float())


def word_losses(model: Any, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy over the whole vocabulary at chosen places, in float32: [answers].

    Args:
        hidden: [answers, hidden] from `hidden_at`.
        targets: int64 [answers]; the token that should come next at each place.
    """
    logits = functional.linear(hidden, head_weight(model))
    return functional.cross_entropy(logits.float(), targets, reduction="none")
