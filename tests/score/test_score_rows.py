"""Scoring a split: in chunks, resumable, one copy of the weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from rectune.errors import ConfigError, ModelError
from rectune.prompt.encode import encode
from rectune.prompt.pointwise import PointwisePrompts
from rectune.score import score as stage
from rectune.score.score import TUNED, UNTUNED, score_rows, split_rows, write_predictions
from rectune.score.scorer import score_trees

QUIET = Console(quiet=True)


def silent(_line: str) -> None:
    """Say nothing."""


@pytest.fixture
def rows(data: Any) -> np.ndarray:
    return np.arange(data.events.height)[(data.events["split"] == "test").to_numpy()][:11]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "CHUNK", 4)


def left_over(opened: Any) -> list[Path]:
    return sorted((opened.folder / "scoring").rglob("*.parquet"))


def test_a_killed_call_goes_on_and_gives_the_same_result(
    opened: Any, data: Any, rows: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = score_rows(opened, data, rows, (TUNED, UNTUNED), "logits", silent, QUIET)
    assert not (opened.folder / "scoring").exists()
    calls: list[int] = []

    def dying(*values: Any) -> Any:
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(len(values[1]))
        return score_trees(*values)

    with monkeypatch.context() as patch:
        patch.setattr(stage, "score_trees", dying)
        with pytest.raises(KeyboardInterrupt):
            score_rows(opened, data, rows, (TUNED, UNTUNED), "logits", silent, QUIET)
    assert [file.name for file in left_over(opened)] == [
        "tuned-000000000.parquet",
        "tuned-000000004.parquet",
        "untuned-000000000.parquet",
    ]

    def counting(*values: Any) -> Any:
        calls.append(len(values[1]))
        return score_trees(*values)

    calls.clear()
    monkeypatch.setattr(stage, "score_trees", counting)
    again = score_rows(opened, data, rows, (TUNED, UNTUNED), "logits", silent, QUIET)
    assert calls == [4, 3, 3]  # the second chunk of the untuned model and the third of both
    assert all(again[which].equals(whole[which]) for which in (TUNED, UNTUNED))
    assert left_over(opened) == []


def test_a_chunk_that_cannot_be_read_is_scored_again(
    opened: Any, data: Any, rows: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = score_rows(opened, data, rows, (TUNED,), "logits", silent, QUIET)[TUNED]

    def dying(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage.shutil, "rmtree", dying)
        with pytest.raises(KeyboardInterrupt):
            score_rows(opened, data, rows, (TUNED,), "logits", silent, QUIET)
    left_over(opened)[1].write_bytes(b"PAR1")
    assert score_rows(opened, data, rows, (TUNED,), "logits", silent, QUIET)[TUNED].equals(whole)


def test_another_batch_or_base_does_not_go_on_from_these_chunks(
    opened: Any, data: Any, rows: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(stage, "prediction_frame", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            score_rows(opened, data, rows, (TUNED,), "logits", silent, QUIET)
    kept = left_over(opened)
    assert len(kept) == 3
    said: list[str] = []
    for change in ({"per_device_eval_batch_size": 2}, {"flash_attn": "eager"}, {"quantization_bit": 8}):
        other = replace(opened, config=opened.config.with_overrides(**change))
        score_rows(other, data, rows, (TUNED,), "logits", said.append, QUIET)
    assert sum(line.startswith("scored tuned") for line in said) == 9
    assert left_over(opened) == kept
    said.clear()
    score_rows(opened, data, rows, (TUNED,), "logits", said.append, QUIET)
    assert not any(line.startswith("scored tuned") for line in said)


def test_the_table_says_who_what_and_how(opened: Any, data: Any, rows: np.ndarray) -> None:
    table = score_rows(opened, data, rows, (TUNED,), "logits", silent, QUIET)[TUNED]
    assert table.columns == [
        "row_id", "user_id", "item_id", "label", "log_odds", "score", "candidate_title", "history_titles",
        "model_log_odds",
    ]  # fmt: skip
    events = data.events[rows.tolist()]
    for name in ("row_id", "user_id", "item_id"):
        assert table[name].to_list() == events[name].to_list()
    np.testing.assert_allclose(table["score"], 1 / (1 + np.exp(-table["log_odds"].to_numpy())), atol=1e-12)
    titles = dict(data.catalog.select("item_id", "title").iter_rows())
    assert table["candidate_title"].to_list() == [titles[item] for item in events["item_id"]]
    first = data.events.filter(
        (pl.col("user_id") == events["user_id"][0]) & (pl.col("timestamp") < events["timestamp"][0])
    )
    shown = [titles[item] for item in first["item_id"].to_list()][-15:]
    assert table["history_titles"][0].to_list() == shown[-len(table["history_titles"][0]) :]


def test_titles_that_a_cut_prompt_left_out_are_not_listed(opened: Any, data: Any, rows: np.ndarray) -> None:
    whole = encode(opened.config, data.events, data.catalog, data.content_hash, opened.prompts, rows, silent)
    config = opened.config.with_overrides(cutoff_len=int(whole.lengths.max()) - 30)
    cut = replace(opened, config=config, prompts=PointwisePrompts(config, opened.prompts.pieces))
    table = score_rows(cut, data, rows, (TUNED,), "logits", silent, QUIET)[TUNED]
    all_titles = score_rows(opened, data, rows, (TUNED,), "logits", silent, QUIET)[TUNED]["history_titles"].to_list()
    trees = encode(config, data.events, data.catalog, data.content_hash, cut.prompts, rows, silent)
    dropped = trees.shown_from - whole.shown_from
    assert dropped.any()
    expected = [titles[gone:] for titles, gone in zip(all_titles, dropped.tolist(), strict=True)]
    assert table["history_titles"].to_list() == expected


def test_scores_of_rows_are_scores_of_their_trees(opened: Any, data: Any, rows: np.ndarray) -> None:
    found = score_rows(opened, data, rows, (TUNED, UNTUNED), "logits", silent, QUIET)
    trees = encode(opened.config, data.events, data.catalog, data.content_hash, opened.prompts, rows, silent)
    words = opened.prompts.verbalizer
    np.testing.assert_allclose(found[TUNED]["log_odds"], score_trees(opened.model, trees, words, 1, "sdpa"), atol=1e-5)
    with opened.model.disable_adapter():
        np.testing.assert_allclose(
            found[UNTUNED]["log_odds"], score_trees(opened.model, trees, words, 1, "sdpa"), atol=1e-5
        )
    assert not np.allclose(found[TUNED]["log_odds"], found[UNTUNED]["log_odds"])


def test_generate_adds_the_answers_and_keeps_the_scores(opened: Any, data: Any, rows: np.ndarray) -> None:
    plain = score_rows(opened, data, rows[:5], (TUNED,), "logits", silent, QUIET)[TUNED]
    table = score_rows(opened, data, rows[:5], (TUNED,), "generate", silent, QUIET)[TUNED]
    assert table["log_odds"].equals(plain["log_odds"])
    assert table.columns[-2:] == ["generated", "generated_label"]
    assert table.schema["generated_label"] == pl.Int64


def test_an_adapter_that_changes_nothing_is_refused(
    opened: Any, data: Any, rows: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "score_trees", lambda _model, trees, *_: np.ones(len(trees)))
    with pytest.raises(ModelError, match="changes no answer at all"):
        score_rows(opened, data, rows, (TUNED, UNTUNED), "logits", silent, QUIET)
    for file in left_over(opened):
        file.unlink()


def test_unknown_modes_and_splits_are_one_line(opened: Any, data: Any, rows: np.ndarray) -> None:
    with pytest.raises(ConfigError, match=r"^--mode: got 'guess', allowed: logits, generate$"):
        score_rows(opened, data, rows, (TUNED,), "guess", silent, QUIET)
    with pytest.raises(ConfigError, match=r"^--split: got 'train', allowed: test, validation$"):
        split_rows(opened, data, "train")


def test_a_split_is_drawn_as_during_training(opened: Any, data: Any) -> None:
    assert len(split_rows(opened, data, "validation")) == int((data.events["split"] == "validation").sum())
    assert len(split_rows(opened, data, "test")) == int((data.events["split"] == "test").sum())


@pytest.mark.parametrize("name", ["out.parquet", "out.jsonl"])
def test_predictions_are_written_and_read_back(
    opened: Any, data: Any, rows: np.ndarray, tmp_path: Path, name: str
) -> None:
    table = score_rows(opened, data, rows, (TUNED,), "logits", silent, QUIET)[TUNED]
    write_predictions(table, tmp_path / "new" / name)
    read = pl.read_parquet if name.endswith("parquet") else pl.read_ndjson
    back = read(tmp_path / "new" / name)
    assert back["log_odds"].to_list() == table["log_odds"].to_list()
    assert back["history_titles"].to_list() == table["history_titles"].to_list()
