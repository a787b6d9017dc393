"""Rows dealt to parts: nothing lost, users whole, order kept, mistakes named with their row."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rectune.bulk import divide
from rectune.bulk.divide import Dealt, deal_all, pair_files, part_of, parts_for, pieces_of
from rectune.data.work import Work
from rectune.errors import DataError
from rectune.spread import here


def silent(_line: str) -> None:
    """Say nothing."""


def dataset_of(folder: Path, items: list[str]) -> Path:
    """A folder with a catalog, which is all that dealing looks at."""
    folder.mkdir(exist_ok=True)
    pl.DataFrame({"item_id": items, "title": items}).write_parquet(folder / "catalog.parquet")
    (folder / "meta.json").write_text("{}")
    return folder


def deal(folder: Path, files: list[Path], events: Path, parts: int, dataset: Path) -> Dealt:
    pieces = pieces_of("pairs", files) + pieces_of("events", [events])
    deal_all(Work(folder / "work", {}), pieces, parts, dataset, partial(here, say=silent), silent)
    return Dealt(folder / "work", pieces)


USERS = st.sampled_from(["1", "2", "10", "é", "u v", "99999999999"])


@given(
    first=st.lists(USERS, min_size=1, max_size=12), second=st.lists(USERS, min_size=1, max_size=12),
    piece=st.integers(1, 7), parts=st.integers(1, 5),
)  # fmt: skip
def test_every_row_is_in_the_part_of_its_user_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, first: list[str], second: list[str], piece: int, parts: int
) -> None:
    folder = tmp_path_factory.mktemp("deal")
    rows = [(user, "a", number) for number, user in enumerate(first + second)]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "n"], orient="row")
    (folder / "pairs").mkdir()
    frame[: len(first)].write_parquet(folder / "pairs" / "0.parquet")
    frame[len(first) :].write_parquet(folder / "pairs" / "1.parquet")
    events = frame.sort("user_id", maintain_order=True)
    events.write_parquet(folder / "events.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(divide, "PIECE", piece)
        dealt = deal(
            folder, pair_files(folder / "pairs"), folder / "events.parquet", parts, dataset_of(folder / "set", ["a"])
        )
    for kind, whole in (("pairs", frame), ("events", events)):
        for part in range(parts):
            own = [row for row in whole.iter_rows() if part_of(row[0], parts) == part]
            assert dealt.rows(kind, part).rows() == own


def test_the_part_of_a_user_is_the_same_everywhere_and_for_ever() -> None:
    # As `b2sum -l 64` has them, modulo 1000.
    assert [part_of(user, 1000) for user in ("196", "u v", "é")] == [673, 353, 743]


def test_parts_grow_with_the_data_and_not_without_end(tmp_path: Path) -> None:
    def piece(kind: str, rows: int) -> divide.Piece:
        return divide.Piece(kind, tmp_path, 0, rows)

    assert parts_for([piece("pairs", 1), piece("events", 0)]) == 1
    assert parts_for([piece("pairs", 32_768), piece("events", 1)]) == 2
    assert parts_for([piece("pairs", 10**10), piece("events", 10**11)]) == 4096
    with pytest.raises(DataError, match="holds no pairs"):
        parts_for([piece("events", 5)])


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([("1", "a"), ("2", "a"), (None, "a")], "1 rows have no user_id, the first on row 3"),
        ([("1", "a"), ("2", "a"), ("3", "")], "1 rows have no item_id, the first on row 3"),
        (
            [("1", "a"), ("1", "b"), ("2", "c")],
            "2 items that the catalog of 1 does not hold: 'b', 'c'; the first on row 2",
        ),
    ],
)
@pytest.mark.parametrize("piece", [2, 100])
def test_a_bad_row_is_named_with_its_place_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[Any], said: str, piece: int
) -> None:
    monkeypatch.setattr(divide, "PIECE", piece)
    if piece == 2:
        said = said.replace("2 items", "1 items").replace("'b', 'c'", "'b'")
    file = tmp_path / "pairs.parquet"
    pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row").write_parquet(file)
    pl.DataFrame({"user_id": ["1"]}).write_parquet(tmp_path / "events.parquet")
    with pytest.raises(DataError) as caught:
        deal(tmp_path, pair_files(file), tmp_path / "events.parquet", 3, dataset_of(tmp_path / "set", ["a"]))
    assert str(caught.value).startswith(f"{file}: ") and said in str(caught.value)


def test_what_is_no_parquet_of_pairs_is_refused(tmp_path: Path) -> None:
    def refused(source: Path) -> str:
        with pytest.raises(DataError) as caught:
            pair_files(source)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no such file" in refused(tmp_path / "none.parquet")
    (tmp_path / "pairs.csv").write_text("user_id,item_id\n1,2\n")
    assert "with --workers give a Parquet file" in refused(tmp_path / "pairs.csv")
    (tmp_path / "folder").mkdir()
    assert "no file ending in .parquet" in refused(tmp_path / "folder")
    (tmp_path / "folder" / "0.parquet").write_bytes(b"PAR1 no")
    assert "0.parquet: cannot be read as parquet" in refused(tmp_path / "folder")
    pl.DataFrame({"user_id": ["1"], "item_id": [2]}).write_parquet(tmp_path / "folder" / "0.parquet")
    pl.DataFrame({"user_id": ["1"], "item_id": ["2"]}).write_parquet(tmp_path / "folder" / "1.parquet")
    assert "1.parquet: the column item_id is String, but Int64 in 0.parquet" in refused(tmp_path / "folder")
    pl.DataFrame({"user_id": ["1"], "item": ["2"]}).write_parquet(tmp_path / "other.parquet")
    assert "the column item_id is missing; found: user_id, item" in refused(tmp_path / "other.parquet")


def test_pieces_of_a_killed_call_are_not_dealt_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divide, "PIECE", 1)
    for name in ("pairs", "events"):
        pl.DataFrame({"user_id": ["1", "2"], "item_id": ["a", "a"]}).write_parquet(tmp_path / f"{name}.parquet")
    dataset = dataset_of(tmp_path / "set", ["a"])
    pieces = pieces_of("pairs", [tmp_path / "pairs.parquet"]) + pieces_of("events", [tmp_path / "events.parquet"])
    work, dealt = Work(tmp_path / "work", {}), []
    for number, _ in here(partial(divide.dealer, folder=work.folder, pieces=pieces, parts=2, dataset=dataset), [0, 2]):
        dealt.append(number)

    def counting(make: Any, numbers: Any, model: bool = False) -> Any:
        for number, told in here(make, numbers, say=silent):
            dealt.append(number)
            yield number, told

    monkeypatch.setattr(divide, "_FEW", 0)
    deal_all(work, pieces, 2, dataset, counting, silent)
    assert dealt == [0, 2, 1, 3]
