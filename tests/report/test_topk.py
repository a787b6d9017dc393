"""Top-K evaluation: tables worked out by hand, and the whole stage on a tiny run."""

from __future__ import annotations

import doctest
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from rectune.baselines import retrieve
from rectune.cli import main
from rectune.config import parse_config
from rectune.data import candidate_sets as sets
from rectune.errors import DataError
from rectune.measure.bootstrap import Difference
from rectune.report import topk, topk_cases
from rectune.score import frozen as frozen_scores
from rectune.score.candidates import CandidateScorer, Request
from rectune.score.items import Items
from rectune.score.open_run import OpenRun, open_run
from rectune.score.score import TUNED, UNTUNED, open_data

QUIET = Console(quiet=True)


def silent(_line: str) -> None:
    """Say nothing."""


@pytest.fixture(scope="module")
def run_folder(
    tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path, save_random_run: Callable[..., Path]
) -> Path:
    """A stream run with a random adapter and like-rates as prior, on 20 users and 150 films; odd films are good."""
    root = tmp_path_factory.mktemp("topk")
    (root / "ml").mkdir()
    films = ["movieId,title,genres", *(f'{film},"Film {film} (1990)",Drama' for film in range(1, 151))]
    (root / "ml" / "movies.csv").write_text("\n".join(films) + "\n", encoding="utf-8")
    dice, lines = random.Random(2), ["userId,movieId,rating,timestamp"]
    for user in range(1, 21):
        for at, film in enumerate(dice.sample(range(1, 151), 24)):
            # One event in six shares its moment with the one before; user 7 likes nothing in the end.
            good = film % 2 == 1 and not (user == 7 and at > 16)
            lines.append(f"{user},{film},{5.0 if good else 2.0},{1000 * user + at - (at % 6 == 5)}")
    (root / "ml" / "ratings.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = parse_config(
        {
            "model_name_or_path": str(tiny_qwen3), "layout": "stream", "prompt_format": "completion",
            "dataset": str(root / "ml"), "dataset_dir": str(root / "data"), "output_dir": str(root / "run"),
            "preprocessing_cache_dir": str(root / "cache"), "bf16": False, "report_to": "none", "history_len": 4,
            "test_ratio": 0.25, "validation_ratio": 0.1, "prior": "item_rate", "item_rate_from": "other_users",
            "cutoff_len": 512,
        },
        origin="test",
    )  # fmt: skip
    return save_random_run(config)


@pytest.fixture(scope="module")
def opened(run_folder: Path) -> OpenRun:
    return open_run(run_folder, [], silent)


@pytest.fixture(scope="module")
def data(opened: OpenRun) -> Any:
    return open_data(opened, silent)


@pytest.fixture(scope="module")
def frozen(data: Any) -> pl.DataFrame:
    return sets.candidate_sets(data.folder, data.events, data.catalog, data.content_hash, "test", silent)


@pytest.fixture(scope="module")
def fitted(data: Any) -> dict[str, retrieve.Retriever]:
    seen = sets.history_at(data.events, "test")
    return {name: retrieve.fit(seen, name, data.catalog["item_id"]) for name in retrieve.RETRIEVERS}


@pytest.fixture(scope="module")
def cases(data: Any, frozen: pl.DataFrame, fitted: Any) -> list[topk_cases.Case]:
    return topk_cases.make_cases(data.events, frozen, "test", fitted[retrieve.DEFAULT], None)[0]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen_scores, "CHUNK", 2)


@pytest.mark.parametrize(("module", "examples"), [(topk, 1), (topk_cases, 1)])
def test_the_examples_in_the_docstrings_run(module: Any, examples: int) -> None:
    found = doctest.testmod(module)
    assert found.attempted == examples and found.failed == 0


def test_users_who_liked_nothing_new_are_left_out_and_counted(
    data: Any, frozen: pl.DataFrame, fitted: Any, cases: list[topk_cases.Case]
) -> None:
    liked = data.events.filter((pl.col("split") == "test") & (pl.col("label") == 1))
    assert "7" not in liked["user_id"]
    assert [case.user for case in cases] == liked["user_id"].unique(maintain_order=True).to_list()
    few, left_out = topk_cases.make_cases(data.events, frozen, "test", fitted["mf"], 5)
    assert left_out == {"no_relevant_item": 20 - len(cases), "not_drawn": len(cases) - 5}
    fewer = topk_cases.make_cases(data.events, frozen, "test", fitted["mf"], 3)[0]
    assert {case.user for case in fewer} < {case.user for case in few} < {case.user for case in cases}
    nobody = frozen.filter(pl.col("user_id") == "7")
    with pytest.raises(DataError, match=r"^--split test: none of 1 users liked an item"):
        topk_cases.make_cases(data.events, nobody, "test", fitted["mf"], None)


def test_a_case_knows_what_the_user_had_met_and_what_they_liked_then(data: Any, cases: list[topk_cases.Case]) -> None:
    for case in cases:
        own = data.events.filter(pl.col("user_id") == case.user)
        before, later = own.filter(pl.col("split") != "test"), own.filter(pl.col("split") == "test")
        assert case.known == set(before["item_id"])
        assert case.wanted == set(later.filter(pl.col("label") == 1)["item_id"])
        assert set(np.array(case.items)[~case.negative]) == set(later["item_id"])
        assert not set(case.pool.items) & case.known and len(case.pool.items) == topk_cases.POOL
        assert case.asked(UNTUNED) == case.items
        assert len(set(case.asked(TUNED))) == len(case.asked(TUNED))
        assert set(case.asked(TUNED)) == set(case.items) | set(case.pool.items)


def test_an_item_met_before_is_no_find(data: Any, fitted: Any) -> None:
    # Somebody likes an item again in the test split that they had met: only candidate sets ask about it.
    met = data.events.filter((pl.col("user_id") == "1") & (pl.col("split") == "warmup"))["item_id"][0]
    later = (pl.col("user_id") == "1") & (pl.col("split") == "test")
    first = data.events.filter(later)["item_id"][0]
    again = pl.when(later & (pl.col("item_id") == first)).then(pl.lit(met)).otherwise(pl.col("item_id"))
    events = data.events.with_columns(item_id=again, label=pl.when(later).then(1).otherwise("label").cast(pl.UInt8))
    one = sets.draw(events, data.catalog, "test").filter(pl.col("user_id") == "1")
    (case,), _ = topk_cases.make_cases(events, one, "test", fitted["mf"], None)
    assert met in case.items and case.relevant[case.items.index(met)]
    assert met in case.known and met not in case.wanted and met not in case.pool.items


def test_scores_are_those_of_the_frozen_history_asked_one_user_at_a_time(
    opened: OpenRun, data: Any, cases: list[topk_cases.Case], small_chunks: None
) -> None:
    scored = frozen_scores.score_frozen(opened, data, "test", cases[:3], (TUNED, UNTUNED), "topk", silent, QUIET)
    assert scored[TUNED].height == sum(len(case.asked(TUNED)) for case in cases[:3])
    assert scored[UNTUNED].height == sum(len(case.items) for case in cases[:3])
    items = Items(opened, data.catalog)
    for case in cases[:3]:
        own = data.events.filter(pl.col("user_id") == case.user)
        first = own.filter(pl.col("split") == "test")["timestamp"].min()
        earlier = own.filter(pl.col("timestamp") < first)
        history = [
            items.event(row["item_id"], row["rating"], int(row["label"])) for row in earlier.iter_rows(named=True)
        ]
        for which in (TUNED, UNTUNED):
            request = Request(history, [items.candidate(item) for item in case.asked(which)])
            (expected,) = CandidateScorer(opened, silent, tuned=which == TUNED).score([request])
            found = frozen_scores.Lookup(scored[which])(case.user, case.asked(which))
            np.testing.assert_allclose(found, expected, atol=2e-4)


def test_a_killed_call_goes_on_and_gives_the_same_result(
    opened: OpenRun, data: Any, cases: list[topk_cases.Case], monkeypatch: pytest.MonkeyPatch, small_chunks: None
) -> None:
    some = cases[:5]
    whole = frozen_scores.score_frozen(opened, data, "test", some, (TUNED, UNTUNED), "topk", silent, QUIET)
    assert not (opened.folder / "scoring").exists()
    calls: list[int] = []
    score = CandidateScorer.score

    def dying(self: Any, requests: Any, progress: Any) -> Any:
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(len(requests))
        return score(self, requests, progress)

    with monkeypatch.context() as patch:
        patch.setattr(CandidateScorer, "score", dying)
        with pytest.raises(KeyboardInterrupt):
            frozen_scores.score_frozen(opened, data, "test", some, (TUNED, UNTUNED), "topk", silent, QUIET)
    kept = sorted((opened.folder / "scoring").rglob("*.parquet"))
    assert [file.name for file in kept] == [
        "tuned-000000000.parquet", "tuned-000000002.parquet", "untuned-000000000.parquet",
    ]  # fmt: skip
    kept[1].write_bytes(b"PAR1")  # a damaged chunk is scored again
    said: list[str] = []
    again = frozen_scores.score_frozen(opened, data, "test", some, (TUNED, UNTUNED), "topk", said.append, QUIET)
    assert [line for line in said if line.startswith("scored")] == [
        "scored tuned: 4 of 5 users", "scored untuned: 4 of 5 users",
        "scored tuned: 5 of 5 users", "scored untuned: 5 of 5 users",
    ]  # fmt: skip
    assert all(again[which].equals(whole[which]) for which in (TUNED, UNTUNED))
    assert not (opened.folder / "scoring").exists()


# Four items liked by 4, 3, 2, 1 users; u has met none of them. The tuned model's order is the other way round.
POPULAR = {"u1": "abcd", "u2": "abc", "u3": "ab", "u4": "a"}


def by_hand(wanted: str) -> dict[str, Any]:
    likes = pl.DataFrame(
        [(user, item, 1) for user, items in POPULAR.items() for item in items],
        schema=["user_id", "item_id", "label"], orient="row",
    )  # fmt: skip
    fitted = {name: retrieve.fit(likes, name, list("abcde")) for name in retrieve.RETRIEVERS}
    pool = fitted[retrieve.DEFAULT].top("u", 3)
    assert (pool.items, pool.by) == (["a", "b", "c"], "popularity")
    relevant = np.array([item in wanted for item in "abe"])
    case = topk_cases.Case(
        "u", list("abe"), relevant, np.array([False, False, True]), frozenset("d"), frozenset(wanted), pool
    )
    tuned = {item: float(place) for place, item in enumerate("abcde")}
    models = {TUNED: lambda _user, items: np.array([tuned[item] for item in items])}
    return topk.measure_topk([case, case], models, fitted, lambda _user, items: np.zeros(len(items)))


def test_the_tables_by_hand() -> None:
    found = by_hand("a")
    tables = found["tables"]
    # Candidate set a, b, e: tuned ranks e, b, a; popularity a, b, e; a like-rate that knows nothing ties all three.
    assert tables["frozen_candidates"]["tuned"]["metrics"]["mrr@5"] == pytest.approx(1 / 3)
    assert tables["frozen_candidates"]["popularity"]["metrics"]["mrr@5"] == 1.0
    assert tables["frozen_candidates"]["item like-rate"]["metrics"]["hr@1"] == pytest.approx(1 / 3)
    # Liked a before not liked b, among the later items only: tuned has them the other way round.
    assert tables["frozen_candidates"]["tuned"]["metrics"]["uauc_later"] == 0.0
    assert tables["frozen_candidates"]["popularity"]["metrics"]["uauc_later"] == 1.0
    # One user twice is one user, about whom no interval can be given.
    assert "uauc_later" not in tables["frozen_candidates"]["tuned"]["intervals"]
    # Two stages: the pool is a, b, c.
    two = tables["two_stage"]
    assert two["mf alone"]["metrics"]["ndcg@10"] == 1.0
    assert two["re-ranked by tuned"]["metrics"]["ndcg@10"] == pytest.approx(1 / math.log2(4))
    # Ranks 1, 2, 3 and 3, 2, 1 fused: 1/61 + 1/63 twice and 2/62 below them, so a shares the first two ranks.
    assert two["fused with tuned"]["metrics"]["mrr@5"] == pytest.approx(0.75)
    assert found["pool_recall"] == 1.0
    gap = found["paired_differences"]["two_stage"]["re-ranked by tuned - mf alone"]["ndcg@10"]
    assert gap["difference"] == pytest.approx(1 / math.log2(4) - 1.0) and gap["high"] < 0


def test_what_the_retriever_has_not_found_counts_against_every_order_of_its_pool() -> None:
    found = by_hand("ce")
    two = found["tables"]["two_stage"]
    ideal = 1 + 1 / math.log2(3)
    assert two["mf alone"]["metrics"]["ndcg@10"] == pytest.approx(1 / math.log2(4) / ideal)
    assert two["re-ranked by tuned"]["metrics"]["ndcg@10"] == pytest.approx(1 / ideal)
    assert all(row["metrics"]["recall@20"] == 0.5 for row in two.values())
    assert found["pool_recall"] == 0.5
    # The whole catalogue without the known d: a, b, c, e by popularity.
    full = found["tables"]["full_catalogue"]["popularity"]["metrics"]
    assert full["mrr@5"] == pytest.approx(1 / 3)
    assert full["ndcg@10"] == pytest.approx((1 / math.log2(4) + 1 / math.log2(5)) / ideal)


@pytest.mark.parametrize(
    ("difference", "word"),
    [
        (Difference(0.02, 0.01, 0.03, 0.002), "yes"),
        (Difference(0.02, -0.01, 0.05, 0.4), "not shown"),
        (Difference(-0.02, -0.05, 0.01, 0.4), "not shown"),
        (Difference(-0.02, -0.03, -0.01, 0.002), "no, it harms"),
        (None, "not shown"),
    ],
)
def test_a_re_ranker_helps_only_where_its_interval_leaves_zero_out(difference: Difference | None, word: str) -> None:
    assert topk.in_a_word(difference) == word


@pytest.fixture
def rectune(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            main([str(argument) for argument in arguments])
            code = 0
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_the_command_writes_its_own_files_and_says_what_they_mean(run_folder: Path, rectune: Any) -> None:
    (run_folder / "metrics.json").write_text("mine", encoding="utf-8")
    options = ("--protocol", "topk", "--max-users", "8")
    code, out, err = rectune("evaluate", run_folder, *options)
    assert (code, err) == (0, "")
    assert (run_folder / "metrics.json").read_text(encoding="utf-8") == "mine"
    report = json.loads((run_folder / "metrics_topk.json").read_text(encoding="utf-8"))
    assert report["users"] == 8 and report["how_made"]["command"] == " ".join(
        ["rectune evaluate", str(run_folder), *options]
    )
    assert list(report["tables"]["frozen_candidates"]) == [
        "tuned", "untuned", "popularity", "item_knn", "mf", "item like-rate",
    ]  # fmt: skip
    assert list(report["tables"]["full_catalogue"]) == ["popularity", "item_knn", "mf"]
    assert list(report["tables"]["two_stage"]) == ["mf alone", "re-ranked by tuned", "fused with tuned"]
    for table in report["tables"].values():
        for row in table.values():
            for metric, (low, high) in row["intervals"].items():
                assert low <= row["metrics"][metric] <= high, metric
    gap = report["paired_differences"]["frozen_candidates"]["tuned - item like-rate"]["uauc_later"]
    of = report["tables"]["frozen_candidates"]
    tuned, rate = (of[name]["metrics"]["uauc_later"] for name in ("tuned", "item like-rate"))
    assert gap["difference"] == pytest.approx(tuned - rate) and gap["low"] <= gap["difference"] <= gap["high"]
    flat = " ".join(out.split())
    assert " ".join(report["verdict"].split()) in flat and "would the user like this item, once they have it?" in flat
    assert "left out:" in flat and "NDCG@10" in flat and "candidate sets: " in flat
    scored = pl.read_parquet(run_folder / "predictions_topk_test_tuned.parquet")
    assert scored.columns == ["user_id", "item_id", "log_odds"] and scored["user_id"].n_unique() == 8
    # The pool is the beginning of the whole catalogue's ranking, so the retriever alone has its figures there.
    alone, full = report["tables"]["two_stage"]["mf alone"], report["tables"]["full_catalogue"]["mf"]
    assert alone["metrics"] == pytest.approx(full["metrics"])
    # The same again, from the frozen sets, and validation beside it.
    assert "used as they are" in rectune("evaluate", run_folder, *options, "--no-base")[1]
    again = json.loads((run_folder / "metrics_topk.json").read_text(encoding="utf-8"))
    assert "untuned" not in again["tables"]["frozen_candidates"]
    assert again["tables"]["two_stage"] == report["tables"]["two_stage"]
    kept = (run_folder / "metrics_topk.json").read_bytes()
    code, _, err = rectune("evaluate", run_folder, "--protocol", "topk", "--split", "validation", "--no-base")
    assert (code, err) == (0, "") and (run_folder / "metrics_topk_validation.json").is_file()
    assert (run_folder / "metrics_topk.json").read_bytes() == kept


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--protocol", "topk", "--mode", "generate"), "--mode: does nothing with --protocol topk; leave it out"),
        (("--max-users", "3"), "--max-users: does nothing without --protocol topk; leave it out"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    run_folder: Path, rectune: Any, options: tuple[str, ...], message: str
) -> None:
    code, out, err = rectune("evaluate", run_folder, *options)
    assert (code, out, err) == (2, "", f"error: {message}\n")
