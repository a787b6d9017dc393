"""A model whose answer baselines join: in training, in every way of scoring, in reports, in files and fitted anew."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from rectune.baselines.questions import FROZEN, ONLINE, Log, ask, split_rows
from rectune.baselines.served import Met
from rectune.config import Config, parse_config
from rectune.data.columns import TEST, VALIDATION
from rectune.errors import ConfigError, DataError, ModelError
from rectune.lock import run_lock
from rectune.measure.blending import fit_blend
from rectune.measure.classification import auc, log_loss
from rectune.prompt.events import Event
from rectune.report.evaluate import evaluate
from rectune.report.infer import infer_file
from rectune.report.verdict import ALONE, WITHOUT
from rectune.score import calibrate as calibration
from rectune.score.candidates import Candidate, CandidateScorer, Request
from rectune.score.joined import joined_rows
from rectune.score.open_run import OpenRun, open_run
from rectune.score.recalibrate import recalibrate
from rectune.score.recommender import Recommender
from rectune.score.score import OWN, TUNED, open_data, score_rows
from rectune.score.settings import BASELINE_FILES, FILE_NAME
from rectune.train.publish import VALIDATION_PREDICTIONS
from rectune.train.start import Resume
from rectune.train.train import train

QUIET = Console(quiet=True)
NAMES = ["stack", "network"]
BLEND = {"model": 0.5, "stack": 0.25, "network": 0.125, "offset": -0.25}


def silent(_line: str) -> None:
    """Say nothing."""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path, movielens: Path) -> Config:
    root = tmp_path_factory.mktemp("blend")
    values: dict[str, Any] = {
        "model_name_or_path": str(tiny_qwen3), "dataset": str(movielens), "dataset_dir": str(root / "data"),
        "bf16": False, "output_dir": str(root / "run"), "preprocessing_cache_dir": str(root / "cache"),
        "report_to": "none", "prompt_format": "completion", "cutoff_len": 400, "blend": NAMES,
        "history_shows": "label", "max_steps": 2, "eval_steps": 2, "save_steps": 2, "learning_rate": 0.01,
        "baselines": "quick",
    }  # fmt: skip
    return parse_config(values, origin="test")


@pytest.fixture(scope="module")
def trained(config: Config) -> Path:
    """A run on a dataset with too few validation events to weigh anything by, were the limits those of users."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "LEAST", 10)
        patch.setattr(calibration, "RARER", 2)
        # Weights that are all above zero, whatever so small a model has learned.
        patch.setattr(calibration, "fit_blend", lambda labels, odds: (np.array([0.5, 0.25, 0.125]), -0.25))
        patch.setattr(calibration, "fit_platt", lambda labels, odds: (0.8, 0.1))
        return train(config, silent, QUIET)


@pytest.fixture(scope="module")
def run(trained: Path) -> OpenRun:
    return open_run(trained, [], silent)


def own_scores(run: OpenRun, rows: np.ndarray) -> np.ndarray:
    """The model's own log-odds, from a copy of the run that knows of no blend."""
    alone = replace(run, settings=replace(run.settings, blend={}, temperature=1.0, offset=0.0))
    data = open_data(run, silent)
    return score_rows(alone, data, rows, (TUNED,), "logits", silent, QUIET)[TUNED]["log_odds"].to_numpy()


def test_training_saves_weights_and_baselines_with_the_best_adapter(trained: Path) -> None:
    for folder in (trained, trained / "best"):
        saved = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
        assert saved["blend"] == BLEND
        assert (saved["temperature"], saved["offset"]) == (1.25, 0.1)
        assert set(saved["baselines"]) == set(NAMES) and "fitted" not in saved
        assert all((folder / file).is_file() for file in BASELINE_FILES.values())
    assert not any((trained / "checkpoint-2" / file).exists() for file in BASELINE_FILES.values())


def test_a_score_is_the_weighted_sum_of_the_model_and_what_the_baselines_say_of_the_event(run: OpenRun) -> None:
    data = open_data(run, silent)
    rows = split_rows(data.events, TEST)
    table = score_rows(run, data, rows, (TUNED,), "logits", silent, QUIET)[TUNED]
    found, own = table["log_odds"].to_numpy(), own_scores(run, rows)
    np.testing.assert_array_equal(table[OWN].to_numpy(), own)
    log = Log.of(data.events, data.catalog)
    stack, network = (run.settings.served[name].score(log, ask(log, rows, ONLINE)) for name in NAMES)
    expected = 0.5 * own + 0.25 * stack + 0.125 * network - 0.25
    np.testing.assert_allclose(found, expected, atol=1e-9)
    turned = rows[::-1].copy()
    for protocol in (ONLINE, FROZEN):
        odds = joined_rows(run.settings.served, data, rows, protocol)
        for name, other in joined_rows(run.settings.served, data, turned, protocol).items():
            np.testing.assert_allclose(other, odds[name][::-1], atol=1e-5)
    np.testing.assert_allclose(odds["stack"], run.settings.served["stack"].score(log, ask(log, rows, FROZEN)))
    # Which of a user's events are asked about does not move where their history ends.
    last = joined_rows(run.settings.served, data, rows[-1:], FROZEN)
    assert last["stack"] == pytest.approx(odds["stack"][-1:])


def test_a_ranking_blends_what_the_baselines_say_after_that_history(run: OpenRun, trained: Path) -> None:
    recommender = Recommender.load(trained, say=silent)
    data = recommender.data
    assert data is not None
    user, items = data.events["user_id"][0], data.catalog["item_id"].to_list()[:5]
    past = data.events.filter(pl.col("user_id") == user).head(8)
    history = [{"item_id": item, "rating": rating} for item, rating in past.select("item_id", "rating").iter_rows()]
    request = recommender.ask(history, [{"item_id": item} for item in items]).request
    (odds,) = recommender.scorer.score([request])
    met = [Met(each.item_id, each.label, each.rating) for each in request.history]
    joined = {name: run.settings.served[name].answer(met, items) for name in NAMES}
    (own,) = CandidateScorer(run, silent, calibrated=False).score([request])
    np.testing.assert_allclose(0.5 * own + 0.25 * joined["stack"] + 0.125 * joined["network"] - 0.25, odds, atol=1e-4)
    turned = recommender.ask(
        [({"item_id": each["item_id"]}, each["rating"] < 4) for each in history], [{"item_id": item} for item in items]
    ).request
    assert not np.allclose(recommender.scorer.score([turned])[0], odds, atol=1e-3)


def test_a_report_shows_the_model_alone_and_the_baselines_without_it(trained: Path, run: OpenRun) -> None:
    report = evaluate(trained, [], TEST, "logits", True, silent, QUIET).report
    data = open_data(run, silent)
    rows, held_out = (split_rows(data.events, split) for split in (TEST, VALIDATION))
    labels, kept = (data.events["label"].gather(each).to_numpy().astype(int) for each in (rows, held_out))
    alone = 0.8 * own_scores(run, rows) + 0.1
    assert report["models"][ALONE]["metrics"]["loss"] == pytest.approx(log_loss(labels, alone))
    weights, offset = fit_blend(kept, np.column_stack(list(joined_rows(run.settings.served, data, held_out).values())))
    for part, protocol in ((report, ONLINE), (report["frozen"], FROZEN)):
        without = np.column_stack(list(joined_rows(run.settings.served, data, rows, protocol).values())) @ weights
        assert part["models"][WITHOUT]["metrics"]["loss"] == pytest.approx(log_loss(labels, without + offset))
        assert part["models"][WITHOUT]["metrics"]["auc"] == pytest.approx(auc(labels, without))
        assert f"tuned - {WITHOUT}" in part["paired_differences"]
    frozen = pl.read_parquet(trained / "predictions_test_tuned_frozen.parquet")
    joined = joined_rows(run.settings.served, data, rows, FROZEN)
    expected = 0.5 * frozen[OWN].to_numpy() + 0.25 * joined["stack"] + 0.125 * joined["network"] - 0.25
    np.testing.assert_allclose(frozen["log_odds"].to_numpy(), expected)
    # As a request with that history is answered.
    mine = frozen.filter(pl.col("user_id") == frozen["user_id"][0])
    log = Log.of(data.events, data.catalog)
    past = data.events[int(log.first[rows[0]]) : int(ask(log, rows, FROZEN).stops[0])]
    history = [({"item_id": item}, rating) for item, rating in past.select("item_id", "rating").iter_rows()]
    recommender = Recommender.load(trained, say=silent)
    scores = recommender.score(history, [{"item_id": item} for item in mine["item_id"].to_list()])
    np.testing.assert_allclose(scores, mine["score"].to_numpy(), atol=1e-4)
    assert report["calibration"]["blend"] == BLEND
    assert any(note.startswith("What the language model adds to its baselines") for note in report["notes"])
    # Neither is a baseline that the verdict may name.
    assert ALONE not in report["verdict"] and WITHOUT not in report["verdict"]
    assert "0.25 of stack" in report["how_made"]["calibration"]


def test_validation_scores_are_checked_against_training_before_the_blend(trained: Path) -> None:
    said: list[str] = []
    evaluate(trained, [], VALIDATION, "logits", False, said.append, QUIET)
    (line,) = [line for line in said if line.startswith("check: largest difference")]
    assert float(line.split(": ")[2].split()[0]) < 1e-4


def test_a_file_of_records_is_blended_and_needs_the_items_of_its_histories(run: OpenRun, tmp_path: Path) -> None:
    data = open_data(run, silent)
    lines = (data.folder / "test_raw.jsonl").read_text(encoding="utf-8").splitlines()
    whole = tmp_path / "whole.jsonl"
    whole.write_text(lines[0] + "\n", encoding="utf-8")
    infer_file(run, whole, tmp_path / "out", None, True, "logits", silent)
    (answer,) = map(json.loads, (tmp_path / "out" / "lora_predictions.jsonl").open(encoding="utf-8"))
    record = json.loads(lines[0])
    met = [
        Met(str(item), int(rating >= 4), rating)
        for item, rating in zip(record["history_item_ids"], record["history_ratings"], strict=True)
    ]
    joined = {name: run.settings.served[name].answer(met, [str(record["candidate_item_id"])]) for name in NAMES}
    # The history of a record is shorter than the window that an event of the dataset is shown in.
    history = [
        Event(title, rating, each.label, each.item)
        for title, rating, each in zip(record["history_titles"], record["history_ratings"], met, strict=True)
    ]
    asked = Request(history, [Candidate(record["candidate_title"], 0.0, str(record["candidate_item_id"]))])
    (own,) = CandidateScorer(run, silent, calibrated=False).score([asked])
    expected = 0.5 * own + 0.25 * joined["stack"] + 0.125 * joined["network"] - 0.25
    assert answer["log_odds"] == pytest.approx(float(expected[0]), abs=1e-4)
    del record["history_item_ids"]
    whole.write_text(json.dumps(record) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="record 1: no history_item_ids, but this run knows items by their ids"):
        infer_file(run, whole, tmp_path / "out", None, False, "logits", silent)
    with pytest.raises(ConfigError, match="--mode: generate cannot add this run's prior or baselines"):
        infer_file(run, whole, tmp_path / "out", None, False, "generate", silent)


def test_a_run_is_calibrated_again_with_other_baselines_or_none(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(trained, tmp_path / "copy"))
    own = pl.read_parquet(copy / VALIDATION_PREDICTIONS)
    seen: list[np.ndarray] = []
    monkeypatch.setattr(calibration, "LEAST", 10)
    monkeypatch.setattr(calibration, "RARER", 2)
    monkeypatch.setattr(calibration, "fit_platt", lambda labels, odds: seen.append(odds) or (1.0, 0.5))
    monkeypatch.setattr(calibration, "fit_blend", lambda labels, odds: (np.array([0.0, 0.75]), 0.0))
    alone = recalibrate(copy, ["blend=[]"], silent, QUIET)
    assert alone.blend == {} and alone.baselines == {}
    said: list[str] = []
    one = recalibrate(copy, ["blend=[network]"], said.append, QUIET)
    assert one.blend == {"model": 0.0, "network": 0.75, "offset": 0.0} and set(one.baselines) == {"network"}
    assert "blend: the language model adds nothing to network on validation, so answers are theirs alone" in said
    # Both times from the model's own log-odds, whatever was saved before.
    for odds in seen:
        np.testing.assert_allclose(odds, own["log_odds"].to_numpy(), atol=1e-4)
    read = open_run(copy, [], silent).settings
    assert read.blend == one.blend and list(read.fitted) == ["network"]
    (copy / BASELINE_FILES["network"]).unlink()
    with pytest.raises(ModelError, match=r"no network.safetensors, which rectune.json names"):
        open_run(copy, [], silent)


def test_calibrating_again_keeps_the_blend_and_resuming_keeps_the_calibration(
    trained: Path, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(trained, tmp_path / "copy"))
    monkeypatch.setattr(calibration, "LEAST", 10)
    monkeypatch.setattr(calibration, "RARER", 2)
    monkeypatch.setattr(calibration, "fit_blend", lambda labels, odds: (np.array([0.5, 0.4, 0.3]), 0.2))
    again = recalibrate(copy, [], silent, QUIET)
    assert again.blend == {"model": 0.5, "stack": 0.4, "network": 0.3, "offset": 0.2}
    before = (copy / FILE_NAME).read_bytes()
    train(config.with_overrides(output_dir=copy), silent, QUIET, Resume(latest=True))
    assert (copy / FILE_NAME).read_bytes() == before


def test_what_cannot_be_calibrated_is_one_line_and_changes_nothing(trained: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(trained, tmp_path / "copy"))
    before = (copy / FILE_NAME).read_bytes()
    with pytest.raises(ConfigError, match="checkpoint-2: is a checkpoint, which --resume must find unchanged"):
        recalibrate(copy / "checkpoint-2", [], silent, QUIET)
    with run_lock(copy), pytest.raises(ConfigError, match="is in use by another rectune"):
        recalibrate(copy, [], silent, QUIET)
    with pytest.raises(DataError, match=r"validation: \d+ events are too few to fit anything on .*Nothing was changed"):
        recalibrate(copy, [], silent, QUIET)
    with pytest.raises(ModelError, match=r"blend: got \['stack'\], but the weights saved with this run are for"):
        open_run(copy, ["blend=[stack]"], silent)
    saved = json.loads(before) | {"sha256": None}
    (copy / FILE_NAME).write_text(json.dumps({**saved, "data_hash": "another"}), encoding="utf-8")
    with pytest.raises(DataError, match="not the dataset that the run was trained on"):
        recalibrate(copy, [], silent, QUIET)
    (copy / FILE_NAME).write_text(json.dumps({**saved, "stack": {"file": "x", "sha256": "y"}}), encoding="utf-8")
    with pytest.raises(ModelError, match="its stack was saved by an earlier version"):
        open_run(copy, [], silent)


def test_a_blend_without_validation_is_refused_before_anything_is_loaded(config: Config) -> None:
    with pytest.raises(ConfigError, match="blend: its weights are fitted on validation, but eval_strategy is no"):
        train(config.with_overrides(eval_strategy="no", dataset="nowhere"), silent, QUIET)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blend": {**BLEND, "stack": -1.0}}, "blend is"),
        ({"blend": {**BLEND, "another": 1.0}}, "blend is"),
        ({"blend": {"stack": 1.0, "offset": 0.0}}, "blend is"),
        ({"blend": {"model": 1.0, "offset": 0.0}}, "blend is"),
        ({"blend": ["stack"]}, "blend is"),
        ({"baselines": {"another": {"file": "x", "sha256": "y"}}}, "baselines is"),
    ],
)
def test_a_blend_that_cannot_be_applied_is_refused(
    trained: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    copy = Path(shutil.copytree(trained, tmp_path / "copy"))
    saved = json.loads((copy / FILE_NAME).read_text(encoding="utf-8"))
    (copy / FILE_NAME).write_text(json.dumps({**saved, **change, "sha256": None}), encoding="utf-8")
    with pytest.raises(ModelError, match=message):
        open_run(copy, [], silent)
