"""Events encoded a portion at a time give the trees of all at once, also after a kill, and from a file too."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rectune.config import Config
from rectune.data.folder import scan_events
from rectune.errors import DataError
from rectune.lock import run_lock
from rectune.prompt import encode as stage
from rectune.prompt.cache import Kept, clear_cache
from rectune.prompt.dataset import Dataset, open_dataset
from rectune.prompt.encode import encode, split_sample
from rectune.prompt.layouts import prompts_for
from rectune.prompt.pieces import Pieces
from rectune.prompt.shards import join_shards, read_shard, write_shard
from rectune.prompt.tree import Joined, Trees

Make = Callable[..., Config]


def silent(_line: str) -> None:
    """Say nothing."""


def encoded(config: Config, data: Dataset, pieces: Pieces, say: Callable[[str], None] = silent) -> Trees:
    rows = split_sample(config, data.table, "train")
    prompts = prompts_for(config, pieces)
    return encode(config, data.table, data.catalog, data.content_hash, prompts, rows, say, training=True)


def columns(trees: Trees) -> dict[str, list[Any]]:
    return {
        field.name: getattr(trees, field.name)[: len(getattr(trees, field.name))].tolist() for field in fields(Trees)
    }


CASES: list[dict[str, Any]] = [
    {"layout": "stream"},
    {"layout": "stream", "cutoff_len": 330, "shuffle_moments": True, "history_drop": 0.3},
    {"layout": "stream", "item_rate_text": True, "prior": "item_rate", "max_train_samples": 31},
    {"layout": "pointwise", "history_drop": 0.3, "history_shuffle": 0.5, "cutoff_len": 420},
    {"layout": "pointwise", "item_rate_text": True, "item_rate_from": "other_users", "max_train_samples": 31},
]  # fmt: skip


@pytest.mark.parametrize("values", CASES, ids=str)
def test_portions_give_the_trees_of_all_events_at_once(
    tiny_config: Make, tiny_pieces: Pieces, tmp_path: Path, values: dict[str, Any]
) -> None:
    whole = encoded(tiny_config(**values), open_dataset(tiny_config(), silent), tiny_pieces)
    # 12 users of 26 events; a portion of the pointwise layout is a 16th of a part.
    for part_rows, shards in ((60 * (16 if values["layout"] == "pointwise" else 1), 5), (1, 12)):
        config = tiny_config(**values, part_rows=part_rows, preprocessing_cache_dir=str(tmp_path / str(part_rows)))
        data = open_dataset(config, silent)
        assert isinstance(data.table, pl.LazyFrame) == (part_rows < 312)
        trees = encoded(config, data, tiny_pieces)
        files = list((tmp_path / str(part_rows)).glob("*/*.arrow"))
        assert len(files) == shards or ("max_train_samples" in values and 1 < len(files) <= shards)
        assert columns(trees) == columns(whole)
        assert "events" not in vars(data)  # nobody has read the whole table
        again = encoded(config, data, tiny_pieces)
        assert columns(again) == columns(whole)
        some = np.array([3, 0, 3])
        assert columns(again.select(some)) == columns(whole.select(some))
        assert again.tree_tokens(2).tolist() == whole.tree_tokens(2).tolist()


def test_sampled_negatives_stay_with_their_users(tiny_config: Make, tiny_pieces: Pieces, tmp_path: Path) -> None:
    rows = [f"u{user},i{(user * 7 + at * at) % 40},{1_600_000_000 + at // 2}" for user in range(9) for at in range(20)]
    table = tmp_path / "bought.csv"
    table.write_text("\n".join(["user,item,time", *rows]) + "\n")
    found = []
    for part_rows in (10_000, 50):
        config = tiny_config(
            dataset=str(table), label_from="purchases", history_len=3, layout="stream", history_shows="nothing",
            dataset_dir=str(tmp_path / "bought"), part_rows=part_rows, cutoff_len=330, shuffle_moments=True,
            preprocessing_cache_dir=str(tmp_path / f"cache {part_rows}"), prompt_domain="products",
        )  # fmt: skip
        found.append(columns(encoded(config, open_dataset(config, silent), tiny_pieces)))
    assert found[0] == found[1]
    assert 0 in found[0]["labels"]


class Killed(BaseException):
    """Nothing in the program expects it, as nothing expects SIGKILL."""


@pytest.mark.parametrize("layout", ["stream", "pointwise"])
def test_a_killed_call_goes_on_behind_its_last_shard(
    tiny_config: Make, tiny_pieces: Pieces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    values = {"layout": layout, "history_drop": 0.3, "part_rows": 16}
    data = open_dataset(tiny_config(), silent)
    whole = encoded(tiny_config(**{**values, "part_rows": 10_000}), data, tiny_pieces)
    config = tiny_config(**values, preprocessing_cache_dir=str(tmp_path / "killed"))
    keep, kept = Kept.keep, []

    def dies(self: Kept, shard: int, trees: Trees, told: dict[str, Any]) -> None:
        if shard == 5:
            raise Killed
        keep(self, shard, trees, told)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Kept, "keep", dies)
        encoded(config, data, tiny_pieces)
    monkeypatch.setattr(Kept, "keep", lambda *at: kept.append(at[1]) or keep(*at))
    said: list[str] = []
    assert columns(encoded(config, data, tiny_pieces, said.append)) == columns(whole)
    assert kept == list(range(5, 12))
    assert "going on with 5 of 12 shards" in said[0]


def test_two_at_work_with_another_part_rows_leave_each_other_alone(
    tiny_config: Make, tiny_pieces: Pieces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = open_dataset(tiny_config(), silent)
    whole = columns(encoded(tiny_config(layout="stream"), data, tiny_pieces))
    cache = str(tmp_path / "both")
    first, second = (tiny_config(layout="stream", part_rows=rows, preprocessing_cache_dir=cache) for rows in (60, 90))
    keep, found = Kept.keep, []

    def meanwhile(self: Kept, shard: int, trees: Trees, told: dict[str, Any]) -> None:
        if shard == 2 and not found:
            found.append(None)
            found[0] = columns(encoded(second, data, tiny_pieces))
        keep(self, shard, trees, told)

    with monkeypatch.context() as patch:
        patch.setattr(Kept, "keep", meanwhile)
        assert columns(encoded(first, data, tiny_pieces)) == whole
    assert found == [whole]
    for config in (first, second):
        said: list[str] = []
        assert columns(encoded(config, data, tiny_pieces, said.append)) == whole
        assert len(said) == 1 and "from the cache" in said[0]
    clear_cache(first, silent)
    assert not list((tmp_path / "both").iterdir())


def test_who_comes_second_waits_and_takes_what_the_first_has_made(
    tiny_config: Make, tiny_pieces: Pieces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(layout="stream", part_rows=60)
    data = open_dataset(config, silent)
    whole = columns(encoded(config, data, tiny_pieces))
    folder = next((tmp_path / "cache").iterdir())
    folder.rename(tmp_path / "made")
    first = run_lock(folder.with_name(f".{folder.name}.lock"))
    first.__enter__()

    def ends(_seconds: float) -> None:
        (tmp_path / "made").rename(folder)
        first.__exit__(None, None, None)

    monkeypatch.setattr("rectune.lock.time.sleep", ends)
    said: list[str] = []
    assert columns(encoded(config, data, tiny_pieces, said.append)) == whole
    assert said == [
        f"lock: waiting for another rectune that holds {folder.with_name(f'.{folder.name}.lock')}",
        f"tokens: {len(whole['offsets']) - 1:,} sequences from the cache {folder}",
    ]
    assert list((tmp_path / "cache").iterdir()) == [folder]


def test_shards_of_other_rows_are_not_taken_for_whole(tiny_config: Make, tiny_pieces: Pieces, tmp_path: Path) -> None:
    config = tiny_config(layout="stream", part_rows=60)
    data = open_dataset(config, silent)
    whole = columns(encoded(config, data, tiny_pieces))
    folder = next((tmp_path / "cache").iterdir())
    for unfinished in (False, True):
        for end in ("arrow", "done"):  # each hash is right
            shutil.copy(folder / f"0.{end}", folder / f"1.{end}")
        if unfinished:
            (folder / "whole.done").unlink()
        said: list[str] = []
        assert columns(encoded(config, data, tiny_pieces, said.append)) == whole
        what = f"shard 1 in {folder} is damaged" if unfinished else f"the cache {folder} is damaged"
        assert f"tokens: {what}; it is made again" in said


def test_a_deletion_cut_short_leaves_no_shard_that_counts(
    tiny_config: Make, tiny_pieces: Pieces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(layout="stream", part_rows=60)
    data = open_dataset(config, silent)
    whole = columns(encoded(config, data, tiny_pieces))

    def dies(folder: Path, **_: Any) -> None:
        for name in ("whole.done", "1.arrow"):
            (folder / name).unlink()
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(shutil, "rmtree", dies)
        clear_cache(config, silent)
    assert list((tmp_path / "cache").glob("*/1.done"))
    assert columns(encoded(config, data, tiny_pieces)) == whole


def test_one_damaged_shard_is_noticed(tiny_config: Make, tiny_pieces: Pieces, tmp_path: Path) -> None:
    config = tiny_config(layout="stream", part_rows=60)
    data = open_dataset(config, silent)
    whole = columns(encoded(config, data, tiny_pieces))
    file = sorted((tmp_path / "cache").glob("*/*.arrow"))[2]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.unlink()
    file.write_bytes(content)
    said: list[str] = []
    assert columns(encoded(config, data, tiny_pieces, said.append)) == whole
    assert said == [f"tokens: the cache {file.parent} is damaged; it is made again"]


def test_a_shard_is_an_arrow_file_with_a_row_a_tree(tmp_path: Path) -> None:
    import pyarrow as pa

    trees = Trees.of_prompts([[1, 2, 3], [4]], [1, 0], [7, 9], [3, 3], [0.5, -0.5])
    write_shard(trees, tmp_path / "shard.arrow")
    table = pa.ipc.open_file(tmp_path / "shard.arrow").read_all().to_pydict()
    assert table["tokens"] == [[1, 2, 3], [4]] and table["rows"] == [[7], [9]] and table["prior"] == [[0.5], [-0.5]]
    assert table["branch_at"] == [[], []]
    for mapped in (True, False):
        assert columns(read_shard(tmp_path / "shard.arrow", mapped)) == columns(trees)


@given(
    sizes=st.lists(st.integers(0, 5), min_size=2, max_size=6),
    data=st.data(),
)
def test_arrays_laid_end_to_end_are_read_like_one(sizes: list[int], data: st.DataObject) -> None:
    whole = np.arange(sum(sizes), dtype=np.int32)
    joined = Joined(np.split(whole, np.cumsum(sizes)[:-1]))
    assert len(joined) == len(whole)
    start, stop = sorted(data.draw(st.tuples(st.integers(0, len(whole)), st.integers(0, len(whole)))))
    assert joined[start:stop].tolist() == whole[start:stop].tolist()
    if len(whole):
        wanted = np.array(data.draw(st.lists(st.integers(0, len(whole) - 1))), dtype=np.int64)
        assert joined[wanted].tolist() == whole[wanted].tolist()


def test_joined_shards_keep_branches_and_answers_apart(tiny_config: Make, tiny_pieces: Pieces) -> None:
    config = tiny_config(layout="stream")
    trees = encoded(config, open_dataset(config, silent), tiny_pieces)
    assert trees.branching
    cuts = np.array_split(np.arange(len(trees)), 3)
    joined = join_shards([trees.select(cut) for cut in cuts])
    assert columns(joined) == columns(trees)
    for index in range(len(trees)):
        assert [part.tolist() for part in joined.runs(index)] == [part.tolist() for part in trees.runs(index)]
    assert columns(joined.plain()) == columns(trees.plain())


def test_a_damaged_table_that_is_read_in_portions_is_refused(tiny_config: Make) -> None:
    folder = open_dataset(tiny_config(), silent).folder
    (folder / "events.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"events\.parquet: damaged"):
        scan_events(folder)


def test_rows_of_a_dataset_come_in_the_order_asked_for(tiny_config: Make) -> None:
    held = open_dataset(tiny_config(), silent)
    read = open_dataset(tiny_config(part_rows=10), silent)
    rows = np.array([300, 2, 2, 311, 0])
    for data in (held, read):
        assert data.at(rows, ["row_id", "user_id"]).equals(held.events.select("row_id", "user_id")[rows.tolist()])
        assert data.users(rows) == held.events["user_id"][rows.tolist()].to_list()
        assert data.at(rows[:0], ["user_id"]).height == 0
    assert isinstance(read.table, pl.LazyFrame) and isinstance(held.table, pl.DataFrame)
    assert stage.split_sample(tiny_config(), read.table, "test").tolist() == (
        stage.split_sample(tiny_config(), held.table, "test").tolist()
    )
