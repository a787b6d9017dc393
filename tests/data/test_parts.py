"""A log prepared in parts is the one prepared whole, value for value, also after a kill at any piece."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from rectune.config import Config
from rectune.data import gather, meta, parts
from rectune.data.prepare import load_events, load_meta, prepare
from rectune.errors import ConfigError, DataError

HEADER = "userId,movieId,rating,timestamp"
MOVIES = ["movieId,title,genres", *(f'{item},"Film, {item} (19{item + 10})",Drama' for item in range(1, 7)), "x,Odd,"]
BAD = ["1,2,3", "1,99,4.0,5", "a,1,4.0,5", "1,1,,5", "1,1,9.5,5", "", "1,1,4.0,5,6", "  "]
SPLITS = ("timeline", "leave_one_out", "global_time")


def silent(_line: str) -> None:
    """Say nothing."""


def write(folder: Path, ratings: list[str], end: str = "\n") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ratings.csv").write_bytes(("\n".join(ratings) + end).encode())
    (folder / "movies.csv").write_bytes(("\n".join(MOVIES) + "\n").encode())
    return folder


def config_of(source: Path, folder: Path, **values: Any) -> Config:
    return Config(dataset=str(source), dataset_dir=folder, **{"history_len": 2, "max_rejects": "90%", **values})


def outcome(config: Config, said: list[str] | None = None) -> dict[str, Any] | str:
    """The folder's content, or the error's line."""
    try:
        folder = prepare(config, say=silent if said is None else said.append)
    except DataError as error:
        return str(error)
    files = {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix in (".json", ".jsonl", ".csv")}
    told = load_meta(folder)
    del told["sha256"]["events.parquet"], told["bytes"]["events.parquet"], files["meta.json"]
    rejects = pl.read_parquet(folder / "rejects.parquet").rows()
    return {"files": files, "meta": told, "events": load_events(folder).rows(), "rejects": rejects}


ROWS = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 12), st.integers(1, 6), st.sampled_from(["0.5", "3.5", "4.0", "5.0"]),
                  st.integers(1_000_000_000, 1_000_000_006)).map(lambda row: ",".join(map(str, row))),
        st.sampled_from(BAD),
    ),
    min_size=2, max_size=80,
)  # fmt: skip


@settings(max_examples=40, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(
    rows=ROWS, part_rows=st.integers(1, 9), split=st.sampled_from(SPLITS), end=st.sampled_from(["\n", "", "\r\n"]),
    max_users=st.sampled_from([None, 3]), max_per_user=st.sampled_from([None, 5]),
    min_history=st.sampled_from([None, 0]),
)  # fmt: skip
def test_parts_give_what_the_whole_gives(
    tmp_path_factory: pytest.TempPathFactory, rows: list[str], part_rows: int, end: str, **values: Any
) -> None:
    place = tmp_path_factory.mktemp("log")
    source = write(place / "raw", [HEADER, *rows], end)
    whole = outcome(config_of(source, place / "whole" / "set", **values))
    said: list[str] = []
    divided = outcome(config_of(source, place / "divided" / "set", part_rows=part_rows, **values), said)
    assert divided == whole
    assert any("prepared in parts" in line for line in said) == (len(rows) + (end != "") > part_rows)
    if not isinstance(whole, str):
        assert [entry.name for entry in (place / "divided").iterdir()] == ["set"]  # no piece is left


class Killed(BaseException):
    """Nothing in the program expects it, as nothing expects SIGKILL."""


def log(users: int) -> list[str]:
    """Twelve events of each user, some of one moment, three of them a duplicate, a bad row after each user's."""
    rows = [HEADER]
    for user in range(users, 0, -1):
        rows += [f"{user},{event % 6 + 1},{event % 10 / 2 + 0.5},{1_000_000_000 + event // 2}" for event in range(9)]
        rows += [*rows[-3:], "1,1"]
    return rows


@pytest.mark.parametrize("step", ["read", "divided", "ordered", "events", "end"])
def test_a_killed_call_goes_on_behind_the_last_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    source = write(tmp_path / "raw", log(7))
    whole = outcome(config_of(source, tmp_path / "whole"))
    config, said = config_of(source, tmp_path / "divided", part_rows=20), []
    finish, written = parts.Work.finish, []

    def dies(self: parts.Work, piece: str, told: dict[str, Any] | None = None) -> dict[str, Any]:
        written.append(piece)
        if piece == f"{step}-2":
            raise Killed
        return finish(self, piece, told)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(parts.Work, "finish", dies)
        if step == "end":
            patch.setattr(gather, "write_rest", lambda *_: (_ for _ in ()).throw(Killed))
        prepare(config, say=silent)
    assert not (tmp_path / "divided").exists()
    before = list(written)
    with monkeypatch.context() as patch:
        patch.setattr(parts.Work, "finish", lambda *at: written.append(at[1]) or finish(*at))
        assert outcome(config, said) == whole
    again = set(before) & set(written[len(before) :])
    assert again == ({f"{step}-2"} if step != "end" else set())  # nothing finished is made twice
    assert "going on with what an earlier call has left" in said[1]
    assert not list(tmp_path.glob(".*"))


def test_whoever_stops_it_is_told_that_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, said = write(tmp_path / "raw", log(3)), list[str]()
    monkeypatch.setattr(parts, "_order", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        prepare(config_of(source, tmp_path / "set", part_rows=10), say=said.append)
    assert said[-1] == (
        f"parts: stopped; what is finished lies in {tmp_path / '.set.parts'}, and the same command goes on behind it"
    )


def test_pieces_of_other_settings_are_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "raw", log(7))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(gather, "write_rest", lambda *_: (_ for _ in ()).throw(Killed))
        prepare(config_of(source, tmp_path / "set", part_rows=20), say=silent)
    for change in ({"rating_threshold": 3.0}, {"part_rows": 30}):
        values = {"part_rows": 20, **change}
        said: list[str] = []
        found = outcome(config_of(source, tmp_path / "set", **values), said)
        assert found == outcome(config_of(source, tmp_path / "whole", **{**values, "part_rows": 10_000}))
        assert any("are prepared in parts" in line for line in said)


def cut_off(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave all pieces behind and no dataset."""
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(gather, "write_rest", lambda *_: (_ for _ in ()).throw(Killed))
        prepare(config, say=silent)


def dies_having_removed_data(folder: Path, **_: Any) -> None:
    """What a kill makes of `rmtree`, which takes files in whatever order the disk has them."""
    for file in folder.glob("*.arrow"):
        file.unlink()
    raise Killed


def test_a_deletion_cut_short_leaves_nothing_that_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "raw", log(7))
    config = config_of(source, tmp_path / "set", part_rows=20)
    cut_off(config, monkeypatch)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(shutil, "rmtree", dies_having_removed_data)
        prepare(config.with_overrides(part_rows=30), say=silent)
    assert list(tmp_path.glob(".set.parts/*.done"))
    said: list[str] = []
    assert outcome(config, said) == outcome(config_of(source, tmp_path / "whole"))
    assert "are prepared in parts" in said[1]


@pytest.mark.parametrize("name", ["ordered-1.arrow", "rejects-0.arrow", "events-2.arrow", "users.arrow"])
def test_a_piece_whose_file_is_gone_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    source = write(tmp_path / "raw", log(7))
    config = config_of(source, tmp_path / "set", part_rows=20)
    cut_off(config, monkeypatch)
    (tmp_path / ".set.parts" / name).unlink()
    said: list[str] = []
    assert outcome(config, said) == outcome(config_of(source, tmp_path / "whole"))
    assert "are prepared in parts" in said[1]


def test_force_starts_from_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "raw", log(7))
    config = config_of(source, tmp_path / "set", part_rows=20)
    cut_off(config, monkeypatch)
    finish, written, said = parts.Work.finish, list[str](), list[str]()
    monkeypatch.setattr(parts.Work, "finish", lambda *at: written.append(at[1]) or finish(*at))
    prepare(config, force=True, say=said.append)
    assert {"read-0", "users", "ordered-0", "events-0"} <= set(written)
    assert said[1] == (
        f"parts: what an earlier call has left in {tmp_path / '.set.parts'} is removed, because that was asked for "
        "(force)"
    )
    assert "are prepared in parts" in said[2]


def test_a_zip_and_the_older_forms_are_read_in_parts_too(tmp_path: Path) -> None:
    rows = log(6)
    source = write(tmp_path / "raw", rows)
    whole = outcome(config_of(source, tmp_path / "whole"))
    with zipfile.ZipFile(tmp_path / "raw.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in source.iterdir():
            archive.write(file, f"raw/{file.name}")
    packed = outcome(config_of(tmp_path / "raw.zip", tmp_path / "packed", part_rows=10))
    assert isinstance(whole, dict) and isinstance(packed, dict)
    assert packed["events"] == whole["events"] and packed["rejects"] == whole["rejects"]
    old = tmp_path / "old"
    old.mkdir()
    (old / "ratings.dat").write_text("\n".join(row.replace(",", "::") for row in rows[1:]) + "\n")
    films = [f"{item}::Film {item} (19{item + 10})::Drama" for item in range(1, 7)]
    (old / "movies.dat").write_text("\n".join(films) + "\n")
    divided = outcome(config_of(old, tmp_path / "dat", part_rows=10))
    assert divided == outcome(config_of(old, tmp_path / "dat whole", part_rows=1000))
    assert isinstance(divided, dict) and divided["events"] == whole["events"]


def test_too_many_unusable_rows_are_told_as_without_parts(tmp_path: Path) -> None:
    source = write(tmp_path / "raw", [HEADER, *["1,2"] * 30, *log(3)[1:]])
    whole = outcome(config_of(source, tmp_path / "whole", max_rejects="40%"))
    divided = outcome(config_of(source, tmp_path / "divided", max_rejects="40%", part_rows=10))
    assert isinstance(whole, str) and whole == divided.replace("33 of 69 rows", "42 of 69 rows")
    (source / "movies.csv").write_text("\n".join(MOVIES[:-1]))
    strict = config_of(source, tmp_path / "strict", max_rejects=0, part_rows=10)
    assert "line 2 cannot be used: too few fields" in str(outcome(strict))


def test_a_json_file_of_too_many_records_is_left_out_and_written_when_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "raw", log(7))
    monkeypatch.setattr(meta, "MOST_RECORDS", 20)
    for name, part_rows in (("whole", 1000), ("divided", 20)):
        config, said = config_of(source, tmp_path / name, part_rows=part_rows), list[str]()
        folder = prepare(config, say=said.append)
        assert not (folder / "train.json").exists()
        assert len(json.loads((folder / "eval.json").read_text())) == 7
        assert list(json.loads((folder / "dataset_info.json").read_text())) == ["raw_eval"]
        line = next(line for line in said if line.startswith("train.json"))
        assert "left out, since it would have 35 records, more than 20" in line and "json_files=all" in line
        assert "already prepared" in said[-1] or prepare(config, say=said.append) == folder
        assert "used as it is" in said[-1]
        prepare(config.with_overrides(json_files="all"), say=said.append)
        assert len(json.loads((folder / "train.json").read_text())) == 35


def test_a_dataset_that_is_being_prepared_is_refused(tmp_path: Path) -> None:
    from rectune.lock import run_lock

    source = write(tmp_path / "raw", log(3))
    with run_lock(tmp_path / ".set.parts.lock"), pytest.raises(ConfigError, match=r"dataset_dir: .* is in use"):
        prepare(config_of(source, tmp_path / "set", part_rows=10), say=silent)
