"""Tiny runs with random adapters, as training leaves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_runs import MakeRun, write_run


@pytest.fixture
def make_run(tmp_path: Path, tiny_qwen3: Path, movielens: Path) -> MakeRun:
    """Makes a run under the test's own folder; a stream of labels, if nothing else is said."""

    def make(**keys: Any) -> Path:
        stream = {"layout": "stream", "history_shows": "label"}
        return write_run(tmp_path, tiny_qwen3, movielens, **{**stream, **keys})

    return make


@pytest.fixture(scope="session")
def stream_run(tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path, movielens: Path) -> Path:
    """A run of the stream layout, calibrated; tests do not change it."""
    root = tmp_path_factory.mktemp("stream-run")
    return write_run(root, tiny_qwen3, movielens, layout="stream", history_shows="label", temperature=1.7, offset=-0.3)


@pytest.fixture(scope="session")
def pointwise_run(tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path, movielens: Path) -> Path:
    """A run of the pointwise layout in the chat template; tests do not change it."""
    root = tmp_path_factory.mktemp("pointwise-run")
    return write_run(root, tiny_qwen3, movielens, layout="pointwise")
