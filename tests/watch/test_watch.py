"""`rectune watch` on finished, running, stopped and killed runs, from the files of a real one."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from rectune.errors import DataError
from rectune.train import sweep_study
from rectune.watch import watch as stage
from rectune.watch.plots import Curve, draw, thin
from rectune.watch.read import STUDY, read_run, standing
from rectune.watch.watch import watch

Copy = Callable[[str], Path]


def seen(*folders: Path, width: int = 100, once: bool = True, terminal: bool = False, height: int = 60) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=width, height=height, force_terminal=terminal, color_system=None)
    watch(folders, once, False, print, console)
    return stream.getvalue()


def as_json(*folders: Path) -> list[dict[str, Any]]:
    said: list[str] = []
    watch(folders, True, True, said.append, Console(quiet=True))
    found: list[dict[str, Any]] = json.loads(said[0])
    return found


def change_status(folder: Path, **values: Any) -> None:
    file = folder / "logs" / "status.json"
    status = {**json.loads(file.read_text(encoding="utf-8")), **values}
    file.write_text(json.dumps(status), encoding="utf-8")


def training(folder: Path, **values: Any) -> None:
    """Make a finished run look like one that this process trains, half-way."""
    started = psutil.Process().create_time()
    mine = {"state": "training", "pid": os.getpid(), "process_started": started, "updated": time.time()}
    change_status(folder, **mine, step=4, max_steps=8, seconds_left=3725.0, **values)


def test_a_finished_run_shows_its_figures_curves_panel_and_last_lines(trained: Path) -> None:
    text = seen(trained)
    logs = [json.loads(line) for line in (trained / "logs" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    last = [log for log in logs if "eval_loss" in log][-1]
    assert f"{trained}  finished  step 8 of 8 (100%)" in text.replace("\n", "")
    best = min((log for log in logs if "eval_loss" in log), key=lambda log: log["eval_loss"])
    assert f"best loss {best['eval_loss']:.4f} at step {best['step']}" in text.replace("\n", "")
    assert f"validation at step 8:  loss {last['eval_loss']:.3f}  AUC {last['eval_auc']:.3f}" in text
    assert f"tp {last['eval_tp']}" in text and "labels/s" in text and "GiB resident" in text
    for title in ("loss  ▪ training  ▪ validation", "loss by class", "learning rate"):
        assert title in text
    assert max(text) >= "⠁" or "●" in text
    panel = [json.loads(line) for line in (trained / "logs" / "panel.jsonl").read_text(encoding="utf-8").splitlines()]
    assert panel[-1]["candidate_title"] in text and f"{panel[-1]['score']:.2f}" in text
    assert "trained: " in text


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_no_line_is_wider_than_the_terminal(copy: Copy, width: int) -> None:
    from rich.cells import cell_len

    first, second = copy("a"), copy("b")
    for text in (seen(first, width=width), seen(first, second, width=width)):
        assert max(cell_len(line) for line in text.splitlines()) <= width


def test_a_running_run_says_how_long_it_still_takes(copy: Copy) -> None:
    folder = copy("a")
    training(folder)
    text = seen(folder, width=200)
    assert "training  step 4 of 8 (50%)  1:02:0" in text and " left" in text
    assert as_json(folder)[0]["seconds_left"] == pytest.approx(3725, abs=60)


def test_a_run_that_has_been_quiet_for_long_is_called_silent_while_its_process_is_there(copy: Copy) -> None:
    folder = copy("a")
    training(folder, longest_wait=30.0)
    change_status(folder, updated=time.time() - 290)
    assert read_run(folder).state == "training"
    change_status(folder, updated=time.time() - 310)
    view = read_run(folder)
    assert view.state == "silent" and view.message.startswith("no line for 0:05:1")
    assert f"process {os.getpid()} on" in view.message and "is there" in view.message


def test_a_killed_run_is_told_from_a_running_one_and_says_how_to_go_on(copy: Copy) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = psutil.Process(child.pid).create_time()
    folder = copy("a")
    training(folder)
    change_status(folder, pid=child.pid, process_started=started)
    assert read_run(folder).state == "training"
    child.kill()
    child.wait()
    view = read_run(folder)
    assert view.state == "killed" and not view.alive
    assert view.message == f"its process {child.pid} is gone; go on with: rectune train {folder} --resume"
    # Another process that has been given the number of the dead one is not the run.
    training(folder)
    change_status(folder, process_started=psutil.Process().create_time() - 100)
    assert read_run(folder).state == "killed"


def test_a_run_of_another_machine_is_judged_by_the_age_of_its_last_line(copy: Copy) -> None:
    folder = copy("a")
    training(folder, host="elsewhere", longest_wait=1.0)
    change_status(folder, pid=1)
    assert read_run(folder).state == "training"
    change_status(folder, updated=time.time() - 1000)
    view = read_run(folder)
    assert view.state == "silent" and "cannot be seen from here" in view.message and "--resume" in view.message


@pytest.mark.parametrize("state", ["stopped", "failed"])
def test_a_run_that_ended_before_its_time_says_why_and_how_to_go_on(copy: Copy, state: str) -> None:
    folder = copy("a")
    change_status(folder, state=state, message="the disk is full")
    view = read_run(folder)
    assert (view.state, view.message) == (
        state,
        f"the disk is full; go on with: rectune train {folder} --resume",
    )
    assert "the disk is full" in seen(folder, width=200)


def test_a_run_whose_process_still_reads_its_data_is_preparing(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text(str(os.getpid()), encoding="utf-8")
    view = read_run(tmp_path)
    assert view.state == "preparing" and view.alive
    assert "nothing yet" in seen(tmp_path)


def test_a_run_of_an_earlier_version_is_finished_when_its_history_is_there(copy: Copy) -> None:
    folder = copy("a")
    for name in ("status.json", "panel.jsonl", "console.log"):
        (folder / "logs" / name).unlink()
    assert read_run(folder).state == "finished"
    (folder / "log_history.json").unlink()
    assert read_run(folder).state == "silent"


def test_a_folder_without_a_run_is_an_error_that_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no run here .*; give the output_dir of a training"):
        read_run(tmp_path)


def test_the_folder_of_a_sweep_says_which_folders_to_watch(tmp_path: Path) -> None:
    assert STUDY == sweep_study.FILE
    (tmp_path / ".lock").write_text(str(os.getpid()), encoding="utf-8")
    (tmp_path / STUDY).touch()
    with pytest.raises(DataError, match=r"a sweep, not a run; watch its trials, .*trials/NNN$"):
        read_run(tmp_path)
    (tmp_path / "trials" / "000").mkdir(parents=True)
    (tmp_path / "trials" / "001").mkdir()
    with pytest.raises(DataError, match=r"trials/NNN, such as .*trials/001$"):
        read_run(tmp_path)


def test_a_status_without_its_time_or_process_is_silent(tmp_path: Path) -> None:
    state, message = standing({"state": "training", "seconds_left": 5}, tmp_path, 0.0, "here")
    assert state == "silent" and "does not say when" in message and "--resume" in message


def test_a_line_that_is_being_written_is_left_out(copy: Copy) -> None:
    folder = copy("a")
    before = len(read_run(folder).logs)
    with (folder / "logs" / "log.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"loss": 0.1, "st')
    assert len(read_run(folder).logs) == before


def test_a_diagnosis_is_shown_with_its_advice(copy: Copy) -> None:
    folder = copy("a")
    found = [{"code": "collapse", "step": 4, "message": "every answer is Yes", "advice": "halve learning_rate"}]
    (folder / "logs" / "diagnosis.json").write_text(json.dumps(found), encoding="utf-8")
    assert "diagnosis, step 4: every answer is Yes; halve learning_rate" in seen(folder)
    assert as_json(folder)[0]["diagnosis"] == found
    assert "diagnosis of" in seen(folder, copy("b"))


def test_several_runs_stand_in_one_table_and_share_their_plots(copy: Copy) -> None:
    first, second = copy("a"), copy("b")
    training(second)
    text = seen(first, second, width=140)
    assert " ▪ a " in text and " ▪ b " in text
    assert "finished" in text and "training" in text and "4/8" in text and "8/8" in text
    assert text.count("validation AUC") == 1
    assert [run["run"] for run in as_json(first, second)] == [str(first), str(second)]


def test_json_has_the_latest_lines_the_best_and_the_panel(trained: Path) -> None:
    (found,) = as_json(trained)
    logs = [json.loads(line) for line in (trained / "logs" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert found["training"] == [log for log in logs if "loss" in log][-1]
    assert found["evaluation"] == [log for log in logs if "eval_loss" in log][-1]
    assert found["best"]["value"] == min(log["eval_loss"] for log in logs if "eval_loss" in log)
    assert {line["step"] for line in found["panel"]} == {8} and len(found["panel"]) == 8


def test_with_a_terminal_it_looks_again_until_the_run_ends(copy: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copy("a")
    training(folder)
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            change_status(folder, state="finished", step=8)

    monkeypatch.setattr(stage.time, "sleep", wait)
    text = seen(folder, once=False, terminal=True)
    assert len(waits) == 2
    assert "step 4 of 8" in text and "step 8 of 8" in text.rsplit("\x1b[?1049l", 1)[1]


def test_without_a_terminal_a_running_run_is_shown_once(copy: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copy("a")
    training(folder)
    monkeypatch.setattr(stage.time, "sleep", lambda _seconds: pytest.fail("it waited"))
    assert "step 4 of 8" in seen(folder, once=False)


def test_ctrl_c_leaves_what_was_seen_last(copy: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copy("a")
    training(folder)

    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stage.time, "sleep", interrupt)
    assert "step 4 of 8" in seen(folder, once=False, terminal=True).rsplit("\x1b[?1049l", 1)[1]


def test_a_low_terminal_gets_the_curves_without_panel_and_lines(copy: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copy("a")
    view = read_run(folder)
    stream = io.StringIO()
    Console(file=stream, width=100).print(stage.view([view], 100, 24))
    assert len(stream.getvalue().splitlines()) <= 24 and "panel" not in stream.getvalue()


def test_the_command_imports_no_torch(trained: Path) -> None:
    code = (
        "import sys; from rectune.cli import main\n"
        f"try: main(['watch', {str(trained)!r}, '--once'])\n"
        "except SystemExit: pass\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "finished" in done.stdout, done.stderr


def test_a_curve_without_points_says_so_and_numbers_that_are_none_are_left_out(copy: Copy) -> None:
    assert "nothing yet" in draw("loss", [Curve("training", 39, [], [])], 40, 8).plain
    folder = copy("a")
    with (folder / "logs" / "log.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"loss": NaN, "step": 9}\n{"loss": Infinity, "step": 10}\n')
    assert read_run(folder).curve("loss")[0][-1] == 8
    assert "loss" in seen(folder)


def test_a_flat_curve_and_a_single_point_are_drawn() -> None:
    for steps, values in (([1, 2, 3], [0.5, 0.5, 0.5]), ([7], [0.0])):
        assert "⠉" in (text := draw("AUC", [Curve("", 39, steps, values)], 40, 8).plain) or "●" in text


def test_a_long_curve_is_thinned_by_means() -> None:
    steps, values = thin(range(1000), [1.0] * 1000, 100)
    assert len(steps) == 100 and set(values) == {1.0} and steps[0] == 4.5
