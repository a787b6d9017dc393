"""Every option of the adapter and of the loss trains, and what is saved needs plain PEFT alone to give its scores."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
import torch
from rich.console import Console
from safetensors.numpy import load_file

from rectune.config import Config, load_config
from rectune.data.columns import VALIDATION
from rectune.errors import ConfigError, DataError
from rectune.measure.classification import classification_metrics
from rectune.model.lora import ADAPTER_FILE
from rectune.prompt.dataset import open_dataset
from rectune.prompt.encode import encode, split_sample
from rectune.prompt.layouts import prompts_for
from rectune.prompt.pieces import Pieces
from rectune.report.evaluate import evaluate

QUIET = Console(quiet=True)
Run = Callable[..., tuple[Path, list[str]]]
SHORT: dict[str, Any] = {"max_steps": 3, "eval_steps": 3, "save_steps": 3, "logging_steps": 1}
STREAM: dict[str, Any] = {"layout": "stream", "prompt_format": "completion", "history_shows": "label"}


def history(run: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((run / "log_history.json").read_text(encoding="utf-8"))
    return found


def scores_by_plain_peft(run: Path) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Log-odds of the validation prompts, one at a time through the whole head: adapter on, and off."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = load_config(run)
    prompts = prompts_for(config, Pieces(AutoTokenizer.from_pretrained(run)))
    data = open_dataset(config, lambda line: None)
    rows = split_sample(config, data.events, VALIDATION)
    trees = encode(config, data.events, data.catalog, data.content_hash, prompts, rows, lambda line: None).plain()
    base = AutoModelForCausalLM.from_pretrained(config.model_name_or_path)
    model = PeftModel.from_pretrained(base, run).eval()
    words = prompts.verbalizer

    def odds() -> npt.NDArray[np.float64]:
        with torch.inference_mode():
            last = [model(torch.tensor(trees.tree_tokens(at)[None]).long()).logits[0, -1] for at in range(len(trees))]
        return np.array([float(row[words.positive_id] - row[words.negative_id]) for row in last])

    on = odds()
    with model.disable_adapter():
        return on, odds()


def check_scores(run: Path) -> None:
    """What plain PEFT answers is what training saw, and the adapter does something."""
    on, off = scores_by_plain_peft(run)
    seen = pl.read_parquet(run / "validation_predictions.parquet")["log_odds"].to_numpy()
    np.testing.assert_allclose(on, seen, atol=1e-4)
    assert np.abs(on - off).max() > 1e-3


LOSSES: list[dict[str, Any]] = [
    {"class_weights": "balanced"},
    {"class_weights": [1.0, 3.0], "loss_over": "labels", **STREAM},
    {"label_smoothing": 0.1, "loss_over": "labels"},
    {"label_smoothing": 0.1, "class_weights": [2.0, 1.0], **STREAM},
    {"focal_gamma": 2.0},
    {"focal_gamma": 2.0, "loss_over": "labels", "packing": True, **STREAM},
]


@pytest.mark.parametrize("keys", LOSSES, ids=str)
def test_every_loss_trains_and_its_validation_loss_is_plain_log_loss(keys: dict[str, Any], run: Run) -> None:
    folder, _ = run(**SHORT, **keys, metric_for_best_model="loss")
    check_scores(folder)
    frame = pl.read_parquet(folder / "validation_predictions.parquet")
    shift = json.loads((folder / "rectune.json").read_text())["loss_shift"]
    plain = frame["log_odds"].to_numpy() - shift
    labels = frame["label"].to_numpy()
    by_hand = float(np.mean(np.logaddexp(0.0, np.where(labels == 1, -plain, plain))))
    assert [log["eval_loss"] for log in history(folder) if "eval_loss" in log] == [pytest.approx(by_hand)]


@pytest.mark.parametrize(
    "keys", [{"class_weights": [1.0, 3.0]}, {"label_smoothing": 0.2}, {"focal_gamma": 2.0}], ids=str
)
def test_accumulating_two_of_four_equals_one_batch_of_eight_with_any_loss(
    keys: dict[str, Any], run: Run, tmp_path: Path
) -> None:
    plain: dict[str, Any] = {**SHORT, "packing": True, "cutoff_len": 512, "lora_dropout": 0.0, "learning_rate": 1e-3}
    found = []
    for size, times in ((8, 1), (4, 2)):
        folder, _ = run(
            **plain,
            **keys,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=times,
            output_dir=str(tmp_path / str(size)),
        )
        losses = [log["loss"] for log in history(folder) if "loss" in log]
        found.append((load_file(folder / ADAPTER_FILE), losses))
    (one, losses), (two, others) = found
    assert losses == pytest.approx(others, rel=1e-4)
    # Adam turns a tiny difference of a tiny gradient into a step of up to the learning rate; few values may do so.
    differences = np.concatenate([np.abs(one[name] - two[name]).ravel() for name in one])
    assert np.quantile(differences, 0.99) < 1e-5


def test_with_too_few_events_to_calibrate_the_weights_effect_is_taken_off_scores(run: Run) -> None:
    folder, lines = run(**SHORT, class_weights=[1.0, 4.0])
    assert any(line.startswith("loss: a No weighs") and "+1.39" in line for line in lines)
    for place in (folder, folder / "checkpoint-3"):
        saved = json.loads((place / "rectune.json").read_text())
        assert (saved["temperature"], saved["offset"]) == (1.0, pytest.approx(-math.log(4)))
    said: list[str] = []
    report = evaluate(folder, [], "validation", "logits", False, said.append, QUIET).report
    frame = pl.read_parquet(folder / "validation_predictions.parquet")
    plain = frame["log_odds"].to_numpy() - math.log(4)
    expected = classification_metrics(frame["label"].to_numpy(), plain, frame["user_id"].to_list())
    assert report["models"]["tuned"]["metrics"]["loss"] == pytest.approx(expected["loss"])
    then = next(log for log in history(folder) if "eval_loss" in log)
    assert report["models"]["tuned"]["metrics"]["loss"] == then["eval_loss"]
    assert report["models"]["tuned"]["metrics"]["brier"] == then["eval_brier"]


def test_loss_options_that_make_no_sense_are_refused_with_what_is_allowed(make: Callable[..., Config]) -> None:
    for weights in ([1.0], [1.0, 2.0, 3.0], [0.0, 1.0], [1.0, -2.0]):
        with pytest.raises(ConfigError, match=r"class_weights: got \[.*allowed: none, balanced, or two numbers"):
            make(class_weights=weights)
    with pytest.raises(ConfigError, match=r"label_smoothing: got 0.1 beside focal_gamma: 2.0"):
        make(label_smoothing=0.1, focal_gamma=2.0)
    for key, value in (("class_weights", "heavy"), ("label_smoothing", 1.0), ("focal_gamma", -1.0)):
        with pytest.raises(ConfigError, match=f"{key}: got {value!r}"):
            make(**{key: value})


def test_weights_that_cannot_be_balanced_are_one_line(run: Run) -> None:
    with pytest.raises(DataError, match="class_weights: balanced, but the 1 training events all have the same label"):
        run(**SHORT, class_weights="balanced", max_train_samples=1)
