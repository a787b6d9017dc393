"""Attach, load and check adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from rectune.config import Config
from rectune.errors import ConfigError, ModelError
from rectune.files import hash_file, write_text
from rectune.model.answers import HEAD, classification_weight
from rectune.model.initial import FROM_BASE, held_rank, start_from_base, start_from_quantisation_error

ADAPTER_FILE = "adapter_model.safetensors"
SEAL = "adapter.sha256"
"""Holds the SHA-256 of the adapter's files beside it, as sha256sum writes them; other tools' folders have none."""
_SEALED = (ADAPTER_FILE, "adapter_config.json")
_ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


def target_names(model: Any, config: Config) -> list[str]:
    """Names of the layers to adapt, checked against the model.

    Raises:
        ModelError: the model has no layer of one of these names.
    """
    linear = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not model.get_output_embeddings() and name != HEAD
    }
    shorthand = {"all": sorted(linear), "attention": _ATTENTION, "qv": ["q_proj", "v_proj"]}
    wanted = shorthand[config.lora_target] if isinstance(config.lora_target, str) else config.lora_target
    missing = [name for name in wanted if name not in linear]
    if missing:
        raise ModelError(f"lora_target: this model has no {', '.join(missing)}; it has {', '.join(sorted(linear))}")
    return list(wanted)


def adapted_layers(model: Any, config: Config) -> list[int] | None:
    """Indices of the blocks to adapt; None is all.

    Raises:
        ModelError: an index is outside the model.
    """
    count = int(model.config.num_hidden_layers)
    if config.lora_layers == "all":
        return None
    if config.lora_layers == "upper_half":
        return list(range(count // 2, count))
    outside = [index for index in config.lora_layers if not 0 <= index < count]
    if outside:
        raise ModelError(f"lora_layers: got {outside}, but this model's blocks are 0 to {count - 1}")
    return list(config.lora_layers)


def _skip_casts(adapted: Any) -> None:
    """Let inputs reach the adapter as they are, where autocast rounds its float32 matrices to their precision anyway.

    PEFT would widen every input to float32 and autocast narrow it again: the same numbers, a seventh of the time.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    plain = not any(getattr(adapter, "use_dora", False) for adapter in adapted.peft_config.values())
    if adapted.get_base_model().dtype == torch.float32 or not plain:
        return  # DoRA takes the norm of its weights in its input's precision
    for module in adapted.modules():
        if isinstance(module, BaseTunerLayer):
            module.cast_input_dtype_enabled = False


def _task(model: Any) -> str:
    """PEFT's word for what a model answers with; with SEQ_CLS it trains and saves the classification head too."""
    return "CAUSAL_LM" if classification_weight(model) is None else "SEQ_CLS"


def attach_adapter(model: Any, config: Config, source: str, revision: str | None) -> Any:
    """The model with a fresh LoRA adapter (Hu et al. 2021), its matrices in float32 for exact small updates.

    The caller sets the random seed first: the adapter's initial values are drawn here.

    Args:
        model: a frozen base model.
        config: the adapter's keys are read.
        source: recorded as the adapter's base model.
        revision: the base model's commit, recorded too.

    Raises:
        ModelError: a target or a layer does not exist, has fewer directions than the adapter is to start from, or
            biases of the base model would be trained.
        ResourceError: LoftQ is asked for, and the unquantised weights are not here.
    """
    from peft import LoraConfig, get_peft_model

    kind, rank = config.init_lora_weights, held_rank(config)
    more = rank / config.lora_rank
    settings = LoraConfig(
        task_type=_task(model),
        r=rank,
        # Its scale, alpha / rank or alpha / sqrt(rank), stays that of the configuration.
        lora_alpha=config.lora_alpha * (more**0.5 if config.use_rslora else more),
        init_lora_weights="gaussian" if kind == "gaussian" else True,
        lora_dropout=config.lora_dropout,
        target_modules=target_names(model, config),
        layers_to_transform=adapted_layers(model, config),
        bias=config.lora_bias,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        base_model_name_or_path=source,
        revision=revision,
    )
    adapted = get_peft_model(model, settings)
    settings.base_model_name_or_path = source
    if kind in FROM_BASE:
        start_from_base(adapted, kind)
    elif kind == "loftq":
        start_from_quantisation_error(adapted, source, revision)
    _skip_casts(adapted)
    own = ("lora_", f"{HEAD}.modules_to_save")
    if any(value.requires_grad and not any(part in name for part in own) for name, value in adapted.named_parameters()):
        raise ModelError(
            f"lora_bias: got {config.lora_bias!r}, but this model's biases would be trained, and then untuned could "
            "not be compared: switching the adapter off leaves them; use none"
        )
    return adapted


def seal_adapter(folder: Path) -> None:
    """Record the SHA-256 of a saved adapter's files beside them, so that `load_adapter` knows them again."""
    write_text(folder / SEAL, "".join(f"{hash_file(folder / name)}  {name}\n" for name in _SEALED))


def seal_problem(folder: Path) -> str | None:
    """Which file of an adapter is not what was sealed, or None; without a seal nothing can be told.

    An earlier version sealed the weights alone, with their hash and no name.
    """
    if not (folder / SEAL).is_file():
        return None
    lines = (folder / SEAL).read_text(encoding="utf-8").splitlines()
    for line in lines or [""]:
        expected, _, name = line.partition("  ")
        name = name or ADAPTER_FILE
        if name not in _SEALED or not (folder / name).is_file() or hash_file(folder / name) != expected:
            return f"{name} is not what {SEAL} says"
    return None


def load_adapter(model: Any, folder: Path, trainable: bool = False) -> Any:
    """The model with a saved adapter, which must be whole and must have an effect.

    Args:
        model: the base model that the adapter was made for.
        folder: holds `adapter_config.json` and `adapter_model.safetensors`.
        trainable: whether training goes on from it.

    Raises:
        ModelError: a file is missing or damaged, its shapes are another model's, it answers with another head, or all
            its effect is zero.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import SafetensorError, safe_open

    file = folder / ADAPTER_FILE
    for needed in (file, folder / "adapter_config.json"):
        if not needed.is_file():
            raise ModelError(f"{folder}: no {needed.name}; give the output_dir of a finished training run")
    try:
        told = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        with safe_open(file, "pt") as tensors:
            saved = {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
            ups = [name for name in saved if "lora_B" in name]
            if ups and not any(bool(tensors.get_tensor(name).any()) for name in ups):
                raise ModelError(f"{folder}: the adapter is all zeros, so it changes no answer; train it first")
        # Values overwritten inside a file of the right length are still readable tensors.
        problem = seal_problem(folder)
        if problem is not None:
            raise ValueError(problem)
    except (SafetensorError, ValueError, OSError) as error:
        raise ModelError(
            f"{file}: damaged ({error}); `rectune train` with --resume puts it back from the last checkpoint, or take "
            "an earlier one"
        ) from error
    task = told.get("task_type") if isinstance(told, dict) else None
    if task in ("CAUSAL_LM", "SEQ_CLS") and task != _task(model):
        was = "a classification head" if task == "SEQ_CLS" else "label words"
        raise ModelError(
            f"{folder}: this adapter answers with {was}, and the configuration does not: prompt_format=classifier "
            "means a classification head, every other one label words"
        )
    try:
        adapted = PeftModel.from_pretrained(model, folder, is_trainable=trainable)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        first = " ".join(str(error).split())[:200]
        raise ModelError(f"{folder}: this adapter does not fit the base model: {first}") from error
    # PEFT only warns about tensors that found no place, and an adapter that is not loaded answers as the base does.
    loaded = {name: tuple(tensor.shape) for name, tensor in get_peft_model_state_dict(adapted).items()}
    if loaded != saved:
        odd = sorted(loaded.items() ^ saved.items())[0][0]
        raise ModelError(f"{folder}: this adapter does not fit the base model: {odd} is not in both")
    _skip_casts(adapted)
    if trainable is False:
        adapted.eval()
    return adapted


def as_earlier_adapter(config: Config) -> Config:
    """The configuration with the adapter keys that hold: those of the earlier adapter, where training goes on from one.

    Its targets may be an expression, in an adapter that another tool has made; all layers are an upper bound then.

    Raises:
        ModelError: the adapter's configuration is missing or damaged.
    """
    folder = config.adapter_name_or_path
    if folder is None:
        return config
    file = folder / "adapter_config.json"
    if not file.is_file():
        raise ModelError(f"{folder}: no {file.name}; give the output_dir of a finished training run")
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        targets, layers = told["target_modules"], told.get("layers_to_transform")
        return config.with_overrides(
            lora_rank=int(told["r"]),
            lora_dropout=float(told.get("lora_dropout") or 0.0),
            lora_target=[str(name).rpartition(".")[2] for name in targets] if isinstance(targets, list) else "all",
            lora_layers="all" if layers is None else [layers] if isinstance(layers, int) else list(layers),
            use_dora=bool(told.get("use_dora")),
            init_lora_weights="default",
            sweep={},
        )
    except (ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        raise ModelError(
            f"{file}: damaged ({' '.join(str(error).split())}); copy it from a checkpoint of its run"
        ) from error


def check_effect(model: Any, tuned: torch.Tensor, untuned: torch.Tensor) -> None:
    """Refuse an adapter that changes nothing, the silent failure of a wrong load.

    Args:
        model: named in the message.
        tuned, untuned: [answers] log-odds of the same prompts with the adapter on and off.

    Raises:
        ModelError: they are equal throughout.
    """
    if torch.equal(tuned, untuned):
        raise ModelError(
            f"{type(model).__name__}: the adapter changes no answer at all: it was trained for another model, or "
            "for no step; check output_dir and train again"
        )


def parameter_line(model: Any, fixed: int = 0) -> str:
    """How many parameters are trained, of how many; `fixed` of those with a gradient are held where they are."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) - fixed
    total = sum(parameter.numel() for parameter in model.parameters())
    return f"{trained:,} of {total:,} parameters are trained ({100 * trained / total:.2f} %)"
