"""Short prompts and short runs on the tiny Qwen3, on one thread: with several, a busy machine makes them crawl."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

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
