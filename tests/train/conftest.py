"""Short prompts and short runs on the tiny Qwen3, on one thread: with several, a busy machine makes them crawl."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from victims import LONG, Victim, adapter

from rectune.config import Config
from rectune.train.start import Resume
from rectune.train.train import train

QUIET = Console(quiet=True)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all these tests share one prepared dataset and its tokens."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture
def make(tiny_config: Callable[..., Config], shared_folder: Path) -> Callable[..., Config]:
    """Configurations with prompts of about 150 tokens."""

    def build(**values: Any) -> Config:
        short = {
            "dataset_dir": str(shared_folder / "data"),
            "preprocessing_cache_dir": str(shared_folder / "cache"),
            "history_len": 3,
            "system_prompt": "",
            "instruction": "Will I like it?",
            "history_header": "",
            "candidate_header": "Film:",
            "question": "Yes or No?",
            "cutoff_len": 256,
            "per_device_train_batch_size": 2,
        }
        return tiny_config(**{**short, **values})

    return build


@pytest.fixture
def run(make: Callable[..., Config]) -> Callable[..., tuple[Path, list[str]]]:
    """Trains with these keys and returns the run folder and what was said."""

    def go(resume: Resume | None = None, overwrite: bool = False, **values: Any) -> tuple[Path, list[str]]:
        lines: list[str] = []
        folder = train(make(**values), lines.append, QUIET, resume, overwrite=overwrite)
        return folder, lines

    return go


@pytest.fixture(scope="session")
def nursery(nursery_script: Any) -> Iterator[Any]:
    with nursery_script.open_nursery(dict(os.environ)) as process:
        yield process
        process.kill()


@pytest.fixture
def start(nursery_script: Any, nursery: Any, tmp_path: Path) -> Iterator[Callable[..., Victim]]:
    """Starts `rectune train` on a configuration; `die` kills it when it touches a file of this name in the run."""

    victims: list[Victim] = []

    def go(config: Config, *more: str, die: str | None = None, **asked: Any) -> Victim:
        (tmp_path / "given.yaml").write_text(config.to_yaml(), encoding="utf-8")
        if die is not None:
            asked |= {"watched": [str(config.output_dir)], "die": {"at": die, "after": 0}}
        arguments = ["train", str(tmp_path / "given.yaml"), *more]
        process = nursery_script.start(nursery, arguments, tmp_path / "out", tmp_path / "err", **asked)
        victims.append(Victim(process, tmp_path))
        return victims[-1]

    yield go
    for victim in victims:
        if not victim.ended:  # of a test that failed: the next one must not read what it says
            victim.send(signal.SIGKILL)
            victim.end()


@pytest.fixture(scope="session")
def whole() -> dict[bool, bytes]:
    """Adapters of uninterrupted runs, by packing; filled on first use."""
    return {}


@pytest.fixture
def uninterrupted(
    run: Callable[..., tuple[Path, list[str]]], whole: dict[bool, bytes], tmp_path: Path
) -> Callable[[bool], bytes]:
    def of(packing: bool) -> bytes:
        if packing not in whole:
            folder, _ = run(**LONG, packing=packing, cutoff_len=512, output_dir=str(tmp_path / "whole"))
            whole[packing] = adapter(folder)
        return whole[packing]

    return of


@pytest.fixture(scope="session")
def finished_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("finished") / "run"


@pytest.fixture
def finished(run: Callable[..., tuple[Path, list[str]]], finished_store: Path, tmp_path: Path) -> Path:
    """An own copy, under `tmp_path/run`, of a finished run of 8 steps with checkpoints at 4 and 8."""
    if not finished_store.exists():
        folder, _ = run()
        shutil.copytree(folder, finished_store)
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    shutil.copytree(finished_store, tmp_path / "run")
    return tmp_path / "run"
