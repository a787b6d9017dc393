"""Labelled texts all the way: from a CSV through prepare, training, evaluation and scoring, with two classes."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console
from sklearn.metrics import precision_recall_fscore_support

from rectune.cli import main
from rectune.config import Config, parse_config
from rectune.errors import DataError
from rectune.prompt.dataset import Dataset, open_dataset
from rectune.report.baselines import measure_baselines
from rectune.report.evaluate import compare, evaluate
from rectune.report.infer_texts import class_probabilities, infer_text, infer_texts
from rectune.score.open_run import open_run
from rectune.train.start import Resume
from rectune.train.train import train

QUIET = Console(quiet=True)
RULES, OTHER = "Rules Question", "Other"


def silent(_line: str) -> None:
    """Say nothing."""


def write_posts(path: Path, rows: int = 260) -> None:
    """Posts with `;` between columns and a BOM: one in eight asks about the rules; every tenth text comes twice."""
    draw = random.Random(5)
    lines = ["nr;body;kind;by"]
    for number in range(rows):
        asks = number % 8 == 3
        words = ["may", "rule", "allowed", "turn"] if asks else ["look", "painted", "sale", "photo"]
        text = " ".join([*draw.choices(words, k=3), f"thing{number}"])
        if number % 10 == 1:  # the post before once more, shouted
            _, text, kind, _ = lines[-1].split(";")
            text, asks = text.upper(), kind == RULES
        lines.append(f"{number};{text};{RULES if asks else OTHER};u{number % 7}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path) -> Config:
    root = tmp_path_factory.mktemp("posts")
    write_posts(root / "posts.csv")
    values: dict[str, Any] = {
        "task": "classify", "model_name_or_path": str(tiny_qwen3), "dataset": str(root / "posts.csv"),
        "dataset_dir": str(root / "data"), "output_dir": str(root / "run"),
        "preprocessing_cache_dir": str(root / "cache"), "text_column": "body", "label_column": "kind",
        "labels": {RULES: "R", OTHER: "O"}, "rubric": "Does the post ask about rules?", "cutoff_len": 160,
        "test_ratio": 0.25, "validation_ratio": 0.25, "bf16": False, "report_to": "none", "max_steps": 6,
        "eval_steps": 3, "save_steps": 6, "logging_steps": 3, "learning_rate": 0.01, "baselines": "quick",
        "oversample": 0.5, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1,
    }  # fmt: skip
    return parse_config(values, "test")


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return []


@pytest.fixture(scope="module")
def run(config: Config, lines: list[str]) -> Path:
    return train(config, lines.append, QUIET)


@pytest.fixture(scope="module")
def data(config: Config) -> Dataset:
    return open_dataset(config, silent)


def test_the_rubric_is_the_system_message_and_the_post_the_user_turn(run: Path, data: Dataset) -> None:
    first = json.loads((data.folder / "train.json").read_text())[0]
    assert first["system"] == (
        "Does the post ask about rules? Reply with a single word: R for Rules Question, O for Other."
    )
    assert first["input"].startswith("Text: ") and first["input"].endswith("\nAnswer R or O.")
    assert first["output"] in ("R", "O") and first["instruction"] == ""


def test_no_text_of_validation_or_test_is_in_train_and_classes_keep_their_shares(data: Dataset) -> None:
    told = data.events.join(data.catalog, on="item_id")
    texts = {split: set(part["title"].str.to_lowercase()) for (split,), part in told.group_by("split")}
    assert not texts["train"] & (texts["validation"] | texts["test"]) and not texts["validation"] & texts["test"]
    assert data.events.height == 260  # texts that come twice are kept, both rows in one split
    assert data.meta["classes"]["train"] == dict(
        data.events.filter(pl.col("split") == "train")["label"].cast(pl.Int64)
        .replace_strict({0: OTHER, 1: RULES}, return_dtype=pl.String).value_counts().iter_rows()
    )  # fmt: skip
    shares = [data.meta["splits"][split]["positive_rate"] for split in ("train", "validation", "test")]
    assert max(shares) - min(shares) < 0.02


def test_half_of_what_is_trained_on_is_of_the_rarer_class(run: Path, lines: list[str], data: Dataset) -> None:
    train_rows = data.meta["classes"]["train"]
    (said,) = [line for line in lines if line.startswith("oversample:")]
    assert f"{train_rows[RULES]} texts of {RULES} are seen {train_rows[OTHER]} times, 50.0%" in said
    settings = json.loads((run / "rectune.json").read_text())
    assert settings["loss_shift"] == pytest.approx(np.log(train_rows[OTHER] / train_rows[RULES]))


def test_training_measures_by_class_and_on_a_balanced_set(run: Path) -> None:
    shift = json.loads((run / "rectune.json").read_text())["loss_shift"]
    history = json.loads((run / "log_history.json").read_text())
    last = [entry for entry in history if "eval_loss" in entry][-1]
    assert last["eval_balanced_set_n"] == 2 * (last["eval_tp"] + last["eval_fn"])
    assert last["eval_recall_R"] == pytest.approx(last["eval_recall"])
    kept = pl.read_parquet(run / "validation_predictions.parquet")
    step = json.loads((run / "best" / "step.json").read_text())["step"]
    best = next(entry for entry in history if entry["step"] == step and "eval_loss" in entry)
    positive = kept.filter(pl.col("label") == 1)["log_odds"]
    assert best["eval_answered_recall_R"] == pytest.approx((positive >= 0).mean())  # the shift still in it
    assert best["eval_recall_R"] == pytest.approx((positive >= shift).mean())  # and taken off
    recalls = (last["eval_recall_R"] + last["eval_recall_O"]) / 2
    assert last["eval_balanced_accuracy"] == pytest.approx(recalls)


def test_its_report_is_by_class_and_agrees_with_scikit_learn(run: Path, config: Config) -> None:
    found = evaluate(run, [], "test", "logits", True, silent, QUIET)
    told = json.loads((run / "metrics.json").read_text())
    table = pl.read_parquet(run / "predictions_test_tuned.parquet")
    labels = table["label"].to_numpy()
    lines = {(line["model"], line["rule"]): line for line in told["by_class"]["natural"]["decisions"]}
    answered = (table["model_log_odds"].to_numpy() >= 0).astype(int)
    wanted = precision_recall_fscore_support(labels, answered, labels=[0, 1], zero_division=0)
    for label, name in enumerate((OTHER, RULES)):
        own = lines["tuned", "as it answers"]["per_class"][name]
        got = [own[key] for key in ("precision", "recall", "f1", "rows")]
        assert got == pytest.approx([column[label] for column in wanted])
    assert {model for model, _ in lines} == {"untuned", "tuned", "commonest class", "TF-IDF"}
    assert lines["TF-IDF", "best F1"]["per_class"][RULES]["f1"] > 0.9  # its words tell the class
    balanced = told["by_class"]["balanced"]["decisions"][0]["per_class"]
    assert balanced[RULES]["rows"] == balanced[OTHER]["rows"] == labels.sum()
    assert told["frozen"] is None and "TF-IDF" in told["verdict"]
    assert "As it answers" in found.page.read_text() or "as it answers" in found.page.read_text()
    assert not any("UAUC" in note for note in told["notes"])


def test_validation_scores_are_those_of_training(run: Path) -> None:
    lines: list[str] = []
    evaluate(run, [], "validation", "logits", False, lines.append, QUIET)
    assert any("row by row: 0 in log-odds" in line for line in lines)


def test_base_and_tuned_are_compared(run: Path, tmp_path: Path) -> None:
    compare(run, [], "test", tmp_path / "comparison", silent, QUIET)
    assert (tmp_path / "comparison" / "comparison_report.json").is_file()


def test_one_text_gets_a_class_and_probabilities_that_sum_to_one(run: Path, data: Dataset) -> None:
    opened, said = open_run(run, [], silent), list[str]()
    infer_text(opened, "may rule\n\nallowed <|im_end|> thing3", said.append)
    assert said[0].startswith((RULES, OTHER)) and RULES in said[0] and OTHER in said[0]
    found, _ = class_probabilities(opened, ["may rule", "a photo"])
    assert found.sum(axis=1) == pytest.approx([1, 1])
    with pytest.raises(DataError, match="--text: it is empty"):
        infer_text(opened, " \n", silent)


def test_a_file_of_texts_gets_what_the_split_gets(run: Path, data: Dataset, tmp_path: Path) -> None:
    opened = open_run(run, [], silent)
    infer_texts(opened, data.folder / "test_raw.jsonl", tmp_path, None, True, silent)
    lines = [json.loads(line) for line in (tmp_path / "lora_predictions.jsonl").read_text().splitlines()]
    table = pl.read_parquet(run / "predictions_test_tuned.parquet")
    assert [line["probabilities"][RULES] for line in lines] == pytest.approx(table["score"].to_list(), abs=1e-5)
    assert [line["label"] == RULES for line in lines] == (table["label"] == 1).to_list()
    told = json.loads((tmp_path / "metrics_summary.json").read_text())
    assert set(told) == {"base", "lora"} and told["lora"]["n"] == len(lines)


def test_rows_without_text_and_labels_that_are_none_of_the_classes_are_told(run: Path, tmp_path: Path) -> None:
    opened, said = open_run(run, [], silent), list[str]()
    (tmp_path / "a.csv").write_text("body,kind\nmay rule,R\n,\nphoto,\n", encoding="utf-8")
    infer_texts(opened, tmp_path / "a.csv", tmp_path / "out", None, False, said.append)
    lines = [json.loads(line) for line in (tmp_path / "out" / "lora_predictions.jsonl").read_text().splitlines()]
    assert [line["prediction"] is None for line in lines] == [False, True, False]
    assert lines[0]["label"] == RULES and "1 of 3 rows have no text" in said[0]
    (tmp_path / "b.csv").write_text("body,kind\nmay rule,Rules\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"line 2: label 'Rules', allowed: Other, Rules Question or their words"):
        infer_texts(opened, tmp_path / "b.csv", tmp_path / "out", None, False, silent)


@pytest.mark.parametrize(
    "arguments",
    [["rank", "RUN", "--candidate", "a"], ["recommend", "RUN", "--user", "1"], ["score", "RUN", "--demo"],
     ["evaluate", "RUN", "--protocol", "topk"]],
)  # fmt: skip
def test_what_is_for_users_and_items_is_refused_in_one_line(
    run: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(run) if word == "RUN" else word for word in arguments])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "this run classifies texts (task: classify)" in said and said.count("\n") == 1


def test_the_baselines_are_measured_by_themselves(config: Config, run: Path) -> None:
    found = measure_baselines(config, "test", silent, QUIET)
    lines = {(line["model"], line["rule"]): line for line in found["by_class"]["natural"]["decisions"]}
    assert lines["commonest class", "P ≥ 0.5"]["per_class"][RULES]["recall"] == 0
    assert found["models"]["TF-IDF"]["metrics"]["auc"] > 0.95


def test_another_run_stands_beside_it(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "natural"
    shutil.copytree(run, other)
    evaluate(other, [], "test", "logits", False, silent, QUIET)
    evaluate(run, [], "test", "logits", False, silent, QUIET, [other])
    told = json.loads((run / "metrics.json").read_text())
    assert told["beside"] == ["run natural", "average of these runs"]
    assert told["paired_differences"]["tuned - run natural"]["auc"]["difference"] == 0
    assert sum(note.startswith("Beside it: ") for note in told["notes"]) == 2


def test_cut_off_and_resumed_it_ends_at_the_same_adapter(config: Config, run: Path, tmp_path: Path) -> None:
    whole = train(config.with_overrides(output_dir=str(tmp_path / "whole"), save_steps=3), silent, QUIET)
    again = config.with_overrides(output_dir=str(tmp_path / "again"), save_steps=3)
    resumed = train(again, silent, QUIET, Resume(checkpoint=whole / "checkpoint-3"))
    for name in ("adapter_model.safetensors", "rectune.json"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes() == (run / name).read_bytes()
