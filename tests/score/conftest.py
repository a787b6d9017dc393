"""The tuned tiny run, opened once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rectune.prompt.tree import Trees


def silent(_line: str) -> None:
    """Say nothing."""


@pytest.fixture(scope="session")
def opened(tiny_run: Path) -> Any:
    from rectune.score.open_run import open_run

    return open_run(tiny_run, [], silent)


@pytest.fixture(scope="session")
def data(opened: Any) -> Any:
    from rectune.score.score import open_data

    return open_data(opened, silent)


@pytest.fixture(scope="session")
def trees(opened: Any, data: Any) -> Trees:
    """Prompts of the test events, of different lengths."""
    from rectune.prompt.encode import encode, sample_rows

    rows = sample_rows(data.events, "train", 26, 1)
    config = opened.config
    found = encode(config, data.events, data.catalog, data.content_hash, opened.prompts, rows, silent)
    assert len(np.unique(found.lengths)) > 3
    return found
