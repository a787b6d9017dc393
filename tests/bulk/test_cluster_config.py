"""The shipped description of a cluster, as far as it can be looked at without one."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

import documents

jsonschema = pytest.importorskip("jsonschema")
FILE = documents.REPO / "configs" / "ray" / "cluster.yaml"


@pytest.fixture
def described() -> dict[str, object]:
    read: dict[str, object] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return read


def test_ray_can_read_it(described: dict[str, object]) -> None:
    found = find_spec("ray")
    if found is None or found.origin is None:
        pytest.skip("Ray is not installed")
    schema = json.loads((Path(found.origin).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(described, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**described, "max_workers": "many"}, schema)


def test_every_machine_starts_ray_with_a_token_and_without_reports_and_dashboard(described: dict[str, object]) -> None:
    for kind in ("head", "worker"):
        *_, command = described[f"{kind}_start_ray_commands"]  # type: ignore[misc]
        assert "RAY_AUTH_MODE=token" in command and "--disable-usage-stats" in command
    assert "--include-dashboard=false" in described["head_start_ray_commands"][-1]  # type: ignore[index]


def test_all_machines_are_there_from_the_start(described: dict[str, object]) -> None:
    scorer = described["available_node_types"]["scorer"]  # type: ignore[index]
    assert scorer["min_workers"] == scorer["max_workers"] == described["max_workers"]


def test_the_commands_of_its_heading_are_known() -> None:
    spans = [part for part in FILE.read_text(encoding="utf-8").split("`")[1::2] if part.startswith("rectune score")]
    assert spans and not [problem for span in spans for problem in documents.problems(span)]
