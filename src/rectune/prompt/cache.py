"""Where tokenised prompts are kept: a folder for each set of trees, named by all that these depend on.

It holds the trees in shards (`shards.py`), each with a marker that has the file's hash. While some are missing, whoever
encodes goes on behind the last one; `whole` says that none is.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rectune.config import Config
from rectune.data.work import Work
from rectune.files import hash_file, hash_text
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


class Kept:
    """The shards of one set of trees.

    Attributes:
        folder: where they lie.
        old: shards that an earlier call has left, where it did not come to the end.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._work: Work | None = None
        self.old = 0

    def trees(self) -> Trees | None:
        """All trees, mapped into memory where there are several shards; None where shards are missing.

        Raises:
            ValueError: a shard or what is written of it is damaged; all of them are removed.
        """
        if not (self.folder / f"{_WHOLE}.done").exists():
            return None
        try:
            count = int(json.loads((self.folder / f"{_WHOLE}.done").read_text(encoding="utf-8"))["shards"])
            return join_shards([self._checked(shard, count) for shard in range(count)])
        except (OSError, ValueError, KeyError, TypeError) as error:
            shutil.rmtree(self.folder)
            raise ValueError(f"{self.folder} is damaged") from error

    def _checked(self, shard: int, count: int) -> Trees:
        file = self.folder / f"{shard}.arrow"
        told = json.loads((self.folder / f"{shard}.done").read_text(encoding="utf-8"))
        if told["sha256"] != hash_file(file):
            raise ValueError(f"{file} is not as it was written")
        return read_shard(file, mapped=count > 1)

    def begin(self, **how: Any) -> None:
        """Make shards, going on with those of an earlier call that has cut the events alike."""
        self._work = Work(self.folder, how)
        self.old = self._work.old

    def told(self, shard: int) -> dict[str, Any] | None:
        """What was told of a shard when it was kept; None where it has to be made."""
        return None if self._work is None else self._work.done(str(shard))

    def keep(self, shard: int, trees: Trees, told: dict[str, Any]) -> None:
        """Write a shard."""
        assert self._work is not None
        with self._work.writing(f"{shard}.arrow") as file:
            write_shard(trees, file)
            digest = hash_file(file)
        self._work.finish(str(shard), {**told, "sha256": digest})

    def end(self, shards: int) -> Trees:
        """All trees, now that all shards are there."""
        assert self._work is not None
        self._work.finish(_WHOLE, {"shards": shards})
        return join_shards([read_shard(self.folder / f"{shard}.arrow", mapped=shards > 1) for shard in range(shards)])


def clear_cache(config: Config, say: Say) -> None:
    """Remove the tokenised prompts of every run that shares this cache folder, and nothing else that lies there."""
    ours = re.compile(r"[0-9a-f]{32}(\.(safetensors|sha256|stack|prior))?")
    found = [path for path in config.preprocessing_cache_dir.glob("*") if ours.fullmatch(path.name)]
    for path in found:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    say(f"tokens: cleared {len(found)} entries of {config.preprocessing_cache_dir}")
