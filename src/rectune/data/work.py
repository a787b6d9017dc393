"""A folder of finished pieces of a long piece of work, so that whoever is killed goes on behind the last one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rectune.files import atomic_path, make_folder, remove_leftovers, write_json

_KEY = "key.json"


class Work:
    """Pieces by name; one counts when its marker, which is written last, is there.

    Attributes:
        folder: where they lie.
        old: how many pieces of an earlier call were found.
    """

    def __init__(self, folder: Path, key: dict[str, Any]) -> None:
        """Take over what an earlier call with the same key has left, or begin anew."""
        self.folder = folder
        if self._read(_KEY) != json.loads(json.dumps(key)):
            shutil.rmtree(folder, ignore_errors=True)
            make_folder(folder)
            write_json(folder / _KEY, key)
        remove_leftovers(folder)
        self.old = len(list(folder.glob("*.done")))

    def _read(self, name: str) -> Any:
        try:
            return json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

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

    def finish(self, piece: str, told: dict[str, Any] | None = None) -> dict[str, Any]:
        """Count a piece as finished; all its files are in their places."""
        write_json(self.folder / f"{piece}.done", told or {})
        return told or {}

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A file of a piece, whole or not at all."""
        with atomic_path(self.folder / name) as temporary:
            yield temporary

    def drop(self, name: str) -> None:
        """Remove a file that is of no more use."""
        (self.folder / name).unlink(missing_ok=True)

    def close(self) -> None:
        """Remove everything: the work is done."""
        shutil.rmtree(self.folder, ignore_errors=True)
