"""`rectune doctor`: what this machine can do, and what to do about what is missing."""

from __future__ import annotations

import json
import shutil
import socket
from typing import Any

import pytest

from rectune.cli import main
from rectune.doctor import Finding, examine, show


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rectune.doctor.getproxies", dict)


def test_behind_a_proxy_the_hub_is_not_tried_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rectune.doctor.getproxies", lambda: {"https": "http://user:secret@proxy"})
    monkeypatch.setattr(socket, "create_connection", None)
    finding = found("model hub", network=True)
    assert finding.well and "proxy" in finding.found and "secret" not in finding.found


def found(name: str, network: bool = False) -> Finding:
    return next(finding for finding in examine(network) if finding.name == name)


def test_it_looks_at_everything_that_decides_a_run() -> None:
    names = {finding.name for finding in examine(network=False)}
    assert {
        "torch", "device", "precision", "attention", "memory", "disk", "transformers", "peft", "bitsandbytes",
        "SmolLM2-135M-Instruct", "MovieLens-100K", "hub models cached",
    } <= names  # fmt: skip
    assert "model hub" not in names


def test_the_json_form_is_json_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--json", "--no-network"])
    assert not ended.value.code
    captured = capsys.readouterr()
    rows = json.loads(captured.out)
    assert all(set(row) == {"name", "well", "found", "advice"} for row in rows)
    assert captured.err == ""


def test_a_hub_out_of_reach_names_the_offline_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no route")

    monkeypatch.setattr(socket, "create_connection", refuse)
    finding = found("model hub", network=True)
    assert not finding.well and "cannot be reached (no route)" in finding.found
    assert "rectune run demo_cpu" in finding.advice


def test_another_hub_is_looked_for_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Line:
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    def connect(address: tuple[str, int], timeout: float) -> Line:
        asked.append(address)
        return Line()

    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror.example:8080")
    assert found("model hub", network=True) == Finding("model hub", True, "http://mirror.example:8080 can be reached")
    assert asked == [("mirror.example", 8080)]


def test_a_small_disk_and_a_missing_package_come_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    true = importlib.util.find_spec
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10, 9, 2**30))  # type: ignore[attr-defined]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else true(name))
    disk, package = found("disk"), found("bitsandbytes")
    assert not disk.well and "RECTUNE_CACHE" in disk.advice
    assert package.well and "QLoRA" in package.found and "pip install" in package.advice


def test_a_person_gets_a_list_with_what_to_look_at() -> None:
    lines: list[str] = []
    show([Finding("disk", False, "full", "make space"), Finding("torch", True, "2.9")], False, lines.append)
    text = "\n".join(lines)
    assert "!!  disk" in text and "→ make space" in text and "ok  torch" in text
    assert lines[-1] == "\nlook at: disk"
    show([Finding("torch", True, "2.9")], False, lines.append)
    assert lines[-1] == "\neverything needed is here"
