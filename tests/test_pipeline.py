"""`rectune run`: prepare, train, evaluate; what is done is not done again."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from rectune.config import Config
from rectune.errors import ConfigError
from rectune.model.lora import ADAPTER_FILE
from rectune.pipeline import _say_next, run_all

SHORT: dict[str, Any] = {"history_len": 3, "max_steps": 2, "eval_steps": 2, "save_steps": 1}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pipeline(config: Config, resume: bool = False, overwrite: bool = False) -> str:
    """What a run says, the table included."""
    console = Console(record=True, width=160, file=io.StringIO())
    lines: list[str] = []
    run_all(config, resume, overwrite, lines.append, console)
    return "\n".join([*lines, console.export_text()])


def test_one_command_goes_from_ratings_to_a_report_and_a_second_does_not_train_again(
    tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    config = tiny_config(**SHORT)
    said = pipeline(config)
    run = config.output_dir
    for head in ("[1/3] prepare the data", "[2/3] train", "[3/3] evaluate on test, untuned beside tuned"):
        assert head in said
    for word in ("untuned", "tuned", "item like-rate", "AUC", "UAUC", "accuracy", "F1"):
        assert word.lower() in said.lower()
    assert f"report: {run / 'report.html'}" in said and (run / "report.html").is_file()
    assert said.count("rectune score") == 1 and said.count("rectune compare") == 1
    report = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert {"tuned", "untuned", "item like-rate", "stack"} < set(report["models"])
    assert all(report["models"]["tuned"]["intervals"]["accuracy"])

    adapter = (run / ADAPTER_FILE).read_bytes()
    again = pipeline(config)
    assert "already trained with this configuration; --overwrite trains again" in again
    assert (run / ADAPTER_FILE).read_bytes() == adapter

    with pytest.raises(ConfigError, match="holds a finished run with another learning_rate"):
        pipeline(tiny_config(**SHORT, learning_rate=0.02))
    assert (run / ADAPTER_FILE).read_bytes() == adapter

    longer = pipeline(tiny_config(**{**SHORT, "max_steps": 3}), resume=True)
    assert "last completed step: 2" in longer and "resume: max_steps was 2 and is now 3" in longer

    fresh = pipeline(tiny_config(**SHORT, learning_rate=0.02), overwrite=True)
    assert "RESUMING" not in fresh
    assert (run / ADAPTER_FILE).read_bytes() != adapter


def test_a_killed_run_goes_on_by_itself_with_the_same_configuration_only(tiny_config: Callable[..., Config]) -> None:
    config = tiny_config(**SHORT)
    pipeline(config)
    run = config.output_dir
    (run / "log_history.json").unlink()  # as if killed before the end
    shutil.rmtree(run / "checkpoint-2")
    with pytest.raises(ConfigError, match="go on with --resume"):
        pipeline(tiny_config(**SHORT, learning_rate=0.02))
    said = pipeline(config)
    assert "an unfinished run with this configuration, so it goes on" in said and "last completed step: 1" in said

    (run / "log_history.json").unlink()
    (run / "adapter_model.safetensors").unlink()  # killed before it was published
    for folder in run.glob("checkpoint-*"):
        (folder / "complete.json").unlink()
    assert "training starts from the beginning" in pipeline(config)


@pytest.mark.parametrize(
    ("found", "typed", "shown"),
    [
        ("/usr/bin/rectune", "rectune", "rectune"),
        (None, ".venv/bin/rectune", ".venv/bin/rectune"),
        (None, "x.py", "rectune"),
    ],
)
def test_the_closing_lines_work_as_typed(
    found: str | None, typed: str, shown: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: found)
    monkeypatch.setattr("sys.argv", [typed])
    lines: list[str] = []
    _say_next(tmp_path / "a run", lines.append)
    assert lines[1].startswith(f"  {shown} score '{tmp_path / 'a run'}' --demo ")
    assert lines[3].startswith(f"  {shown} inspect demo_cpu ")
    assert len(lines) == (5 if torch.cuda.is_available() else 4)


def test_an_unfinished_run_is_not_started_over_unasked(tiny_config: Callable[..., Config]) -> None:
    config = tiny_config(**SHORT)
    (config.output_dir / "checkpoint-1").mkdir(parents=True)
    with pytest.raises(ConfigError, match="go on with --resume"):
        pipeline(config)
