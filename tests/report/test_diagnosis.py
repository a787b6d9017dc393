"""What a run's diagnosis says is read for its report, or refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from rectune.errors import DataError
from rectune.report import evaluate as stage
from rectune.report.evaluate import _diagnosis

FINDING = {"code": "collapse", "step": 8, "severity": "warning", "message": "m", "advice": "a"}


def test_findings_are_read_and_a_run_without_a_file_has_none(tmp_path: Path) -> None:
    assert _diagnosis(tmp_path) == []
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "diagnosis.json").write_text(json.dumps([{**FINDING, "more": 1}]), encoding="utf-8")
    assert _diagnosis(tmp_path) == [FINDING]


@pytest.mark.parametrize("text", ["[", '{"a": 1}', '[{"code": "collapse"}]', "[1]"])
def test_a_damaged_file_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "diagnosis.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="remove it to leave the diagnosis out") as caught:
        _diagnosis(tmp_path)
    assert "\n" not in str(caught.value)


def test_validation_events_of_one_class_are_said_before_anything_is_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = pl.DataFrame({"split": ["validation", "validation", "test"], "label": [1, 1, 0]})
    monkeypatch.setattr(stage, "open_run", lambda *_: SimpleNamespace(folder=tmp_path))
    monkeypatch.setattr(stage, "open_data", lambda *_: SimpleNamespace(events=events))
    monkeypatch.setattr(stage, "split_rows", lambda *_: np.array([2]))
    monkeypatch.setattr(stage, "score_rows", lambda *_: pytest.fail("something was scored"))
    with pytest.raises(DataError, match="validation: all 2 events are likes, so no baseline can be tuned"):
        stage.evaluate(tmp_path, [], "test", "logits", True, lambda line: None, Console())
