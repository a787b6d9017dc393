"""Going on from an earlier adapter on new data: what is kept, what starts afresh, and what is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console
from safetensors.numpy import load_file

from rectune.baselines.item_rates import rate_table
from rectune.config import Config
from rectune.model.lora import ADAPTER_FILE
from rectune.prompt.dataset import open_dataset
from rectune.report.evaluate import evaluate

Run = Callable[..., tuple[Path, list[str]]]
KEYS: dict[str, Any] = {
    "layout": "stream", "prompt_format": "completion", "prior": "item_rate", "item_rate_from": "other_users",
    "max_steps": 4, "eval_steps": 4, "save_steps": 4, "logging_steps": 1, "lr_scheduler_type": "linear",
    "warmup_steps": 2,
}  # fmt: skip
NEW = 7000
"""Users of the made-up data watch one after the other, the sixth before this time and the seventh from it on."""


@pytest.fixture
def yesterday(movielens: Path, tmp_path: Path) -> Path:
    """A MovieLens folder with the events before a moment."""
    folder = tmp_path / "yesterday"
    folder.mkdir()
    (folder / "movies.csv").write_bytes((movielens / "movies.csv").read_bytes())
    ratings = pl.read_csv(movielens / "ratings.csv")
    ratings.filter(pl.col("timestamp") < NEW).write_csv(folder / "ratings.csv")
    return folder


@pytest.fixture
def first(run: Run, yesterday: Path, tmp_path: Path) -> Path:
    """The run of day 0."""
    names = {"dataset": str(yesterday), "dataset_dir": str(tmp_path / "day0"), "output_dir": str(tmp_path / "first")}
    return run(**KEYS, **names)[0]


def history(run: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((run / "log_history.json").read_text(encoding="utf-8"))
    return found


def test_day_one_goes_on_from_the_adapter_and_all_else_starts_afresh(
    first: Path, run: Run, make: Callable[..., Config], tmp_path: Path
) -> None:
    more: dict[str, Any] = {**KEYS, "adapter_name_or_path": str(first), "train_since": NEW, "lora_rank": 2}
    second, lines = run(**more, output_dir=str(tmp_path / "second"))
    said = "\n".join(lines)
    assert f"adapter: going on from {first}" in said and "adapter: rank 16, alpha 64" in said
    assert "The optimiser starts afresh, with warm-up" in said
    assert "adapter: item rates are counted anew, on this dataset" in said
    assert "in its earlier run" not in said and "this dataset is the one" not in said

    config = make(**more)
    events = open_dataset(config, lambda line: None).events
    counts = {
        which: events.filter((pl.col("split") == "train") & (pl.col("timestamp") >= when)).height
        for which, when in (("new", NEW), ("all", 0))
    }
    assert f"data: {counts['new']} training and " in said and counts["new"] < counts["all"]
    # The rates are those of all events up to now, old ones too.
    saved = pl.read_parquet(second / "item_rates.parquet")
    assert saved.equals(rate_table(events, config.item_rate_strength))
    assert not saved.equals(pl.read_parquet(first / "item_rates.parquet"))

    logs = [log for log in history(second) if "loss" in log]
    assert [log["step"] for log in logs] == [1, 2, 3, 4]
    assert [log["learning_rate"] for log in logs] == pytest.approx([0.0, 0.005, 0.01, 0.005])

    report = evaluate(second, [], "validation", "logits", True, lines.append, Console(quiet=True)).report
    assert np.isfinite(report["models"]["tuned"]["metrics"]["loss"])


def test_the_first_step_starts_at_the_weights_of_the_earlier_adapter(first: Path, run: Run, tmp_path: Path) -> None:
    more: dict[str, Any] = {**KEYS, "adapter_name_or_path": str(first), "learning_rate": 1e-30}
    second, _ = run(**more, output_dir=str(tmp_path / "second"))
    one, two = (load_file(folder / ADAPTER_FILE) for folder in (first, second))
    assert one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


def test_what_differs_from_the_earlier_run_is_a_line_each(first: Path, run: Run, tmp_path: Path) -> None:
    more: dict[str, Any] = {**KEYS, "adapter_name_or_path": str(first), "blend": ["network"], "item_rate_strength": 9.0}
    _, lines = run(**more, output_dir=str(tmp_path / "second"))
    assert "adapter: item_rate_strength was 5.0 in its earlier run and is now 9.0" in lines
    assert "adapter: blend was [] in its earlier run and is now ['network']" in lines
    assert sum("in its earlier run" in line for line in lines) == 2


def test_another_base_or_prior_is_said_and_the_same_data_too(first: Path, run: Run, tmp_path: Path) -> None:
    settings = json.loads((first / "rectune.json").read_text(encoding="utf-8")) | {"sha256": None}
    (first / "rectune.json").write_text(json.dumps({**settings, "base_model": "other/model", "quantization": "4-bit"}))
    names = {"dataset": str(tmp_path / "yesterday"), "dataset_dir": str(tmp_path / "day0")}
    more: dict[str, Any] = {**KEYS, **names, "adapter_name_or_path": str(first), "prior": "none"}
    _, lines = run(**more, output_dir=str(tmp_path / "second"))
    assert "adapter: prior was 'item_rate' in its earlier run and is now 'none'" in lines
    assert any(line.startswith("adapter: base_model was 'other/model'") for line in lines)
    assert "adapter: quantization was '4-bit' in its earlier run and is now None" in lines
    assert "adapter: this dataset is the one that its earlier run was trained on" in lines
