"""What an installed copy carries."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPO = Path(__file__).parent.parent


def test_a_wheel_holds_the_shipped_configurations(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    for name in ("src", "configs"):
        shutil.copytree(REPO / name, tmp_path / name, symlinks=True, ignore=shutil.ignore_patterns("*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPO / name, tmp_path)
    code = "from setuptools.build_meta import build_wheel; build_wheel('out')"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    with zipfile.ZipFile(next((tmp_path / "out").glob("*.whl"))) as wheel:
        names = wheel.namelist()
    assert "rectune/py.typed" in names
    assert {name for name in names if name.startswith("rectune/configs/")} == {
        f"rectune/{path.relative_to(REPO).as_posix()}" for path in (REPO / "configs").rglob("*.yaml")
    }
