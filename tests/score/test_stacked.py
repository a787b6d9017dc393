"""A model that starts from the stacked baseline: in training, in every way of scoring, and in its files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from rectune.baselines.prior import stack_prior
from rectune.baselines.questions import FROZEN, ONLINE, Log, ask, split_rows
from rectune.baselines.served import Met
from rectune.config import Config, parse_config
from rectune.data.columns import TEST
from rectune.errors import DataError, ModelError
from rectune.measure.classification import auc
from rectune.prompt.dataset import open_dataset
from rectune.prompt.encode import encode
from rectune.report.evaluate import evaluate
from rectune.report.infer import infer_file
from rectune.score.open_run import OpenRun, open_run
from rectune.score.recommender import Recommender
from rectune.score.score import TUNED, open_data, score_rows
from rectune.score.scorer import score_trees
from rectune.score.settings import BASELINE_FILES, FILE_NAME
from rectune.train.train import train

QUIET = Console(quiet=True)
FILE = BASELINE_FILES["stack"]


def silent(_line: str) -> None:
    """Say nothing."""


@pytest.fixture(scope="module", params=["stream", "pointwise"])
def config(request: Any, tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path, movielens: Path) -> Config:
    root = tmp_path_factory.mktemp(f"stack-{request.param}")
    values: dict[str, Any] = {
        "model_name_or_path": str(tiny_qwen3), "dataset": str(movielens), "dataset_dir": str(root / "data"),
        "bf16": False, "output_dir": str(root / "run"), "preprocessing_cache_dir": str(root / "cache"),
        "report_to": "none", "layout": request.param, "prompt_format": "completion", "cutoff_len": 400,
        "prior": "stack", "history_shows": "label", "max_steps": 2, "eval_steps": 2, "save_steps": 2,
        "learning_rate": 0.01, "baselines": "quick",
    }  # fmt: skip
    return parse_config(values, origin="test")


@pytest.fixture(scope="module")
def trained(config: Config) -> Path:
    return train(config, silent, QUIET)


@pytest.fixture(scope="module")
def run(trained: Path) -> OpenRun:
    return open_run(trained, [], silent)


def test_training_and_scoring_add_what_the_stack_says_of_each_event(run: OpenRun) -> None:
    data = open_data(run, silent)
    stack, odds = stack_prior(data.events, data.catalog, data.content_hash, run.config.preprocessing_cache_dir, silent)
    rows = split_rows(data.events, TEST)
    trees = encode(run.config, data.events, data.catalog, data.content_hash, run.prompts, rows, silent)
    assert trees.prior.tolist() == odds[trees.rows].tolist()
    log = Log.of(data.events, data.catalog)
    np.testing.assert_allclose(stack.score(log, ask(log, rows, ONLINE)), odds[rows])
    found = score_rows(run, data, rows, (TUNED,), "logits", silent, QUIET)[TUNED]["log_odds"].to_numpy()
    scored = score_trees(run.model, trees, run.prompts.verbalizer, 8, run.loaded.attention)
    np.testing.assert_allclose(found, run.settings.calibrated(scored), atol=1e-5)


def test_a_ranking_adds_what_the_stack_says_after_that_history(run: OpenRun, trained: Path) -> None:
    recommender = Recommender.load(trained, say=silent)
    data = recommender.data
    assert data is not None
    log = Log.of(data.events, data.catalog)
    rows = split_rows(data.events, TEST)
    asked = ask(log, rows, FROZEN)
    user = log.user[rows[0]]
    mine = np.flatnonzero(log.user[rows] == user)
    past = data.events[int(log.first[rows[0]]) : int(asked.stops[mine[0]])]
    history = [({"item_id": item}, bool(label)) for item, label in past.select("item_id", "label").iter_rows()]
    items = data.events["item_id"].gather(rows[mine]).to_list()
    with_prior = recommender.ask(history, [{"item_id": item} for item in items]).request
    odds = recommender.scorer.score([with_prior])[0]
    stacked = run.settings.served["stack"]
    expected = stacked.score(log, ask(log, rows, FROZEN))[mine]
    plain = stacked.answer([Met(event.item_id, event.label) for event in with_prior.history], items)
    np.testing.assert_allclose(plain, expected)
    flipped = recommender.ask([(item, not label) for item, label in history], [{"item_id": items[0]}]).request
    assert recommender.scorer.score([flipped])[0][0] != pytest.approx(odds[0], abs=1e-6)


def test_a_report_compares_with_the_very_prior_and_holds_both_protocols(trained: Path, config: Config) -> None:
    report = evaluate(trained, [], TEST, "logits", True, silent, QUIET).report
    data = open_dataset(config, silent)
    _, odds = stack_prior(data.events, data.catalog, data.content_hash, config.preprocessing_cache_dir, silent)
    rows = split_rows(data.events, TEST)
    labels = data.events["label"].gather(rows).to_numpy().astype(int)

    assert report["models"]["stack"]["metrics"]["auc"] == pytest.approx(auc(labels, odds[rows]))
    assert set(report["frozen"]["models"]) == set(report["models"])
    assert "tuned - stack" in report["frozen"]["paired_differences"]
    for name, protocol in (("models", ONLINE), ("frozen", FROZEN)):
        there = report[name] if name == "models" else report["frozen"]["models"]
        expected = Log.of(data.events, data.catalog)
        asked = ask(expected, rows, protocol)
        stacked = open_run(trained, [], silent).settings.served["stack"].score(expected, asked)
        assert there["stack"]["metrics"]["auc"] == pytest.approx(auc(labels, stacked)), protocol
    assert report["baselines"]["stack"]["sees"]
    for table in ("predictions_test_tuned.parquet", "predictions_test_tuned_frozen.parquet"):
        assert pl.read_parquet(trained / table).height == len(rows)


def test_a_file_of_records_needs_the_items_of_its_histories(run: OpenRun, tmp_path: Path) -> None:
    data = open_data(run, silent)
    lines = (data.folder / "test_raw.jsonl").read_text(encoding="utf-8").splitlines()
    whole = tmp_path / "whole.jsonl"
    whole.write_text("\n".join(lines[:3]) + "\n", encoding="utf-8")
    infer_file(run, whole, tmp_path / "out", None, False, "logits", silent)
    answers = [json.loads(line) for line in (tmp_path / "out" / "lora_predictions.jsonl").open(encoding="utf-8")]
    assert len(answers) == 3 and all(np.isfinite(answer["log_odds"]) for answer in answers)
    record = json.loads(lines[0])
    del record["history_item_ids"]
    whole.write_text(json.dumps(record) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="record 1: no history_item_ids, but this run knows items by their ids"):
        infer_file(run, whole, tmp_path / "out", None, False, "logits", silent)


def test_the_stack_lies_beside_every_adapter_whole_or_refused(trained: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(trained, tmp_path / "copy"))
    for folder in (copy, copy / "best", copy / "checkpoint-2"):
        saved = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
        assert saved["baselines"]["stack"]["file"] == FILE and "fitted" not in saved
        open_run(folder, [], silent)
    file = copy / FILE
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ModelError, match=f"{FILE}: damaged"):
        open_run(copy, [], silent)
    file.unlink()
    with pytest.raises(ModelError, match=f"no {FILE}, which {FILE_NAME} names"):
        open_run(copy, [], silent)
    saved = json.loads((copy / FILE_NAME).read_text(encoding="utf-8"))
    (copy / FILE_NAME).write_text(json.dumps({**saved, "baselines": {}, "sha256": None}), encoding="utf-8")
    with pytest.raises(ModelError, match=r"baselines is \{\}, and this version cannot apply it"):
        open_run(copy, [], silent)
