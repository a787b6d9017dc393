"""A run that is killed, stopped or continued ends with the bytes of the run that was left alone."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from victims import LONG, Start, adapter, contents, flip, logged, steps, wait_for_step

from rectune.config import Config, load_config
from rectune.errors import ConfigError, ModelError
from rectune.model.lora import ADAPTER_FILE
from rectune.pipeline import _changed_keys
from rectune.train.checkpoints import mark_complete
from rectune.train.start import Resume

Run = Callable[..., tuple[Path, list[str]]]


@pytest.mark.parametrize(("packing", "step"), [(False, 9), (True, 6)])
def test_a_run_killed_at_some_step_resumes_to_the_same_bytes(
    packing: bool, step: int, make: Callable[..., Config], run: Run, start: Start, uninterrupted: Any
) -> None:
    keys = {**LONG, "packing": packing, "cutoff_len": 512}
    config = make(**keys)
    victim = start(config)
    wait_for_step(config.output_dir, step)
    victim.send(signal.SIGKILL)
    assert victim.end() == -signal.SIGKILL
    folder, lines = run(Resume(latest=True), **keys)
    if packing:
        prompts, rows = map(int, re.findall(r"packing: (\d+) trees in (\d+) ", "\n".join(lines))[0])
        assert prompts >= 2 * rows
    banner = next(line for line in lines if "RESUMING" in line)
    begun = int(banner.split("last completed step: ")[1].split()[0])
    assert begun in (4, 8, 12) and f"next step: {begun + 1}" in banner and "epoch: 0." in banner
    assert adapter(folder) == uninterrupted(packing)
    assert steps(folder, "loss") == list(range(1, 17))
    assert steps(folder, "eval_loss") == [3, 6, 9, 12, 15, 16]


def test_a_run_killed_while_saving_a_checkpoint_resumes_from_the_one_before(
    make: Callable[..., Config], run: Run, start: Start, uninterrupted: Any
) -> None:
    config = make(**LONG)
    assert start(config, die=r"\.checkpoint-8\..*/\.complete\.json").end() == -signal.SIGKILL
    left = [path.name for path in config.output_dir.iterdir() if "checkpoint-8" in path.name]
    assert len(left) == 1 and left[0].startswith(".checkpoint-8.") and left[0].endswith(".tmp")
    folder, lines = run(Resume(latest=True), **LONG)
    assert "start: removed what a killed process left half-written: checkpoint-8" in lines
    assert any("last completed step: 4" in line for line in lines)
    assert adapter(folder) == uninterrupted(False)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_save_a_checkpoint_and_the_run_resumes_to_the_same_bytes_and_log(
    number: signal.Signals,
    make: Callable[..., Config],
    run: Run,
    start: Start,
    uninterrupted: Any,
    tmp_path: Path,
) -> None:
    keys = {**LONG, "logging_steps": 4}  # averages over 4 steps, so that a stop falls between two log lines
    config = make(**keys)
    victim = start(config)
    wait_for_step(config.output_dir, 6)
    victim.send(number)
    assert victim.end() == 130
    assert "a checkpoint will be saved" in victim.text("out")
    err = victim.text("err")
    assert err.startswith("stopped: stopped at step") and "--resume" in err and err.count("\n") == 1
    stopped = int(err.split("step ")[1].split(";")[0])
    assert (config.output_dir / f"checkpoint-{stopped}" / "complete.json").is_file()
    folder, lines = run(Resume(latest=True), **keys)
    assert any(f"last completed step: {stopped}" in line for line in lines)
    assert adapter(folder) == uninterrupted(False)
    alone, _ = run(**keys, output_dir=str(tmp_path / "alone"))
    losses = [[log["loss"] for log in logged(each) if "loss" in log] for each in (folder, alone)]
    assert len(losses[0]) == 4 and losses[0] == losses[1]


def test_resume_without_a_checkpoint_starts_fresh_and_says_so(run: Run, finished: Path, tmp_path: Path) -> None:
    folder, lines = run(Resume(latest=True), output_dir=str(tmp_path / "fresh"))
    assert f"resume: {folder} holds no usable checkpoint, so training starts from the beginning" in lines
    assert adapter(folder) == adapter(finished)


def test_a_damaged_checkpoint_is_passed_over_with_a_line(run: Run, finished: Path) -> None:
    before = adapter(finished)
    flip(finished / "checkpoint-8" / "optimizer.pt")
    folder, lines = run(Resume(latest=True))
    said = "resume: checkpoint-8 is passed over: optimizer.pt is damaged: its content is not what was saved"
    assert said in lines
    assert adapter(folder) == before


def test_a_finished_run_without_usable_checkpoints_is_not_started_over_by_resume(run: Run, finished: Path) -> None:
    for name in ("checkpoint-4", "checkpoint-8"):
        shutil.rmtree(finished / name)
    before = contents(finished)
    with pytest.raises(ConfigError, match="an adapter without a usable checkpoint"):
        run(Resume(latest=True))
    assert contents(finished) == before


def test_resuming_a_finished_run_trains_no_further_step(run: Run, finished: Path) -> None:
    before = adapter(finished)
    (finished / ADAPTER_FILE).unlink()  # as if killed between the last step and the publishing of the adapter
    folder, lines = run(Resume(latest=True))
    assert any("nothing is left to train, its last step is reached" in line for line in lines)
    assert adapter(folder) == before
    assert max(log["step"] for log in json.loads((folder / "log_history.json").read_text())) == 8


def test_resume_from_a_named_checkpoint_goes_on_from_there(run: Run, finished: Path) -> None:
    before = adapter(finished)
    folder, lines = run(Resume(checkpoint=finished / "checkpoint-4"))
    assert any("last completed step: 4\n" in line for line in lines)
    assert adapter(folder) == before


def test_a_named_checkpoint_of_another_run_needs_a_folder_of_its_own(run: Run, finished: Path, tmp_path: Path) -> None:
    before = adapter(finished)
    folder, _ = run(Resume(checkpoint=finished / "checkpoint-4"), output_dir=str(tmp_path / "branch"))
    assert adapter(folder) == before
    with pytest.raises(ConfigError, match="is another's checkpoint"):
        run(Resume(checkpoint=finished / "checkpoint-4"), output_dir=str(tmp_path / "branch"))


def test_a_missing_or_damaged_named_checkpoint_is_refused(run: Run, finished: Path) -> None:
    with pytest.raises(ModelError, match="checkpoint-5: no such checkpoint"):
        run(Resume(checkpoint=finished / "checkpoint-5"))
    flip(finished / "checkpoint-4" / ADAPTER_FILE)
    before = contents(finished)
    with pytest.raises(ModelError, match=f"{ADAPTER_FILE} is damaged"):
        run(Resume(checkpoint=finished / "checkpoint-4"))
    assert contents(finished) == before


def test_a_resumed_run_that_finds_nothing_better_publishes_the_best_adapter_of_before(run: Run, finished: Path) -> None:
    best = json.loads((finished / "checkpoint-4" / "kept" / "best" / "step.json").read_text())
    assert best["step"] == 4
    kept = adapter(finished / "checkpoint-4" / "kept" / "best")
    # From here on nothing is learned, so that no later evaluation can be strictly better.
    folder, lines = run(Resume(checkpoint=finished / "checkpoint-4"), learning_rate=1e-30)
    assert any(line.startswith("resume: learning_rate was 0.01 and is now 1e-30") for line in lines)
    assert adapter(folder) == kept
    assert json.loads((folder / "best" / "step.json").read_text())["step"] == 4


def test_extra_epochs_train_on_and_the_step_counter_goes_on(run: Run, make: Callable[..., Config]) -> None:
    keys: dict[str, Any] = {
        "max_steps": -1,
        "num_train_epochs": 1.0,
        "max_train_samples": 16,
        "save_steps": 2,
        "logging_steps": 1,
        "sweep": {"num_train_epochs": [1.0, 1.5]},  # which two epochs are none of
    }
    folder, _ = run(**keys)
    assert steps(folder, "loss") == [1, 2, 3, 4]
    again, lines = run(Resume(latest=True, extra_epochs=1), **keys)
    assert any("last completed step: 4" in line and "epoch: 1.00" in line for line in lines)
    assert again == folder
    assert steps(folder, "loss") == list(range(1, 9))
    assert logged(folder)[-1]["epoch"] == 2.0
    assert load_config(folder).num_train_epochs == 2.0
    assert _changed_keys(make(**keys), folder) == []

    # Cut off after step 6, the run knows without being told again that two epochs were asked for.
    shutil.rmtree(folder / "checkpoint-8")
    _, lines = run(Resume(latest=True), **keys)
    assert any("last completed step: 6" in line for line in lines)
    assert not any("num_train_epochs" in line for line in lines)
    assert steps(folder, "loss") == list(range(1, 9))


def test_resuming_over_changed_data_is_refused_with_both_hashes(run: Run, finished: Path) -> None:
    file = finished / "checkpoint-4" / "rectune.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"data_hash": "0123456789abcdef", "sha256": None}))
    mark_complete(finished / "checkpoint-4")
    before = contents(finished)
    with pytest.raises(ConfigError, match=f"content is {values['data_hash'][:12]} now, .* trained on 0123456789ab;"):
        run(Resume(checkpoint=finished / "checkpoint-4"))
    assert contents(finished) == before


def test_extra_epochs_beside_max_steps_are_refused(run: Run) -> None:
    with pytest.raises(ConfigError, match="--extra-epochs: max_steps decides"):
        run(Resume(latest=True, extra_epochs=1))


def test_a_folder_that_holds_a_run_is_refused_and_left_untouched(run: Run, finished: Path) -> None:
    before = contents(finished)
    with pytest.raises(ConfigError, match="already holds a run; go on with --resume"):
        run()
    assert contents(finished) == before


def test_overwrite_starts_over_and_refuses_what_is_no_run(run: Run, finished: Path, tmp_path: Path) -> None:
    (finished / "checkpoint-99").mkdir()
    folder, _ = run(overwrite=True, max_steps=2)
    assert not (folder / "checkpoint-99").exists() and (folder / "checkpoint-2").is_dir()
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.tex").write_text("dear")
    with pytest.raises(ConfigError, match="is no run folder"):
        run(overwrite=True, output_dir=str(tmp_path / "papers"))
    assert (tmp_path / "papers" / "thesis.tex").read_text() == "dear"
    with pytest.raises(ConfigError, match="choose one of the two"):
        run(Resume(latest=True), overwrite=True)


def test_overwrite_removes_nothing_when_the_new_run_cannot_start(run: Run, finished: Path, tmp_path: Path) -> None:
    before = contents(finished)
    with pytest.raises(ConfigError, match="no known name and no file or folder here"):
        run(overwrite=True, dataset=str(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match="no such folder"):
        run(overwrite=True, model_name_or_path=str(tmp_path / "nowhere"))
    assert contents(finished) == before
