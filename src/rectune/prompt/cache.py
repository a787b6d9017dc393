"""Where tokenised prompts are kept: a folder for each set of trees, named by all that these depend on.

It holds the trees in shards (`shards.py`), each with a marker that has the file's hash. While some are missing, whoever
encodes goes on behind the last one; `whole` says that none is. Whoever makes shards holds the folder's lock.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rectune.config import Config
from rectune.data.work import Work, has_key, remove_work
from rectune.errors import ResourceError
from rectune.files import hash_file, hash_text
from rectune.lock import run_lock
from rectune.prompt.augment import NOTHING, Augment
from rectune.prompt.pieces import Pieces
from rectune.prompt.shards import join_shards, read_shard, write_shard
from rectune.prompt.tree import Trees
from rectune.version import __version__
from rectune.wording import texts_for

_FORMAT = "3"
PROMPT_KEYS = (
    "layout", "prompt_format", "prompt_domain", "system_prompt", "instruction", "history_header", "candidate_header",
    "question", "history_shows", "item_text", "positive_label", "negative_label", "cutoff_len", "history_len",
    "stream_header", "stream_cue", "window_overlap", "item_rate_text", "prior", "item_rate_from",
    "item_rate_strength", "task", "labels",
)  # fmt: skip
_WHOLE = "whole"

Say = Callable[[str], None]


def cache_key(
    config: Config, content_hash: str, pieces: Pieces, rows: npt.NDArray[np.int64], augment: Augment = NOTHING
) -> str:
    """What the trees depend on, hashed: data, rows, tokenizer, template, prompt keys and texts, the file's format."""
    values = {key: getattr(config, key) for key in PROMPT_KEYS} | {"texts": asdict(texts_for(config))}
    values |= augment.key()
    return hash_text(
        _FORMAT,
        __version__,
        content_hash,
        pieces.fingerprint(),
        json.dumps(values, sort_keys=True),
        hashlib.sha256(np.ascontiguousarray(rows).data).hexdigest(),
    )[:32]


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")


class Kept:
    """The shards of one set of trees.

    Attributes:
        folder: where they lie.
        rows: the events that the trees are about, ascending.
        old: shards that an earlier call has left, where it did not come to the end.
    """

    def __init__(self, folder: Path, rows: npt.NDArray[np.int64]) -> None:
        self.folder = folder
        self.rows = rows
        self._work: Work | None = None
        self.old = 0

    @contextmanager
    def alone(self, say: Say) -> Iterator[None]:
        """Hold the lock of these shards, once nobody else makes or removes them."""
        with run_lock(_lock_of(self.folder), say, "preprocessing_cache_dir", wait=True):
            yield

    def trees(self) -> Trees | None:
        """All trees, mapped into memory where there are several shards; None where shards are missing.

        Raises:
            ValueError: a shard or what is written of it is damaged, or the trees are not about these rows.
        """
        if not (has_key(self.folder) and (self.folder / f"{_WHOLE}.done").exists()):
            return None
        try:
            count = int(json.loads((self.folder / f"{_WHOLE}.done").read_text(encoding="utf-8"))["shards"])
            return _about(join_shards([self._checked(shard, count) for shard in range(count)]), self.rows)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.folder} is damaged") from error

    def _checked(self, shard: int, count: int) -> Trees:
        file = self.folder / f"{shard}.arrow"
        told = json.loads((self.folder / f"{shard}.done").read_text(encoding="utf-8"))
        if told["sha256"] != hash_file(file):
            raise ValueError(f"{file} is not as it was written")
        return read_shard(file, mapped=count > 1)

    def begin(self, anew: bool, **how: Any) -> None:
        """Make shards, going on with those of an earlier call that has cut the events alike, unless `anew`."""
        self._work = Work(self.folder, how, anew=anew)
        self.old = self._work.old

    def told(self, shard: int, asked: npt.NDArray[np.int64], say: Say) -> dict[str, Any] | None:
        """What was told of a shard when it was kept; None where it has to be made.

        Args:
            shard: its number.
            asked: rows of the events that it is to be about, ascending.
            say: prints one line, where it is there and damaged.
        """
        told = None if self._work is None else self._work.done(str(shard))
        if told is not None:
            try:
                _about(self._checked(shard, 2), asked)
            except (OSError, ValueError, KeyError, TypeError):
                say(f"tokens: shard {shard} in {self.folder} is damaged; it is made again")
                return None
        return told

    def keep(self, shard: int, trees: Trees, told: dict[str, Any]) -> None:
        """Write a shard."""
        assert self._work is not None
        with self._work.writing(f"{shard}.arrow") as file:
            write_shard(trees, file)
            digest = hash_file(file)
        self._work.finish(str(shard), {**told, "sha256": digest})

    def end(self, shards: int) -> Trees:
        """All trees, now that all shards are there.

        Raises:
            ResourceError: they are not as they were written: someone else was at work, where there are no locks.
        """
        assert self._work is not None
        files = [self.folder / f"{shard}.arrow" for shard in range(shards)]
        try:
            trees = _about(join_shards([read_shard(file, mapped=shards > 1) for file in files]), self.rows)
        except (OSError, ValueError, KeyError) as error:
            remove_work(self.folder)
            raise ResourceError(
                f"{self.folder}: changed by another process while tokens were written to it; run the same command "
                "again, or set preprocessing_cache_dir=OTHER"
            ) from error
        self._work.finish(_WHOLE, {"shards": shards})
        return trees


def _about(trees: Trees, rows: npt.NDArray[np.int64]) -> Trees:
    """These trees.

    Raises:
        ValueError: they do not answer for each of these rows, ascending, once.
    """
    if not np.array_equal(np.sort(trees.rows), rows):
        raise ValueError("trees of other events")
    return trees


def clear_cache(config: Config, say: Say) -> None:
    """Remove the tokenised prompts of every run that shares this cache folder, and nothing else that lies there."""
    ours = re.compile(r"[0-9a-f]{32}(-\d+|\.(safetensors|sha256|stack|prior))?")
    found = [path for path in config.preprocessing_cache_dir.glob("*") if ours.fullmatch(path.name)]
    for path in found:
        if path.is_dir():
            with run_lock(_lock_of(path), say, "preprocessing_cache_dir", wait=True):
                remove_work(path)
        else:
            path.unlink()
    say(f"tokens: cleared {len(found)} entries of {config.preprocessing_cache_dir}")
