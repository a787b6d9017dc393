"""Which reader reads what, and a source without ratings on its way through the program."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rectune.config import Config
from rectune.data.sources.formats import format_of, local_path, source_of
from rectune.errors import ConfigError, DataError

Write = Callable[..., Path]


def test_a_movielens_folder_and_its_zip_are_recognised(write_set: Write, zipped: Callable[..., Path]) -> None:
    folder = write_set()
    for path in (folder, zipped(folder, "ml/")):
        assert format_of(Config(dataset=str(path)), path).name == "movielens"


def test_a_folder_of_something_else_is_refused_with_what_it_holds_and_what_is_known(tmp_path: Path) -> None:
    (tmp_path / "songs.mp3").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"holds songs\.mp3, which is not a MovieLens folder or zip.*source_format"):
        format_of(Config(dataset=str(tmp_path)), tmp_path)


def test_a_format_that_is_named_is_taken_without_a_look(tmp_path: Path) -> None:
    config = Config(dataset=str(tmp_path), source_format="movielens")
    with pytest.raises(DataError, match="no MovieLens files here"):
        source_of(config)


def test_a_known_name_is_no_path_even_where_a_file_has_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ml-1m").mkdir()
    assert local_path(Config(dataset="ml-1m")) is None
    assert source_of(Config(dataset="ml-1m")) == {"kind": "published", "name": "ml-1m"}
