"""Checkpoints count only when whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rectune.errors import ModelError
from rectune.train.checkpoints import (
    checkpoint_folders,
    drop_after,
    latest_checkpoint,
    mark_complete,
    problem_with,
    read_checkpoint,
    rotate,
)


def checkpoint(run: Path, step: int) -> Path:
    folder = run / f"checkpoint-{step}"
    (folder / "deep").mkdir(parents=True)
    (folder / "weights.bin").write_bytes(bytes(range(100)))
    (folder / "deep" / "more.bin").write_bytes(b"more")
    for name in ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (folder / name).write_bytes(name.encode())
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "epoch": step / 10}))
    mark_complete(folder)
    return folder


def test_a_whole_checkpoint_has_no_problem_and_is_read(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 20)
    assert problem_with(folder) is None
    found = read_checkpoint(folder)
    assert (found.step, found.epoch) == (20, 2.0)


def test_each_kind_of_damage_is_named(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 20)
    (folder / "deep" / "more.bin").write_bytes(b"less")
    assert problem_with(folder) == "deep/more.bin is damaged: its content is not what was saved"
    (folder / "deep" / "more.bin").unlink()
    assert problem_with(folder) == "deep/more.bin is missing"
    (folder / "complete.json").write_text("{")
    assert "its complete.json is damaged" in str(problem_with(folder))
    (folder / "complete.json").write_text("[]")
    assert problem_with(folder) == "its complete.json is damaged (it names no files)"
    (folder / "complete.json").write_text("{}")
    assert problem_with(folder) == "its complete.json does not name adapter_model.safetensors"
    (folder / "complete.json").unlink()
    assert problem_with(folder) == "it was cut off while being saved"
    with pytest.raises(ModelError, match="cut off while being saved; take an earlier checkpoint"):
        read_checkpoint(folder)


def test_the_latest_good_one_is_found_by_number_and_the_others_are_named(tmp_path: Path) -> None:
    for step in (4, 20, 100):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-x").mkdir()
    (tmp_path / "checkpoint-100" / "complete.json").unlink()
    lines: list[str] = []
    found = latest_checkpoint(tmp_path, lines.append)
    assert found is not None and found.step == 20
    assert lines == ["resume: checkpoint-100 is passed over: it was cut off while being saved"]
    assert latest_checkpoint(tmp_path / "nothing", lines.append) is None


def test_rotation_keeps_the_newest_and_dropping_keeps_the_older(tmp_path: Path) -> None:
    for step in (4, 20, 100):
        checkpoint(tmp_path, step)
    rotate(tmp_path, None)
    assert len(checkpoint_folders(tmp_path)) == 3
    rotate(tmp_path, 2)
    assert [path.name for path in checkpoint_folders(tmp_path)] == ["checkpoint-100", "checkpoint-20"]
    drop_after(tmp_path, 20)
    assert [path.name for path in checkpoint_folders(tmp_path)] == ["checkpoint-20"]
