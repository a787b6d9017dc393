"""Whole files or none: atomic writes and content hashes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rectune.errors import ResourceError

_CHUNK = 1 << 20
# safetensors and polars wrap the system's error; torch's zip writer only hints at it.
_DISK_SIGNS = (
    "no space left",
    "os error 28",
    "quota exceeded",
    "disk is full",
    "pytorchstreamwriter failed",
    "unexpected pos",
)
_HOST = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:40] or "host"
_LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<host>[A-Za-z0-9-]+)\.(?P<process>\d+)\.tmp")
_DAY = 86_400


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Put every file and folder of a tree on the disk, names last, so that no power cut can take them back."""
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            _sync(Path(place) / name)
        _sync(Path(place))


def make_folder(folder: Path) -> None:
    """Make a folder and those above it where they are missing, each one's name on the disk."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for place in reversed(missing):
        _sync(place.parent)


def temporary_beside(path: Path) -> Path:
    """Where this process writes what is to become `path`: `.NAME.HOST.PROCESS.tmp` in the same folder."""
    return path.with_name(f".{path.name}.{_HOST}.{os.getpid()}.tmp")


def _retired(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def runs(process: int) -> bool:
    """Whether there is a process of this number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # it runs, under another user
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path, alone: bool = False) -> list[str]:
    """Remove what killed processes left half-written in a folder, and return the names of what it was to become.

    Those of a process that runs stay, and so do, for a day, those of other machines, whose processes cannot be seen.

    Args:
        folder: looked at itself, not below.
        alone: the caller holds the lock of this run folder and has written nothing yet: what bears its own number is
            an earlier process's, and a folder that was moved aside for a new one that never came is put back.
    """
    removed = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if alone and path.name.startswith(".") and path.name.endswith(".old"):
            target = path.with_name(path.name[1:].removesuffix(".old"))
            if target.exists():
                _remove(path)
            else:
                os.replace(path, target)
        match = _LEFTOVER.fullmatch(path.name)
        if match is None:
            continue
        process = int(match["process"])
        if _is_dead(path, match["host"], process) or (alone and process == os.getpid()):
            _remove(path)
            removed.append(match["name"])
    return removed


def _is_dead(path: Path, host: str, process: int) -> bool:
    """Whether the process that was writing a temporary file or folder is gone."""
    if host == _HOST:
        return not runs(process)
    try:
        return time.time() - path.stat().st_mtime > _DAY
    except FileNotFoundError:
        return False


def disk_problem(error: BaseException) -> bool:
    """Whether an error, of whatever library or our line about it, says that the disk is full."""
    if isinstance(error, ResourceError) and error.__cause__ is not None:
        return disk_problem(error.__cause__)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    text = str(error).lower()
    return any(sign in text for sign in _DISK_SIGNS)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full or read-only disk into one line that names the path."""
    try:
        yield
    except Exception as error:
        if disk_problem(error):
            raise ResourceError(
                f"{path}: the disk is full; nothing that was there before has changed. "
                "Free some space or choose another folder, then run the same command again"
            ) from error
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise ResourceError(f"{path}: no permission to write here; choose another folder") from error
        raise


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path` that replaces it when the block ends without an error.

    A reader sees the old file or the new one, never a part. On an error the old file stays as it was.

    Raises:
        ResourceError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    temporary = temporary_beside(path)
    with disk_errors(path):
        make_folder(path.parent)
        try:
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder that takes the place of `path` when the block ends without an error.

    An existing folder is moved aside first and removed after the swap, so that a kill at any moment leaves
    the old folder or the new one under `path` (or, for an instant, neither: the old one then lies beside it
    under a name ending in `.old`).

    Raises:
        ResourceError: the disk is full or the parent folder cannot be written.
    """
    path = Path(path)
    temporary, retired = temporary_beside(path), _retired(path)
    with disk_errors(path):
        make_folder(path.parent)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            yield temporary
            sync_tree(temporary)
            if path.exists():
                shutil.rmtree(retired, ignore_errors=True)
                os.replace(path, retired)
            os.replace(temporary, path)
            _sync(path.parent)
            shutil.rmtree(retired, ignore_errors=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 with `\\n` line ends, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_once(path: Path, text: str) -> None:
    """Write a file that nobody has written yet, whole or not at all, whoever else tries at the same time.

    Raises:
        FileExistsError: somebody has.
    """
    temporary = temporary_beside(path)
    with disk_errors(path):
        temporary.write_text(text, encoding="utf-8", newline="\n")
        try:
            os.link(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def append_line(path: Path, line: str) -> None:
    """Append one line to a log and flush it; a kill can at worst cut this last line."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def hash_text(*parts: str) -> str:
    """SHA-256 of several strings, each with its length, so that no two lists of parts collide by joining."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(f"{len(data)}:".encode())
        digest.update(data)
    return digest.hexdigest()


def cache_root() -> Path:
    """Where fetched files are kept: `$RECTUNE_CACHE`, or `~/.cache/rectune`."""
    own = os.environ.get("RECTUNE_CACHE")
    return Path(own).expanduser() if own else Path.home() / ".cache" / "rectune"
