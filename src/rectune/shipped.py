"""The configurations that come with rectune."""

from __future__ import annotations

import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from rectune.config import Config
from rectune.errors import ConfigError

FOLDER = Path(__file__).parent / "configs"
LAUNCHERS = FOLDER / "accelerate"
"""Configurations of `accelerate launch`, not of rectune: how many processes, on which machines."""
_WORDS = {int: "a whole number", float: "a number", str: "a text", Path: "a path", type(None): "empty"}
_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def _shipped() -> dict[str, Path]:
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


def find_config(path: Path) -> Path:
    """A path as it is where it exists; else, for a bare name or configs/NAME.yaml, the shipped one of that name.

    Raises:
        ConfigError: neither is there.
    """
    if path.exists():
        return path
    # A path to somewhere else is meant as it stands: a typo in it must not start another run.
    named = path.parent in (Path(), Path("configs")) and path.suffix in ("", ".yaml")
    shipped = _shipped().get(path.stem) if named else None
    if shipped is None:
        raise ConfigError(f"{path}: no such file, and no shipped configuration; there are {', '.join(_shipped())}")
    return shipped


def shipped_text(name: str) -> str:
    """A shipped configuration as it is, one of `accelerate launch` too.

    Raises:
        ConfigError: there is none of this name.
    """
    launcher = LAUNCHERS / f"{Path(name).stem}.yaml"
    named = Path(name).parent in (Path(), Path("accelerate"))
    path = launcher if named and launcher.is_file() else find_config(Path(name))
    return path.read_text(encoding="utf-8")


def list_configs() -> str:
    """Each shipped configuration with the first line of its heading."""
    return _listed(_shipped().values())


def list_launchers() -> str:
    """The same of those of `accelerate launch`."""
    return _listed(sorted(LAUNCHERS.glob("*.yaml")))


def _listed(paths: Iterable[Path]) -> str:
    headings = ((path.stem, path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")) for path in paths)
    return "\n".join(f"{name:<34} {heading}" for name, heading in headings)


def _choices(kind: Any) -> list[str]:
    """What a type allows, in words."""
    if kind is bool:
        return ["true", "false"]
    if get_origin(kind) is Literal:
        return [str(value).lower() if isinstance(value, bool) else str(value) for value in get_args(kind)]
    if get_origin(kind) in (Union, types.UnionType):
        return [choice for part in get_args(kind) for choice in _choices(part)]
    if get_origin(kind) is list:
        return ["a list of whole numbers" if get_args(kind) == (int,) else "a list of texts"]
    if get_origin(kind) is dict:
        return ["names, each with a word" if get_args(kind) == (str, str) else "keys, each with a list or a range"]
    return [_WORDS[kind]]


def allowed_values(field: FieldInfo) -> str:
    """What a key takes: its values, or its type with its bounds."""
    bounds = [
        f"{sign} {getattr(part, name)}"
        for part in field.metadata
        for name, sign in _BOUNDS.items()
        if getattr(part, name, None) is not None
    ]
    first, *others = _choices(field.annotation)
    return ", ".join([f"{first} ({', '.join(bounds)})" if bounds else first, *others])


def describe_keys() -> str:
    """Every key with its default, its meaning and what it takes."""
    return "\n".join(
        f"{name}: {field.default!s}\n    {' '.join((field.description or '').split())}\n"
        f"    allowed: {allowed_values(field)}"
        for name, field in Config.model_fields.items()
    )
