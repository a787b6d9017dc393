"""The examples in the docstrings of what `rectune watch` reads and draws."""

from __future__ import annotations

import doctest

import pytest

from rectune.train import best, record
from rectune.watch import plots, show


@pytest.mark.parametrize("module", [best, record, plots, show])
def test_the_examples_hold(module: object) -> None:
    found = doctest.testmod(module)  # type: ignore[arg-type]
    assert found.attempted > 0 and found.failed == 0
