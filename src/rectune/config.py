"""The configuration, read from YAML and overridden with key=value; its keys are in `config_keys.py`."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from rectune.config_checks import cross_checks
from rectune.config_classify import for_task
from rectune.config_keys import Config, default_of
from rectune.config_sweep import sweep_problems
from rectune.errors import ConfigError

__all__ = ["Config", "default_of", "load_config", "parse_config", "parse_override"]

_UNREADABLE = (yaml.YAMLError, ValueError, RecursionError)
"""What reading YAML raises: ValueError of a day that is in no month, or of bytes that are no text."""


def _named_no(values: dict[str, Any]) -> dict[str, Any]:
    """YAML reads a bare `no` as false; where `no` is a choice, it is meant."""
    return {key: "no" if key == "eval_strategy" and value is False else value for key, value in values.items()}


def _describe(problem: Any) -> str:
    """One line for one pydantic error: key, what was got, what is allowed."""
    key = ".".join(str(part) for part in problem["loc"][:1])
    got = problem["input"]
    if problem["type"] in ("extra_forbidden", "invalid_key"):
        near = difflib.get_close_matches(key, Config.model_fields, n=1, cutoff=0.6)
        hint = f"did you mean {near[0]}?" if near else "`rectune configs --keys` lists the known ones"
        return f"{key}: unknown key; {hint}"
    field = Config.model_fields.get(key)
    allowed = problem["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    note = f" ({' '.join(field.description.split())})" if field is not None and field.description else ""
    return f"{key}: got {got!r}, allowed: {allowed}{note}"


def parse_config(values: dict[str, Any], origin: str) -> Config:
    """Check `values` and return the Config, or report every problem at once.

    Args:
        values: keys and values as read from YAML and overrides.
        origin: where they come from, for the error message.

    Raises:
        ConfigError: one line per problem, each with what was got and what is allowed.
    """
    try:
        config = Config.model_validate(for_task(_named_no(values)))
    except ValidationError as error:
        by_key: dict[str, str] = {}
        for problem in error.errors():
            by_key.setdefault(str(problem["loc"][0]), _describe(problem))
        problems = list(by_key.values())
    else:
        problems = cross_checks(config) + sweep_problems(config)
        if not problems:
            return config
    head = f"{origin}: {len(problems)} problem{'s' if len(problems) > 1 else ''} in the configuration"
    raise ConfigError("\n  ".join([head, *problems]))


def parse_override(text: str) -> tuple[str, Any]:
    """Split `key=value` and read the value as YAML.

    Raises:
        ConfigError: there is no `=`, or the value is not YAML.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"{text!r}: an override is written key=value, for example learning_rate=1e-4")
    key = key.strip().lstrip("-").replace("-", "_")
    try:
        read = yaml.safe_load(value)
    except _UNREADABLE as error:
        if key == "item_text":  # "{title}, {price:.2f}" is a template as it stands
            return key, value
        raise ConfigError(f"{key}: cannot read {value!r} as a YAML value; quote it") from error
    # No other key takes a mapping, so {title} is a template, not one.
    return key, value if isinstance(read, dict) and key not in ("sweep", "labels") else read


def load_config(path: Path, overrides: list[str] | None = None) -> Config:
    """Read a YAML configuration, or a run folder's `config.yaml`, and apply overrides.

    Args:
        path: a YAML file, or a run folder that holds `config.yaml`.
        overrides: `key=value` strings, applied in order.

    Raises:
        ConfigError: the file is missing, is no mapping, or holds a bad key or value.
    """
    file = path / "config.yaml" if path.is_dir() else path
    if not file.is_file():
        what = "a run folder without config.yaml" if path.is_dir() else "no such file"
        raise ConfigError(f"{path}: {what}; `rectune configs` lists the shipped configurations")
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except _UNREADABLE as error:
        first = str(error).splitlines()[0]
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{file}: not readable as YAML{line}: {first}") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: expected `key: value` lines, got a {type(values).__name__}")
    values.update(parse_override(text) for text in overrides or [])
    return parse_config(values, origin=str(file))
