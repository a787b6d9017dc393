"""The configurations that come with rectune."""

from __future__ import annotations

from pathlib import Path

from rectune.config import Config
from rectune.errors import ConfigError

FOLDER = Path(__file__).parent / "configs"


def _shipped() -> dict[str, Path]:
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


def find_config(path: Path) -> Path:
    """A path as it is where it exists; else the shipped configuration of that name.

    Raises:
        ConfigError: neither is there.
    """
    if path.exists():
        return path
    shipped = _shipped().get(path.stem)
    if shipped is None:
        raise ConfigError(f"{path}: no such file, and no shipped configuration; there are {', '.join(_shipped())}")
    return shipped


def list_configs() -> str:
    """Each shipped configuration with the first line of its heading."""
    lines = []
    for name, path in _shipped().items():
        heading = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        lines.append(f"{name:<34} {heading}")
    return "\n".join(lines)


def describe_keys() -> str:
    """Every key with its default and its meaning."""
    return "\n".join(
        f"{name}: {field.default!s}\n    {field.description}" for name, field in Config.model_fields.items()
    )
