"""Scores by parts: those of one process, whoever does the parts and however often it is stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from rectune.bulk import divide
from rectune.bulk.score import score_in_parts
from rectune.cli import main
from rectune.errors import ConfigError, DataError, ModelError, ResourceError
from rectune.score.pair_file import read_pairs
from rectune.score.pairs import score_pairs
from rectune.spread import Make, Spread, here

QUIET = Console(quiet=True)


def silent(_line: str) -> None:
    """Say nothing."""


@contextmanager
def alone() -> Iterator[Spread]:
    """Parts done by this process, one after the other."""
    yield partial(here, say=silent)


@contextmanager
def backwards() -> Iterator[Spread]:
    yield lambda make, numbers, model=False: here(make, list(numbers)[::-1], say=silent)


@contextmanager
def nobody() -> Iterator[Spread]:
    raise AssertionError("workers were started")
    yield partial(here)


class Killed(BaseException):
    """Nothing in the program expects it, as nothing expects SIGKILL."""


@contextmanager
def dies_after(parts: int) -> Iterator[Spread]:
    def spread(make: Make, numbers: Sequence[int], model: bool = False) -> Iterator[Any]:
        for done, found in enumerate(here(make, numbers, say=silent), start=1):
            yield found
            if done == parts:
                raise Killed

    yield spread


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divide, "LINES", 60)
    monkeypatch.setattr(divide, "PIECE", 200)


@pytest.fixture
def score(tiny_run: Path, pairs: Path, tmp_path: Path) -> Any:
    """Scores the pairs into a folder; what was said comes back."""

    def go(name: str, workers: Any = alone, as_of: str = "test", source: Path = pairs, run: Path = tiny_run,
           overrides: Sequence[str] = ()) -> list[str]:  # fmt: skip
        said: list[str] = []
        score_in_parts(run, list(overrides), source, tmp_path / name, as_of, workers, said.append, QUIET)
        return said

    return go


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("*.parquet")}


def test_scores_are_those_of_one_process_and_rows_stay_in_their_order(
    score: Any, opened: Any, pairs: Path, tmp_path: Path
) -> None:
    from rectune.score.score import open_data

    said = score("out")
    files = sorted((tmp_path / "out").glob("part-*.parquet"))
    assert len(files) >= 5 and json.loads((tmp_path / "out" / "manifest.json").read_text())["finished"]
    data = open_data(opened, silent)
    whole = score_pairs(opened, data, read_pairs(pairs), tmp_path / "whole.parquet", "test", silent, QUIET)
    parts = [pl.read_parquet(file) for file in files]
    assert all(part["n"].is_sorted() for part in parts)
    found = pl.concat(parts).sort("n")
    assert found.select("n", "user_id", "item_id").equals(whole.select("n", "user_id", "item_id"))
    assert found.columns == whole.columns
    # Other prompts stand beside them in a pass: the scorer's rounding in float32.
    np.testing.assert_allclose(found["log_odds"], whole["log_odds"], atol=5e-5)
    assert said[-2:] == [
        "pairs: 67 of 11 users; 1 of them without any history; 1 pairs repeated; 1 users have no event from test on, "
        "so all of theirs are shown",
        f"written: {tmp_path / 'out'} (67 rows in {len(files)} files; manifest.json tells of them)",
    ] or said[-3].startswith("pairs: 67 of 11 users; 1 of them without any history; 1 pairs repeated")
    assert not list(tmp_path.glob(".out.parts*"))


def test_each_part_is_to_the_bit_what_one_process_makes_of_its_rows(
    score: Any, opened: Any, pairs: Path, tmp_path: Path
) -> None:
    from rectune.score.score import open_data

    score("out")
    data = open_data(opened, silent)
    for file in sorted((tmp_path / "out").glob("part-*.parquet")):
        part = pl.read_parquet(file)
        part.select("n", "user_id", "item_id").write_parquet(tmp_path / "own.parquet")
        alone = score_pairs(
            opened, data, read_pairs(tmp_path / "own.parquet"), tmp_path / "own_scored.parquet", "test", silent, QUIET
        )
        assert alone.equals(part)


def test_the_files_do_not_depend_on_who_does_which_part_when(score: Any, tmp_path: Path) -> None:
    score("one")
    score("two", backwards)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_killed_call_goes_on_with_the_parts_that_are_left(score: Any, tmp_path: Path) -> None:
    score("whole")
    with pytest.raises(Killed):
        score("cut", partial(dies_after, 2))
    assert len(contents(tmp_path / "cut")) == 2
    assert not json.loads((tmp_path / "cut" / "manifest.json").read_text())["finished"]
    first = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "cut").glob("part-*.parquet")}
    said = score("cut")
    assert any(f"parts: 2 of {len(contents(tmp_path / 'whole'))} were scored by an earlier call" in one for one in said)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert all((tmp_path / "cut" / name).stat().st_mtime_ns == at for name, at in first.items())
    said = score("cut", nobody)
    assert any("none is left" in one for one in said)


def test_a_damaged_part_is_scored_again_and_no_other(score: Any, tmp_path: Path) -> None:
    score("out")
    before = contents(tmp_path / "out")
    (tmp_path / "out" / "part-00001.parquet").write_bytes(b"PAR1")
    (tmp_path / "out" / "part-00002.json").write_text("{")
    said = score("out")
    assert any(f"parts: {len(before) - 2} of {len(before)} were scored" in one for one in said)
    assert contents(tmp_path / "out") == before


def test_a_worker_that_dies_within_a_part_goes_on_behind_its_last_chunk(
    score: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rectune.score import pairs as stage
    from rectune.score.candidates import CandidateScorer

    monkeypatch.setattr(stage, "CHUNK", 12)
    score("whole")
    calls, scored = 0, CandidateScorer.score

    def dying(self: Any, requests: Any, progress: Any = None) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:  # the second of part 1, which has four users
            raise Killed
        return scored(self, requests, progress)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(CandidateScorer, "score", dying)
        score("cut")
    assert list(contents(tmp_path / "cut")) == ["part-00000.parquet"]
    said = score("cut")
    kept = json.loads((tmp_path / "cut" / "part-00001.json").read_text())["kept"]
    assert 0 < kept < pl.read_parquet(tmp_path / "cut" / "part-00001.parquet").height
    assert any("parts: 1 of 7 were scored by an earlier call" in line for line in said)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_part_without_pairs_is_an_empty_file_of_the_same_columns(score: Any, pairs: Path, tmp_path: Path) -> None:
    one = pl.read_parquet(pairs).filter(pl.col("user_id") == "3")
    one.write_parquet(tmp_path / "one.parquet")
    score("out", source=tmp_path / "one.parquet")
    frames = [pl.read_parquet(file) for file in sorted((tmp_path / "out").glob("part-*.parquet"))]
    assert sorted(frame.height for frame in frames) == [*[0] * (len(frames) - 1), 6] and len(frames) > 1
    assert len({tuple(frame.schema.items()) for frame in frames}) == 1


def test_a_folder_of_other_scores_is_refused_with_what_has_changed(
    score: Any, tiny_run: Path, pairs: Path, tmp_path: Path
) -> None:
    score("out")
    before = contents(tmp_path / "out")
    other = tmp_path / "other"
    shutil.copytree(tiny_run, other)
    told = (other / "rectune.json").read_text()
    (other / "rectune.json").write_text(told + "\n")
    pl.read_parquet(pairs)[:50].write_parquet(tmp_path / "fewer.parquet")
    for change, said in (
        ({"as_of": "now"}, "as_of has changed from test to now"),
        ({"run": other}, "rectune.json has changed from "),
        ({"source": tmp_path / "fewer.parquet"}, "pairs has changed from "),
        ({"overrides": ["per_device_eval_batch_size=2"]}, "per_device_eval_batch_size has changed from 4 to 2"),
    ):
        with pytest.raises(ConfigError, match="holds scores of another call") as caught:
            score("out", nobody, **change)
        assert said in str(caught.value) and "give another folder" in str(caught.value)
    assert contents(tmp_path / "out") == before


def test_a_folder_of_something_else_is_left_alone(score: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds other files \(thesis.txt\)"):
        score("out", nobody)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="is a file; with --workers give a folder"):
        score("file", nobody)


def test_workers_of_another_precision_are_refused(score: Any, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        score("out", partial(dies_after, 1))
    (tmp_path / ".out.parts" / "arithmetic").write_text("bfloat16, attention sdpa")
    with pytest.raises(ModelError, match=r"this worker computes in float32.*were computed in bfloat16, attention sdpa"):
        score("out")


def test_a_precision_outlives_the_work_folder(score: Any, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        score("out", partial(dies_after, 1))
    told = tmp_path / "out" / "part-00000.json"
    told.write_text(told.read_text().replace("float32", "bfloat16"))
    shutil.rmtree(tmp_path / ".out.parts")
    with pytest.raises(ModelError, match="were computed in bfloat16"):
        score("out")


def test_a_part_that_ends_every_process_is_given_up(score: Any, tmp_path: Path) -> None:
    @contextmanager
    def retried(times: int) -> Iterator[Spread]:
        def spread(make: Make, numbers: Sequence[int], model: bool = False) -> Iterator[Any]:
            for _ in range(times):  # as processes that begin with the part and are gone
                with (tmp_path / ".out.parts" / "part-2.begun").open("a") as file:
                    file.write("begun\n")
            yield from here(make, numbers, say=silent)

        yield spread

    with pytest.raises(ResourceError, match="3 processes have died over part-2"):
        score("out", partial(retried, 3))
    score("out", partial(retried, 2))  # a new call tries anew


def test_an_unknown_item_is_one_line_with_its_row(score: Any, pairs: Path, tmp_path: Path) -> None:
    table = pl.read_parquet(pairs)
    bad = table.with_columns(item_id=pl.when(pl.col("n") == 41).then(pl.lit("none")).otherwise("item_id"))
    bad.write_parquet(tmp_path / "bad.parquet")
    with pytest.raises(DataError) as caught:
        score("out", source=tmp_path / "bad.parquet")
    row = table["n"].to_list().index(41) + 1
    assert f"{tmp_path / 'bad.parquet'}: 1 pairs name 1 items" in str(caught.value)
    assert f"'none'; the first on row {row};" in str(caught.value)


def test_without_ray_workers_are_refused_in_one_line(
    tiny_run: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rectune.bulk import pool

    monkeypatch.setattr(pool, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        main(["score", str(tiny_run), "--pairs", str(pairs), "--workers", "2"])
    assert ended.value.code == ResourceError.exit_code
    assert capsys.readouterr().err == "error: --workers: needs Ray, which is not installed: pip install 'ray[data]'\n"
