"""Records of a file asked in the stream layout, and with item rates."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from rectune.config import parse_config
from rectune.errors import ConfigError, DataError, ModelError
from rectune.prompt.events import Event
from rectune.report.evaluate import evaluate
from rectune.report.infer import infer_demo, infer_file, question
from rectune.score.open_run import OpenRun, open_run
from rectune.score.score import open_data, score_rows, split_rows
from rectune.train.train import train

QUIET = Console(quiet=True)


def silent(_line: str) -> None:
    """Say nothing."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path, movielens: Path) -> dict[str, Path]:
    """A stream run with like-rates as text and prior, a plain stream run, and a pointwise run with the prior."""
    root = tmp_path_factory.mktemp("infer")
    rates = {"prior": "item_rate", "item_rate_text": True}
    kinds: dict[str, dict[str, Any]] = {
        "rates": {"layout": "stream", "cutoff_len": 300, **rates},
        "plain": {"layout": "stream", "cutoff_len": 300},
        "pointwise": {"layout": "pointwise", "prior": "item_rate", "item_rate_from": "other_users"},
    }
    found = {}
    for name, values in kinds.items():
        config = parse_config(
            {
                "model_name_or_path": str(tiny_qwen3), "dataset": str(movielens), "dataset_dir": str(root / "data"),
                "output_dir": str(root / name), "preprocessing_cache_dir": str(root / "cache"), "bf16": False,
                "prompt_format": "completion", "report_to": "none", "max_steps": 2, "eval_steps": 2, "save_steps": 2,
                "learning_rate": 0.01, "baselines": "quick", **values,
            },
            origin="test",
        )  # fmt: skip
        found[name] = train(config, silent, QUIET)
    return found


@pytest.fixture(scope="module")
def rated(runs: dict[str, Path]) -> OpenRun:
    return open_run(runs["rates"], [], silent)


@pytest.fixture(scope="module")
def plain(runs: dict[str, Path]) -> OpenRun:
    return open_run(runs["plain"], [], silent)


@pytest.fixture
def raw(runs: dict[str, Path]) -> dict[str, Any]:
    lines = (runs["rates"].parent / "data" / "test_raw.jsonl").read_text(encoding="utf-8").splitlines()
    return json.loads(lines[0])


def refused(run: OpenRun, record: dict[str, Any]) -> str:
    with pytest.raises(DataError) as caught:
        question(run, record, "file.jsonl, record 7")
    assert "\n" not in str(caught.value) and str(caught.value).startswith("file.jsonl, record 7: ")
    return str(caught.value)


def test_a_record_is_asked_as_the_plain_prompt_of_its_history(plain: OpenRun, raw: dict[str, Any]) -> None:
    asked = question(plain, raw, "here")
    pairs = list(zip(raw["history_titles"], raw["history_ratings"], strict=True))
    history = [Event(title, rating, int(rating >= 4)) for title, rating in pairs]
    assert asked.prompt == plain.prompts.build(history, raw["candidate_title"])
    text = plain.loaded.tokenizer.decode(asked.prompt.tokens)
    shown = pairs[asked.prompt.dropped :]
    assert text.endswith("".join(f"{title}: {rating:g}\n" for title, rating in shown) + raw["candidate_title"] + ":")
    assert asked.prior == 0.0 and asked.label == (raw["label"] == "Yes")


def test_the_oldest_events_are_dropped_to_fit(plain: OpenRun, raw: dict[str, Any]) -> None:
    many = raw | {"history_titles": ["Film"] * 200, "history_ratings": [4.0] * 199 + [1.0]}
    asked = question(plain, many, "here")
    assert 0 < asked.prompt.dropped < 200 and len(asked.prompt.tokens) <= 300
    assert plain.loaded.tokenizer.decode(asked.prompt.tokens).endswith(f"Film: 1\n{raw['candidate_title']}:")


def test_a_missing_rating_is_named(plain: OpenRun, raw: dict[str, Any]) -> None:
    assert "history_ratings: " in refused(plain, raw | {"history_ratings": []})


def test_rates_stand_behind_titles_and_the_prior_is_added(rated: OpenRun, raw: dict[str, Any]) -> None:
    asked = question(rated, raw, "here")
    table = rated.settings.item_rates
    text = rated.loaded.tokenizer.decode(asked.prompt.tokens)
    rate, count = table[raw["candidate_item_id"]]
    assert text.endswith(f"{raw['candidate_title']} ({100 * rate:.0f}% of {count}):")
    assert asked.prior == pytest.approx(math.log(rate / (1 - rate)))
    last, item = raw["history_titles"][-1], raw["history_item_ids"][-1]
    assert f"{last} ({100 * table[item][0]:.0f}% of {table[item][1]}): {raw['history_ratings'][-1]:g}\n" in text


def test_an_unknown_item_is_one_that_nobody_has_rated(rated: OpenRun, raw: dict[str, Any]) -> None:
    rate, _ = rated.settings.item_rates[None]
    for item in (None, "no such item", 10**9):
        asked = question(rated, raw | {"candidate_item_id": item}, "here")
        assert asked.prior == pytest.approx(math.log(rate / (1 - rate)))
        assert rated.loaded.tokenizer.decode(asked.prompt.tokens).endswith(f" ({100 * rate:.0f}% of 0):")
    whole = question(rated, raw | {"candidate_item_id": int(raw["candidate_item_id"])}, "here")
    assert whole.prior == question(rated, raw, "here").prior


def test_missing_item_ids_are_one_line(rated: OpenRun, plain: OpenRun, raw: dict[str, Any]) -> None:
    bare = {key: value for key, value in raw.items() if not key.endswith(("item_id", "item_ids"))}
    assert "no candidate_item_id, but this run knows items by their ids" in refused(rated, bare)
    assert "no history_item_ids" in refused(rated, bare | {"candidate_item_id": "1"})
    short = raw | {"history_item_ids": raw["history_item_ids"][1:]}
    assert f"{len(raw['history_titles'])} history_titles but" in refused(rated, short)
    assert "candidate_item_id is " in refused(rated, raw | {"candidate_item_id": [1]})
    question(rated, bare | {"candidate_item_id": "1", "history_titles": [], "history_ratings": []}, "here")
    question(plain, bare, "here")


@pytest.mark.parametrize("name", ["rates", "plain", "pointwise"])
def test_an_alpaca_record_is_refused_where_it_cannot_be_asked(runs: dict[str, Path], name: str) -> None:
    record = json.loads((runs[name].parent / "data" / "eval.json").read_text(encoding="utf-8"))[0]
    told = refused(open_run(runs[name], [], silent), record)
    assert ("names no items" if name == "pointwise" else "an Alpaca record") in told


def test_a_run_without_its_table_is_refused_where_it_is_needed(rated: OpenRun, raw: dict[str, Any]) -> None:
    from dataclasses import replace

    without = replace(rated, settings=replace(rated.settings, rates=None, prior=None))
    with pytest.raises(ModelError, match=r"no item_rates\.parquet was saved with it"):
        question(without, raw, "here")


def test_a_generated_answer_cannot_have_a_prior(rated: OpenRun, runs: dict[str, Path], tmp_path: Path) -> None:
    file = runs["rates"].parent / "data" / "test_raw.jsonl"
    with pytest.raises(ConfigError, match="--mode: generate cannot add this run's prior"):
        infer_file(rated, file, tmp_path, None, False, "generate", silent)


def test_the_demo_says_which_rate_its_films_have(rated: OpenRun, plain: OpenRun) -> None:
    said: list[str] = []
    infer_demo(rated, said.append)
    rate, _ = rated.settings.item_rates[None]
    assert (
        said[1]
        == f"item rates: these films are in no dataset, so all have the like-rate of an unrated item ({rate:.0%})"
    )
    assert said[0].endswith(f"Shawshank Redemption, The (1994) ({100 * rate:.0f}% of 0):")
    assert [line.split(":")[0].strip() for line in said[2:]] == ["untuned", "tuned"] and "says" not in said[2]
    said.clear()
    infer_demo(plain, said.append)
    assert len(said) == 3 and "says" in said[1]


def test_a_file_is_scored_as_its_split_where_rates_do_not_move(runs: dict[str, Path], tmp_path: Path) -> None:
    """Held-out events get the rates of all training events, so the table's prior is the dataset's."""
    run = open_run(runs["pointwise"], [], silent)
    data = open_data(run, silent)
    split = score_rows(run, data, split_rows(run, data, "test"), ("tuned",), "logits", silent, QUIET)["tuned"]
    said: list[str] = []
    infer_file(run, data.folder / "test_raw.jsonl", tmp_path, None, True, "logits", said.append)
    found = pl.read_ndjson(tmp_path / "lora_predictions.jsonl")
    assert found["row_id"].to_list() == split["row_id"].to_list()
    assert np.allclose(found["log_odds"], split["log_odds"], atol=1e-4)
    assert any(line.startswith("item rates: 0 of ") for line in said)
    # Without the prior they differ, and the untuned model has it too.
    prior = [question(run, record, "here").prior for record in found.iter_rows(named=True)]
    assert np.ptp(prior) > 0.1


def test_a_stream_run_with_rates_goes_through_evaluate_and_a_file(
    runs: dict[str, Path], rated: OpenRun, tmp_path: Path
) -> None:
    lines: list[str] = []
    found = evaluate(runs["rates"], [], "validation", "logits", True, lines.append, QUIET)
    assert any("row by row: 0 in log-odds" in line for line in lines)
    assert "streams in windows of at most 300 tokens" in found.page.read_text(encoding="utf-8")
    assert "item like-rates (earlier) as a prior and in the text" in found.page.read_text(encoding="utf-8")
    infer_file(rated, runs["rates"].parent / "data" / "test_raw.jsonl", tmp_path, 5, False, "logits", silent)
    written = pl.read_ndjson(tmp_path / "lora_predictions.jsonl")
    assert len(written) == 5 and written["log_odds"].is_finite().all()
    assert json.loads((tmp_path / "metrics_summary.json").read_text(encoding="utf-8"))["lora"]["n"] == 5
