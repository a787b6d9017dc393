"""Other backends: TRL's SFTTrainer on the same prompts, its loss and its run folder; what they cannot do is refused."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from rectune.config import Config
from rectune.data.columns import TRAIN
from rectune.errors import ConfigError, NotFinite, ResourceError
from rectune.model.load import load_model
from rectune.model.lora import ADAPTER_FILE
from rectune.prompt.dataset import open_dataset
from rectune.prompt.encode import EventHistories, encode, split_sample
from rectune.prompt.events import Event
from rectune.prompt.pieces import Pieces
from rectune.prompt.pointwise import PointwisePrompts
from rectune.report.evaluate import evaluate
from rectune.train.batches import TrainingCollator
from rectune.train.start import Resume

QUIET = Console(quiet=True)
KEYS: dict[str, Any] = {
    "backend": "trl", "lora_dropout": 0.0, "max_steps": 4, "eval_steps": 2, "save_steps": 2, "logging_steps": 1,
}  # fmt: skip
Run = Callable[..., tuple[Path, list[str]]]
trl = pytest.importorskip("trl")


def silent(_line: str) -> None:
    """Say nothing."""


def history(run: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((run / "log_history.json").read_text(encoding="utf-8"))
    return found


def losses(run: Path) -> list[float]:
    return [log["loss"] for log in history(run) if "loss" in log]


@pytest.mark.parametrize("packing", [False, True])
def test_a_batch_is_what_trls_own_collator_makes_of_the_same_tokens(packing: bool, make: Callable[..., Config]) -> None:
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    from rectune.train.trl import IGNORED, sft_batch

    config = make(backend="trl", packing=packing, cutoff_len=512)
    data = open_dataset(config, silent)
    loaded = load_model(config, silent)
    prompts = PointwisePrompts(config, Pieces(loaded.tokenizer))
    rows = split_sample(config, data.events, TRAIN)[:7]
    trees = encode(config, data.events, data.catalog, data.content_hash, prompts, rows, silent)

    # The prompts once more, from the table's rows and the plain builder, without trees.
    told = EventHistories(data.events, data.catalog, config)
    examples = []
    for row in rows.tolist():
        past = range(told.starts[row], told.stops[row])
        events = [Event(told.titles[at], told.ratings[at], told.labels[at]) for at in past]
        ids = prompts.build(events, told.titles[row]).tokens
        answer = [prompts.verbalizer.token(told.labels[row]), prompts.verbalizer.end_id]
        examples.append({"input_ids": [*ids, *answer], "labels": [IGNORED] * len(ids) + answer})
    assert len({len(example["input_ids"]) for example in examples}) > 1
    packs = [[0, 1, 2], [3], [4, 5], [6]] if packing else [[index] for index in range(7)]
    joined: list[dict[str, Any]] = []
    for pack in packs:
        joined.append({key: [one for index in pack for one in examples[index][key]] for key in ("input_ids", "labels")})
        if packing:
            joined[-1]["seq_lengths"] = [len(examples[index]["input_ids"]) for index in pack]
    theirs = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=packing)(joined)

    ours = sft_batch(TrainingCollator(trees, prompts.verbalizer, True)(packs), prompts.verbalizer.end_id)
    assert set(ours) == set(theirs)
    for key, value in theirs.items():
        assert torch.equal(torch.as_tensor(ours[key]), torch.as_tensor(value)), key


@pytest.mark.parametrize(
    "keys",
    [{}, {"packing": True, "cutoff_len": 512}, {"packing": True, "cutoff_len": 512, "flash_attn": "eager"}],
    ids=str,
)
def test_losses_and_adapter_are_those_of_the_native_backend(keys: dict[str, Any], run: Run, tmp_path: Path) -> None:
    folders = [
        run(**{**KEYS, **keys, "backend": name, "learning_rate": 1e-3}, output_dir=str(tmp_path / name))[0]
        for name in ("native", "trl")
    ]
    native, other = map(losses, folders)
    assert other[0] == pytest.approx(native[0], abs=1e-4)
    assert other == pytest.approx(native, abs=1e-3) and len(set(native)) == 4
    one, two = (load_file(folder / "checkpoint-4" / ADAPTER_FILE) for folder in folders)
    differences = torch.cat([(one[name] - two[name]).abs().flatten() for name in one])
    # Adam turns a tiny difference of a tiny gradient into a step of up to the learning rate; few values may do so.
    assert differences.quantile(0.98) < 1e-5
    assert {path.name for path in folders[0].iterdir()} == {path.name for path in folders[1].iterdir()}
    assert [set(log) for log in history(folders[0])] == [set(log) for log in history(folders[1])]


def test_a_run_is_evaluated_resumed_and_keeps_its_best_adapter(run: Run, tmp_path: Path) -> None:
    keys = {**KEYS, "metric_for_best_model": "loss", "max_steps": 6, "save_total_limit": None, "lora_dropout": 0.1}
    whole, lines = run(**keys, output_dir=str(tmp_path / "whole"))
    assert "backend: trl; SFTTrainer computes the steps, the rest of the run is as with native" in lines
    assert (whole / "checkpoint-2" / "complete.json").is_file()
    resumed, _ = run(Resume(checkpoint=whole / "checkpoint-2"), **keys, output_dir=str(tmp_path / "resumed"))
    assert (whole / ADAPTER_FILE).read_bytes() == (resumed / ADAPTER_FILE).read_bytes()
    found = {log["step"]: log["eval_loss"] for log in history(whole) if "eval_loss" in log}
    best = min(found, key=lambda step: found[step])
    assert (whole / ADAPTER_FILE).read_bytes() == (whole / f"checkpoint-{best}" / ADAPTER_FILE).read_bytes()
    said: list[str] = []
    evaluate(whole, [], "validation", "logits", True, said.append, QUIET)
    assert "check: largest difference from the scores during training, row by row: 0 in log-odds" in said


@pytest.mark.parametrize(
    "option",
    [
        {"bf16": True, "gradient_checkpointing": True, "gen_eval_samples": 2},
        {"init_lora_weights": "pissa", "loraplus_lr_ratio": 4.0, "prompt_format": "completion"},
    ],
    ids=str,
)
def test_options_that_trl_leaves_to_us_train(option: dict[str, Any], run: Run, tmp_path: Path) -> None:
    found = []
    for name in ("native", "trl"):
        folder, _ = run(**{**KEYS, **option, "backend": name, "learning_rate": 1e-3}, output_dir=str(tmp_path / name))
        found.append(losses(folder))
        assert (folder / "logs" / "generations.txt").is_file() == ("gen_eval_samples" in option)
    # bfloat16 rounds a loss of 12 to a sixteenth; elsewhere the two agree.
    assert found[1] == pytest.approx(found[0], abs=0.06 if option.get("bf16") else 1e-3)


def test_answers_are_counted_even_where_the_trainer_counts_otherwise(
    run: Run, tmp_path: Path, monkeypatch: Any
) -> None:
    # Unsloth replaces this method of the Trainer by one that counts tokens in a batch of its own form.
    from transformers import Trainer

    usual, _ = run(**{**KEYS, "max_steps": 1}, output_dir=str(tmp_path / "usual"))
    true = Trainer.get_batch_samples
    monkeypatch.setattr(Trainer, "get_batch_samples", lambda self, *given: (true(self, *given)[0], torch.tensor(999)))
    other, _ = run(**{**KEYS, "max_steps": 1}, output_dir=str(tmp_path / "other"))
    assert losses(other) == losses(usual)


def test_parts_of_a_batch_add_up_to_its_loss(make: Callable[..., Config], run: Run, monkeypatch: Any) -> None:
    # What halving relies on where memory runs out.
    from rectune.train.halving import parts_of
    from rectune.train.trl import SupervisedTrainer

    true = SupervisedTrainer._batch_loss
    found = []

    def both(self: Any, model: Any, inputs: Any, count: Any) -> torch.Tensor:
        loss = true(self, model, inputs, count)
        parts = [true(self, model, part, count).item() for part in parts_of(inputs, 1)]
        found.append((loss.item(), sum(parts), len(parts)))
        return loss

    monkeypatch.setattr(SupervisedTrainer, "_batch_loss", both)
    run(**{**KEYS, "max_steps": 1})
    assert found and all(number == 2 for _, _, number in found)
    assert [whole for whole, _, _ in found] == pytest.approx([parts for _, parts, _ in found], rel=1e-5)


def test_a_loss_that_is_no_number_names_its_events(run: Run) -> None:
    with pytest.raises(NotFinite, match=r"micro-batch|scores of the validation"):
        run(**{**KEYS, "learning_rate": 1e30, "max_grad_norm": 0, "max_steps": 6, "warmup_ratio": 0.0})


def test_the_adapter_of_a_quantised_base_stays_in_float32(run: Run) -> None:
    pytest.importorskip("bitsandbytes")
    folder, _ = run(**{**KEYS, "max_steps": 2, "use_qlora": True, "learning_rate": 1e-4})
    tensors = load_file(folder / ADAPTER_FILE)
    rounded = [value for value in tensors.values() if torch.equal(value, value.to(torch.bfloat16).float())]
    assert all(value.dtype == torch.float32 for value in tensors.values()) and not rounded


def test_what_a_backend_cannot_express_is_refused_all_at_once(make: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError) as caught:
        make(
            backend="trl", layout="stream", prior="item_rate", loss_over="labels", focal_gamma=2.0, class_weights=[1, 2]
        )
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("5 problems in the configuration")
    assert (
        "  layout: got 'stream' beside backend: trl, allowed: pointwise (an answer must be the last token of its "
        "sequence); or set backend=native"
    ) in lines
    with pytest.raises(ConfigError, match="prompt_format: got 'classifier' beside backend: trl"):
        make(backend="trl", prompt_format="classifier")
    with pytest.raises(ConfigError, match=r"label_smoothing: got '0\.1' beside backend: trl"):
        make(backend="trl", label_smoothing=0.1)
    with pytest.raises(ConfigError, match=r"use_dora: got 'True' beside backend: unsloth, allowed: False"):
        make(backend="unsloth", use_dora=True)
    make(backend="trl", use_dora=True, packing=True)  # which TRL can do


@pytest.mark.parametrize("missing", ["trl", "unsloth"])
def test_a_missing_package_is_one_line(missing: str, run: Run, make: Callable[..., Config], monkeypatch: Any) -> None:
    true = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == missing else true(name, *more))
    with pytest.raises(ResourceError) as caught:
        run(**{**KEYS, "backend": missing})
    said = f"backend: {missing} needs the package {missing}, which is not installed: pip install {missing}, or set"
    assert str(caught.value) == f"{said} backend=native"
    assert not make().output_dir.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is said without a card")
def test_unsloth_without_a_card_is_one_line(run: Run, monkeypatch: Any) -> None:
    true = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: true("json" if name == "unsloth" else name, *more)
    )
    with pytest.raises(ResourceError, match=r"^backend: unsloth needs a CUDA card, and there is none here; set back"):
        run(**{**KEYS, "backend": "unsloth"})


def test_the_native_backend_imports_neither_package(make: Callable[..., Config], tmp_path: Path) -> None:
    config = make(max_steps=1, eval_strategy="no", save_steps=1, max_train_samples=24)
    (tmp_path / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    code = (
        "import sys; from pathlib import Path; from rich.console import Console; "
        "from rectune.config import load_config; from rectune.train.train import train; "
        f"train(load_config(Path({str(tmp_path / 'config.yaml')!r})), print, Console(quiet=True)); "
        "print('imported:', sorted({'trl', 'unsloth'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.splitlines()[-1] == "imported: []"
    assert np.isfinite(losses(config.output_dir)).all()
