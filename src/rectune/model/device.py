"""Which device and which precision, each with its reason."""

from __future__ import annotations

import torch

from rectune.config import Config
from rectune.errors import ConfigError


def choose_device() -> tuple[torch.device, str]:
    """The best device here and why: CUDA, then Apple's MPS, then the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device()), torch.cuda.get_device_name()
    if torch.backends.mps.is_available():
        return torch.device("mps"), "Apple GPU"
    return torch.device("cpu"), f"no GPU found; {torch.get_num_threads()} threads"


def cpu_multiplies_bfloat16() -> bool:
    """Whether this CPU has bfloat16 matrix instructions (AVX-512 BF16 or AMX); without them it is slower than fp32."""
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, name, bool)() for name in checks)


def choose_dtype(config: Config, device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype of the base model's weights and activations, and why.

    Raises:
        ConfigError: bf16 or fp16 is asked for where the device cannot train in it.
    """
    if config.fp16:
        if device.type != "cuda":
            raise ConfigError(f"fp16: got true, but training in float16 needs CUDA, and this device is {device.type}")
        return torch.float16, "fp16: true"
    if config.bf16 is True:
        if device.type == "cuda" and not torch.cuda.is_bf16_supported():
            raise ConfigError("bf16: got true, but this card has no bfloat16; set bf16=false fp16=true")
        return torch.bfloat16, "bf16: true"
    if config.bf16 is False:
        return torch.float32, "bf16: false"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported():
            return torch.bfloat16, "auto: the card has bfloat16"
        return torch.float32, "auto: the card has no bfloat16; fp16=true is faster"
    if device.type == "cpu" and cpu_multiplies_bfloat16():
        return torch.bfloat16, "auto: the CPU has bfloat16 instructions"
    return torch.float32, f"auto: no fast bfloat16 on this {device.type}"
