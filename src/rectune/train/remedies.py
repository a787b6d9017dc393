"""What to change when a run does not fit, in order of least harm to what it learns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from rectune.config import Config
from rectune.errors import ConfigError

Changes = dict[str, Any]
Total = Callable[[Config], int]


@dataclass(frozen=True)
class Remedy:
    """Changed keys, the peak that they lead to, whether it fits, and whether it is the least that does."""

    changes: Changes
    total: int
    fits: bool
    least: bool = False

    def written(self) -> str:
        """The changes as overrides of a command line."""
        return " ".join(
            f"{key}={str(value).lower() if value is True else value}" for key, value in self.changes.items()
        )


def largest_batch(config: Config, total: Total, room: int, key: str, most: int = 4096) -> int:
    """The largest value of a batch key with which a run fits, 0 where not even 1 does."""

    def fits(size: int) -> bool:
        return total(_with(config, [{key: size}])) <= room

    if not fits(1):
        return 0
    low, high = 1, 2
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _candidates(config: Config, total: Total, room: int) -> list[Changes]:
    """Every change that can be made, the least harmful first; the first two change no result at all."""
    found: list[Changes] = []
    scored = config.per_device_eval_batch_size
    if scored > 1:
        fitting = largest_batch(config, total, room, "per_device_eval_batch_size", scored)
        found.append({"per_device_eval_batch_size": fitting or 1})
    size, times = config.per_device_train_batch_size, config.gradient_accumulation_steps
    if size > 1:
        # A divisor, so that the effective batch is the same.
        fitting = max(1, largest_batch(config, total, room, "per_device_train_batch_size", size))
        smaller = next(part for part in range(min(fitting, size - 1), 0, -1) if size % part == 0)
        found.append({"per_device_train_batch_size": smaller, "gradient_accumulation_steps": times * size // smaller})
    if not config.gradient_checkpointing:
        found.append({"gradient_checkpointing": True})
    if config.cutoff_len >= 512:
        found.append({"cutoff_len": config.cutoff_len // 2})
    if not config.use_qlora and config.quantization_bit is None:
        found.append({"use_qlora": True})
    if config.adapter_name_or_path is not None:  # its targets and rank are what they are
        return [change for change in found if _valid(config, change)]
    if config.lora_target != "qv":
        found.append({"lora_target": "qv"})
    if config.lora_rank > 8:
        found.append({"lora_rank": 8})
    return [change for change in found if _valid(config, change)]


def remedies(config: Config, total: Total, room: int) -> list[Remedy]:
    """What each change that helps comes to by itself, and together with others where none is enough.

    Args:
        config: does not fit.
        total: bytes at the peak of a configuration.
        room: bytes that are there.

    Returns:
        Single changes, least harmful first; then, where none is enough, the smallest sufficient set, or all of them.
        The least that fits is marked.
    """
    now = total(config)
    sizes = [(change, total(_with(config, [change]))) for change in _candidates(config, total, room)]
    found = [Remedy(change, size, size <= room) for change, size in sizes if size < now]
    first = next((index for index, remedy in enumerate(found) if remedy.fits), None)
    if first is not None:
        found[first] = replace(found[first], least=True)
        return found
    # A change that gains nothing alone may do so after another (a smaller pass, once evaluation is no longer the peak).
    changes = [change for change, _ in sizes]
    together: list[Changes] = []
    for change in changes:
        together.append(change)
        if total(_with(config, together)) <= room:
            break
    fits = total(_with(config, together)) <= room
    for change in list(reversed(together)) if fits else []:  # the most harmful first: what is not needed goes
        rest = [other for other in together if other is not change]
        if total(_with(config, rest)) <= room:
            together = rest
    joined = {key: value for change in together for key, value in change.items()}
    if len(together) > 1 or not fits:
        found.append(Remedy(joined, total(_with(config, together)), fits, least=fits))
    return found


def _with(config: Config, changes: list[Changes]) -> Config:
    """The configuration with these changes; what a sweep of it would vary is no matter here and may not forbid them."""
    return config.with_overrides(**{key: value for change in changes for key, value in change.items()}, sweep={})


def _valid(config: Config, change: Changes) -> bool:
    """Whether a change goes together with all other keys."""
    try:
        _with(config, [change])
    except ConfigError:
        return False
    return True
