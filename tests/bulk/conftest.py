"""Pairs of the tiny run's users, and its run opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest


def silent(_line: str) -> None:
    """Say nothing."""


@pytest.fixture(scope="session")
def opened(tiny_run: Path) -> Any:
    from rectune.score.open_run import open_run

    return open_run(tiny_run, [], silent)


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty pairs of ten users with a history and one without, in no order, one of them twice, numbered."""
    draw = np.random.default_rng(4)
    users = [*map(str, range(1, 11)), "new"]
    rows = [(user, str(item)) for user in users for item in draw.permutation(np.arange(1, 31))[:6]]
    rows = [rows[index] for index in draw.permutation(len(rows))] + [rows[3]]
    file = tmp_path_factory.mktemp("pairs") / "pairs.parquet"
    pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row").with_row_index("n").write_parquet(file)
    return file
