"""A model loaded and adapted by Unsloth, for `backend: unsloth`: written from its public interface, and not yet run.

Imported only where `backend` asks for it, after `prepare_backend` has imported Unsloth. The run folder is a plain PEFT
adapter: evaluate, rank and all else load it with transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from rectune.config import Config
from rectune.errors import ModelError
from rectune.model.device import choose_device, choose_dtype
from rectune.model.load import Loaded, check_head, load_tokenizer, resolve_source
from rectune.model.lora import adapted_layers, target_names

Say = Callable[[str], None]


def load_unsloth(config: Config, say: Say) -> Loaded:
    """The base model by `FastLanguageModel.from_pretrained`, the model that the configuration names and no other.

    Unsloth would take a copy of its own, quantised in its own way, where it knows one of a similar name; the tuned
    adapter would then belong to another base model.

    Raises:
        ModelError: a GGUF file, which Unsloth does not read, loading fails, or logits are more than products.
    """
    from unsloth import FastLanguageModel

    device, device_reason = choose_device()
    dtype, dtype_reason = choose_dtype(config, device)
    source, extra = resolve_source(config.model_name_or_path, say)
    if extra:
        raise ModelError(f"{config.model_name_or_path}: Unsloth reads no GGUF file; set backend=native")
    say(f"device: {device.type} ({device_reason})")
    say(f"precision: {str(dtype).removeprefix('torch.')} ({dtype_reason})")
    say("attention: Unsloth's own")
    try:
        model, _ = FastLanguageModel.from_pretrained(
            model_name=source,
            max_seq_length=config.cutoff_len,
            dtype=dtype,
            load_in_4bit=config.use_qlora or config.quantization_bit == 4,
            load_in_8bit=config.quantization_bit == 8,
            revision=config.model_revision,
            use_exact_model_name=True,
            use_gradient_checkpointing="unsloth" if config.gradient_checkpointing else False,
            random_state=config.seed,
        )
    except Exception as error:  # the libraries raise many kinds; each becomes one line
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{config.model_name_or_path}: Unsloth cannot load it: {reason}; or backend=native") from error
    check_head(model, config.model_name_or_path)
    attention = str(getattr(model.config, "_attn_implementation", "sdpa"))
    revision = getattr(model.config, "_commit_hash", None)
    return Loaded(model, load_tokenizer(config, say), source, revision, device, dtype, attention)


def attach_unsloth(model: Any, config: Config, source: str, revision: str | None) -> Any:
    """The model with a fresh LoRA adapter by `FastLanguageModel.get_peft_model`, its initial values from the seed.

    Args:
        model: as `load_unsloth` gives it.
        config: the `lora_*` keys are read.
        source: recorded as the adapter's base model.
        revision: the base model's commit, recorded too.

    Raises:
        ModelError: a target or a layer does not exist.
    """
    from unsloth import FastLanguageModel

    adapted = FastLanguageModel.get_peft_model(
        model,
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=target_names(model, config),
        layers_to_transform=adapted_layers(model, config),
        bias=config.lora_bias,
        use_rslora=config.use_rslora,
        use_gradient_checkpointing="unsloth" if config.gradient_checkpointing else False,
        random_state=config.seed,
        max_seq_length=config.cutoff_len,
    )
    settings = adapted.peft_config["default"]
    settings.base_model_name_or_path, settings.revision = source, revision
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
    return adapted
