"""The panel: the same few events of both labels at every evaluation, at the cost of no forward pass."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rectune.train.panel import choose_panel, panel_text
from rectune.train.start import Resume

Run = Callable[..., tuple[Path, list[str]]]
KEYS: dict[str, Any] = {"max_steps": 4, "eval_steps": 2, "save_steps": 2, "logging_steps": 1}


@given(st.lists(st.integers(0, 1), min_size=1, max_size=40), st.integers(1, 12), st.integers(0, 99))
def test_a_panel_is_as_large_as_asked_half_of_each_label_and_has_nobody_twice(
    labels: list[int], count: int, seed: int
) -> None:
    found = choose_panel(np.array(labels), count, seed)
    assert len(found) == min(count, len(labels)) == len(set(found.tolist()))
    likes, others = sum(labels), len(labels) - sum(labels)
    liked = sum(labels[index] for index in found)
    if likes >= math.ceil(count / 2) and others >= count // 2:
        assert liked == math.ceil(count / 2)
    assert found.tolist() == choose_panel(np.array(labels), count, seed).tolist()


def read(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "logs" / "panel.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_panel_has_the_scores_of_the_evaluation_and_what_the_model_saw(
    run: Run, monkeypatch: pytest.MonkeyPatch, shared_folder: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from rectune.train import trainer

    passes: list[int] = []
    real = trainer.score_trees
    monkeypatch.setattr(trainer, "score_trees", lambda *of, **named: passes.append(1) or real(*of, **named))
    run(**KEYS, panel_samples=0, overwrite=True)
    without = len(passes)
    keys = {"panel_samples": 4, "report_to": "tensorboard", "metric_for_best_model": "loss", "overwrite": True}
    folder, lines = run(**KEYS, **keys)
    assert len(passes) == 2 * without
    found = read(folder)
    assert [line["step"] for line in found] == [2] * 4 + [4] * 4
    first, last = found[:4], found[4:]
    assert [line["label"] for line in first] == [1, 1, 0, 0]
    assert [{**line, "step": 0, "score": 0} for line in first] == [{**line, "step": 0, "score": 0} for line in last]

    best = json.loads((folder / "best" / "step.json").read_text(encoding="utf-8"))["step"]
    table = pl.read_parquet(folder / "validation_predictions.parquet")
    scores = {(row["user_id"], row["row_id"]): row["score"] for row in table.iter_rows(named=True)}
    events = pl.read_parquet(shared_folder / "data" / "events.parquet")
    for line in first if best == 2 else last:
        event = events.row(line["row"], named=True)
        assert line["score"] == scores[str(event["user_id"]), event["row_id"]]
        assert line["user_id"] == str(event["user_id"]) and line["label"] == event["label"]
        earlier = events.filter(
            (pl.col("user_id") == event["user_id"]) & (pl.col("timestamp") < event["timestamp"])
        ).sort("position")
        assert line["history_titles"] == [title_of(item) for item in earlier["item_id"].to_list()[-3:]]
        assert line["candidate_title"] == title_of(event["item_id"])

    shown = [line for line in lines if line.startswith("panel, P(yes): liked ")]
    assert len(shown) == 2
    assert shown[0].split("liked ")[1].split("  |")[0] == " ".join(f"{line['score']:.2f}" for line in first[:2])
    events_file = EventAccumulator(str(folder / "logs"))
    events_file.Reload()
    texts = events_file.Tensors("panel/text_summary")
    assert [text.step for text in texts] == [2, 4]
    assert first[0]["candidate_title"] in texts[0].tensor_proto.string_val[0].decode()


def title_of(item: str) -> str:
    return f"Film {item}, The ({1980 + int(item)})"


def test_a_resumed_run_has_each_evaluation_of_the_panel_once(run: Run) -> None:
    folder, _ = run(**KEYS)
    before = read(folder)
    assert len(before) == 16
    run(Resume(checkpoint=folder / "checkpoint-2"), **KEYS)
    assert read(folder) == before


def test_no_panel_is_kept_where_none_is_asked_for(run: Run) -> None:
    folder, lines = run(**KEYS, panel_samples=0)
    assert not (folder / "logs" / "panel.jsonl").exists()
    assert not any(line.startswith("panel") for line in lines)


def test_the_text_has_aligned_columns_and_the_score_before_and_no_title_can_end_it() -> None:
    events = [
        {"user_id": "7", "candidate_title": "A```\nB", "history_titles": ["C", "D"], "label": 1},
        {"user_id": "12", "candidate_title": "E", "history_titles": [], "label": 0},
    ]
    assert panel_text(events, [0.25, 1.0], [0.5, 0.125]).splitlines() == [
        "```",
        "user  liked  before  P(yes)  asked about  after seeing",
        "7     yes    0.500   0.250   A''' B       C; D",
        "12    no     0.125   1.000   E",
        "```",
    ]
    assert "7     yes    -       0.250" in panel_text(events, [0.25, 1.0], None)
