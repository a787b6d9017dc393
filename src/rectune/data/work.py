"""A folder of finished pieces of a long piece of work, so that whoever is killed goes on behind the last one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rectune.errors import ResourceError
from rectune.files import append_line, atomic_path, disk_errors, make_folder, remove_leftovers, write_json

_KEY = "key.json"
_BEGUN = ".begun"
_TRIES = 3
"""How many processes may end over a piece before nobody tries again."""
_FILES = "files"
"""In a marker: the files of its piece."""


def has_key(folder: Path) -> bool:
    """Whether what lies in a folder of pieces counts."""
    return (folder / _KEY).is_file()


def remove_work(folder: Path) -> None:
    """Remove a folder of pieces, its key first, so that nothing counts of what a kill leaves of it.

    Raises:
        ResourceError: it cannot be removed.
    """
    with disk_errors(folder):
        (folder / _KEY).unlink(missing_ok=True)
        if folder.exists():
            shutil.rmtree(folder)


class Work:
    """Pieces by name; one counts when its marker, which is written last, is there.

    Attributes:
        folder: where they lie.
        old: how many pieces of an earlier call were found.
    """

    def __init__(self, folder: Path, key: dict[str, Any], *, anew: bool = False) -> None:
        """Take over what an earlier call with the same key has left, or begin anew.

        Pieces are made of one another, so that one marker without its files takes all of them with it.

        Args:
            folder: where they lie.
            key: what they depend on.
            anew: begin anew even if the key is the same.
        """
        self.folder = folder
        self._files: list[str] = []
        if anew or self._read(_KEY) != json.loads(json.dumps(key)) or self._lost():
            remove_work(folder)
            make_folder(folder)
            write_json(folder / _KEY, key)
        remove_leftovers(folder)
        for file in folder.glob(f"*{_BEGUN}"):
            file.unlink()
        self.old = len(list(folder.glob("*.done")))

    @classmethod
    def beside(cls, folder: Path) -> Work:
        """The pieces of a folder that another process has opened, for a process that makes some of them: nothing is
        looked at, and so nothing removed."""
        work = cls.__new__(cls)
        work.folder, work._files, work.old = folder, [], 0
        return work

    def _read(self, name: str) -> Any:
        try:
            return json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def _lost(self) -> bool:
        """Whether a marker is unreadable, or a file is missing that nobody has dropped."""
        for marker in self.folder.glob("*.done"):
            told = self._read(marker.name)
            if not isinstance(told, dict):
                return True
            names = told.get(_FILES, [])
            if not all(self.path(name).exists() or self.path(f"{name}.dropped").exists() for name in names):
                return True
        return False

    def path(self, name: str) -> Path:
        """Where a file lies."""
        return self.folder / name

    def done(self, piece: str) -> dict[str, Any] | None:
        """What was written down of a finished piece; None where it is not finished."""
        found = self._read(f"{piece}.done")
        return found if isinstance(found, dict) else None

    def told(self, piece: str, name: str) -> int:
        """A number that was written down of a finished piece."""
        return int((self.done(piece) or {})[name])

    def begin(self, piece: str) -> int:
        """Write down that this process begins with a piece; how many have, since one of them got anywhere.

        Raises:
            ResourceError: several have, and each one ended over it.
        """
        file = self.path(f"{piece}{_BEGUN}")
        append_line(file, str(os.getpid()))
        begun = file.read_text(encoding="utf-8").count("\n")
        if begun > _TRIES:
            raise ResourceError(
                f"{self.folder}: {_TRIES} processes have died over {piece}, most likely for want of memory; free some, "
                "or give fewer --workers, then run the same command again"
            )
        return begun

    def got_on(self, piece: str) -> None:
        """Write down that this process has kept something of a piece."""
        self.path(f"{piece}{_BEGUN}").unlink(missing_ok=True)

    def finish(self, piece: str, told: dict[str, Any] | None = None) -> dict[str, Any]:
        """Count a piece as finished; all its files are in their places."""
        told = {**(told or {}), _FILES: self._files}
        self._files = []
        write_json(self.folder / f"{piece}.done", told)
        self.got_on(piece)
        return told

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A file of a piece, whole or not at all."""
        with atomic_path(self.folder / name) as temporary:
            yield temporary
        self._files.append(name)

    def drop(self, name: str) -> None:
        """Remove a file that is of no more use."""
        self.path(f"{name}.dropped").touch()
        self.path(name).unlink(missing_ok=True)

    def close(self) -> None:
        """Remove everything: the work is done, and what cannot be removed does no harm."""
        self.path(_KEY).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)
