"""The training log: JSON lines, CSV and TensorBoard, each step once also after a resume."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from rectune.errors import ResourceError
from rectune.train.monitor import RunLog
from rectune.train.record import RunRecord
from rectune.train.speed import Meter
from rectune.train.start import Resume

Run = Callable[..., tuple[Path, list[str]]]
KEYS: dict[str, Any] = {"max_steps": 4, "eval_steps": 2, "save_steps": 2, "logging_steps": 1}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_jsonl_csv_and_tensorboard_hold_each_step_once_after_a_resume(run: Run) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, lines = run(**KEYS, report_to="tensorboard")
    assert f"watch: tensorboard --logdir {folder / 'logs'}" in lines
    run(Resume(checkpoint=folder / "checkpoint-2"), **KEYS, report_to="tensorboard")

    logs = [json.loads(line) for line in (folder / "logs" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [log["step"] for log in logs if "loss" in log] == [1, 2, 3, 4]
    evaluations = [log for log in logs if "eval_loss" in log]
    assert [log["step"] for log in evaluations] == [2, 4]
    assert {"eval_accuracy", "eval_precision", "eval_recall", "eval_f1", "eval_predicted_positive_rate"} <= set(
        evaluations[0]
    )

    with (folder / "logs" / "log.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    losses = [(int(row["step"]), float(row["value"])) for row in rows if row["name"] == "loss"]
    assert losses == [(log["step"], log["loss"]) for log in logs if "loss" in log]

    events = EventAccumulator(str(folder / "logs"))
    events.Reload()
    tags = events.Tags()["scalars"]
    config = events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "lora_rank: 16" in config and "report_to: tensorboard" in config
    layout = events.Tensors("custom_scalars__config__")[-1].tensor_proto.string_val[0]
    assert b"^eval/loss$" in layout and b"^eval/predicted_positive_rate$" in layout
    assert {"train/loss", "train/learning_rate", "train/grad_norm", "eval/loss", "eval/f1", "eval/accuracy"} <= set(
        tags
    )
    assert [scalar.step for scalar in events.Scalars("train/loss")] == [1, 2, 3, 4]
    assert [scalar.value for scalar in events.Scalars("eval/loss")] == pytest.approx(
        [log["eval_loss"] for log in evaluations]
    )


def test_without_tensorboard_no_event_file_is_written(run: Run) -> None:
    folder, _ = run(**KEYS, report_to="none")
    assert not list((folder / "logs").glob("events*"))


ARGS = SimpleNamespace(eval_steps=2, save_steps=100, eval_strategy="steps", num_train_epochs=1.0)


def state(history: list[dict[str, Any]], step: int, total: int) -> Any:
    return SimpleNamespace(log_history=history, global_step=step, max_steps=total)


def run_log(folder: Path, console: Console, kept: list[str] | None = None) -> RunLog:
    meter = Meter(torch.device("cpu"), None, None, 0, print)
    return RunLog(folder, console, meter, RunRecord(folder), ([] if kept is None else kept).append)


def test_without_a_terminal_plain_lines_say_step_loss_speed_and_time_left(tmp_path: Path) -> None:
    stream = io.StringIO()
    kept: list[str] = []
    log = run_log(tmp_path, Console(file=stream, width=200), kept)
    log.on_train_begin(ARGS, state([], 0, 10), None)
    entry = {"loss": 0.5, "learning_rate": 1e-4, "grad_norm": 2.0, "labels_per_second": 3.25, "epoch": 0.2, "step": 2}
    log.meter.spent.update(step=[20.0, 2], evaluation=[100.0, 1])
    log.on_log(ARGS, state([entry], 2, 10), None)
    log.on_log(ARGS, state([entry, {"eval_loss": 0.4, "eval_auc": 0.75, "epoch": 0.2, "step": 2}], 2, 10), None)
    log.on_train_end(ARGS, state([], 10, 10), None)
    # 8 steps of 10 s and the evaluations at 4, 6, 8 and 10.
    assert kept == stream.getvalue().splitlines()
    assert kept == [
        "step 2/10  loss 0.5000  lr 1.00e-04  grad 2.00  3.25 labels/s  0:08:00 left",
        "step 2/10  validation: loss 0.400  auc 0.750",
    ]
    status = json.loads((tmp_path / "status.json").read_text(encoding="utf-8"))
    assert status["state"] == "training" and (status["step"], status["max_steps"]) == (2, 10)
    assert status["seconds_left"] == 480 and status["pid"] == os.getpid()


def test_with_a_terminal_a_bar_is_shown_and_given_back(tmp_path: Path) -> None:
    stream = io.StringIO()
    log = run_log(tmp_path, Console(file=stream, force_terminal=True, width=120))
    log.on_train_begin(ARGS, state([], 0, 10), None)
    log.meter.spent["step"] = [20.0, 1]
    log.on_step_end(ARGS, state([], 1, 10), None)
    assert log.bar is not None
    log.close()
    log.close()
    assert log.bar is None and "0:03:00 left" in stream.getvalue()


def test_the_files_are_made_anew_from_the_history_when_a_run_resumes(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"loss": 9, "step": 1}\n{"loss": 9, "st', encoding="utf-8")
    log = run_log(tmp_path, Console(file=io.StringIO()))
    log.on_train_begin(ARGS, state([{"loss": 1.0, "step": 1, "epoch": 0.1}], 1, 10), None)
    assert (tmp_path / "log.jsonl").read_text(encoding="utf-8") == '{"loss": 1.0, "step": 1, "epoch": 0.1}\n'
    assert (tmp_path / "log.csv").read_text(encoding="utf-8") == "step,epoch,name,value\n1,0.1,loss,1.0\n"


@pytest.mark.parametrize(
    ("error", "state", "message"),
    [
        (ResourceError("the disk is full\nand more"), "failed", "the disk is full"),
        (ValueError("odd"), "failed", "ValueError: odd"),
        (KeyboardInterrupt(), "stopped", "interrupted before a checkpoint could be saved"),
    ],
)
def test_a_run_that_ends_with_an_error_says_so_in_its_record(
    tmp_path: Path, error: BaseException, state: str, message: str
) -> None:
    record = RunRecord(tmp_path)
    with pytest.raises(type(error)), record:
        record.progress(7, 10, 30.0)
        raise error
    status = json.loads((tmp_path / "status.json").read_text(encoding="utf-8"))
    assert (status["state"], status["message"], status["step"]) == (state, message, 7)


def test_a_run_that_was_refused_leaves_the_record_of_the_one_before(tmp_path: Path) -> None:
    with pytest.raises(ResourceError), RunRecord(tmp_path):
        raise ResourceError("another process trains here")
    assert not (tmp_path / "status.json").exists()
