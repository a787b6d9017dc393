"""The model that is trained: with a fresh adapter, or with that of an earlier run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rectune.config import Config
from rectune.config_backends import UNSLOTH
from rectune.model.initial import FROM_BASE, fixed_parameters, held_rank
from rectune.model.load import Loaded
from rectune.model.lora import attach_adapter, load_adapter, parameter_line
from rectune.prompt.verbalizer import Verbalizer
from rectune.score.settings import FILE_NAME, MODEL, OFFSET, AdapterSettings, load_settings

Say = Callable[[str], None]


def _compare(folder: Path, settings: AdapterSettings, blend: list[str], verbalizer: Verbalizer, say: Say) -> None:
    """Hold this run against the earlier one, where that left its settings: each difference is a line.

    Raises:
        ModelError: the settings are damaged, or the labels were other tokens then.
    """
    if not (folder / FILE_NAME).is_file():
        return
    earlier = load_settings(folder)
    earlier.check_verbalizer(verbalizer)
    now = json.loads(json.dumps(settings.prompt, default=str))  # as it would be read back
    then = {key: value for key, value in earlier.prompt.items() if key in now}
    for name in ("base_model", "base_revision", "quantization"):
        now[name], then[name] = getattr(settings, name), getattr(earlier, name)
    now["blend"], then["blend"] = blend, [name for name in earlier.blend if name not in (MODEL, OFFSET)]
    for key, value in now.items():
        if key in then and then[key] != value:
            say(f"adapter: {key} was {then[key]!r} in its earlier run and is now {value!r}")
    if earlier.data_hash == settings.data_hash:
        say("adapter: this dataset is the one that its earlier run was trained on")
    if settings.rates is not None:
        say("adapter: item rates are counted anew, on this dataset")


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

    set_seed(config.seed)  # before the adapter: its initial values are drawn from the seed
    if config.adapter_name_or_path is not None:
        say(f"adapter: going on from {config.adapter_name_or_path}")
        _compare(config.adapter_name_or_path, settings, list(config.blend), verbalizer, say)
        model = load_adapter(loaded.model, config.adapter_name_or_path, trainable=True)
        found = model.peft_config["default"]
        say(
            f"adapter: rank {found.r}, alpha {found.lora_alpha}, dropout {found.lora_dropout} and all else of its kind "
            "come from the earlier adapter; of this configuration, lora_*, use_rslora, use_dora and init_lora_weights "
            "are not used. The optimiser starts afresh, with warm-up"
        )
    elif config.backend == UNSLOTH:
        from rectune.train.unsloth import attach_unsloth

        model = attach_unsloth(loaded.model, config, loaded.source, loaded.revision)
    else:
        model = attach_adapter(loaded.model, config, loaded.source, loaded.revision)
        if config.lora_bias != "none":  # biases that there are were refused
            say(f"adapter: this model has no biases, so lora_bias={config.lora_bias} trains none")
        kind = config.init_lora_weights
        if kind in FROM_BASE:
            say(
                f"adapter: {kind} trains the {config.lora_rank} main directions of each layer; the adapter also holds "
                f"where they started, and so is plain LoRA of rank {held_rank(config)} on the unchanged base"
            )
        elif kind == "loftq":
            say("adapter: loftq starts at what the 4-bit base has lost, as far as the rank holds it")
    if config.gradient_checkpointing and config.backend != UNSLOTH:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    say(f"adapter: {parameter_line(model, fixed_parameters(model))}")
    return model
