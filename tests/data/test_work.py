"""Pieces that end the processes that make them."""

from __future__ import annotations

from pathlib import Path

import pytest

from rectune.data.work import Work
from rectune.errors import ResourceError


def test_a_piece_over_which_three_processes_have_died_is_given_up_until_the_next_call(tmp_path: Path) -> None:
    work = Work(tmp_path / "work", {"of": 1})
    assert [Work.beside(work.folder).begin("a") for _ in range(3)] == [1, 2, 3]
    assert work.begin("b") == 1
    with pytest.raises(ResourceError, match="3 processes have died over a, most likely for want of memory"):
        work.begin("a")
    assert Work(tmp_path / "work", {"of": 1}).begin("a") == 1


def test_who_has_kept_something_or_finished_is_not_counted(tmp_path: Path) -> None:
    work = Work(tmp_path / "work", {"of": 1})
    for _ in range(5):
        assert work.begin("a") == 1
        work.got_on("a")
    for _ in range(5):
        assert work.begin("b") == 1
        work.finish("b")
    assert sorted(file.name for file in work.folder.iterdir()) == ["b.done", "key.json"]


def test_who_looks_at_pieces_beside_another_removes_nothing(tmp_path: Path) -> None:
    work = Work(tmp_path / "work", {"of": 1})
    work.finish("a", {"rows": 3})
    (work.folder / "key.json").unlink()  # as a network's file system may show it for a moment
    beside = Work.beside(work.folder)
    assert beside.told("a", "rows") == 3 and work.path("a.done").exists()
