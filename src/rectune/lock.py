"""One process at a time in a run folder."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rectune.errors import ConfigError
from rectune.files import disk_errors, make_folder

NAME = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What some network file systems answer."""
_PAUSE = 0.5
"""Seconds between two looks at a lock that is waited for."""

Say = Callable[[str], None]


def _lock(descriptor: int, say: Say) -> None:
    """Lock an open file, or say that this cannot be done where it lies.

    Raises:
        BlockingIOError: another process holds it.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        say(f"lock: this file system has none ({error.strerror}), so that no second rectune trains here is up to you")


def _acquire(file: Path, say: Say) -> int:
    """Descriptor of the locked file.

    Raises:
        BlockingIOError: another process holds it.
    """
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(descriptor, say)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), file.stat()):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the one who held it has removed this file meanwhile: take the new one


def _wait(run: Path, say: Say) -> int:
    """Descriptor of a folder's locked file, as soon as nobody else holds it."""
    told = False
    while True:
        make_folder(run)  # whoever made it for the lock alone takes it away again
        try:
            return _acquire(run / NAME, say)
        except FileNotFoundError:
            continue
        except BlockingIOError:
            if not told:
                say(f"lock: waiting for another rectune that holds {run}")
            told = True
            time.sleep(_PAUSE)


@contextmanager
def run_lock(run: Path, say: Say = print, key: str = "output_dir", *, wait: bool = False) -> Iterator[None]:
    """Hold a run folder, so that no second process trains in it.

    The system lets go of the lock when its process ends, however it ends: a file left behind by a killed one stops
    nobody. A folder that was made for the lock alone goes with it.

    Args:
        run: the folder.
        say: prints one line, where the file system has no locks or another process is waited for.
        key: what messages name: the key that says where the folder lies.
        wait: wait for whoever holds it, in place of an error; the folder is for the lock alone.

    Raises:
        ConfigError: another process holds it, or it is no folder.
        ResourceError: it cannot be written to.
    """
    if run.exists() and not run.is_dir():
        raise ConfigError(f"{key}: {run} is a file; name a folder for the run")
    made = not run.exists()
    file = run / NAME
    try:
        with disk_errors(run):
            make_folder(run)
            descriptor = _wait(run, say) if wait else _acquire(file, say)
    except BlockingIOError as error:
        holder = file.read_text(encoding="utf-8").strip() if file.is_file() else ""
        raise ConfigError(
            f"{key}: {run} is in use by another rectune{f' (process {holder})' if holder else ''}; wait for it or "
            f"stop it, or set {key}=OTHER"
        ) from error
    try:
        with suppress(OSError):  # only told to others; on a full disk the run itself will say so
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        file.unlink(missing_ok=True)
        os.close(descriptor)
        if made or wait:
            with suppress(OSError):
                run.rmdir()  # only where nothing was put into it
