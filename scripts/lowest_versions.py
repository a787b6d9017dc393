"""The lowest versions that pyproject.toml allows, as a constraints file for pip; torch as it is pinned.

    python scripts/lowest_versions.py > lowest.txt
    pip install -c lowest.txt -e '.[dev]'

Lower bounds are held for what rectune asks for itself; what those ask for comes as pip finds it. torch stays at the
version of constraints.txt, since another one would bring another build (CPU or CUDA) with it.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
_FLOOR = re.compile(r"([A-Za-z0-9_.-]+)>=([0-9.]+)")


def lowest_versions(project: dict[str, object], pinned: str) -> list[str]:
    """A line `name==version` for every dependency, those of extras too.

    Args:
        project: the table `project` of pyproject.toml.
        pinned: lines of constraints.txt.

    Raises:
        ValueError: a dependency has no lower bound, or two.

    >>> lowest_versions({"dependencies": ["numpy>=2.0", "torch>=2.6"], "optional-dependencies": {}}, "torch==2.13.0")
    ['numpy==2.0', 'torch==2.13.0']
    """
    extras = project["optional-dependencies"]
    assert isinstance(extras, dict) and isinstance(project["dependencies"], list)
    named = [*project["dependencies"], *(name for extra in extras.values() for name in extra)]
    found: dict[str, str] = {}
    for line in named:
        if line.startswith("rectune["):
            continue
        floor = _FLOOR.match(line)
        if floor is None:
            raise ValueError(f"{line}: has no lower bound; write NAME>=VERSION")
        name, version = floor[1], floor[2]
        if found.setdefault(name, version) != version:
            raise ValueError(f"{name}: has two lower bounds, {found[name]} and {version}")
    torch = re.search(r"^torch==(\S+)", pinned, re.MULTILINE)
    assert torch is not None
    return [f"{name}=={version}" for name, version in sorted({**found, "torch": torch[1]}.items())]


if __name__ == "__main__":
    with (REPO / "pyproject.toml").open("rb") as file:
        settings = tomllib.load(file)["project"]
    print("\n".join(lowest_versions(settings, (REPO / "constraints.txt").read_text(encoding="utf-8"))))
