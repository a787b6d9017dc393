"""Trees on the disk: Arrow files that are mapped into memory, and many of them seen as one.

A file holds a record batch with a row a tree and a list in every column, so that other programs read it too
(`pyarrow.ipc.open_file`). What is mapped takes no memory of its own: the system reads what is touched, and lets go of
it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rectune.prompt.tree import Joined, Trees, starts_of

_OFFSETS = {
    "tokens": "offsets",
    **dict.fromkeys(("answer_at", "labels", "rows", "shown_from", "prior"), "answer_offsets"),
    **dict.fromkeys(("branch_at", "branch_fork"), "branch_offsets"),
}
"""Each column of `Trees`, and which offsets cut it into trees."""


def write_shard(trees: Trees, path: Path) -> None:
    """Write trees as an Arrow file."""
    import pyarrow as pa

    columns = {
        name: pa.LargeListArray.from_arrays(pa.array(getattr(trees, cut)), pa.array(np.asarray(getattr(trees, name))))
        for name, cut in _OFFSETS.items()
    }
    batch = pa.record_batch(columns)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


def read_shard(path: Path, mapped: bool = True) -> Trees:
    """The trees of a file, mapped or held in memory; their arrays cannot be written to.

    Raises:
        OSError, ValueError, KeyError: the file is not as `write_shard` writes it.
    """
    import pyarrow as pa

    batch = pa.ipc.open_file(pa.memory_map(str(path)) if mapped else path.read_bytes()).get_batch(0)
    found: dict[str, Any] = {}
    for name, cut in _OFFSETS.items():
        column = batch.column(name)
        found[name] = column.values.to_numpy(zero_copy_only=True)
        found[cut] = column.offsets.to_numpy(zero_copy_only=True)
    return Trees(**found)


def join_shards(shards: Sequence[Trees]) -> Trees:
    """Trees of several shards as one: tokens stay on the disk, the rest, some 20 bytes an answer, is put together."""
    if len(shards) == 1:
        return shards[0]
    columns: dict[str, Any] = {"tokens": Joined([shard.tokens for shard in shards])}
    for name, cut in _OFFSETS.items():
        if name != "tokens":
            columns[name] = np.concatenate([getattr(shard, name) for shard in shards])
        columns[cut] = _joined_offsets([getattr(shard, cut) for shard in shards])
    return Trees(**columns)


def _joined_offsets(offsets: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    begins = starts_of(np.array([each[-1] for each in offsets]))
    return np.concatenate([[0], *(each[1:] + begin for each, begin in zip(offsets, begins, strict=False))])
