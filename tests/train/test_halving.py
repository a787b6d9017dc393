"""Memory that runs out in a step: halves give what the whole would have given, and a resumed run repeats them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from rectune.config import Config
from rectune.errors import ResourceError
from rectune.model.lora import ADAPTER_FILE
from rectune.train.batches import TrainingCollator
from rectune.train.halving import Halving, parts_of
from rectune.train.start import Resume

Run = Callable[..., tuple[Path, list[str]]]
STEPS: dict[str, Any] = {
    "max_steps": 4,
    "eval_steps": 4,
    "save_steps": 2,
    "logging_steps": 1,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-3,
}


@pytest.fixture
def shortage(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, str], list[int]]:
    """Makes passes over more rows than given fail on an allocation of a pebibyte, forward or in the backward pass."""

    def plant(most: int, where: str) -> list[int]:
        from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

        seen: list[int] = []
        forward = Qwen3DecoderLayer.forward

        def greedy(rows: int) -> None:
            if rows > most:
                torch.empty(1 << 50, dtype=torch.uint8)

        def planted(self: Any, hidden: torch.Tensor, *args: Any, **named: Any) -> Any:
            found = forward(self, hidden, *args, **named)
            if torch.is_grad_enabled() and self.self_attn.layer_idx == 0:
                seen.append(len(hidden))
                if where == "forward":
                    greedy(len(hidden))
                else:  # the upper block's adapter has its gradients by then
                    found.register_hook(lambda gradient: greedy(len(gradient)))
            return found

        monkeypatch.setattr(Qwen3DecoderLayer, "forward", planted)
        return seen

    return plant


@pytest.mark.parametrize(
    ("where", "keys"),
    [
        ("backward", {}),
        ("backward", {"packing": True, "cutoff_len": 512}),
        ("forward", {"layout": "stream"}),
        ("backward", {"backend": "trl"}),
    ],
    ids=str,
)
def test_a_run_in_halves_makes_the_adapter_of_the_whole(
    where: str, keys: dict[str, Any], run: Run, tmp_path: Path, shortage: Callable[[int, str], list[int]]
) -> None:
    if "backend" in keys:
        pytest.importorskip("trl")
    keys = {**STEPS, "lora_dropout": 0.0, **keys}
    whole, _ = run(**keys, output_dir=str(tmp_path / "whole"))
    seen = shortage(1, where)
    halved, lines = run(**keys, output_dir=str(tmp_path / "halved"))
    assert sum("rows of" in line and "going on with" in line for line in lines) == 2
    assert seen[:2] == [4, 2] and set(seen[2:]) == {1}
    assert len(seen) == 2 + 4 * 2 * 4  # a row at a time: 4 steps of 2 micro-batches of 4
    logs = [json.loads((folder / "log_history.json").read_text()) for folder in (whole, halved)]
    losses = [[log["loss"] for log in history if "loss" in log] for history in logs]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    one, two = load_file(whole / ADAPTER_FILE), load_file(halved / ADAPTER_FILE)
    # Adam turns a tiny difference of a tiny gradient into a step of up to the learning rate; few values may do so.
    differences = np.concatenate([np.abs(one[name] - two[name]).ravel() for name in one])
    assert np.quantile(differences, 0.99) < 1e-5


def test_a_resumed_run_repeats_the_halves(run: Run, tmp_path: Path, shortage: Callable[[int, str], list[int]]) -> None:
    seen = shortage(2, "backward")
    whole, _ = run(**STEPS, output_dir=str(tmp_path / "whole"))
    assert json.loads((whole / "checkpoint-2" / "micro_batch.json").read_text()) == {"rows": 2}
    del seen[:]
    resumed, lines = run(Resume(checkpoint=whole / "checkpoint-2"), **STEPS, output_dir=str(tmp_path / "resumed"))
    assert "memory: 2 rows at a time, as before the checkpoint" in lines
    assert set(seen) == {2}
    assert (resumed / ADAPTER_FILE).read_bytes() == (whole / ADAPTER_FILE).read_bytes()


@pytest.mark.parametrize("keys", [{"auto_batch": False}, {"per_device_train_batch_size": 1}], ids=str)
def test_without_halving_and_for_a_single_row_the_shortage_is_explained_in_one_line(
    keys: dict[str, Any], run: Run, shortage: Callable[[int, str], list[int]]
) -> None:
    shortage(0, "forward")
    with pytest.raises(ResourceError, match="out of memory on cpu"):
        run(**{**STEPS, **keys})


def test_another_error_is_not_taken_for_a_shortage() -> None:
    layer = torch.nn.Linear(2, 2)

    def once(part: dict[str, torch.Tensor]) -> torch.Tensor:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        Halving(True, print).step(layer, {"input_ids": torch.zeros(4, 2)}, once)


@settings(deadline=None, max_examples=25)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=7), size=st.integers(1, 8), with_end=st.booleans())
def test_parts_hold_every_answer_once_and_what_it_can_see(lengths: list[int], size: int, with_end: bool) -> None:
    from types import SimpleNamespace

    from rectune.prompt.tree import Trees

    draw = np.random.default_rng(0)
    nothing = np.zeros(len(lengths))
    trees = Trees.of_prompts([draw.integers(1, 99, n) for n in lengths], nothing, nothing, nothing)
    words = SimpleNamespace(token_ids=[100, 101], end_id=102, token=lambda label: 100 + label)
    batch = TrainingCollator(trees, words, with_end)([[index] for index in range(len(lengths))])  # type: ignore[arg-type]
    parts = list(parts_of(batch, size))
    assert [len(part["input_ids"]) for part in parts] == [
        min(size, len(lengths) - at) for at in range(0, len(lengths), size)
    ]
    at = 0
    for part in parts:
        for row, position in zip(part["rows"].tolist(), part["positions"].tolist(), strict=True):
            seen = position + 1 + with_end
            assert part["input_ids"][row, :seen].tolist() == batch["input_ids"][at, :seen].tolist()
            assert len(part["input_ids"][row]) >= seen
            at += 1
    assert at == len(lengths)


CHILD = """
import resource, sys
import torch
from pathlib import Path
from rich.console import Console
from rectune.config import load_config
from rectune.train.halving import Halving
from rectune.train.train import train
torch.set_num_threads(1)
step = Halving.step

def limited(self, *arguments):
    if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + 700 * 2**20, resource.RLIM_INFINITY))
    return step(self, *arguments)

Halving.step = limited
train(load_config(Path(sys.argv[1])), print, Console(quiet=True))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is that of Linux")
def test_a_process_that_really_may_not_have_more_memory_goes_on_in_halves(
    make: Callable[..., Config], tmp_path: Path
) -> None:
    # Eager attention keeps some 4 x 1,000 x 1,000 x 8 bytes a row and block: 16 rows want 1 GiB, 8 rows half of it.
    config = make(
        instruction="x " * 400, cutoff_len=2048, flash_attn="eager", eval_strategy="no",
        per_device_train_batch_size=16, gradient_accumulation_steps=1, max_steps=1, save_steps=1, max_train_samples=16,
        output_dir=str(tmp_path / "run"),
    )  # fmt: skip
    (tmp_path / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    found = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path / "config.yaml")],
        capture_output=True, text=True, env=environment, timeout=120,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-2000:]
    assert "at once do not fit; going on with" in found.stdout
    assert (tmp_path / "run" / ADAPTER_FILE).is_file()
