"""Two processes through gloo train as one does: same steps, same files, stopped, killed and resumed in any number."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file
from victims import Start, adapter, logged, wait_for_step

from rectune.config import Config
from rectune.errors import ConfigError
from rectune.model.lora import ADAPTER_FILE
from rectune.train.start import Resume

Run = Callable[..., tuple[Path, list[str]]]

# 18 sequences are nine micro-batches of two: two processes take five each, the last of which is empty for one of them.
SHARED: dict[str, Any] = {
    "max_train_samples": 18, "max_steps": 7, "save_steps": 4, "eval_steps": 3, "logging_steps": 1,
    "early_stopping_patience": 0, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2,
    "lora_dropout": 0.0, "panel_samples": 2,
}  # fmt: skip
ALONE = {**SHARED, "per_device_train_batch_size": 4}
"""One process whose steps take as many sequences."""
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
_WAIT = 300


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parallel")


@pytest.fixture
def two(make: Callable[..., Config], start: Start, store: Path) -> Path:
    """The run folder of two processes that nothing has disturbed; not to be written to."""
    config = make(**SHARED, output_dir=str(store / "two"))
    if not (config.output_dir / "log_history.json").is_file():
        victim = start(config, processes=2)
        assert victim.end() == 0, victim.text("err")
        said = victim.text("out")
        assert said.count("processes: 2 through gloo on CPUs, each with the whole model") == 1
        assert "a step takes 2 x 2 x 2 = 8 sequences" in said
        assert said.count("\ntrained: ") == 1
        assert all((victim.folder / name).read_text() == "" for name in ("err", "out1", "err1"))
    return config.output_dir


def curve(run: Path, *keys: str) -> list[tuple[float, ...]]:
    """What a run has logged of these keys, step by step."""
    return [tuple(log[key] for key in ("step", *keys)) for log in logged(run) if all(key in log for key in keys)]


def check_same(run: Path, other: Path) -> None:
    """Loss, gradient, rate and measures of both to 1e-4, and the adapters' numbers."""
    for keys in (("loss", "grad_norm", "learning_rate"), ("eval_loss", "eval_auc", "eval_log_odds_moved")):
        mine, others = curve(run, *keys), curve(other, *keys)
        assert len(mine) in (3, 7)
        np.testing.assert_allclose(mine, others, rtol=1e-4, atol=1e-4)
    mine, others = (load_file(each / ADAPTER_FILE) for each in (run, other))
    assert mine.keys() == others.keys()
    for name in mine:
        np.testing.assert_allclose(mine[name], others[name], atol=1e-4)


def test_two_processes_give_the_curve_and_the_adapter_of_one(run: Run, two: Path, tmp_path: Path) -> None:
    one, lines = run(**ALONE, output_dir=str(tmp_path / "one"))
    assert not [line for line in lines if line.startswith("processes")]
    check_same(one, two)
    totals = [json.loads((each / "log_history.json").read_text())[-1]["train_loss"] for each in (one, two)]
    assert totals[0] == pytest.approx(totals[1], abs=1e-4)
    names = {path.relative_to(one).as_posix() for path in one.rglob("*") if path.is_file()}
    more = {f"checkpoint-{step}/{file}" for step in (4, 7) for file in ("processes.json", "rng_state_of_others.pth")}
    assert {path.relative_to(two).as_posix() for path in two.rglob("*") if path.is_file()} == names | more
    assert json.loads((two / "checkpoint-4" / "processes.json").read_text()) == {"processes": 2}


def test_a_run_of_two_goes_on_in_one_with_the_same_curve(run: Run, two: Path, tmp_path: Path) -> None:
    folder = tmp_path / "one-more"
    shutil.copytree(two, folder)
    keys = {**SHARED, "output_dir": str(folder)}
    named = Resume(checkpoint=folder / "checkpoint-4")
    with pytest.raises(ConfigError, match=r"processes was 2 and is now 1, but .*gradient_accumulation_steps=4\)"):
        run(named, **keys)
    _, lines = run(named, **{**keys, "per_device_train_batch_size": 4})
    assert "resume: processes was 2 and is now 1: the sequences of a step stay the same" in lines
    check_same(folder, two)


def others_of(process: int) -> list[psutil.Process]:
    return psutil.Process(process).children()


def test_two_processes_of_which_one_is_killed_both_end_and_resume_to_the_same_bytes(
    make: Callable[..., Config], start: Start, two: Path, tmp_path: Path
) -> None:
    config = make(**SHARED, output_dir=str(tmp_path / "killed"))
    victim = start(config, processes=2)
    wait_for_step(config.output_dir, 5)
    others_of(victim.process.process)[0].kill()
    assert victim.end() == 99  # of the two codes: the killed one's, and that of the line below
    err = victim.text("err")
    assert err.startswith("error: another process of this run is gone without a word") and err.count("\n") == 1
    assert json.loads((config.output_dir / "logs" / "status.json").read_text())["state"] == "failed"
    again = start(config, "--resume", processes=2)
    assert again.end() == 0, again.text("err")
    assert "last completed step: 4" in again.text("out")
    assert adapter(config.output_dir) == adapter(two)
    losses = [curve(each, "loss", "grad_norm") for each in (config.output_dir, two)]
    assert losses[0] == losses[1]


def test_a_signal_to_one_process_stops_both_behind_the_same_step_and_they_resume_to_the_same_bytes(
    make: Callable[..., Config], start: Start, two: Path, tmp_path: Path
) -> None:
    config = make(**SHARED, output_dir=str(tmp_path / "stopped"))
    victim = start(config, processes=2)
    wait_for_step(config.output_dir, 1)
    others_of(victim.process.process)[0].send_signal(signal.SIGTERM)
    assert victim.end() == 130
    err = victim.text("err")
    assert err.startswith("stopped: stopped at step") and err.count("\n") == 1
    assert victim.text("err1") == ""
    stopped = int(err.split("step ")[1].split(";")[0])
    assert 1 <= stopped < 7 and (config.output_dir / f"checkpoint-{stopped}" / "complete.json").is_file()
    again = start(config, "--resume", processes=2)
    assert again.end() == 0, again.text("err")
    assert adapter(config.output_dir) == adapter(two)


@pytest.mark.slow
def test_a_signal_in_an_evaluation_ends_it_in_both_and_it_is_made_first_when_they_go_on(
    make: Callable[..., Config], start: Start, tmp_path: Path
) -> None:
    many = {"validation_ratio": 0.5, "per_device_eval_batch_size": 1, "dataset_dir": str(tmp_path / "data")}
    whole, config = (make(**{**SHARED, **many, "output_dir": str(tmp_path / name)}) for name in ("whole", "cut"))
    assert start(whole, processes=2).end() == 0
    victim = start(config, processes=2)
    wait_for_step(config.output_dir, 3)  # behind which the first evaluation comes
    others_of(victim.process.process)[0].send_signal(signal.SIGTERM)
    assert victim.end() == 130
    assert "stopping in an evaluation; it is made first when the run goes on" in victim.text("out")
    assert [step for step, *_ in curve(config.output_dir, "eval_loss")] == []
    assert start(config, "--resume", processes=2).end() == 0
    assert adapter(config.output_dir) == adapter(whole.output_dir)
    keys = ("eval_loss", "eval_auc", "eval_log_odds_moved")
    assert curve(config.output_dir, *keys) == curve(whole.output_dir, *keys)


@pytest.mark.slow
def test_two_processes_that_share_the_model_give_the_curve_of_one(
    run: Run, make: Callable[..., Config], start: Start, tmp_path: Path
) -> None:
    one, _ = run(**ALONE, output_dir=str(tmp_path / "one"))
    config = make(**SHARED, output_dir=str(tmp_path / "sharded"))
    victim = start(config, processes=2, environment=FSDP)
    assert victim.end() == 0, victim.text("err")
    assert "each with a part of the base model's blocks (FSDP2)" in victim.text("out")
    check_same(config.output_dir, one)
    # Its checkpoint is one of any number of processes.
    folder = tmp_path / "one-more"
    shutil.copytree(config.output_dir, folder)
    run(Resume(checkpoint=folder / "checkpoint-4"), **{**ALONE, "output_dir": str(folder)})
    check_same(folder, one)


@pytest.mark.slow
def test_a_run_of_one_goes_on_in_two_whole_or_sharded(
    run: Run, make: Callable[..., Config], start: Start, tmp_path: Path
) -> None:
    one, _ = run(**ALONE, output_dir=str(tmp_path / "one"))
    for name, environment in (("whole", {}), ("sharded", FSDP)):
        config = make(**SHARED, output_dir=str(tmp_path / name))
        shutil.copytree(one, config.output_dir)
        at = str(config.output_dir / "checkpoint-4")
        victim = start(config, "--resume-from-checkpoint", at, processes=2, environment=environment)
        assert victim.end() == 0, victim.text("err")
        assert "processes was 1 and is now 2: the sequences of a step stay the same" in victim.text("out")
        check_same(config.output_dir, one)


@pytest.mark.slow
def test_a_process_whose_loss_is_no_number_ends_both_with_the_line_that_names_its_rows(
    run: Run, make: Callable[..., Config], start: Start, tmp_path: Path
) -> None:
    """The rate is so high that the adapter overflows: the loss is then no number in both, and one line says so."""
    config = make(**{**SHARED, "learning_rate": 1e30, "output_dir": str(tmp_path / "broken")})
    victim = start(config, processes=2)
    assert victim.end() == 4
    err = victim.text("err")
    assert "became" in err and "micro-batch" in err and err.count("\n") == 1
    history = [json.loads(line) for line in (config.output_dir / "logs" / "log.jsonl").read_text().splitlines()]
    assert max(log["step"] for log in history) < 7


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_a_launcher_trains_two_processes_and_its_interrupt_saves_a_checkpoint(
    launcher: str, make: Callable[..., Config], two: Path, tmp_path: Path
) -> None:
    config = make(**SHARED, output_dir=str(tmp_path / "launched"))
    given = tmp_path / "given.yaml"
    given.write_text(config.to_yaml(), encoding="utf-8")
    launches = Path(__file__).parents[2] / "configs" / "accelerate" / "cpus_1x2.yaml"
    command = {
        "torchrun": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
        "accelerate": [
            sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(launches),
        ],
    }[launcher]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def launch(*more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*command, "-m", "rectune", "train", str(given), *more], env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    first = launch()
    try:
        wait_for_step(config.output_dir, 2)
        os.killpg(first.pid, signal.SIGINT)  # as a terminal does, to the launcher and to both
        said, _ = first.communicate(timeout=_WAIT)
    finally:
        _kill_all(first.pid)
    assert first.returncode != 0 and "stopped: stopped at step" in said and "--resume" in said
    second = launch("--resume")
    try:
        said, _ = second.communicate(timeout=_WAIT)
    finally:
        _kill_all(second.pid)
    assert second.returncode == 0, said
    assert "RESUMING" in said and said.count("processes: 2 ") == 1
    assert adapter(config.output_dir) == adapter(two)


def _kill_all(launcher: int) -> None:
    """Kill a launcher that has not ended, with what it has started."""
    try:
        processes = [psutil.Process(launcher), *psutil.Process(launcher).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
