"""Which trainer computes the steps, and what each of them cannot express: it is refused, never approximated."""

from __future__ import annotations

from typing import Any

from rectune.config_keys import Config

NATIVE, TRL, UNSLOTH = "native", "trl", "unsloth"

_ONLY: dict[str, tuple[tuple[Any, ...], str]] = {
    "layout": (("pointwise",), "an answer must be the last token of its sequence"),
    "prompt_format": (("chat", "instruction", "completion"), "it trains words, not a classification head"),
    "prior": (("none",), "its loss has no place to add log-odds"),
    "loss_over": (("vocabulary",), "its loss is cross-entropy among all tokens"),
    "class_weights": (("none",), "its loss weighs all tokens alike"),
    "label_smoothing": ((0.0,), "its own would spread a target over the whole vocabulary"),
    "focal_gamma": ((0.0,), "its loss is cross-entropy"),
}
"""What SFTTrainer can express, and why no more: key → values, reason."""
_ONLY_UNSLOTH: dict[str, tuple[tuple[Any, ...], str]] = {
    "packing": ((False,), "packed rows would go through its own kernels, which is not tried"),
    "flash_attn": (("auto",), "it brings its own kernels"),
    "use_dora": ((False,), "its kernels know plain LoRA"),
    "init_lora_weights": (("default",), "it makes its adapter itself"),
    "adapter_name_or_path": ((None,), "it makes its adapter itself"),
}
"""What the backend unsloth cannot do besides."""


def backend_problems(config: Config) -> list[str]:
    """Keys that the chosen backend cannot honour, one line each."""
    if config.backend == NATIVE:
        return []
    rules = {**_ONLY, **(_ONLY_UNSLOTH if config.backend == UNSLOTH else {})}
    problems = []
    for key, (allowed, reason) in rules.items():
        got = getattr(config, key)
        if got not in allowed:
            shown = ", ".join("null" if value is None else str(value) for value in allowed)
            problems.append(
                f"{key}: got {str(got)!r} beside backend: {config.backend}, allowed: {shown} ({reason}); "
                "or set backend=native"
            )
    return problems
