"""Which keys may change on a resume: every key has its place, and a refusal touches nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rectune.config import Config
from rectune.errors import ConfigError
from rectune.train.changes import GROUPS, check_changes

ADVICE = (
    "{keys}: every key of Config must stand in exactly one group of GROUPS in src/rectune/train/changes.py. Put a new "
    "key under `free` where the trained weights stay the same whatever it is, under `course` where going on with "
    "another value makes sense, under `refused` where a checkpoint's adapter, optimiser or place in the data is lost"
)


def test_every_key_is_in_exactly_one_group() -> None:
    counted = Counter(key for group in GROUPS for key in group.keys)
    odd = [key for key in {*counted, *Config.model_fields} if counted[key] != 1 or key not in Config.model_fields]
    assert not odd, ADVICE.format(keys=", ".join(sorted(odd)))


def changes(make: Callable[..., Config], before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    check_changes(make(**before), make(**after), Path("checkpoint-4"), lines.append)
    return lines


@pytest.mark.parametrize(
    ("key", "old", "new", "why"),
    [
        ("logging_steps", 1, 2, "it does not touch what is trained"),
        ("learning_rate", 0.01, 0.02, "from here on the run takes another course than it would have"),
        ("bf16", False, True, "from here on the numbers are rounded otherwise"),
    ],
)
def test_what_may_change_is_said_with_its_consequence(
    key: str, old: Any, new: Any, why: str, tiny_config: Callable[..., Config]
) -> None:
    assert changes(tiny_config, {key: old}, {key: new}) == [f"resume: {key} was {old!r} and is now {new!r}: {why}"]
    assert changes(tiny_config, {key: old}, {key: old}) == []


@pytest.mark.parametrize(
    ("key", "old", "new"),
    [
        ("model_name_or_path", "a", "b"), ("lora_rank", 8, 16), ("lora_alpha", 8.0, 16.0),
        ("optim", "adamw_torch", "adamw_8bit"),
        ("history_len", 3, 4), ("question", "Yes?", "No?"), ("cutoff_len", 256, 512), ("seed", 1, 2),
        ("packing", False, True), ("metric_for_best_model", "auc", "f1"), ("max_train_samples", 8, None),
        ("gradient_accumulation_steps", 2, 3),
    ],
)  # fmt: skip
def test_what_may_not_change_is_refused_with_its_reason(
    key: str, old: Any, new: Any, tiny_config: Callable[..., Config]
) -> None:
    why = next(group.why for group in GROUPS if key in group.keys)
    with pytest.raises(ConfigError) as caught:
        changes(tiny_config, {key: old}, {key: new})
    assert f"cannot go on from here: {key} was {old!r} and is now {new!r}, but {why}. Put it back" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_that_is_refused_is_told_at_once(tiny_config: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match=r"lora_rank was 16 and is now 8, .*; seed was 42 and is now 1, "):
        changes(tiny_config, {}, {"lora_rank": 8, "seed": 1, "learning_rate": 1.0})


def test_a_smaller_batch_with_more_of_them_keeps_the_place_in_the_data(tiny_config: Callable[..., Config]) -> None:
    lines = changes(
        tiny_config,
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    )
    assert lines == [
        "resume: per_device_train_batch_size was 4 and is now 2: the sequences of a step stay the same",
        "resume: gradient_accumulation_steps was 2 and is now 4: the sequences of a step stay the same",
    ]
