"""What a training run does: repeats itself, keeps the best, stops in time, says what it cannot do."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console
from safetensors.numpy import load_file

from rectune.config import Config
from rectune.errors import ConfigError, ModelError, RectuneError, ResourceError
from rectune.model.lora import ADAPTER_FILE
from rectune.report.evaluate import evaluate
from rectune.train.start import Resume

QUIET = Console(quiet=True)
Run = Callable[..., tuple[Path, list[str]]]
SHORT: dict[str, Any] = {"max_steps": 3, "eval_steps": 3, "save_steps": 3, "logging_steps": 1}


def history(run: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((run / "log_history.json").read_text(encoding="utf-8"))
    return found


def adapter(run: Path) -> bytes:
    return (run / ADAPTER_FILE).read_bytes()


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(run: Run, tmp_path: Path) -> None:
    runs = [
        run(**SHORT, seed=seed, output_dir=str(tmp_path / name))[0] for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    first, second, third = map(adapter, runs)
    assert first == second
    assert first != third


@pytest.mark.parametrize("packing", [False, True])
def test_accumulating_two_of_four_equals_one_batch_of_eight(packing: bool, run: Run, tmp_path: Path) -> None:
    # Rows hold one to three prompts each, so a mean of means would not be the mean over answers.
    keys: dict[str, Any] = {**SHORT, "packing": packing, "cutoff_len": 512, "lora_dropout": 0.0, "learning_rate": 1e-3}
    found = []
    for size, times in ((8, 1), (4, 2)):
        folder, lines = run(
            **keys,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=times,
            output_dir=str(tmp_path / str(size)),
        )
        if packing:
            prompts, rows = map(int, re.findall(r"packing: (\d+) trees in (\d+) ", "\n".join(lines))[0])
            assert prompts >= 2 * rows
        found.append((load_file(folder / ADAPTER_FILE), [log["loss"] for log in history(folder) if "loss" in log]))
    (one, losses), (two, others) = found
    assert losses == pytest.approx(others, rel=1e-4)
    # Adam turns a tiny difference of a tiny gradient into a step of up to the learning rate; few values may do so.
    differences = np.concatenate([np.abs(one[name] - two[name]).ravel() for name in one])
    assert np.quantile(differences, 0.99) < 1e-5


@pytest.mark.parametrize(("metric", "better"), [("auc", max), ("loss", min)])
def test_the_adapter_at_the_root_is_that_of_the_best_evaluation(metric: str, better: Any, run: Run) -> None:
    folder, lines = run(metric_for_best_model=metric, max_steps=6, eval_steps=1, save_steps=1, save_total_limit=None)
    values = {log["step"]: log[f"eval_{metric}"] for log in history(folder) if f"eval_{metric}" in log}
    best = better(values.values())
    step = next(step for step, value in values.items() if value == best)
    assert adapter(folder) == adapter(folder / f"checkpoint-{step}")
    assert lines[-1] == f"trained: {folder} (best {metric} {best:.4f} at step {step})"
    assert (folder / "tokenizer.json").is_file() and (folder / "rectune.json").is_file()


def test_only_the_newest_checkpoints_are_kept(run: Run) -> None:
    folder, _ = run(max_steps=6, save_steps=1, eval_steps=2, save_total_limit=2)
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-5", "checkpoint-6"]


def test_early_stopping_waits_for_its_patience_and_a_resume_does_not_train_on(run: Run) -> None:
    # With nothing learned, no evaluation is better than the first.
    keys: dict[str, Any] = {
        "learning_rate": 1e-30,
        "max_steps": 9,
        "eval_steps": 1,
        "save_steps": 1,
        "early_stopping_patience": 2,
    }
    folder, lines = run(**keys)
    assert any(line.startswith("early stop: 2 evaluations since the best f1") for line in lines)
    assert [log["step"] for log in history(folder) if "eval_f1" in log] == [1, 2, 3]
    again, lines = run(Resume(latest=True), **keys)
    assert any("nothing is left to train, 2 evaluations since the best f1" in line for line in lines)
    assert max(log["step"] for log in history(again)) == 3


def test_a_flat_training_loss_stops_the_run_after_an_evaluation_and_a_checkpoint(run: Run) -> None:
    folder, lines = run(
        max_steps=30,
        eval_steps=30,
        save_steps=30,
        logging_steps=1,
        loss_plateau_patience=3,
        loss_plateau_min_delta=50.0,
    )
    assert "early stop: the training loss has not fallen for 3 log lines" in lines
    assert [log["step"] for log in history(folder) if "loss" in log] == [1, 2, 3, 4]
    assert (folder / "checkpoint-4" / "complete.json").is_file()
    assert [log["step"] for log in history(folder) if "eval_loss" in log] == [4]


def test_without_evaluation_the_last_adapter_is_published(run: Run) -> None:
    folder, lines = run(**{**SHORT, "eval_strategy": "no"})
    assert adapter(folder) == adapter(folder / "checkpoint-3")
    assert lines[-1] == f"trained: {folder}"


def test_a_metric_that_no_evaluation_gives_keeps_the_last_adapter_and_says_so(run: Run) -> None:
    # Three validation events of three users: no user has both labels, so there is no AUC within a user.
    folder, lines = run(**SHORT, metric_for_best_model="uauc", max_eval_samples=3)
    assert "best: no evaluation gave a uauc, so the last adapter is kept" in lines
    assert adapter(folder) == adapter(folder / "checkpoint-3")
    assert json.loads((folder / "best" / "step.json").read_text()) == {"step": 3, "uauc": None}


def test_metrics_of_training_equal_those_of_evaluate_row_by_row(run: Run) -> None:
    folder, _ = run(max_steps=4, eval_steps=2, metric_for_best_model="auc")
    lines: list[str] = []
    report = evaluate(folder, [], "validation", "logits", False, lines.append, QUIET).report
    best = json.loads((folder / "best" / "step.json").read_text())["step"]
    then = next(log for log in history(folder) if log["step"] == best and "eval_loss" in log)
    now = {name: value for name, value in report["models"]["tuned"]["metrics"].items() if value is not None}
    assert {name: then.get(f"eval_{name}") for name in now} == now
    kept = pl.read_parquet(folder / "validation_predictions.parquet")
    scored = pl.read_parquet(folder / "predictions_validation_tuned.parquet")
    assert kept["row_id"].equals(scored["row_id"])
    assert kept["log_odds"].equals(scored["log_odds"])
    assert "check: largest difference from the scores during training, row by row: 0 in log-odds" in lines


def test_training_goes_on_from_an_earlier_adapter(run: Run, tmp_path: Path) -> None:
    first, _ = run(**SHORT, output_dir=str(tmp_path / "first"))
    second, lines = run(
        **SHORT, output_dir=str(tmp_path / "second"), adapter_name_or_path=str(first), eval_strategy="no"
    )
    assert f"adapter: going on from {first}" in lines
    assert any(line.startswith("adapter: rank 16, alpha 64") and "not used" in line for line in lines)
    losses = [[log["loss"] for log in history(folder) if "loss" in log] for folder in (first, second)]
    assert losses[1][0] < losses[0][0]
    assert adapter(second) != adapter(first)


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_missing_or_damaged_earlier_adapter_is_one_line(damage: str, run: Run, tmp_path: Path) -> None:
    first, _ = run(**SHORT, output_dir=str(tmp_path / "first"))
    file = first / ADAPTER_FILE
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ModelError, match="no adapter_model" if damage == "missing" else "damaged"):
        run(**SHORT, output_dir=str(tmp_path / "second"), adapter_name_or_path=str(first))


def generated(run: Path) -> list[str]:
    """What stands before the row in each line of the generated answers."""
    lines = (run / "logs" / "generations.txt").read_text(encoding="utf-8").splitlines()
    return [line.split(" row ")[0] for line in lines]


def test_answers_are_generated_at_each_evaluation_and_change_nothing(run: Run, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"max_steps": 4, "eval_steps": 2, "save_steps": 2, "logging_steps": 1}
    plain, _ = run(**keys, output_dir=str(tmp_path / "plain"))
    folder, lines = run(**keys, gen_eval_samples=4)
    line = next(line for line in lines if line.startswith("generation: "))
    assert "of 4 greedy answers" in line
    best = json.loads((folder / "best" / "step.json").read_text())["step"]
    assert generated(folder) == ["step 2"] * 4 + ["step 4"] * 4 + [f"best, step {best}"] * 4
    assert adapter(folder) == adapter(plain)
    learned = [[(log["step"], log["loss"]) for log in history(each) if "loss" in log] for each in (folder, plain)]
    assert learned[0] == learned[1]

    run(Resume(checkpoint=folder / "checkpoint-2"), **keys, gen_eval_samples=4)
    assert generated(folder) == ["step 2"] * 4 + ["step 4"] * 4 + [f"best, step {best}"] * 4
    assert adapter(folder) == adapter(plain)


def test_an_earlier_runs_other_prompt_is_named_and_its_other_label_tokens_are_refused(run: Run, tmp_path: Path) -> None:
    first, _ = run(**SHORT, output_dir=str(tmp_path / "first"))
    keys = {**SHORT, "adapter_name_or_path": str(first), "output_dir": str(tmp_path / "second")}
    _, lines = run(**keys, question="Well?")
    assert "adapter: question was 'Yes or No?' in its earlier run and is now 'Well?'" in lines
    with pytest.raises(ModelError, match="the label tokens differ"):
        run(**{**keys, "output_dir": str(tmp_path / "third")}, positive_label="No", negative_label="Yes")


def test_of_several_cards_one_is_used_and_said(make: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import TrainingArguments

    from rectune.train.arguments import trainer_arguments

    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: self.__dict__.setdefault("_n_gpu", 2)))
    monkeypatch.setattr(TrainingArguments, "_setup_devices", property(lambda self: self.__dict__.update(_n_gpu=2)))
    lines: list[str] = []
    arguments = trainer_arguments(make(), 1.0, lines.append)
    assert arguments.n_gpu == 1
    assert lines == ["device: training on one of 2 cards"]


OPTIONS: list[dict[str, Any]] = [
    {"optim": "adamw_torch_fused"},
    {"optim": "adamw_8bit"},
    {"optim": "paged_adamw_32bit"},
    {"optim": "paged_adamw_8bit"},
    {"lr_scheduler_type": "linear", "warmup_steps": 1},
    {"lr_scheduler_type": "constant"},
    {"lr_scheduler_type": "constant_with_warmup", "warmup_ratio": 0.5},
    {"gradient_checkpointing": True},
    {"flash_attn": "eager"},
    {"flash_attn": False, "packing": True},
    {"flash_attn": "sdpa"},
    {"bf16": True},
    {"use_rslora": True, "lora_target": "qv", "lora_layers": "upper_half"},
    {"lora_target": ["q_proj", "down_proj"], "lora_layers": [1]},
    {"lora_target": "attention", "use_dora": True},
    {"weight_decay": 0.1, "max_grad_norm": 0.0},
    {"eval_strategy": "epoch", "max_steps": -1, "num_train_epochs": 1, "max_train_samples": 24},
    {"save_total_limit": None, "report_to": "none", "history_shows": "label"},
    {"prompt_format": "instruction"},
    {"prompt_format": "completion", "item_text": "title_categories"},
]


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_every_option_that_a_cpu_has_trains(option: dict[str, Any], run: Run) -> None:
    folder, _ = run(**{**SHORT, "max_steps": 2, "eval_steps": 2, **option})
    logs = history(folder)
    assert all(np.isfinite(log["loss"]) for log in logs if "loss" in log)
    assert any("eval_loss" in log for log in logs)
    ups = [value for name, value in load_file(folder / ADAPTER_FILE).items() if "lora_B" in name]
    assert ups and all(np.isfinite(value).all() for value in ups) and any(value.any() for value in ups)


@pytest.mark.parametrize(
    ("option", "kind", "said"),
    [
        ({"fp16": True, "bf16": False}, ConfigError, "fp16: got true, but training in float16 needs CUDA"),
        ({"flash_attn": "flash_attention_2"}, ResourceError, "it needs a CUDA card; use flash_attn=auto"),
        ({"flash_attn": "flex"}, ResourceError, "flex trains on CUDA only"),
        ({"lora_target": ["nose"]}, ModelError, "lora_target: this model has no nose"),
        ({"lora_layers": [7]}, ModelError, r"lora_layers: got \[7\]"),
        ({"positive_label": "Certainly"}, ModelError, "positive_label: 'Certainly' is"),
        ({"cutoff_len": 16}, RectuneError, "cutoff_len: got 16"),
    ],
    ids=str,
)
def test_what_cannot_be_had_is_one_line_and_starts_no_run(
    option: dict[str, Any], kind: type[RectuneError], said: str, run: Run, make: Callable[..., Config]
) -> None:
    with pytest.raises(kind, match=said) as caught:
        run(**{**SHORT, **option})
    assert "\n" not in str(caught.value)
    assert not make(**{**SHORT, **option}).output_dir.exists()


def test_an_optimiser_without_its_package_is_one_line(
    run: Run, make: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    true = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "bitsandbytes" else true(name, *more)
    )
    with pytest.raises(ResourceError, match="optim: adamw_8bit needs bitsandbytes, which is not installed"):
        run(**SHORT, optim="adamw_8bit")
    assert not make().output_dir.exists()


def test_a_paged_optimiser_on_a_cpu_says_that_it_does_not_page(run: Run, recwarn: pytest.WarningsRecorder) -> None:
    _, lines = run(**SHORT, optim="paged_adamw_8bit", lora_rank=128)  # 128 x 32 values, enough to be kept in 8 bits
    assert "optimiser: paged_adamw_8bit on a CPU works without paging" in lines
    assert not [warning for warning in recwarn if "Paged" in str(warning.message)]


@pytest.mark.parametrize("keys", [{"use_qlora": True}, {"quantization_bit": 8}], ids=str)
def test_quantised_bases_train_resume_and_evaluate_on_the_cpu(keys: dict[str, Any], run: Run, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    whole, lines = run(**keys, max_steps=4, eval_steps=2, save_steps=2, output_dir=str(tmp_path / "whole"))
    assert any(line.startswith("weights: ") and "bitsandbytes on cpu" in line for line in lines)
    resumed, _ = run(
        Resume(checkpoint=whole / "checkpoint-2"),
        **keys,
        max_steps=4,
        eval_steps=2,
        save_steps=2,
        output_dir=str(tmp_path / "resumed"),
    )
    assert adapter(resumed) == adapter(whole)
    said: list[str] = []
    report = evaluate(resumed, [], "validation", "logits", True, said.append, QUIET).report
    assert np.isfinite(report["models"]["tuned"]["metrics"]["loss"])
    assert "check: largest difference from the scores during training, row by row: 0 in log-odds" in said
    settings = json.loads((resumed / "rectune.json").read_text(encoding="utf-8"))
    assert settings["quantization"] == ("4-bit" if "use_qlora" in keys else "8-bit")
