"""Whole files or none, also when the disk is full: pretended, and for real where a small disk can be mounted."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from rich.console import Console

from rectune import files
from rectune.config import Config
from rectune.data.prepare import prepare
from rectune.errors import ResourceError
from rectune.files import (
    append_line,
    atomic_folder,
    atomic_path,
    cache_root,
    disk_problem,
    hash_file,
    hash_text,
    remove_leftovers,
    temporary_beside,
    write_json,
    write_once,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_when_the_block_ends(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "a.txt"
    write_text(file, "old")
    with atomic_path(file) as temporary:
        temporary.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    assert names(file.parent) == ["a.txt"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    write_text(file, "old")
    with pytest.raises(ZeroDivisionError), atomic_path(file) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert file.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_folder_is_replaced_whole_and_an_error_leaves_the_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    with atomic_folder(folder) as temporary:
        (temporary / "one").write_text("1")
    with pytest.raises(ZeroDivisionError), atomic_folder(folder) as temporary:
        (temporary / "two").write_text("2")
        raise ZeroDivisionError
    assert names(folder) == ["one"]
    with atomic_folder(folder) as temporary:
        (temporary / "two").write_text("2")
    assert names(folder) == ["two"]
    assert names(tmp_path) == ["set"]


KILLED = """
import os, signal, sys
from pathlib import Path
from rectune import files
folder, moment = Path(sys.argv[1]), int(sys.argv[2])
true, count = os.replace, 0
def replace(*paths):
    global count
    count += 1
    if count == moment:
        os.kill(os.getpid(), signal.SIGKILL)
    true(*paths)
os.replace = replace
with files.atomic_folder(folder) as temporary:
    (temporary / "new").write_text("new")
    if moment == 0:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("moment", [0, 1, 2])
def test_a_kill_leaves_the_old_folder_under_its_name_or_beside_it(moment: int, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    with atomic_folder(folder) as temporary:
        (temporary / "old").write_text("old")
    died = subprocess.run([sys.executable, "-c", KILLED, str(folder), str(moment)], capture_output=True)
    assert died.returncode == -9
    place = folder if moment < 2 else tmp_path / ".set.old"
    assert names(place) == ["old"]
    with atomic_folder(folder) as temporary:
        (temporary / "new").write_text("new")
    assert names(folder) == ["new"]
    assert not (tmp_path / ".set.old").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line_and_harms_nothing(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.txt"
    write_text(file, "old")

    def full(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match=r"a\.txt: the disk is full; nothing that was there before has changed"):
        write_text(file, "new")
    assert file.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_no_permission_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: Any) -> None:
        raise PermissionError(errno.EACCES, "denied")

    monkeypatch.setattr(os, "replace", denied)
    with pytest.raises(ResourceError, match=r"a\.txt: no permission to write here; choose another folder"):
        write_text(tmp_path / "a.txt", "new")
    assert names(tmp_path) == []


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a.txt"):
        pass  # nothing was written, so there is nothing to sync


def test_the_disk_errors_of_other_libraries_are_known() -> None:
    assert disk_problem(OSError(errno.ENOSPC, "No space left on device"))
    assert disk_problem(RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 89024 vs 88912"))
    assert disk_problem(ValueError("I/O error: No space left on device (os error 28)"))
    assert not disk_problem(OSError(errno.ENOENT, "No such file"))
    assert not disk_problem(RuntimeError("shape mismatch"))


def test_text_is_utf8_with_plain_line_ends_and_json_is_readable(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "é\n")
    assert (tmp_path / "a").read_bytes() == "é\n".encode()
    write_json(tmp_path / "b", {"title": "Amélie", "n": 1})
    assert (tmp_path / "b").read_text(encoding="utf-8") == '{\n  "title": "Amélie",\n  "n": 1\n}\n'
    append_line(tmp_path / "deep" / "log", "one")
    append_line(tmp_path / "deep" / "log", "two")
    assert (tmp_path / "deep" / "log").read_text() == "one\ntwo\n"


def test_hashes_are_sha256_and_parts_do_not_run_together(tmp_path: Path) -> None:
    data = bytes(range(256)) * 9000  # more than one chunk
    (tmp_path / "a").write_bytes(data)
    assert hash_file(tmp_path / "a") == hashlib.sha256(data).hexdigest()
    assert hash_text("a") == hashlib.sha256(b"1:a").hexdigest()
    assert len({hash_text("ab", "c"), hash_text("a", "bc"), hash_text("abc"), hash_text("abc", "")}) == 4


def test_the_cache_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECTUNE_CACHE", "/somewhere/else")
    assert cache_root() == Path("/somewhere/else")
    monkeypatch.delenv("RECTUNE_CACHE")
    assert cache_root() == Path.home() / ".cache" / "rectune"


def test_everything_below_a_folder_is_on_the_disk_before_its_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power cut may take: whatever was not synced when a name changed."""
    did: list[str] = []
    sync, replace = files._sync, os.replace
    monkeypatch.setattr(files, "_sync", lambda path: (did.append(f"sync {path.name}"), sync(path)))
    monkeypatch.setattr(os, "replace", lambda old, new: (did.append(f"name {new.name}"), replace(old, new)))
    (tmp_path / "set").mkdir()
    with atomic_folder(tmp_path / "set") as temporary:
        (temporary / "deep").mkdir()
        (temporary / "deep" / "one").write_text("1")
        (temporary / "two").write_text("2")
    at = {name: did.index(name) for name in did}
    own = temporary.name
    assert at["sync one"] < at["sync deep"] < at[f"sync {own}"] < at["name set"] < at[f"sync {tmp_path.name}"]
    assert at["sync two"] < at[f"sync {own}"]
    did.clear()
    write_text(tmp_path / "new" / "er" / "file", "x")
    own = temporary_beside(tmp_path / "new" / "er" / "file").name
    assert did == [f"sync {tmp_path.name}", "sync new", f"sync {own}", "name file", "sync er"]


def dead_process() -> int:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return child


def test_only_our_own_leavings_of_dead_processes_are_removed(tmp_path: Path) -> None:
    ours = temporary_beside(tmp_path / "a.json")
    host = ours.name.split(".")[-3]
    dead = tmp_path / f".a.json.{host}.{dead_process()}.tmp"
    folder = tmp_path / f".set.{host}.{dead_process()}.tmp"
    lives = tmp_path / f".a.json.{host}.{os.getppid()}.tmp"
    elsewhere, long_ago = tmp_path / ".b.other-host.7.tmp", tmp_path / ".c.other-host.7.tmp"
    foreign = [tmp_path / name for name in ("a.json", ".a.tmp", "x.host.7.tmp", ".hidden", ".notes.old")]
    (folder / "deep").mkdir(parents=True)
    for file in (ours, dead, lives, elsewhere, long_ago, folder / "deep" / "part", *foreign):
        file.write_text("x")
    os.utime(long_ago, (0, 0))
    assert remove_leftovers(tmp_path) == ["a.json", "c", "set"]
    assert {path.name for path in (ours, lives, elsewhere, *foreign)} == set(names(tmp_path))
    assert remove_leftovers(tmp_path / "nowhere") == []


def test_whoever_holds_the_lock_also_removes_what_bears_its_own_number_and_puts_an_old_folder_back(
    tmp_path: Path,
) -> None:
    temporary_beside(tmp_path / "a.json").write_text("left by a process that had our number")
    for name in (".lost.old", ".there.old", "there"):
        (tmp_path / name).mkdir()
    (tmp_path / ".lost.old" / "adapter").write_text("good")
    assert remove_leftovers(tmp_path, alone=True) == ["a.json"]
    assert names(tmp_path) == ["lost", "there"]
    assert (tmp_path / "lost" / "adapter").read_text() == "good"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real disk of 400 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    try:
        mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0
    except (OSError, AttributeError):
        mounted = False
    if not mounted:
        pytest.skip("a small disk can only be mounted as root on Linux")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_really_full_disk_leaves_the_old_file_of_every_library(small_disk: Path) -> None:
    file = small_disk / "a"
    write_text(file, "old")
    with pytest.raises(ResourceError, match="the disk is full"):
        write_text(file, "x" * 500_000)
    table = pl.DataFrame({"x": [os.urandom(1024) for _ in range(800)]})
    with pytest.raises(ResourceError, match="the disk is full"), atomic_path(file) as temporary:
        table.write_parquet(temporary)
    import numpy as np
    from safetensors.numpy import save_file

    with pytest.raises(ResourceError, match="the disk is full"), atomic_path(file) as temporary:
        save_file({"x": np.zeros(1 << 18)}, temporary)
    assert file.read_text() == "old"
    assert names(small_disk) == ["a"]


def test_preparing_on_a_full_disk_keeps_the_old_dataset(
    small_disk: Path, tiny_config: Callable[..., Config], movielens: Path
) -> None:
    config = tiny_config(dataset_dir=str(small_disk / "data"), history_len=3)
    prepare(config, say=lambda _line: None)
    before = {path.name: path.read_bytes() for path in config.dataset_folder().iterdir()}
    with (small_disk / "filler").open("wb", buffering=0) as stream, pytest.raises(OSError, match="No space"):
        while True:
            stream.write(b"\0" * 4096)
    with pytest.raises(ResourceError, match="the disk is full; nothing that was there before has changed"):
        prepare(config, force=True, say=lambda _line: None)
    assert {path.name: path.read_bytes() for path in config.dataset_folder().iterdir()} == before


def test_training_on_a_full_disk_says_so_and_goes_on_after_space_is_made(
    small_disk: Path, tiny_config: Callable[..., Config]
) -> None:
    import torch

    from rectune.train.start import Resume
    from rectune.train.train import train

    torch.set_num_threads(1)
    config = tiny_config(output_dir=str(small_disk / "run"), history_len=3, max_steps=4, eval_steps=4, save_steps=2)
    console = Console(quiet=True)
    with pytest.raises(ResourceError, match=r"run: the disk is full; (no|the last) checkpoint .* with --resume$"):
        train(config, lambda _line: None, console)
    assert not list((small_disk / "run").rglob(".*"))  # neither a half-written file nor the lock
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    lines: list[str] = []
    run = train(config, lines.append, console, Resume(latest=True))
    assert (run / "adapter_model.safetensors").is_file()
    assert json.loads((run / "log_history.json").read_text())


def test_of_several_who_write_a_file_once_the_first_is_kept(tmp_path: Path) -> None:
    write_once(tmp_path / "file", "first")
    with pytest.raises(FileExistsError):
        write_once(tmp_path / "file", "second")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("file", "first")]
