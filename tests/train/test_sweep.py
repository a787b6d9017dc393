"""Sweeps on the tiny Qwen3: real trainings in processes of their own, stopped, killed, given up and failing."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest
from rich.console import Console

from rectune.config import Config, load_config
from rectune.errors import ConfigError, ResourceError
from rectune.lock import run_lock
from rectune.measure.bootstrap import bootstrap_standard_error
from rectune.train import sweep_trial
from rectune.train.sweep import sweep
from rectune.train.sweep_result import trial_config
from rectune.train.sweep_study import SweepStudy
from rectune.train.train import train

QUIET = Console(quiet=True)
SPACE = {"learning_rate": {"low": 1e-4, "high": 0.1, "log": True}, "lora_rank": [4, 16]}
SETTINGS = {"sweep": SPACE, "max_eval_samples": None, "max_steps": 6, "eval_steps": 2, "save_steps": 2}


@pytest.fixture(autouse=True)
def _imported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials are forked from a process that has imported the libraries; those of the command line start afresh."""
    multiprocessing.set_forkserver_preload(["torch", "transformers.trainer", "peft"])
    monkeypatch.setattr(sweep_trial, "START", "forkserver")


def main_of(arguments: list[str]) -> None:
    from rectune.cli import app

    app(args=arguments, prog_name="rectune", standalone_mode=False)


def swept(config: Config, trials: int, **options: Any) -> tuple[dict[str, Any], list[str]]:
    """A sweep, and what was said."""
    lines: list[str] = []
    given = {"metric": "auc", "timeout": None, "overwrite": False, "say": lines.append, "console": QUIET, **options}
    return sweep(config, trials, **given), lines


def told(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The trials of a sweep without what a clock decides."""
    return [{key: value for key, value in trial.items() if key != "seconds"} for trial in found["trials"]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the uninterrupted sweep of three trials lies; the first test that asks for it makes it."""
    return tmp_path_factory.mktemp("whole")


@pytest.fixture
def uninterrupted(whole: Path, make: Callable[..., Config]) -> tuple[Config, dict[str, Any], list[str]]:
    config = make(**SETTINGS, output_dir=str(whole / "run"))
    if not (whole / "run/sweep/study.json").is_file():
        _, lines = swept(config, 3)
        (whole / "said.json").write_text(json.dumps(lines), encoding="utf-8")
    found = json.loads((whole / "run/sweep/study.json").read_text(encoding="utf-8"))
    return config, found, json.loads((whole / "said.json").read_text(encoding="utf-8"))


def test_a_sweep_tries_the_own_settings_first_and_then_others_of_the_space(uninterrupted: Any) -> None:
    config, found, lines = uninterrupted
    assert [trial["number"] for trial in found["trials"]] == [0, 1, 2]
    assert found["trials"][0]["values"] == {"learning_rate": config.learning_rate, "lora_rank": config.lora_rank}
    assert all(trial["outcome"] == "complete" for trial in found["trials"])
    assert all(1e-4 <= trial["values"]["learning_rate"] <= 0.1 for trial in found["trials"])
    assert {trial["values"]["lora_rank"] for trial in found["trials"]} <= {4, 16}
    assert len({trial["values"]["learning_rate"] for trial in found["trials"]}) == 3
    assert [len(trial["evaluations"]) for trial in found["trials"]] == [3, 3, 3]
    assert sum(line.startswith("trial ") and " begins " in line for line in lines) == 3
    assert sum(", auc 0." in line and ": step " in line for line in lines) == 9


def test_the_value_of_a_trial_is_that_of_the_adapter_it_kept(uninterrupted: Any) -> None:
    config, found, _ = uninterrupted
    best = found["best"]
    folder = config.output_dir / "sweep" / "trials" / f"{best['trial']:03d}"
    assert best["value"] == max(trial["value"] for trial in found["trials"])
    table = pl.read_parquet(folder / "validation_predictions.parquet")
    from rectune.measure.classification import auc

    assert auc(table["label"].to_numpy(), table["log_odds"].to_numpy()) == best["value"]
    assert best["standard_error"] == bootstrap_standard_error(
        table["label"].to_numpy(), table["log_odds"].to_numpy(), table["user_id"].to_list(), "auc"
    )
    assert found["events"] == len(table)
    told = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert told["loss_shift"] == json.loads((folder / "rectune.json").read_text(encoding="utf-8"))["loss_shift"]


def test_only_the_best_trial_keeps_its_weights_and_all_keep_their_story(uninterrupted: Any) -> None:
    config, found, _ = uninterrupted
    for trial in found["trials"]:
        folder = config.output_dir / "sweep" / "trials" / f"{trial['number']:03d}"
        weights = [path.relative_to(folder) for path in folder.rglob("*.safetensors")]
        if trial["number"] == found["best"]["trial"]:
            assert Path("adapter_model.safetensors") in weights and (folder / "checkpoint-6").is_dir()
        else:
            assert weights == [] and not list(folder.glob("checkpoint-*"))
        for name in ("config.yaml", "log_history.json", "validation_predictions.parquet", "result.json", "output.txt"):
            assert (folder / name).is_file()


def test_the_tables_and_pictures_tell_the_same_as_the_study(uninterrupted: Any) -> None:
    config, found, lines = uninterrupted
    folder = config.output_dir / "sweep"
    with (folder / "trials.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["auc"]) for row in rows] == [trial["value"] for trial in found["trials"]]
    assert [float(row["learning_rate"]) for row in rows] == [
        trial["values"]["learning_rate"] for trial in found["trials"]
    ]
    page = (folder / "plots.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 4 and "http" not in page
    assert found["importances"] == {}
    assert "what mattered: not told: 3 complete trials are too few, 10 are needed" in lines


def test_the_best_settings_train_to_exactly_the_value_of_their_trial(uninterrupted: Any, tmp_path: Path) -> None:
    config, found, _ = uninterrupted
    best = load_config(config.output_dir / "sweep" / "best.yaml")
    assert best.output_dir == config.output_dir.with_name("run-best") and best.sweep == {}
    assert {key: getattr(best, key) for key in SPACE} == found["best"]["settings"]
    run = train(best.with_overrides(output_dir=tmp_path / "again"), lambda _: None, QUIET)
    step = json.loads((run / "best/step.json").read_text(encoding="utf-8"))["step"]
    history = json.loads((run / "log_history.json").read_text(encoding="utf-8"))
    (value,) = [log["eval_auc"] for log in history if log["step"] == step and "eval_auc" in log]
    assert (step, value) == (found["best"]["step"], found["best"]["value"])


def test_a_finished_sweep_is_told_again_without_training(uninterrupted: Any) -> None:
    config, found, _ = uninterrupted
    again, lines = swept(config, 2)
    assert told(again) == told(found) and again["best"] == found["best"]
    assert not any("begins" in line for line in lines)


def test_the_command_prints_the_study_as_json_and_nothing_else(uninterrupted: Any, tmp_path: Path, capsys: Any) -> None:
    config, found, _ = uninterrupted
    (tmp_path / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    main_of(["sweep", str(tmp_path / "config.yaml"), "--trials", "3", "--json"])
    printed = capsys.readouterr()
    assert json.loads(printed.out) == found
    assert "sweep: 3 trials for auc on validation, 3 of them done" in printed.err


def test_a_sweep_of_something_else_is_not_mixed_in(uninterrupted: Any) -> None:
    config, _, _ = uninterrupted
    with pytest.raises(ConfigError, match=r"holds a sweep with --metric auc, weight_decay=0\.0, whose trials cannot"):
        swept(config.with_overrides(weight_decay=0.1, gen_eval_samples=3), 4, metric="loss")


def _until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)


def test_a_sweep_stopped_by_a_signal_and_then_killed_ends_like_an_uninterrupted_one(
    uninterrupted: Any, tmp_path: Path
) -> None:
    whole, expected, _ = uninterrupted
    config = whole.with_overrides(output_dir=tmp_path / "run")
    file, trials = tmp_path / "config.yaml", tmp_path / "run/sweep/trials"
    file.write_text(config.to_yaml(), encoding="utf-8")
    command = [sys.executable, "-m", "rectune.cli", "sweep", str(file), "--trials", "2"]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    first = start()
    _until((trials / "000/checkpoint-2/complete.json").is_file, first)
    first.send_signal(signal.SIGINT)
    output, _ = first.communicate(timeout=300)
    assert first.returncode == 130
    assert output.splitlines()[-1] == "stopped: 0 of 2 trials are done; the same command goes on"
    second = start()
    _until((trials / "001/checkpoint-2/complete.json").is_file, second)
    (child,) = [child for child in psutil.Process(second.pid).children() if "spawn_main" in " ".join(child.cmdline())]
    second.kill()
    output, _ = second.communicate(timeout=60)
    assert "trial 0 goes on" in output and "RESUMING" in (trials / "000/output.txt").read_text(encoding="utf-8")
    psutil.wait_procs([child], timeout=30)
    assert not child.is_running()  # nobody waits for it any more
    found, lines = swept(config, 2)
    assert any(line.startswith("trial 1 goes on") for line in lines)
    assert told(found) == told(expected)[:2]
    assert found["best"]["value"] == max(trial["value"] for trial in expected["trials"][:2])


def test_a_trial_worse_than_the_median_is_given_up_and_leaves_no_weights(make: Callable[..., Config]) -> None:
    config = make(**{**SETTINGS, "sweep": {"learning_rate": [0.01, 1e-7]}, "max_steps": 8})
    folder = config.output_dir / "sweep"
    folder.mkdir(parents=True)
    from rectune.prompt.dataset import open_dataset

    study = SweepStudy(folder, config, "auc", open_dataset(config, lambda _: None).content_hash)
    study.study.tell(study.study.ask(study._distributions()), 0.99)
    # Three more that did very well: 0.98 at the second evaluation.
    for _ in range(4):
        trial = study.study.ask({})
        for number, value in ((1, 0.97), (2, 0.98), (3, 0.985), (4, 0.99)):
            trial.report(value, number)
        trial.set_user_attr("outcome", "complete")
        study.study.tell(trial, 0.99)
    found, _ = swept(config, 6)
    last = found["trials"][-1]
    assert last["outcome"] == "pruned" and list(last["evaluations"]) == ["1", "2"]
    assert last["reason"] == "worse after 2 evaluations than the median auc 0.9800 of 4 complete trials"
    run = folder / "trials/005"
    history = json.loads((run / "log_history.json").read_text(encoding="utf-8"))
    assert max(log["step"] for log in history) == 4
    assert not list(run.glob("checkpoint-*")) and not (run / "adapter_model.safetensors").exists()


def test_a_trial_that_cannot_run_and_one_that_is_killed_do_not_end_the_sweep(make: Callable[..., Config]) -> None:
    config = make(**{**SETTINGS, "sweep": {"lora_target": ["all", ["no_such_layer"]], "lora_rank": [4, 16]}, "seed": 1})
    lines: list[str] = []

    def kill_the_second(line: str) -> None:
        lines.append(line)
        if line.startswith("trial 1: step 2/6"):
            (child,) = multiprocessing.active_children()
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)

    found, _ = swept(config, 4, say=kill_the_second)
    outcomes = [(trial["values"]["lora_target"], trial["outcome"]) for trial in found["trials"]]
    assert outcomes == [
        ("all", "complete"), ("all", "failed"), (["no_such_layer"], "refused"), ("all", "complete")
    ]  # fmt: skip
    _, killed, refused, twin = found["trials"]
    assert killed["reason"] == "killed from outside (SIGKILL), most likely because the machine ran out of memory"
    assert refused["reason"].startswith("lora_target: this model has no no_such_layer; it has ")
    assert f"trial 2 refused: {refused['reason']}" in lines
    # The fourth drew the settings of the first, which need not be trained again to come out the same.
    assert (twin["value"], twin["reason"]) == (found["trials"][0]["value"], "as trial 0")
    assert not (config.output_dir / "sweep/trials/003").exists()


def test_where_nothing_works_the_sweep_ends_with_the_reason(make: Callable[..., Config], tmp_path: Path) -> None:
    config = make(**SETTINGS, model_name_or_path=str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="sweep: all of the first 3 trials have failed, the last one because: "):
        swept(config, 9)
    assert json.loads((config.output_dir / "sweep/study.json").read_text(encoding="utf-8"))["best"] is None


def test_training_over_a_run_leaves_the_sweep_beside_it_alone(make: Callable[..., Config]) -> None:
    config = make()
    (config.output_dir / "sweep").mkdir(parents=True)
    (config.output_dir / "config.yaml").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match="holds a sweep, which --overwrite would remove"):
        train(config, lambda _: None, QUIET, overwrite=True)


def test_a_sweep_ends_when_its_time_is_up_and_can_begin_again(make: Callable[..., Config]) -> None:
    config = make(**SETTINGS)
    found, lines = swept(config, 2, timeout=0.2)
    assert found["best"] is None and [trial["outcome"] for trial in found["trials"]] in ([], ["running"])
    assert lines[-1] == "time is up: 0 of 2 trials are done; the same command goes on"
    (config.output_dir / "sweep/trials/007").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"holds a sweep with learning_rate=0\.01, whose"):
        swept(config.with_overrides(learning_rate=0.02), 2, timeout=0.2)
    swept(config.with_overrides(learning_rate=0.02), 2, timeout=0.1, overwrite=True)
    assert not (config.output_dir / "sweep/trials/007").exists()


def test_two_sweeps_cannot_run_in_one_folder(make: Callable[..., Config]) -> None:
    config = make(**SETTINGS)
    with run_lock(config.output_dir / "sweep"), pytest.raises(ConfigError, match="is in use by another rectune"):
        swept(config, 2)


def test_what_a_sweep_needs_is_said_before_it_begins(make: Callable[..., Config], monkeypatch: Any) -> None:
    with pytest.raises(ConfigError, match="eval_strategy: got 'no', but trials are compared by evaluation"):
        swept(make(eval_strategy="no"), 2)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ResourceError, match=r"pip install optuna"):
        swept(make(), 2)
    assert not make().output_dir.exists()


def test_steps_follow_the_batch_so_that_every_trial_sees_the_same_events(tmp_path: Path) -> None:
    config = Config(eval_steps=25, save_steps=50, logging_steps=1, max_steps=100, warmup_steps=10, output_dir=tmp_path)
    changed = trial_config(config, {"gradient_accumulation_steps": 16}, tmp_path / "x")
    assert (changed.eval_steps, changed.save_steps, changed.logging_steps) == (13, 25, 1)
    assert (changed.max_steps, changed.warmup_steps) == (50, 5)
    half = trial_config(config, {"per_device_train_batch_size": 1}, tmp_path / "x")
    assert (half.eval_steps, half.max_steps) == (50, 200)
    free = trial_config(
        config.with_overrides(max_steps=-1, warmup_steps=0), {"gradient_accumulation_steps": 4}, tmp_path
    )
    assert (free.max_steps, free.warmup_steps) == (-1, 0)
