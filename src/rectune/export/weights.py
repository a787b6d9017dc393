"""What lies in an export's files, weight by weight, held against what was merged.

Answers tell little of a single layer: one that is left out moves them by less than rounding does, and by far less than
4 bits do. Its weights tell everything. Quantisation leaves errors that know nothing of the adapter, so their share of
the adapter's own direction is nothing but chance, and an adapter that is missing, or there twice, is all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rectune.errors import ModelError

MOST = {16: 0.001, 8: 0.01, 4: 0.16}
"""Root mean square of a weight's errors, as a share of the largest number of each row, by bits. No error of float16 is
more than 0.05 % of a number; none of q8_0 more than half of 1/127 of its block's largest, 0.4 %; none of NF4 more than
half of its widest gap, 15 %; none of q4_k_m more than some 10 %. Weights of another layer, in another order or at twice
the scale are off by 30 % and more: the largest of 2,000 normally distributed numbers is 3.5 standard deviations."""
_APART, _CHANCE = 0.1, 6.0
"""How far the adapter's share may be from 1, or from what chance explains, in standard deviations."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Change:
    """What an adapter adds to a weight: scale · up · down.

    Attributes:
        down: [rank, in], float32.
        up: [out, rank], float32.
        scale: of the product.
    """

    down: torch.Tensor
    up: torch.Tensor
    scale: float

    def whole(self) -> torch.Tensor:
        """All of it, [out, in]."""
        return self.scale * (self.up @ self.down)


def changes_of(adapted: Any) -> dict[str, Change]:
    """What a LoRA model's adapter adds, by the names of the weights; to be called before it is taken apart."""
    from peft.tuners.lora import LoraLayer

    found = {}
    for name, layer in adapted.get_base_model().named_modules():
        if isinstance(layer, LoraLayer):
            (adapter,) = layer.active_adapters
            down, up = (each[adapter].weight.detach().float().cpu().clone() for each in (layer.lora_A, layer.lora_B))
            found[f"{name}.weight"] = Change(down, up, float(layer.scaling[adapter]))
    return found


class Saved:
    """The weights of a folder that transformers saved, read one at a time.

    Args:
        folder: holds safetensors files.
    """

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        self._files: dict[str, Path] = {}
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, "pt") as tensors:
                self._files |= dict.fromkeys(tensors.keys(), file)

    @property
    def names(self) -> list[str]:
        """Of all weights."""
        return list(self._files)

    def __getitem__(self, name: str) -> torch.Tensor:
        from safetensors import safe_open

        with safe_open(self._files[name], "pt") as tensors:
            found: torch.Tensor = tensors.get_tensor(name)
        return found


def check_saved(model: Any, changes: Mapping[str, Change], folder: Path) -> None:
    """Compare a model's files with the model itself, bit by bit: what was merged and checked is what was written.

    Raises:
        ModelError: a weight differs, or an adapted one is not there.
    """
    saved, held = Saved(folder), model.state_dict()
    missing = [name for name in changes if name not in saved.names]
    wrong = [name for name in saved.names if name in held and not torch.equal(saved[name], held[name].cpu())]
    if missing or wrong:
        what = f"{missing[0]} is not in the files" if missing else f"{wrong[0]} is saved otherwise than it was merged"
        raise ModelError(f"{what}; nothing was exported")


def check_quantised(
    what: str,
    read: Callable[[str, torch.Tensor], torch.Tensor | None],
    whole: Path,
    changes: Mapping[str, Change],
    bits: int,
    say: Say,
) -> None:
    """Compare weights in fewer bits with the merged ones that they were made of.

    Args:
        what: the form, in words.
        read: gives a weight of the form by its name and its merged value [any shape], widened, or None where it has
            none of its own (a head that is tied to the embeddings).
        whole: the merged model's folder.
        changes: what the adapter adds, from `changes_of`.
        bits: of the form.
        say: prints one line.

    Raises:
        ModelError: a weight is further off than so few bits explain, or the adapter's change is not in it once.
    """
    saved, largest, shares, seen = Saved(whole), 0.0, [1.0], set()
    for name in saved.names:
        merged = saved[name].float()
        stored = read(name, merged)
        if stored is None:
            continue
        seen.add(name)
        errors = stored.cpu().float().reshape(merged.shape) - merged
        rows = merged.reshape(-1, merged.shape[-1])
        apart = float(errors.square().mean().sqrt() / rows.abs().amax(1).square().mean().sqrt().clamp(min=1e-12))
        largest = max(largest, apart)
        if not apart <= MOST[bits]:
            raise ModelError(
                f"{what}: {name} is off the merged weight by {apart:.1%} of its rows' largest numbers, and {bits} bits "
                f"explain {MOST[bits]:.1%}; nothing was exported"
            )
        change = changes[name].whole() if name in changes else torch.zeros(1)
        size = float(change.square().sum())
        if size > 0:
            share = 1 + float((errors * change).sum()) / size
            chance = float(errors.square().mean().sqrt()) / size**0.5
            if not abs(share - 1) <= max(_APART, _CHANCE * chance):
                raise ModelError(
                    f"{what}: {name} holds the adapter's change {share:.2f} times in place of once: something else "
                    "than the merged model was quantised, or the base model's weights lie on a grid of few bits "
                    "already, to which rounding returns; take more bits; nothing was exported"
                )
            shares.append(share)
    missing = [name for name in changes if name not in seen]
    if missing:
        raise ModelError(f"{what}: {missing[0]} is not in the file; nothing was exported")
    say(
        f"weights: {what}: every layer holds the adapter's change once ({min(shares):.3f} to {max(shares):.3f} times); "
        f"errors of {largest:.2%} of its rows' largest numbers at most, in {bits} bits"
    )
