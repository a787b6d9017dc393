"""The sequence-classification form: one number a prompt, the log-odds of the label words divided by the temperature.

Its head is a single row, the positive label word's row of the output head less the negative one's. That is what
sentence-transformers' CrossEncoder and vLLM's scoring take, both of which apply the sigmoid themselves. Transformers'
classification heads have no bias, so the offset stays with the client.
"""

from __future__ import annotations

from typing import Any

import torch

from rectune.model.answers import HEAD, Words
from rectune.model.classifier import with_classification_head


@torch.no_grad()
def as_classifier(merged: Any, words: Words, positive: str, temperature: float, pad_id: int) -> Any:
    """A merged model as transformers' sequence classification with one label.

    Args:
        merged: a causal language model, or one with rectune's classification head of two rows.
        words: the label tokens.
        positive: the word of a liked item, which names the label.
        temperature: log-odds are divided by it.
        pad_id: what clients pad with; the last token that is another is read.

    Raises:
        ModelError: transformers has no plain classification head for this model.
    """
    dtype = merged.dtype
    model = merged if hasattr(merged, HEAD) else with_classification_head(merged, words)
    rows = getattr(model, HEAD).weight
    head = torch.nn.Linear(rows.shape[1], 1, bias=False, device=rows.device, dtype=dtype)
    head.weight.copy_((rows[1].float() - rows[0].float())[None] / temperature)
    setattr(model, HEAD, head)
    config = model.config
    config.num_labels = model.num_labels = 1
    config.id2label, config.label2id = {0: positive}, {positive: 0}
    config.pad_token_id = pad_id
    config.dtype = dtype
    config.sentence_transformers = {"activation_fn": "torch.nn.modules.activation.Sigmoid"}
    return model.to(dtype).eval()
