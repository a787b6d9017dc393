"""What training changes of histories: drawn once, in training alone, with every event still asked about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from rectune.config import Config, parse_config
from rectune.data.folder import EVENTS_SCHEMA
from rectune.errors import ConfigError
from rectune.prompt.augment import Augment
from rectune.prompt.encode import encode
from rectune.prompt.layouts import prompts_for
from rectune.prompt.pieces import Pieces
from rectune.prompt.tree import Trees

CATALOG = pl.DataFrame({"item_id": [str(item) for item in range(40)], "title": [f"f{item}" for item in range(40)]})
COUNT = 40


def events() -> pl.DataFrame:
    rows = [("u", str(at), 4.0, at, at % 2, "train", at, at, at) for at in range(COUNT)]
    return pl.DataFrame(rows, schema=EVENTS_SCHEMA, orient="row")


def trees_of(pieces: Pieces, cache: Path, training: bool = True, **values: Any) -> Trees:
    config = config_of(cache, **values)
    rows = np.arange(COUNT)
    return encode(config, events(), CATALOG, "hash", prompts_for(config, pieces), rows, lambda _: None, training)


def config_of(cache: Path, **values: Any) -> Config:
    keys = {
        "prompt_format": "completion", "history_shows": "nothing", "cutoff_len": 2048, "history_len": 10,
        "stream_header": "", "system_prompt": "", "instruction": "", "history_header": "", "candidate_header": "Ask:",
        "question": "", "preprocessing_cache_dir": str(cache),
    }  # fmt: skip
    return parse_config({**keys, **values}, "test")


def shown(pieces: Pieces, trees: Trees, layout: str) -> list[list[int]]:
    """The events that each answer sees, by their titles."""
    found = []
    plain = trees.plain()
    for index in range(len(plain)):
        text = pieces.tokenizer.decode(plain.tree_tokens(index).tolist())
        if layout == "stream":
            *history, own = text.split("\n")
            assert own == f"f{plain.rows[index]}:"
            found.append([int(line[1 : line.index(":")]) for line in history])
        else:
            history, own = text.split("Ask:")
            assert f"f{plain.rows[index]}\n" in own
            found.append([int(line.split(" f")[1]) for line in history.split("\n") if " f" in line])
    return found


def test_dropped_events_are_left_out_of_pointwise_histories_one_prompt_at_a_time(
    tiny_pieces: Pieces, tmp_path: Path
) -> None:
    trees = trees_of(tiny_pieces, tmp_path, layout="pointwise", history_drop=0.5)
    seen = shown(tiny_pieces, trees, "pointwise")
    full = [list(range(max(0, at - 10), at)) for at in range(COUNT)]
    assert all(set(some) <= set(whole) and some == sorted(some) for some, whole in zip(seen, full, strict=True))
    kept = sum(map(len, seen)) / sum(map(len, full))
    assert 0.4 < kept < 0.6
    # Event 20 is in some later histories and not in others.
    assert 0 < sum(20 in some for some in seen[21:31]) < 10
    assert trees.rows.tolist() == list(range(COUNT))


def test_a_dropped_event_of_a_stream_is_seen_by_no_later_one_and_asked_about_all_the_same(
    tiny_pieces: Pieces, tmp_path: Path
) -> None:
    trees = trees_of(tiny_pieces, tmp_path, layout="stream", history_drop=0.5)
    assert sorted(trees.rows.tolist()) == list(range(COUNT))
    seen = dict(zip(trees.plain().rows.tolist(), shown(tiny_pieces, trees, "stream"), strict=True))
    hidden = Augment.of(config_of(tmp_path, history_drop=0.5)).hidden(np.arange(COUNT))
    assert 10 < hidden.sum() < 30
    for at in range(COUNT):
        assert seen[at] == [other for other in range(at) if not hidden[other]]


def test_shuffled_histories_hold_the_same_events_in_another_order(tiny_pieces: Pieces, tmp_path: Path) -> None:
    seen = shown(tiny_pieces, trees_of(tiny_pieces, tmp_path, layout="pointwise", history_shuffle=0.5), "pointwise")
    assert [sorted(some) for some in seen] == [list(range(max(0, at - 10), at)) for at in range(COUNT)]
    moved = sum(some != sorted(some) for some in seen)
    assert 8 < moved < 32
    assert (
        sum(
            some != sorted(some)
            for some in shown(
                tiny_pieces, trees_of(tiny_pieces, tmp_path, layout="pointwise", history_shuffle=1.0), "pointwise"
            )
        )
        > 34
    )


@pytest.mark.parametrize("layout", ["pointwise", "stream"])
def test_only_training_is_changed_and_alike_for_a_seed(tiny_pieces: Pieces, tmp_path: Path, layout: str) -> None:
    plain = trees_of(tiny_pieces, tmp_path, layout=layout)
    changed = trees_of(tiny_pieces, tmp_path, layout=layout, history_drop=0.5)
    # Neither what the cache holds of one nor its key is taken for the other.
    assert trees_of(tiny_pieces, tmp_path, training=False, layout=layout, history_drop=0.5).tokens.tolist() == (
        plain.tokens.tolist()
    )
    assert changed.tokens.tolist() != plain.tokens.tolist()
    again = trees_of(tiny_pieces, tmp_path / "other", layout=layout, history_drop=0.5)
    assert again.tokens.tolist() == changed.tokens.tolist()
    other = trees_of(tiny_pieces, tmp_path, layout=layout, history_drop=0.5, seed=7)
    assert other.tokens.tolist() != changed.tokens.tolist()


def test_a_shuffled_stream_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"history_shuffle: got 0\.5 beside layout: stream.*use history_drop"):
        config_of(tmp_path, layout="stream", history_shuffle=0.5)
