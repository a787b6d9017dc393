"""A table without ratings, genres or years all the way: trained on, measured, compared with baselines, and asked."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from rectune.config import Config, parse_config
from rectune.errors import DataError
from rectune.prompt.dataset import Dataset, open_dataset
from rectune.prompt.encode import EventHistories
from rectune.report.baselines import measure_baselines
from rectune.report.evaluate import evaluate
from rectune.report.infer import infer_file, question
from rectune.score.open_run import open_run
from rectune.score.recommender import Recommender
from rectune.score.score import open_data, split_rows
from rectune.train.train import train

QUIET = Console(quiet=True)


def silent(_line: str) -> None:
    """Say nothing."""


def write_table(path: Path) -> None:
    """Twelve users, a few of them with a handful of events; price and tags beside; no rating anywhere."""
    draw = random.Random(3)
    rows = []
    for user in range(14):
        for at, item in enumerate(draw.sample(range(30), 24 if user < 12 else 2)):
            rows.append(
                {
                    "person": f"p{user}", "thing": f"t{item}", "when": 1_700_000_000 + 1000 * user + at - (at % 5 == 4),
                    "chosen": bool(item % 2) if draw.random() < 0.8 else not item % 2, "called": f"Thing {item}",
                    "price": None if item == 3 else item / 2, "tags": ["a", "b"][: item % 3],
                }
            )  # fmt: skip
    pl.DataFrame(rows).write_parquet(path)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path) -> Config:
    root = tmp_path_factory.mktemp("table")
    write_table(root / "log.parquet")
    values: dict[str, Any] = {
        "model_name_or_path": str(tiny_qwen3), "dataset": str(root / "log.parquet"), "dataset_dir": str(root / "data"),
        "output_dir": str(root / "run"), "preprocessing_cache_dir": str(root / "cache"), "user_column": "person",
        "item_column": "thing", "time_column": "when", "label_column": "chosen", "title_column": "called",
        "attribute_columns": ["price", "tags"], "label_from": "column", "history_len": 5, "min_history": 0,
        "item_text": "{title} ({price:.2f}) [{tags}]", "history_shows": "label", "layout": "stream", "cutoff_len": 400,
        "prompt_format": "completion", "prompt_domain": "products", "bf16": False, "report_to": "none", "max_steps": 4,
        "eval_steps": 4, "save_steps": 4, "learning_rate": 0.01, "baselines": "quick", "prior": "item_rate",
        "history_drop": 0.2, "metric_for_best_model": "auc", "blend": ["stack", "network"],
    }  # fmt: skip
    return parse_config(values, "test")


@pytest.fixture(scope="module")
def run(config: Config) -> Path:
    return train(config, silent, QUIET)


@pytest.fixture(scope="module")
def data(config: Config) -> Dataset:
    return open_dataset(config, silent)


def test_every_event_of_every_user_is_asked_about_and_items_are_told_by_their_columns(data: Dataset) -> None:
    assert data.events.height == 12 * 24 + 2 * 2 and "warmup" not in data.events["split"].to_list()
    assert data.events["rating"].null_count() == data.events.height
    assert data.meta["history"]["empty"] >= 12
    first = json.loads((data.folder / "test_raw.jsonl").read_text().splitlines()[0])
    assert len(first["history_labels"]) == 5 and set(first["history_labels"]) <= {"Yes", "No"}
    assert first["candidate_text"].startswith("Thing ")
    records = map(json.loads, (data.folder / "test_raw.jsonl").read_text().splitlines())
    texts = {record["candidate_text"] for record in records} | set(first["history_texts"])
    assert all(("(" in text) == (text.split(" [")[0] != "Thing 3") for text in texts), texts


def test_it_trains_is_measured_and_compared_with_baselines(run: Path, config: Config) -> None:
    found = evaluate(run, [], "test", "logits", True, silent, QUIET, [])
    metrics = json.loads((run / "metrics.json").read_text())
    assert found.page.is_file() and "auc" in json.dumps(metrics)
    measure_baselines(config, "test", silent, QUIET)


def test_a_file_of_its_test_rows_asks_what_the_split_asks(run: Path, data: Dataset, tmp_path: Path) -> None:
    opened = open_run(run, [], silent)
    infer_file(opened, data.folder / "test_raw.jsonl", tmp_path, None, False, "logits", silent)
    lines = [json.loads(line) for line in (tmp_path / "lora_predictions.jsonl").read_text().splitlines()]
    rows = split_rows(opened, open_data(opened, silent), "test").tolist()
    assert len(lines) == len(rows) and all(np.isfinite(line["log_odds"]) for line in lines)
    histories = EventHistories(data.events, data.catalog, opened.config)
    for row, line in zip(rows, lines, strict=True):
        # A stream shows more than a file's five events.
        asked = opened.prompts.build(histories.history(row)[-5:], histories.titles[row])
        assert question(opened, line, "here").prompt.tokens == asked.tokens


def test_requests_bring_labels_and_a_rating_alone_is_refused(run: Path) -> None:
    recommender = Recommender.load(run, say=silent)
    history = [("Thing 1", True), ("Thing 2", False)]
    scores = recommender.score(history, ["Thing 5", "Thing 4"])
    assert len(scores) == 2 and np.isfinite(scores).all()
    assert len(recommender.recommend("p0", k=3)) == 3
    assert len(recommender.score([], ["Thing 5"])) == 1
    with pytest.raises(DataError, match=r"'Thing 1' has no label, but this run's .*; give one"):
        recommender.score([("Thing 1", 5)], ["Thing 4"])
