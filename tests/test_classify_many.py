"""Texts of three classes all the way: words of many classes, log-probabilities, metrics by class, one-line refusals."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console
from sklearn.metrics import f1_score, log_loss, precision_recall_fscore_support, roc_auc_score

from rectune.config import Config, parse_config
from rectune.errors import ConfigError
from rectune.prompt.dataset import open_dataset
from rectune.report.evaluate import compare, evaluate
from rectune.report.infer_texts import class_probabilities, infer_text
from rectune.score.open_run import open_run
from rectune.score.recalibrate import recalibrate
from rectune.train.train import train

QUIET = Console(quiet=True)
WORDS = {"sport": ["ball", "goal"], "food": ["soup", "cake"], "travel": ["train", "hotel"]}


def silent(_line: str) -> None:
    """Say nothing."""


def write_news(path: Path) -> None:
    """Lines of JSON; of ten texts six are of sport, three of food and one of travel."""
    draw, kinds = random.Random(2), ["sport"] * 6 + ["food"] * 3 + ["travel"]
    rows = [{"topic": kind, "text": f"{draw.choice(WORDS[kind])} number {at}"} for at, kind in enumerate(kinds * 20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path) -> Config:
    root = tmp_path_factory.mktemp("news")
    write_news(root / "news.jsonl")
    values: dict[str, Any] = {
        "task": "classify", "model_name_or_path": str(tiny_qwen3), "dataset": str(root / "news.jsonl"),
        "dataset_dir": str(root / "data"), "output_dir": str(root / "run"), "label_column": "topic",
        "preprocessing_cache_dir": str(root / "cache"), "labels": {"sport": "S", "food": "F", "travel": "T"},
        "rubric": "Which topic? {labels}", "cutoff_len": 128, "test_ratio": 0.3,
        "validation_ratio": 0.2, "bf16": False, "report_to": "none", "max_steps": 6, "eval_steps": 3, "save_steps": 6,
        "logging_steps": 3, "learning_rate": 0.01, "baselines": "quick", "oversample": 0.3,
        "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1,
    }  # fmt: skip
    return parse_config(values, "test")


@pytest.fixture(scope="module")
def run(config: Config) -> Path:
    return train(config, silent, QUIET)


@pytest.fixture(scope="module")
def metrics(run: Path) -> dict[str, Any]:
    evaluate(run, [], "test", "logits", True, silent, QUIET)
    found: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return found


def test_labels_count_from_the_first_class_named(config: Config, run: Path) -> None:
    settings = json.loads((run / "rectune.json").read_text())
    assert config.classes == ("sport", "food", "travel") and config.label_words == ("S", "F", "T")
    assert settings["verbalizer"]["negative"] == "S" and settings["verbalizer"]["more"] == ["T"]
    counts = open_dataset(config, silent).meta["classes"]["train"]
    # travel is repeated until it is 30 %: three for each seven others
    wanted = round((counts["sport"] + counts["food"]) * 3 / 7)
    assert settings["class_shift"] == pytest.approx([0, 0, np.log(wanted / counts["travel"])])


def test_training_keeps_the_best_macro_f1(config: Config, run: Path) -> None:
    assert config.metric_for_best_model == "macro_f1"
    history = json.loads((run / "log_history.json").read_text())
    evaluations = [entry for entry in history if "eval_loss" in entry]
    best = json.loads((run / "best" / "step.json").read_text())
    assert best["macro_f1"] == pytest.approx(max(entry["eval_macro_f1"] for entry in evaluations))
    assert {f"eval_recall_{word}" for word in "SFT"} <= set(evaluations[-1])


def test_metrics_are_those_of_scikit_learn(run: Path, metrics: dict[str, Any]) -> None:
    table = pl.read_parquet(run / "predictions_test_tuned.parquet")
    labels, log_p = table["label"].to_numpy(), np.array(table["log_p"].to_list())
    assert np.exp(log_p).sum(axis=1) == pytest.approx(np.ones(len(labels)))
    guess = log_p.argmax(axis=1)
    assert guess.tolist() == table["predicted"].to_list()
    found = metrics["models"]["tuned"]["metrics"]
    assert found["macro_f1"] == pytest.approx(f1_score(labels, guess, average="macro", zero_division=0))
    assert found["loss"] == pytest.approx(log_loss(labels, np.exp(log_p)))
    assert found["auc"] == pytest.approx(roc_auc_score(labels, np.exp(log_p), multi_class="ovr", average="macro"))
    lines = {line["model"]: line for line in metrics["by_class"]["natural"]["decisions"]}
    wanted = precision_recall_fscore_support(labels, guess, zero_division=0)
    for label, name in enumerate(("sport", "food", "travel")):
        own = lines["tuned"]["per_class"][name]
        got = [own["precision"], own["recall"], own["f1"], own["rows"]]
        assert got == pytest.approx([column[label] for column in wanted])
    assert np.sum(lines["tuned"]["confusion"]) == len(labels)
    assert lines["TF-IDF"]["macro_f1"] > 0.9 and "TF-IDF" in metrics["verdict"]


def test_validation_scores_are_those_of_training(run: Path) -> None:
    lines: list[str] = []
    evaluate(run, [], "validation", "logits", False, lines.append, QUIET)
    assert any("row by row: 0 in log-odds" in line for line in lines)


def test_a_text_is_asked_as_the_split_asks_it(run: Path, metrics: dict[str, Any]) -> None:
    opened, said = open_run(run, [], silent), list[str]()
    table = pl.read_parquet(run / "predictions_test_tuned.parquet")
    found, labels = class_probabilities(opened, table["candidate_title"].to_list())
    assert np.log(found) == pytest.approx(np.array(table["log_p"].to_list()), abs=1e-5)
    assert labels.tolist() == table["predicted"].to_list()
    infer_text(opened, "soup", said.append)
    assert all(name in said[0] for name in WORDS)


def test_what_is_for_two_classes_is_refused(run: Path, config: Config, tmp_path: Path) -> None:
    for doing in (
        lambda: compare(run, [], "test", tmp_path, silent, QUIET),
        lambda: evaluate(run, [], "test", "generate", True, silent, QUIET),
        lambda: recalibrate(run, [], silent, QUIET),
    ):
        with pytest.raises(ConfigError, match="is for two classes, and this configuration has 3"):
            doing()
    with pytest.raises(ConfigError, match=r"class_weights: got 'balanced' beside 3 labels, allowed: none"):
        config.with_overrides(class_weights="balanced")
