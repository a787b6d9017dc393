"""Where an adapter's training starts: at nothing, at a layer's main directions, or at what quantisation lost.

PiSSA (Meng et al. 2024) and OLoRA (Büyükakyüz 2024) train the directions B0 A0 of the base weight W that matter most:
they replace W by W - s B0 A0 and start the adapter at B0 A0. Here W stays as it is, and the adapter holds both what is
trained and where it started, [A; A0] and [B, -B0], with the second half fixed: W + s (B A - B0 A0) is the same sum,
in which the base is still the base. It is a plain LoRA of twice the rank, the one that PEFT's
`path_initial_model_for_weight_conversion` makes of such an adapter afterwards; saving, resuming, plain PEFT and
switching the adapter off all need nothing special, and a base in bfloat16 is not rounded a second time.

LoftQ (Li et al. 2023) starts the adapter at the part of W - Q(W) that its rank can hold. Q(W) is what any 4-bit load of
the base gives, so this is its first iteration; later ones would quantise another matrix, which only they could load.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from rectune.config import Config
from rectune.errors import ModelError, ResourceError

FROM_BASE = ("pissa", "olora")
"""Initialisations that start from the base weight, and are held as plain LoRA of twice the rank."""
_ITERATIONS = 16
"""Of the randomised singular value decomposition; as good as the exact one (Meng et al., section 5)."""


def held_rank(config: Config) -> int:
    """Rank of a configuration's adapter as it lies in memory and on disk.

    >>> from rectune.config import parse_config
    >>> held_rank(parse_config({"lora_rank": 8, "init_lora_weights": "pissa"}, origin="example"))
    16
    """
    return config.lora_rank * (2 if config.init_lora_weights in FROM_BASE else 1)


def _layers(adapted: Any) -> Iterator[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    for name, module in adapted.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def _main_directions(weight: torch.Tensor, rank: int, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """B0 [outputs, rank] and A0 [rank, inputs], before they are scaled.

    >>> weight = torch.diag(torch.tensor([9.0, 4.0, 1.0]))
    >>> up, down = _main_directions(weight, 2, "pissa")
    >>> torch.round(up @ down).diagonal().tolist()
    [9.0, 4.0, 0.0]
    """
    if kind == "olora":
        left, right = torch.linalg.qr(weight)
        return left[:, :rank], right[:rank]
    left, values, right = torch.svd_lowrank(weight, q=rank, niter=_ITERATIONS)
    return left * values.sqrt(), values.sqrt()[:, None] * right.T


def _no_gradient_for_second_half(parameter: torch.nn.Parameter, dim: int) -> None:
    """Keep the second half along a dimension out of the gradient, its norm and the optimiser's moments."""
    half = parameter.shape[dim] // 2

    def without(gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone()
        gradient.narrow(dim, half, half).zero_()
        return gradient

    parameter.register_hook(without)  # type: ignore[no-untyped-call]


@torch.no_grad()
def start_from_base(adapted: Any, kind: str) -> None:
    """Start every layer's adapter at the main directions of its base weight, with where it started held fixed.

    Args:
        adapted: a model with a fresh adapter of twice the rank that is trained.
        kind: `pissa` or `olora`.

    Raises:
        ModelError: a layer has fewer directions than the rank.
    """
    for name, layer in _layers(adapted):
        down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        weight, rank = layer.get_base_layer().weight.float(), len(down) // 2
        if rank > min(weight.shape):
            raise ModelError(
                f"lora_rank: got {rank}, but {name.rpartition('.')[2]} has only {min(weight.shape)} directions for "
                f"init_lora_weights={kind} to start from; lower it, or leave that layer out of lora_target"
            )
        left, right = _main_directions(weight, rank, kind)
        if kind == "pissa":
            # PiSSA divides by the scale, so that the adapter's whole effect is that part of W; OLoRA does not.
            left, right = (half / layer.scaling["default"] ** 0.5 for half in (left, right))
        down.copy_(torch.cat([right, right]))
        up.copy_(torch.cat([left, -left], dim=1))
        _no_gradient_for_second_half(down, 0)
        _no_gradient_for_second_half(up, 1)
        layer.holds_start = True


def _fixed_halves(adapted: Any) -> list[torch.Tensor]:
    """Views of the halves of the adapter's matrices that hold where `start_from_base` started; none elsewhere."""
    found = []
    for _, layer in _layers(adapted):
        if getattr(layer, "holds_start", False):
            down, up = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
            found += [down.chunk(2, dim=0)[1], up.chunk(2, dim=1)[1]]
    return found


def fixed_parameters(adapted: Any) -> int:
    """How many parameters of an adapter stay as they started."""
    return sum(half.numel() for half in _fixed_halves(adapted))


def hold_start(adapted: Any, optimizer: torch.optim.Optimizer) -> None:
    """Put the fixed halves back after every step: moments in 8 bits have no exact zero and move them a little."""
    kept: list[torch.Tensor] = []

    def before(*_: Any) -> None:
        if not kept:  # at the first step, when a checkpoint's adapter is in place
            kept.extend(half.clone() for half in _fixed_halves(adapted))

    def after(*_: Any) -> None:
        for half, start in zip(_fixed_halves(adapted), kept, strict=True):
            half.copy_(start)

    if fixed_parameters(adapted):
        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)


def _unquantised(source: str, revision: str | None) -> dict[str, Path]:
    """The file of each unquantised weight of a base model, by the weight's name.

    Raises:
        ResourceError: there are no safetensors files on this disk.
    """
    from huggingface_hub import snapshot_download
    from safetensors import safe_open

    try:
        local = Path(source).is_dir()
        folder = Path(source if local else snapshot_download(source, revision=revision, local_files_only=True))
    except OSError as error:
        raise ResourceError(f"init_lora_weights: loftq reads {source}, and no files of it are here") from error
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            found.update(dict.fromkeys(tensors.keys(), file))
    return found


def _read(files: dict[str, Path], name: str) -> torch.Tensor:
    """One weight.

    Raises:
        ResourceError: no file holds it.
    """
    from safetensors import safe_open

    if name not in files:
        raise ResourceError(
            f"init_lora_weights: loftq compares with the base model's unquantised {name}, which none of its "
            "safetensors files holds; use default"
        )
    with safe_open(files[name], "pt") as tensors:
        weight: torch.Tensor = tensors.get_tensor(name)
    return weight


@torch.no_grad()
def start_from_quantisation_error(adapted: Any, source: str, revision: str | None) -> None:
    """Start every layer's adapter at the best fit of its rank to what 4 bits lost of the base weight.

    Args:
        adapted: a 4-bit model with a fresh adapter.
        source, revision: where its unquantised weights are.

    Raises:
        ResourceError: they are not on this disk.
    """
    from peft.utils.integrations import dequantize_module_weight

    files = _unquantised(source, revision)
    for name, layer in _layers(adapted):
        base = layer.get_base_layer()
        kept = dequantize_module_weight(base).float()
        true = _read(files, name.removeprefix("base_model.model.") + ".weight").to(kept)
        left, values, right = torch.linalg.svd(true - kept, full_matrices=False)
        down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        rank = min(len(down), len(values))
        root = (values[:rank] / layer.scaling["default"]).sqrt()
        up.zero_()[:, :rank] = left[:, :rank] * root
        down.zero_()[:rank] = root[:, None] * right[:rank]
