"""A refused run leaves nothing behind, a broken one what it had, and neither is written over unseen."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer
from victims import adapter, contents

from rectune.errors import ConfigError, ModelError, NotFinite, ResourceError
from rectune.lock import run_lock
from rectune.model.lora import ADAPTER_FILE
from rectune.terminal import Terminal
from rectune.train import refusal
from rectune.train.record import RunRecord
from rectune.train.refusal import no_trace_of_refusal
from rectune.train.start import Resume
from rectune.train.trainer import AnswerTrainer

Run = Callable[..., tuple[Path, list[str]]]


def test_a_refused_run_leaves_nothing(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        run(model_name_or_path=str(tmp_path / "nowhere"))
    assert not (tmp_path / "run").exists()


def test_a_refused_run_leaves_what_was_there(run: Run, tmp_path: Path) -> None:
    there = {"notes.txt": b"dear", "logs/console.log": b"of before\n"}
    for name, content in there.items():
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_bytes(content)
    with pytest.raises(ModelError):
        run(model_name_or_path=str(tmp_path / "nowhere"))
    left = contents(tmp_path / "run")
    assert left.keys() == there.keys() and left["notes.txt"] == b"dear"
    assert left["logs/console.log"].startswith(b"of before\n")


def test_a_refusal_that_nobody_may_have_seen_stays_in_the_transcript(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusal, "_WATCHED", 0.0)
    with pytest.raises(ModelError) as caught:
        run(model_name_or_path=str(tmp_path / "nowhere"))
    (left,) = contents(tmp_path / "run").items()
    assert left[0] == "logs/console.log" and left[1].decode().splitlines()[-1].endswith(f" error: {caught.value}")


@pytest.mark.parametrize(
    ("error", "begun", "gone", "left"),
    [
        (ConfigError("no"), False, None, set()),
        (ConfigError("no"), False, "SIGHUP", {"logs/console.log"}),
        (ResourceError("no"), True, None, {"config.yaml", "logs/console.log", "logs/status.json"}),
        (ValueError("ours"), False, None, {"config.yaml", "logs/console.log"}),
    ],
)
def test_only_a_refusal_before_training_that_was_seen_is_removed(
    error: Exception, begun: bool, gone: str | None, left: set[str], tmp_path: Path
) -> None:
    folder, record = tmp_path / "run", RunRecord(tmp_path / "run" / "logs")
    with pytest.raises(type(error)), run_lock(folder), no_trace_of_refusal(folder, record, Terminal(gone)):
        (folder / "logs").mkdir()
        (folder / "logs" / "console.log").write_text("no")
        (folder / "config.yaml").write_text("seed: 1")
        if begun:
            record.progress(0, 8, None)
        raise error
    assert folder.exists() == bool(left)
    assert contents(folder).keys() == left


def test_the_adapter_of_a_run_that_broke_before_a_checkpoint_is_not_written_over(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: dict[str, Any] = {"max_steps": 6, "save_steps": 100, "eval_steps": 2, "max_train_samples": 40}
    true = AnswerTrainer._batch_loss

    def broken(self: Any, model: Any, inputs: Any, count: Any) -> Any:
        return true(self, model, inputs, count) * (math.nan if self.state.global_step == 3 else 1.0)

    monkeypatch.setattr(AnswerTrainer, "_batch_loss", broken)
    with pytest.raises(NotFinite, match="no checkpoint had been saved; the best adapter so far"):
        run(**keys)
    monkeypatch.undo()
    before = contents(tmp_path / "run")
    assert ADAPTER_FILE in before
    with pytest.raises(ConfigError, match=r"already holds a run; start over with --overwrite, or set output_dir=OTHER"):
        run(**keys)
    with pytest.raises(ConfigError, match="holds an adapter without a usable checkpoint"):
        run(Resume(latest=True), **keys)
    assert contents(tmp_path / "run") == before


def test_memory_that_runs_out_while_a_checkpoint_is_loaded_is_not_told_as_damage(
    run: Run, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(Trainer, "_load_optimizer_and_scheduler", full)
    with pytest.raises(ResourceError, match="out of memory on cpu"):
        run(Resume(checkpoint=finished / "checkpoint-4"))


def test_the_record_of_a_finished_run_that_is_resumed_says_how_far_it_was(run: Run, finished: Path) -> None:
    before = adapter(finished)
    (finished / "logs" / "status.json").unlink()
    run(Resume(latest=True))
    status = json.loads((finished / "logs" / "status.json").read_text(encoding="utf-8"))
    assert (status["state"], status["step"], status["max_steps"]) == ("finished", 8, 8)
    assert (finished / ADAPTER_FILE).read_bytes() == before
