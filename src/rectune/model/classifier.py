"""A classification head on the base model's backbone, in place of the rows of its output head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from rectune.config import Config
from rectune.errors import ModelError
from rectune.model.answers import HEAD, Words, backbone_of, head_weight
from rectune.model.load import Loaded

_OF_STORAGE = (
    "hf_quantizer", "is_quantized", "quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit", "hf_device_map",
)  # fmt: skip
"""What a model says of how its weights are stored; PEFT and the Trainer ask for it."""


def with_classification_head(model: Any, words: Words) -> Any:
    """The model as transformers' `AutoModelForSequenceClassification` would load it, on the same backbone.

    Its head, 2 x hidden in float32, starts as the output head's rows of the two label words, so that untuned it gives
    the answers of the model without it, and no random number is drawn. The output head itself is let go.

    Args:
        model: a frozen causal language model.
        words: the two label tokens; the negative one is class 0.

    Raises:
        ModelError: the model's family has no such form, or one that is built in another way.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    name = type(model).__name__
    advice = "take prompt_format=completion or another model"
    if type(model.config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise ModelError(f"prompt_format: classifier: transformers has no classification head for {name}; {advice}")
    rows = head_weight(model)[[words.negative_id, words.positive_id]].detach().float()
    model.config.num_labels = 2
    with torch.device("meta"):  # its weights are never made: the backbone is the one that is loaded
        found = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(model.config)](model.config)
    head = getattr(found, HEAD, None)
    biased = getattr(head, "bias", None) is not None
    plain = isinstance(head, torch.nn.Linear) and not biased and head.weight.shape == rows.shape
    if not plain or found.base_model_prefix != model.base_model_prefix:
        raise ModelError(f"prompt_format: classifier: {name}'s classification head is not a plain one; {advice}")
    setattr(found, found.base_model_prefix, backbone_of(model)[1])
    getattr(found, HEAD).weight = torch.nn.Parameter(rows.clone(), requires_grad=False)
    odd = [key for key, value in found.named_parameters() if value.is_meta]
    if odd:
        raise ModelError(f"prompt_format: classifier: {name} has more to its head than a layer ({odd[0]}); {advice}")
    for key in _OF_STORAGE:
        if hasattr(model, key):
            setattr(found, key, getattr(model, key))
    found.requires_grad_(False)
    found.train(model.training)
    return found


def for_answers(config: Config, loaded: Loaded, words: Words, say: Callable[[str], None]) -> Loaded:
    """A loaded base model with what its answers are read from: the output head, or a classification head.

    Args:
        config: `prompt_format` is read.
        loaded: as `load_model` gives it.
        words: the two label tokens.
        say: prints one line.

    Raises:
        ModelError: see `with_classification_head`.
    """
    if config.prompt_format != "classifier":
        return loaded
    model = with_classification_head(loaded.model, words)
    say(f"head: 2 x {getattr(model, HEAD).in_features} weights in place of the vocabulary, started as the label words")
    return replace(loaded, model=model)
