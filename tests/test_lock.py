"""One process in a run folder: the lock ends with its holder, however that ends."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import time
from pathlib import Path

import pytest

from rectune.errors import ConfigError
from rectune.lock import NAME, run_lock


def holder(run: Path) -> int:
    """A process that holds a run folder until it is killed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with run_lock(run):
            os.write(writing, b"x")
            time.sleep(60)
        os._exit(0)
    os.read(reading, 1)
    return child


def test_a_second_process_is_refused_and_told_who_holds_the_folder(tmp_path: Path) -> None:
    child = holder(tmp_path / "run")
    try:
        with pytest.raises(ConfigError, match=rf"run is in use by another rectune \(process {child}\); wait for it"):
            run_lock(tmp_path / "run").__enter__()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_killed_holder_stops_nobody(tmp_path: Path) -> None:
    child = holder(tmp_path / "run")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert (tmp_path / "run" / NAME).read_text() == str(child)  # its file is still there
    with run_lock(tmp_path / "run"):
        assert (tmp_path / "run" / NAME).read_text() == str(os.getpid())


def test_a_folder_made_for_the_lock_alone_goes_with_it(tmp_path: Path) -> None:
    with run_lock(tmp_path / "empty"):
        pass
    assert not (tmp_path / "empty").exists()
    with run_lock(tmp_path / "used"):
        (tmp_path / "used" / "config.yaml").write_text("seed: 1")
    assert [path.name for path in (tmp_path / "used").iterdir()] == ["config.yaml"]


def test_the_lock_can_be_taken_again_when_it_was_given_back(tmp_path: Path) -> None:
    for _ in range(2):
        with run_lock(tmp_path), pytest.raises(ConfigError, match="in use"):
            run_lock(tmp_path).__enter__()


def test_a_file_in_place_of_the_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("dear")
    with pytest.raises(ConfigError, match="run is a file; name a folder"):
        run_lock(tmp_path / "run").__enter__()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said_and_stops_nobody(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", none)
    lines: list[str] = []
    with run_lock(tmp_path / "run", lines.append):
        assert (tmp_path / "run" / NAME).read_text() == str(os.getpid())
    assert len(lines) == 1 and lines[0].startswith(f"lock: this file system has none ({os.strerror(code)})")
    assert not (tmp_path / "run").exists()


def test_another_error_of_the_lock_is_not_taken_for_a_file_system_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        run_lock(tmp_path / "run", print).__enter__()
