"""The model that is trained: with a fresh adapter, or with that of an earlier run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rectune.config import Config
from rectune.model.initial import FROM_BASE, fixed_parameters
from rectune.model.load import Loaded
from rectune.model.lora import attach_adapter, load_adapter, parameter_line
from rectune.prompt.verbalizer import Verbalizer
from rectune.score.settings import FILE_NAME, AdapterSettings, load_settings

Say = Callable[[str], None]


def _compare(folder: Path, settings: AdapterSettings, verbalizer: Verbalizer, say: Say) -> None:
    """Hold this run's prompt against that of the earlier run, where that run left its settings.

    Raises:
        ModelError: the settings are damaged, or the labels were other tokens then.
    """
    if not (folder / FILE_NAME).is_file():
        return
    earlier = load_settings(folder)
    earlier.check_verbalizer(verbalizer)
    now = json.loads(json.dumps(settings.prompt, default=str))  # as it would be read back
    for key, value in now.items():
        if key in earlier.prompt and earlier.prompt[key] != value:
            say(f"adapter: {key} was {earlier.prompt[key]!r} in its earlier run and is now {value!r}")


def adapted_model(config: Config, loaded: Loaded, settings: AdapterSettings, verbalizer: Verbalizer, say: Say) -> Any:
    """The model with a fresh adapter, or with an earlier one that training goes on from.

    Args:
        config: all keys.
        loaded: the base model.
        settings: what this run will save beside its adapter.
        verbalizer: this run's label tokens.
        say: prints one line.

    Raises:
        ModelError: the adapter does not fit the model, or was trained to answer with other tokens.
        ResourceError: it is to start at what quantisation lost, and the unquantised weights are not here.
    """
    from transformers import set_seed

    fixed = 0
    set_seed(config.seed)  # before the adapter: its initial values are drawn from the seed
    if config.adapter_name_or_path is not None:
        say(f"adapter: going on from {config.adapter_name_or_path}")
        _compare(config.adapter_name_or_path, settings, verbalizer, say)
        model = load_adapter(loaded.model, config.adapter_name_or_path, trainable=True)
        found = model.peft_config["default"]
        say(
            f"adapter: rank {found.r}, alpha {found.lora_alpha}, dropout {found.lora_dropout} and all else of its kind "
            "come from the earlier adapter; of this configuration, lora_*, use_rslora, use_dora and init_lora_weights "
            "are not used"
        )
    else:
        model = attach_adapter(loaded.model, config, loaded.source, loaded.revision)
        kind = config.init_lora_weights
        if kind in FROM_BASE:
            fixed = fixed_parameters(model)
            say(
                f"adapter: {kind} trains the {config.lora_rank} main directions of each layer; the adapter also holds "
                f"where they started, and so is plain LoRA of rank {2 * config.lora_rank} on the unchanged base"
            )
        elif kind == "loftq":
            say("adapter: loftq starts at what the 4-bit base has lost, as far as the rank holds it")
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    say(f"adapter: {parameter_line(model, fixed)}")
    return model
