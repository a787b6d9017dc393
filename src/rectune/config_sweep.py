"""The search space of a sweep: which keys may vary, over what, and what is wrong with it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from rectune.config_checks import cross_checks
from rectune.config_keys import Config

_ENDS = ("low", "high")
_PARTS = (*_ENDS, "log", "step")
_SAME_EVENTS = "every trial must be measured on the same events"
_BUDGET = "every trial must see the same number of events; set it beside the space, for all trials"
_JUDGE = "it decides how a trial is judged, and a judge that varies cannot compare"
_OUTSIDE = "it does not change what is learned"
_STEPS = "it counts in steps, and follows the batch of each trial by itself"
FIXED = {
    **dict.fromkeys(
        (
            "dataset", "source_format", "label_from", "dataset_dir", "history_len", "rating_threshold", "split",
            "test_ratio", "validation_ratio", "max_users", "max_eval_samples", "user_column", "item_column",
            "time_column", "rating_column", "label_column", "split_column", "title_column", "category_column",
            "attribute_columns", "items", "items_id_column", "max_rejects", "min_history", "max_per_user", "task",
            "labels", "text_column", "negatives", "negative_sampling",
        ),
        _SAME_EVENTS,
    ),
    "max_train_samples": _BUDGET,
    "train_since": _BUDGET,
    **dict.fromkeys(
        (
            "metric_for_best_model", "eval_strategy", "early_stopping_patience", "loss_plateau_patience",
            "loss_plateau_min_delta",
        ),
        _JUDGE,
    ),
    **dict.fromkeys(("max_steps", "warmup_steps", "eval_steps", "save_steps", "logging_steps"), _STEPS),
    **dict.fromkeys(
        (
            "output_dir", "preprocessing_cache_dir", "report_to", "save_total_limit", "gen_eval_samples", "baselines",
            "per_device_eval_batch_size", "scoring_memory_gib", "blend", "auto_batch", "max_test_samples", "backend",
            "panel_samples", "part_rows", "json_files",
        ),
        _OUTSIDE,
    ),
    "sweep": "it is the space itself",
    "seed": "the best of several seeds is luck, and the next data would not share it",
}  # fmt: skip
"""Keys that a sweep may not vary, and why. Every other key may."""

NEUTRAL = frozenset(key for key, why in FIXED.items() if why == _OUTSIDE)
"""Keys that may be another when a sweep goes on: its trials stay comparable."""


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both among them.

    Attributes:
        low, high: the ends; whole numbers for a key that counts.
        log: drawn evenly in the logarithm.
        step: only low, low + step, low + 2 step ...; None takes any number (any whole number for a key that counts).
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None

    def __contains__(self, value: Any) -> bool:
        if not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        steps = 0.0 if self.step is None else (value - self.low) / self.step
        return math.isclose(steps, round(steps), abs_tol=1e-9)

    def __str__(self) -> str:
        shape = ", log" if self.log else "" if self.step is None else f", step {self.step:g}"
        return f"{self.low:g} to {self.high:g}{shape}"


@dataclass(frozen=True)
class Choices:
    """A few values, each as likely as another."""

    values: tuple[Any, ...]

    def __contains__(self, value: Any) -> bool:
        return value in self.values

    def __str__(self) -> str:
        return ", ".join(str(value) for value in self.values)


Space = dict[str, Range | Choices]


def _default_space(config: Config) -> Space:
    """What is searched when the configuration says nothing: four keys, since a few trials cannot tell more apart.

    - `learning_rate`, 5e-5 to 2e-3, log: what matters most with adapters, and its best value moves with model, data
      and batch; the range spans what is in use for LoRA, and the shipped 1.5e-4 and 5e-4 lie inside.
    - `lora_rank`, 8, 16, 32. `lora_alpha` stays: its effect is that of the learning rate, and with alpha fixed the
      scale alpha / rank falls as the rank grows, so that one rate suits all ranks (Hu et al., arXiv 2106.09685, 4.1).
    - `lora_dropout`, 0, 0.05, 0.1: the only regulariser of an adapter that works in a short run; weight decay, which is
      multiplied by the learning rate, does not.
    - `gradient_accumulation_steps`, half to twice its value (or up to four times, where it is odd): the batch, at the
      same number of events and the same memory.

    The configuration's own values are always among them. An earlier adapter's rank and dropout cannot vary.
    """
    rate, steps = config.learning_rate, config.gradient_accumulation_steps
    space: Space = {"learning_rate": Range(min(5e-5, rate), max(2e-3, rate), log=True)}
    if config.adapter_name_or_path is None:
        space["lora_rank"] = Choices(tuple(sorted({8, 16, 32, config.lora_rank})))
        space["lora_dropout"] = Choices(tuple(sorted({0.0, 0.05, 0.1, config.lora_dropout})))
    batches = (steps // 2, steps, 2 * steps) if steps % 2 == 0 else (steps, 2 * steps, 4 * steps)
    space["gradient_accumulation_steps"] = Choices(batches)
    return space


def search_space(config: Config) -> Space:
    """What a sweep of this configuration varies, in the order in which it is written."""
    if not config.sweep:
        return _default_space(config)
    return _read(config)[0]


def sweep_problems(config: Config) -> list[str]:
    """What is wrong with the `sweep` key, a line each."""
    return _read(config)[1]


def _value(config: Config, key: str, value: Any, others: set[str]) -> tuple[Any, str]:
    """A value as the key reads it, and what is wrong with it, or nothing.

    A value that does not go with the rest of the configuration is let through where that rest is varied too, since
    another of its values may suit it: a trial of two that do not is refused when its turn comes.
    """
    alone = {**config.model_dump(), "sweep": {}}
    try:
        candidate = type(config).model_validate({**alone, key: value})
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
        return value, f"got {value!r}, allowed: {message}"
    before = set(cross_checks(type(config).model_validate(alone)))
    for problem in cross_checks(candidate):
        if problem not in before and not any(other in problem for other in others - {key}):
            return value, problem.removeprefix(f"{key}: ")
    return getattr(candidate, key), ""


def _read_choices(config: Config, key: str, given: list[Any], others: set[str]) -> tuple[Choices, list[str]]:
    read = [_value(config, key, value, others) for value in given]
    problems = [problem for _, problem in read if problem]
    values = [value for value, _ in read]
    if not problems and len(values) < 2:
        problems.append(f"got {given!r}, allowed: at least two values; a single one is set as {key} itself")
    if not problems and any(value in values[:at] for at, value in enumerate(values)):
        problems.append(f"got {given!r}, which names a value twice; name each once")
    return Choices(tuple(values)), problems


def _read_range(config: Config, key: str, given: dict[str, Any], others: set[str]) -> tuple[Range | None, list[str]]:
    unknown = [str(part) for part in given if part not in _PARTS]
    missing = [part for part in _ENDS if part not in given]
    if unknown or missing:
        return None, [f"got {given!r}, allowed: low and high, and one of log: true and step: NUMBER"]
    ends, problems = [], []
    for part in _ENDS:
        value, problem = _value(config, key, given[part], others)
        if not problem and (isinstance(value, bool) or not isinstance(value, int | float)):
            problem = f"got {given[part]!r}, but this key holds no number: give a list of values in place of a range"
        ends.append(value)
        problems += [f"{part}: {problem}"] if problem else []
    log, step = given.get("log", False), given.get("step")
    if not isinstance(log, bool):
        problems.append(f"log: got {log!r}, allowed: true or false")
    if problems:
        return None, problems
    low, high = ends
    whole = isinstance(low, int)
    try:
        step = None if step is None else type(low)(str(step))  # YAML reads 1e-5 as a text
    except ValueError:
        step = 0
    if low >= high:
        problems.append(f"got low {low!r} and high {high!r}, allowed: low below high")
    if log and low <= 0:
        problems.append(f"log: got true with low {low!r}, allowed: low above 0")
    if log and step is not None:
        problems.append("step: got one beside log: true; choose one of the two")
    if step is not None and not 0 < step < math.inf:
        problems.append(f"step: got {given['step']!r}, allowed: a {'whole ' if whole else ''}number above 0")
    return Range(low, high, log, step), problems


def _read(config: Config) -> tuple[Space, list[str]]:
    """The space as the keys read it, and every problem with it."""
    space: Space = {}
    problems = []
    for key, given in config.sweep.items():
        if key not in type(config).model_fields:
            problems.append(f"sweep.{key}: unknown key; a sweep varies keys of the configuration")
            continue
        if key in FIXED:
            problems.append(f"sweep.{key}: this key cannot vary: {FIXED[key]}")
            continue
        if key.startswith("lora_") and config.adapter_name_or_path is not None:
            problems.append(f"sweep.{key}: this key cannot vary: it comes from adapter_name_or_path")
            continue
        part: Range | Choices | None
        if isinstance(given, list):
            part, wrong = _read_choices(config, key, given, set(config.sweep))
        elif isinstance(given, dict):
            part, wrong = _read_range(config, key, given, set(config.sweep))
        else:
            part, wrong = None, [f"got {given!r}, allowed: a list of values, or {{low: NUMBER, high: NUMBER}}"]
        own = getattr(config, key)
        if not wrong and part is not None and own not in part:
            wrong = [
                f"got {part}, which leaves out the configuration's own {own!r}, the first trial, against which the "
                f"others are held; add it, or set {key} to a value inside"
            ]
        problems += [f"sweep.{key}: {problem}" for problem in wrong]
        if part is not None:
            space[key] = part
    return space, problems
