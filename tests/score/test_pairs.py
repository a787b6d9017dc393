"""Bulk scoring of pairs: grouped and cut, order kept, killed and resumed, cold users, unknown items."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from rectune.errors import ConfigError, DataError
from rectune.score import pairs as stage
from rectune.score.candidates import Candidate, CandidateScorer, Request
from rectune.score.items import Items
from rectune.score.pair_file import Pairs, read_pairs
from rectune.score.pairs import asked_of, cut, histories, score_pairs

QUIET = Console(quiet=True)
SPLITS = ["warmup", "train", "validation", "test"]
IDS = st.sampled_from(["1", "2", "03", "3", "x y", "é"])
TABLES = st.lists(st.tuples(IDS, IDS), min_size=1, max_size=40)


def silent(_line: str) -> None:
    """Say nothing."""


def pairs_file(folder: Path, rows: list[tuple[str, str]], name: str = "pairs.csv") -> Pairs:
    file = folder / name
    frame = pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row").with_row_index("n")
    frame.write_csv(file)
    return read_pairs(file)


@pytest.fixture
def rows() -> list[tuple[str, str]]:
    """Pairs of three known users and a new one, in no order, one of them twice."""
    draw = np.random.default_rng(3)
    found = [(user, str(item)) for user in ("1", "2", "7", "new") for item in draw.permutation(np.arange(1, 31))[:5]]
    return [found[index] for index in draw.permutation(len(found))] + [found[4]]


@pytest.fixture
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "CHUNK", 12)


def left_over(opened: Any) -> list[Path]:
    return sorted((opened.folder / "scoring").rglob("*.parquet"))


# --- grouping and cutting ---


def test_pairs_are_asked_once_with_users_and_items_as_they_first_occur() -> None:
    table = pl.DataFrame(
        [("b", "2"), ("a", "1"), ("b", "1"), ("b", "2"), ("a", "3")], schema=["user_id", "item_id"], orient="row"
    )
    asked, users = asked_of(table)
    assert asked.rows() == [("b", "2"), ("b", "1"), ("a", "1"), ("a", "3")]
    assert users.rows() == [("b", 2), ("a", 2)]


@given(TABLES)
def test_every_pair_is_asked_once_and_users_never_mix(rows: list[tuple[str, str]]) -> None:
    asked, users = asked_of(pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row"))
    assert sorted(asked.rows()) == sorted(set(rows)) and users["count"].sum() == asked.height
    changes = sum(left != right for left, right in zip(asked["user_id"][1:], asked["user_id"][:-1], strict=True))
    assert changes == users.height - 1


def test_users_are_cut_where_their_pairs_are_too_many() -> None:
    # Lines: 3+2, 3+2, 3+1 for the first user, cut in three; 1+1 for the second, which begins at line 14.
    parts = cut(np.array([5, 1]), np.array([3, 1]), size=2)
    assert parts.user.tolist() == [0, 0, 0, 1]
    assert (parts.start.tolist(), parts.stop.tolist()) == ([0, 2, 4, 5], [2, 4, 5, 6])
    assert parts.chunk.tolist() == [0, 2, 5, 7]


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(0, 9)), min_size=1, max_size=30),
    st.integers(1, 20),
)
def test_parts_cover_every_pair_once_and_chunks_stay_small(users: list[tuple[int, int]], size: int) -> None:
    counts, shown = (np.array(each) for each in zip(*users, strict=True))
    parts = cut(counts, shown, size)
    assert parts.start.tolist() == [0, *parts.stop[:-1].tolist()] and parts.stop[-1] == counts.sum()
    owner = np.repeat(np.arange(len(counts)), counts)
    assert all(set(owner[a:b]) == {u} for a, b, u in zip(parts.start, parts.stop, parts.user, strict=True))
    assert (np.diff(parts.chunk) >= 0).all()
    lines = np.bincount(parts.chunk, shown[parts.user] + parts.stop - parts.start)
    # The last part of a chunk may reach over its end by what it holds itself.
    assert (lines < 2 * size + shown.max()).all()


def test_a_history_stops_before_the_moment_of_the_first_hidden_event() -> None:
    def timeline(user: str, splits: str, ends: list[int]) -> pl.DataFrame:
        names = {"w": "warmup", "t": "train", "v": "validation", "s": "test"}
        return pl.DataFrame({"user_id": [user] * len(splits), "split": [names[x] for x in splits], "history_end": ends})

    events = pl.concat(
        [
            timeline("a", "wttvss", [0, 1, 2, 3, 4, 5]),
            timeline("b", "wtvs", [0, 1, 1, 3]),  # its validation event shares the moment of its last training event
            timeline("c", "wt", [0, 1]),  # nothing held out
            timeline("d", "ws", [0, 1]),  # a test event, but none for validation
        ]
    ).with_columns(pl.col("history_end").cast(pl.UInt32))
    users = pl.DataFrame({"user_id": ["d", "new", "b", "a", "c"]})

    def found(as_of: str) -> list[tuple[int, int, bool]]:
        return histories(events, users, as_of).rows()

    # a lies at 0-5, b at 6-9, c at 10-11, d at 12-13.
    assert [row[:2] for row in found("now")] == [(12, 14), (0, 0), (6, 10), (0, 6), (10, 12)]
    assert found("test") == [(12, 13, True), (0, 0, True), (6, 9, True), (0, 4, True), (10, 12, False)]
    assert found("validation") == [(12, 13, True), (0, 0, True), (6, 7, True), (0, 3, True), (10, 12, False)]


# --- scoring ---


def by_hand(opened: Any, data: Any, rows: list[tuple[str, str]], split: str | None) -> list[float]:
    """Log-odds of each pair from a request of its own, the history found by timestamps."""
    items, scorer, found = Items(opened, data.catalog), CandidateScorer(opened, silent), []
    for user, item in rows:
        events = data.events.filter(pl.col("user_id") == user)
        if split is not None:
            late = SPLITS[SPLITS.index(split) :]
            events = events.filter(pl.col("timestamp") < events.filter(pl.col("split").is_in(late))["timestamp"].min())
        history = [items.event(*event) for event in events.select("item_id", "rating", "label").iter_rows()]
        found.append(float(scorer.score([Request(history, [items.candidate(item)])])[0][0]))
    return found


@pytest.mark.parametrize("as_of", ["now", "test", "validation"])
@pytest.mark.usefixtures("_small_chunks")
def test_scores_are_those_of_each_pair_asked_alone_in_the_order_of_the_file(
    as_of: str, opened: Any, data: Any, rows: list[tuple[str, str]], tmp_path: Path
) -> None:
    pairs = pairs_file(tmp_path, rows)
    table = score_pairs(opened, data, pairs, tmp_path / "out.parquet", as_of, silent, QUIET)
    assert table.select("n", "user_id", "item_id").equals(pairs.table.select("n", "user_id", "item_id"))
    assert table.columns == ["n", "user_id", "item_id", "log_odds", "score"]
    known = [row for row in rows if row[0] != "new"] if as_of != "now" else rows
    expected = by_hand(opened, data, known, None if as_of == "now" else as_of)
    kept = table.filter(pl.col("user_id").is_in([user for user, _ in known]))
    # The rows of a batch are padded to another width than alone.
    np.testing.assert_allclose(kept["log_odds"], expected, atol=2e-5)
    np.testing.assert_allclose(table["score"], 1 / (1 + np.exp(-table["log_odds"].to_numpy())), atol=1e-12)
    assert table["log_odds"][-1] == table.filter(item_id=rows[-1][1], user_id=rows[-1][0])["log_odds"][0]
    assert pl.read_parquet(tmp_path / "out.parquet").equals(table)
    assert left_over(opened) == []


@given(
    rows=st.lists(
        st.tuples(st.sampled_from(["1", "2", "new"]), st.sampled_from(["1", "2", "3"])), min_size=1, max_size=12
    )
)
@settings(max_examples=12, deadline=None)
def test_any_order_of_the_rows_gives_the_same_scores(opened: Any, data: Any, tmp_path_factory: Any, rows: Any) -> None:
    folder = tmp_path_factory.mktemp("order")
    found = {}
    for name, order in (("given", rows), ("sorted", sorted(rows))):
        pairs = pairs_file(folder, order, f"{name}.csv")
        table = score_pairs(opened, data, pairs, folder / f"{name}.jsonl", "now", silent, QUIET)
        assert list(table.select("user_id", "item_id").iter_rows()) == order
        found[name] = {(user, item): odds for user, item, odds in table[:, [1, 2, 3]].iter_rows()}
    assert found["given"].keys() == found["sorted"].keys()
    np.testing.assert_allclose(
        [found["given"][key] for key in found["sorted"]], list(found["sorted"].values()), atol=2e-5
    )


@pytest.mark.usefixtures("_small_chunks")
def test_a_call_killed_between_chunks_goes_on_and_gives_the_same_bytes(
    opened: Any, data: Any, rows: list[tuple[str, str]], tmp_path: Path
) -> None:
    pairs, said = pairs_file(tmp_path, rows), []
    score_pairs(opened, data, pairs, tmp_path / "whole.csv", "now", said.append, QUIET)
    chunks = sum(line.startswith("scored: ") for line in said)
    assert chunks >= 3

    class Counting(CandidateScorer):
        calls = 0
        dies = 2

        def score(self, requests: Any, progress: Any = None) -> Any:
            if Counting.calls == Counting.dies:
                raise KeyboardInterrupt
            Counting.calls += 1
            return super().score(requests, progress)

    said.clear()
    with pytest.raises(KeyboardInterrupt):
        score_pairs(opened, data, pairs, tmp_path / "cut.csv", "now", said.append, QUIET, Counting(opened, silent))
    assert "the same command goes on from there" in said[-1]
    assert len(left_over(opened)) == 2 and not (tmp_path / "cut.csv").exists()
    left_over(opened)[0].write_bytes(b"PAR1")  # a damaged chunk is scored again
    Counting.calls, Counting.dies = 0, -1
    score_pairs(opened, data, pairs, tmp_path / "cut.csv", "now", said.append, QUIET, Counting(opened, silent))
    assert Counting.calls == chunks - 1
    assert (tmp_path / "cut.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert left_over(opened) == []


@pytest.mark.usefixtures("_small_chunks")
def test_an_output_that_fails_keeps_the_chunks(
    opened: Any, data: Any, rows: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs, said = pairs_file(tmp_path, rows), []

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(stage, "write_pairs", full)
        with pytest.raises(OSError, match="No space"):
            score_pairs(opened, data, pairs, tmp_path / "out.csv", "now", silent, QUIET)
    assert left_over(opened)
    score_pairs(opened, data, pairs, tmp_path / "out.csv", "now", said.append, QUIET)
    assert not any(line.startswith("scored: ") for line in said)
    assert left_over(opened) == []


def test_cold_users_and_repeated_pairs_are_counted(opened: Any, data: Any, rows: Any, tmp_path: Path) -> None:
    said: list[str] = []
    score_pairs(opened, data, pairs_file(tmp_path, rows), tmp_path / "out.csv", "now", said.append, QUIET)
    assert said[0] == "pairs: 21 of 4 users; 1 of them without any history; 1 pairs repeated"
    events = set(data.events.select("user_id", "item_id").iter_rows())
    shown = len(set(rows) & events)
    assert said[1] == (
        f"pairs: {shown} ask about an item whose outcome stands in the history shown, so their scores are no forecast; "
        "--as-of test hides the test events"
    )
    assert said[2].startswith("scored: 20 of 20 pairs, ") and said[2].endswith("a second, about 0:00:00 left")


def test_items_that_the_catalog_does_not_hold_are_refused_with_the_first_line(
    opened: Any, data: Any, tmp_path: Path
) -> None:
    rows = [("1", "1"), ("1", "99"), ("2", "99"), ("2", "x"), ("2", "y"), ("2", "z")]
    with pytest.raises(DataError) as caught:
        score_pairs(opened, data, pairs_file(tmp_path, rows), tmp_path / "out.csv", "now", silent, QUIET)
    said = str(caught.value)
    assert "5 pairs name 4 items that the catalog of 30 does not hold: '99', 'x', 'y', ...; the first on line 3" in said
    assert "\n" not in said and not (tmp_path / "out.csv").exists()


def test_an_unknown_as_of_is_refused(opened: Any, data: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--as-of: got 'train', allowed: now, validation, test"):
        score_pairs(opened, data, pairs_file(tmp_path, [("1", "1")]), tmp_path / "o.csv", "train", silent, QUIET)


def test_a_long_history_is_cut_to_what_a_prompt_can_show(opened: Any, data: Any, tmp_path: Path) -> None:
    work = stage.PairWork(opened, data, pairs_file(tmp_path, [("1", "1")]).table, "now")
    (request,) = work.requests(next(iter(work.chunks()))[2])
    events = data.events.filter(pl.col("user_id") == "1")[-15:]
    items = Items(opened, data.catalog)
    assert [event.title for event in request.history] == [items.text(item) for item in events["item_id"]]
    assert request.candidates == [Candidate(items.text("1"), 0.0, "1")] and request.user is None


# --- the command ---

AFTER_FIRST = """
import os, sys, time
from rectune.cli import main
from rectune.score import pairs
from rectune.score.candidates import CandidateScorer
pairs.CHUNK = 12
score, chunks = CandidateScorer.score, []
def waiting(self, requests, progress=None):
    chunks.append(len(requests))
    time.sleep(float(os.environ["WAIT"]) if len(chunks) > 1 else 0)
    return score(self, requests, progress)
CandidateScorer.score = waiting
main(sys.argv[1:])
"""
"""The command line with small chunks, which waits before every chunk but the first."""


def command(*arguments: object, wait: float = 0.0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", AFTER_FIRST, *map(str, arguments)],
        env={**os.environ, "WAIT": str(wait), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_command_ended_by_sigkill_goes_on_and_writes_the_same_file(
    tiny_run: Path, data: Any, rows: list[tuple[str, str]], tmp_path: Path
) -> None:
    file = pairs_file(tmp_path, rows).file
    whole, cut_file = tmp_path / "whole.csv", tmp_path / "cut.csv"
    victim = command("score", tiny_run, "--pairs", file, "--output", cut_file, "--as-of", "test", wait=60)
    store = tiny_run / "scoring"
    deadline = time.monotonic() + 240
    # The second chunk is being waited for when the first lies there.
    while not list(store.rglob("pairs-*.parquet")):
        assert victim.poll() is None and time.monotonic() < deadline, victim.communicate()[1]
        time.sleep(0.2)
    os.kill(victim.pid, signal.SIGKILL)
    victim.communicate()
    assert not cut_file.exists()
    again = command("score", tiny_run, "--pairs", file, "--output", cut_file, "--as-of", "test")
    out, err = again.communicate(timeout=240)
    assert again.returncode == 0, err
    assert "pairs were scored by an earlier call" in out and f"written: {cut_file} (21 rows)" in out
    fresh = command("score", tiny_run, "--pairs", file, "--output", whole, "--as-of", "test")
    assert fresh.communicate(timeout=240) and fresh.returncode == 0
    assert cut_file.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--as-of", "test"], "--as-of: does nothing without --pairs"),
        (["--pairs", "p.csv", "--split", "test"], "--split: does nothing with --pairs"),
        (["--pairs", "p.csv", "--demo"], "--pairs: does nothing with --demo"),
        (["--pairs", "p.csv", "--input", "x.jsonl"], "--input: does nothing with --pairs"),
        (["--pairs", "none.csv"], "--pairs: none.csv: no such file"),
        (["--workers", "2"], "--workers: does nothing without --pairs"),
        (["--pairs", "p.parquet", "--ray", "auto"], "--ray: does nothing without --workers"),
        (["--pairs", "p.parquet", "--workers", "2", "--ray", "ray://head:10001"], "--ray: got 'ray://head:10001'"),
    ],
)
def test_options_that_do_not_fit_pairs_are_one_line(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from rectune.cli import main

    with pytest.raises(SystemExit):
        main(["score", "no/such/run", *options])
    captured = capsys.readouterr()
    assert said in captured.err and captured.err.count("\n") == 1
