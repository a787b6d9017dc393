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
from rectune.model.losses import weights_for
from rectune.prompt.dataset import open_dataset
from rectune.prompt.encode import encode, split_sample
from rectune.prompt.layouts import prompts_for
from rectune.prompt.pieces import Pieces
from rectune.report.evaluate import evaluate
from rectune.train import train as stage
from rectune.train.start import Resume

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


def check_scores(run: Path) -> npt.NDArray[np.float64]:
    """What plain PEFT answers is what training saw, and the adapter does something; returns the untuned log-odds."""
    on, off = scores_by_plain_peft(run)
    seen = pl.read_parquet(run / "validation_predictions.parquet")["log_odds"].to_numpy()
    np.testing.assert_allclose(on, seen, atol=1e-4)
    assert np.abs(on - off).max() > 1e-3
    return off


ADAPTERS: list[dict[str, Any]] = [
    {"use_rslora": True, "lora_rank": 32},
    {"use_dora": True, **STREAM},
    {"init_lora_weights": "gaussian", "lora_bias": "all"},
    {"init_lora_weights": "pissa"},
    {"init_lora_weights": "pissa", "use_rslora": True, "loraplus_lr_ratio": 4.0, "packing": True, **STREAM},
    {"init_lora_weights": "pissa", "use_dora": True, "lora_layers": "upper_half"},
    {"init_lora_weights": "olora", "lora_dropout": 0.2},
    {"loraplus_lr_ratio": 16.0, "learning_rate": 0.002},
]


@pytest.mark.parametrize("keys", ADAPTERS, ids=str)
def test_every_adapter_trains_and_plain_peft_gives_its_scores_and_the_untuned_ones(
    keys: dict[str, Any], run: Run
) -> None:
    folder, lines = run(**SHORT, **keys)
    assert any("this model has no biases" in line for line in lines) == ("lora_bias" in keys)
    off = check_scores(folder)
    said: list[str] = []
    evaluate(folder, [], "validation", "logits", True, said.append, QUIET)
    untuned = pl.read_parquet(folder / "predictions_validation_untuned.parquet")["log_odds"].to_numpy()
    np.testing.assert_allclose(untuned, off, atol=1e-4)
    assert "check: largest difference from the scores during training, row by row: 0 in log-odds" in said


def test_pissa_killed_and_resumed_ends_in_the_same_bytes(run: Run, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"max_steps": 4, "eval_steps": 2, "save_steps": 2, "init_lora_weights": "pissa"}
    whole, lines = run(**keys, output_dir=str(tmp_path / "whole"))
    assert any("plain LoRA of rank 32 on the unchanged base" in line for line in lines)
    resumed, _ = run(Resume(checkpoint=whole / "checkpoint-2"), **keys, output_dir=str(tmp_path / "resumed"))
    assert (resumed / ADAPTER_FILE).read_bytes() == (whole / ADAPTER_FILE).read_bytes()
    assert (whole / "checkpoint-4" / ADAPTER_FILE).read_bytes() != (whole / "checkpoint-2" / ADAPTER_FILE).read_bytes()


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused", "paged_adamw_32bit"])
def test_where_pissa_started_is_still_in_the_adapter_to_the_bit(optim: str, run: Run) -> None:
    if "paged" in optim:
        pytest.importorskip("bitsandbytes")
    keys = {**SHORT, "save_steps": 1, "save_total_limit": None, "optim": optim, "lora_rank": 8, "lora_target": "qv"}
    folder, _ = run(**keys, init_lora_weights="pissa", lora_dropout=0.0)
    first, last = (load_file(folder / f"checkpoint-{step}" / ADAPTER_FILE) for step in (1, 3))
    for name, value in last.items():
        dim = 0 if "lora_A" in name else 1
        trained, fixed = np.split(value, 2, axis=dim)
        then_trained, then_fixed = np.split(first[name], 2, axis=dim)
        assert np.array_equal(fixed, then_fixed)
        assert not np.array_equal(trained, then_trained)


def test_loftq_trains_and_resumes_to_the_same_bytes(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    keys: dict[str, Any] = {"max_steps": 4, "eval_steps": 2, "save_steps": 2, "use_qlora": True}
    keys["init_lora_weights"] = "loftq"
    whole, lines = run(**keys, output_dir=str(tmp_path / "whole"))
    assert "adapter: loftq starts at what the 4-bit base has lost, as far as the rank holds it" in lines
    resumed, _ = run(Resume(checkpoint=whole / "checkpoint-2"), **keys, output_dir=str(tmp_path / "resumed"))
    assert (resumed / ADAPTER_FILE).read_bytes() == (whole / ADAPTER_FILE).read_bytes()
    said: list[str] = []
    evaluate(resumed, [], "validation", "logits", True, said.append, QUIET)
    assert "check: largest difference from the scores during training, row by row: 0 in log-odds" in said


def test_with_lora_plus_the_matrices_b_take_steps_that_many_times_as_large(run: Run) -> None:
    # The first step of AdamW is the learning rate itself wherever there is a gradient, and B starts at zero.
    keys: dict[str, Any] = {"max_steps": 1, "eval_steps": 1, "save_steps": 1, "warmup_ratio": 0.0, "lora_dropout": 0.0}
    folder, _ = run(**keys, learning_rate=0.001, loraplus_lr_ratio=8.0, lr_scheduler_type="constant")
    ups = [value for name, value in load_file(folder / ADAPTER_FILE).items() if "lora_B" in name]
    assert np.median(np.abs(np.concatenate([value.ravel() for value in ups]))) == pytest.approx(0.008, rel=1e-2)
    state = torch.load(folder / "checkpoint-1" / "optimizer.pt", weights_only=True)
    assert sorted({group["lr"] for group in state["param_groups"] if group["params"]}) == [0.001, 0.008]


@pytest.mark.parametrize("optim", ["adamw_8bit", "paged_adamw_8bit"])
def test_an_8bit_optimiser_keeps_its_moments_in_8_bits(optim: str, run: Run) -> None:
    pytest.importorskip("bitsandbytes")
    folder, _ = run(**SHORT, optim=optim, lora_rank=256, lora_target="qv")  # 256 x 16 values: smaller ones stay whole
    state = torch.load(folder / "checkpoint-3" / "optimizer.pt", weights_only=True)["state"]
    held = [each.get("__bnb_optimizer_quant_state__", each) for each in state.values()]
    assert held and all(each[name].dtype == torch.uint8 for each in held for name in ("state1", "state2"))


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


def test_weights_that_cannot_be_balanced_are_one_line() -> None:
    with pytest.raises(DataError, match="class_weights: balanced, but the 1 training events all have the same label"):
        weights_for("balanced", 0, 1)


def test_training_events_of_one_class_are_refused_before_the_model_is_loaded(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "load_for_training", lambda *_, **__: pytest.fail("the model was loaded"))
    with pytest.raises(DataError, match=r"all 1 training events are (posi|nega)tive, so there is nothing"):
        run(**SHORT, max_train_samples=1)


def learning_rates(run: Path) -> list[float]:
    return [log["learning_rate"] for log in history(run) if "loss" in log]


@pytest.mark.parametrize(
    ("keys", "factors"),
    [
        # Ten steps of which the first two rise, the rate being that of the step before: 0, 1/2, 1, and then what falls.
        ({"lr_scheduler_type": "linear", "warmup_steps": 2}, [0, 1 / 2, 1, *[each / 8 for each in range(7, 0, -1)]]),
        ({"lr_scheduler_type": "linear", "warmup_ratio": 0.2}, [0, 1 / 2, 1, *[each / 8 for each in range(7, 0, -1)]]),
        (
            {"lr_scheduler_type": "cosine", "warmup_ratio": 0.2},
            [0, 1 / 2, *[(1 + math.cos(math.pi * each / 8)) / 2 for each in range(8)]],
        ),
        ({"lr_scheduler_type": "linear", "warmup_ratio": 0.0}, [each / 10 for each in range(10, 0, -1)]),
        # A number of steps goes before a ratio.
        ({"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 4, "warmup_ratio": 0.2}, [0, 0.25, 0.5, 0.75]),
        ({"lr_scheduler_type": "constant", "warmup_ratio": 0.0}, []),
    ],
    ids=str,
)
def test_the_learning_rate_rises_and_falls_as_worked_out_by_hand(
    keys: dict[str, Any], factors: list[float], run: Run
) -> None:
    folder, _ = run(max_steps=10, logging_steps=1, eval_strategy="no", save_steps=10, learning_rate=0.004, **keys)
    expected = [0.004 * factor for factor in [*factors, *[1.0] * (10 - len(factors))]]
    assert learning_rates(folder) == pytest.approx(expected, abs=1e-12)


def test_clipping_shortens_the_gradient_and_weight_decay_the_weights(run: Run, tmp_path: Path) -> None:
    keys: dict[str, Any] = {
        "max_steps": 1, "eval_strategy": "no", "save_steps": 1, "logging_steps": 1, "lr_scheduler_type": "constant",
        "warmup_ratio": 0.0, "lora_dropout": 0.0, "learning_rate": 0.01, "lora_target": "qv",
    }  # fmt: skip

    def after(name: str, **more: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        folder, _ = run(**keys, **more, output_dir=str(tmp_path / name))
        state = torch.load(folder / "checkpoint-1" / "optimizer.pt", weights_only=True)["state"]
        return state, load_file(folder / ADAPTER_FILE)

    free, plain = after("free", max_grad_norm=0.0)
    clipped, _ = after("clipped", max_grad_norm=0.01)
    # After one step AdamW's first moment is a tenth of the gradient that it was given.
    norm = {name: 10 * float(torch.cat([each["exp_avg"].ravel() for each in state.values()]).norm())
            for name, state in (("free", free), ("clipped", clipped))}  # fmt: skip
    assert norm["free"] > 0.1 and norm["clipped"] == pytest.approx(0.01, rel=1e-3)
    _, decayed = after("decayed", max_grad_norm=0.0, weight_decay=0.5)
    # A starts as it was drawn, has no gradient at the first step (B is zero), and shrinks by the rate times the decay.
    for name in (name for name in plain if "lora_A" in name):
        np.testing.assert_allclose(decayed[name], plain[name] * (1 - 0.01 * 0.5), rtol=1e-5)
