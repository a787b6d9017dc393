"""What may happen to a run overnight: a closed terminal, a damaged file, a planted pickle, another process."""

from __future__ import annotations

import json
import os
import pickle
import pty
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from victims import LONG, Start, adapter, contents, flip, logged, wait_for_step

from rectune.config import Config, load_config
from rectune.errors import ConfigError, ModelError
from rectune.files import temporary_beside
from rectune.lock import run_lock
from rectune.model.lora import ADAPTER_FILE, seal_problem
from rectune.score.settings import load_settings
from rectune.train import trainer
from rectune.train.checkpoints import checkpoint_folders, latest_checkpoint, mark_complete, problem_with
from rectune.train.start import Resume, go_back
from rectune.train.stopping import Interrupted

Run = Callable[..., tuple[Path, list[str]]]


def test_a_run_goes_on_when_its_terminal_is_closed_and_keeps_what_it_says(
    make: Callable[..., Config], start: Start, uninterrupted: Any
) -> None:
    config = make(**LONG)
    ours, theirs = pty.openpty()
    victim = start(config, terminal=os.ttyname(theirs))
    seen = b""
    while b"validation: loss" not in seen:
        seen += os.read(ours, 65536)
    os.close(theirs)  # not before: with nobody at the other end there would be nothing to read
    os.close(ours)  # the system sends SIGHUP, and whoever prints gets an error
    assert victim.end() == 0
    assert adapter(config.output_dir) == uninterrupted(False)
    said = (config.output_dir / "logs" / "console.log").read_text(encoding="utf-8")
    assert said.count("terminal: it is gone (SIGHUP); the run goes on and says all in logs/console.log") == 1
    assert "step 16/16  loss" in said and f"trained: {config.output_dir}" in said.splitlines()[-1]


def test_nohup_stays_nohup(make: Callable[..., Config], start: Start) -> None:
    config = make(max_steps=8, logging_steps=1)
    victim = start(config, nohup=True)
    wait_for_step(config.output_dir, 2)
    victim.send(signal.SIGHUP)
    assert victim.end() == 0
    assert "terminal:" not in victim.text("out")


def test_the_transcript_holds_every_line_and_a_resumed_run_goes_on_with_it(run: Run, finished: Path) -> None:
    first = (finished / "logs" / "console.log").read_text(encoding="utf-8")
    assert first.startswith(f"---- process {os.getpid()} ----\n") and "step 8/8  loss" in first
    flip(finished / "checkpoint-8" / "optimizer.pt")
    _, lines = run(Resume(latest=True))
    both = (finished / "logs" / "console.log").read_text(encoding="utf-8")
    assert both.startswith(first)
    for line in lines:
        assert line in both[len(first) :]


def test_a_signal_before_the_first_step_leaves_one_line(make: Callable[..., Config], start: Start) -> None:
    config = make()
    victim = start(config, die=r"logs/console\.log")  # the first file that a run opens again and again
    assert victim.end() == -signal.SIGKILL
    assert not any(config.output_dir.glob("checkpoint-*"))


@pytest.mark.parametrize("evaluation", [2, 6])
def test_a_signal_cuts_an_evaluation_short_and_resume_makes_it_first(
    evaluation: int, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole, _ = run(**LONG, output_dir=str(tmp_path / "whole"))
    scored = trainer.AnswerTrainer._scores
    calls = 0

    def cut(self: Any, trees: Any, _look: Any = None) -> Any:
        nonlocal calls
        calls += 1
        if calls == evaluation + 1:  # the first call is made before the first step
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("the signal did not cut")
        return scored(self, trees)

    monkeypatch.setattr(trainer.AnswerTrainer, "_scores", cut)
    step = [3, 6, 9, 12, 15, 16][evaluation - 1]
    with pytest.raises(Interrupted, match=f"stopped at step {step}; go on with --resume"):
        run(**LONG)
    monkeypatch.undo()
    folder, lines = run(Resume(latest=True), **LONG)
    assert any(f"last completed step: {step}\n" in line for line in lines)
    assert adapter(folder) == adapter(whole)
    told = [
        [
            (log["step"], log.get("loss"), log.get("eval_loss"), log.get("eval_auc"))
            for log in json.loads((each / "log_history.json").read_text())
            if "loss" in log or "eval_loss" in log
        ]
        for each in (folder, whole)
    ]
    assert told[0] == told[1]


def test_what_a_killed_process_left_in_the_run_the_data_and_the_cache_is_removed_and_said(
    run: Run, finished: Path, make: Callable[..., Config]
) -> None:
    config = make()
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    left = []
    for place in (finished, finished / "logs", config.dataset_folder(), config.preprocessing_cache_dir):
        ours = temporary_beside(place / "thing")
        left.append(ours.with_name(ours.name.replace(f".{os.getpid()}.", f".{child}.")))
        left[-1].write_text("half")
    _, lines = run(Resume(latest=True))
    assert "start: removed what a killed process left half-written: thing, thing, thing, thing" in lines
    assert not any(file.exists() for file in left)


def test_two_processes_do_not_share_a_run_folder(run: Run, finished: Path) -> None:
    before = contents(finished)
    with run_lock(finished):
        with pytest.raises(ConfigError, match=rf"is in use by another rectune \(process {os.getpid()}\)"):
            run(Resume(latest=True))
        with pytest.raises(ConfigError, match="is in use"):
            run(overwrite=True)
    assert contents(finished) == before


def test_damage_to_any_file_of_a_checkpoint_is_found_and_the_one_before_is_taken(finished: Path) -> None:
    files = [path for path in (finished / "checkpoint-8").rglob("*") if path.is_file() and path.stat().st_size]
    names = {str(path.relative_to(finished / "checkpoint-8")) for path in files}
    assert names >= {
        ADAPTER_FILE, "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "complete.json",
        "config.yaml", "rectune.json", "adapter_config.json", f"kept/best/{ADAPTER_FILE}", "pending.json",
    }  # fmt: skip
    for file in files:
        whole = file.read_bytes()
        flip(file)
        lines: list[str] = []
        found = latest_checkpoint(finished, lines.append)
        assert found is not None and found.step == 4, file
        assert len(lines) == 1 and lines[0].startswith("resume: checkpoint-8 is passed over: "), file
        file.write_bytes(whole)
    assert problem_with(finished / "checkpoint-8") is None


def test_no_byte_of_the_record_can_turn_unseen(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-8"
    folder.mkdir()
    for name in ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"):
        (folder / name).write_text(name)
    mark_complete(folder)
    record = (folder / "complete.json").read_bytes()
    for at in range(len(record)):
        for bit in (0, 3, 6):
            turned = bytearray(record)
            turned[at] ^= 1 << bit
            (folder / "complete.json").write_bytes(bytes(turned))
            if problem_with(folder) is None:
                assert json.loads(bytes(turned)) == json.loads(record)  # only white space was turned


@pytest.mark.parametrize("name", [ADAPTER_FILE, "adapter_config.json", "rectune.json"])
def test_a_damaged_published_adapter_is_put_back_by_resume(name: str, run: Run, finished: Path) -> None:
    before, kept = (finished / name).read_bytes(), (finished / "best" / name).read_bytes()
    for folder in (finished, finished / "best"):
        if name == "rectune.json":  # a turned digit is still JSON
            text = (folder / name).read_text(encoding="utf-8")
            (folder / name).write_text(text.replace('"threshold": 0.5', '"threshold": 0.4'), encoding="utf-8")
            with pytest.raises(ModelError, match=r"damaged \(its content is not what its sha256 says\)"):
                load_settings(folder)
        else:
            flip(folder / name)
            assert seal_problem(folder) == f"{name} is not what adapter.sha256 says"
    run(Resume(latest=True))
    assert (finished / name).read_bytes() == before and (finished / "best" / name).read_bytes() == kept
    assert seal_problem(finished) is None


class Planted:
    """A pickle that makes a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"])
@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_pickle_in_a_checkpoint_is_never_executed(
    name: str, how: str, run: Run, finished: Path, tmp_path: Path
) -> None:
    mark = tmp_path / "executed"
    pickle.loads(pickle.dumps(Planted(mark)))  # it would work
    mark.rmdir()
    folder = finished / "checkpoint-4"
    if how == "torch":
        torch.save(Planted(mark), folder / name)
    else:
        (folder / name).write_bytes(pickle.dumps(Planted(mark)))
    mark_complete(folder)
    if name == "training_args.bin":
        run(Resume(checkpoint=folder))  # nothing reads it
    else:
        with pytest.raises(
            ModelError, match=r"checkpoint-4: its .* is not what a training saves, and nothing in it was"
        ):
            run(Resume(checkpoint=folder))
    assert not mark.exists()


def test_a_checkpoint_holds_no_pickle_that_nothing_reads(finished: Path) -> None:
    assert not list(finished.rglob("training_args.bin"))


def test_the_record_of_a_checkpoint_is_written_last(finished: Path) -> None:
    written = {path.name: path.stat().st_mtime_ns for path in (finished / "checkpoint-8").rglob("*") if path.is_file()}
    assert max(written.values()) == written["complete.json"]


def test_a_changed_rate_is_really_trained_with_from_the_next_step_on(run: Run) -> None:
    keys = {"lr_scheduler_type": "constant", "logging_steps": 1, "learning_rate": 0.01, "weight_decay": 0.0}
    run(**keys)
    folder, lines = run(
        Resume(checkpoint=Path(run(**keys, overwrite=True)[0]) / "checkpoint-4"), **{**keys, "learning_rate": 0.002}
    )
    assert any(line.startswith("resume: learning_rate was 0.01 and is now 0.002: from here on") for line in lines)
    rates = {log["step"]: log["learning_rate"] for log in logged(folder) if "learning_rate" in log}
    assert rates == dict.fromkeys(range(1, 5), 0.01) | dict.fromkeys(range(5, 9), 0.002)


def test_a_refused_change_loses_nothing(run: Run, finished: Path) -> None:
    before = contents(finished)
    with pytest.raises(ConfigError, match="cannot go on from here: lora_rank was 16 and is now 8, but it is the shape"):
        run(Resume(latest=True), lora_rank=8)
    with pytest.raises(ConfigError, match="cannot go on from here: history_len was 3 and is now 2, but it decides"):
        run(Resume(checkpoint=finished / "checkpoint-4"), history_len=2)
    assert contents(finished) == before


def test_a_checkpoint_of_another_run_is_held_against_its_own_configuration(
    run: Run, finished: Path, tmp_path: Path
) -> None:
    assert load_config(finished / "checkpoint-4").seed == 42
    with pytest.raises(ConfigError, match="seed was 42 and is now 1"):
        run(Resume(checkpoint=finished / "checkpoint-4"), output_dir=str(tmp_path / "branch"), seed=1)
    assert not (tmp_path / "branch").exists()


def test_a_run_without_evaluation_that_is_killed_while_publishing_is_published_by_resume(run: Run) -> None:
    keys = {"eval_strategy": "no"}
    folder, _ = run(**keys)
    before = adapter(folder)
    for name in ("best", "log_history.json", ADAPTER_FILE):  # as if killed before the first of them was written
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
    _, lines = run(Resume(latest=True), **keys)
    assert any("nothing is left to train, its last step is reached" in line for line in lines)
    assert adapter(folder) == before


def test_a_fresh_start_removes_checkpoints_that_it_cannot_use(run: Run, finished: Path) -> None:
    """Else rotation would count them among the newest, and remove the good ones."""
    for folder in checkpoint_folders(finished):
        (folder / "complete.json").unlink()
    go_back(finished, None)
    assert checkpoint_folders(finished) == []
