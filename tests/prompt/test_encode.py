"""The cache holds what was asked for, and is found again only where everything is the same."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rectune.config import Config
from rectune.data.folder import history_slices
from rectune.errors import DataError, ModelError
from rectune.prompt.augment import Augment
from rectune.prompt.cache import cache_key, clear_cache
from rectune.prompt.dataset import Dataset, open_dataset
from rectune.prompt.encode import encode, sample_rows, split_sample
from rectune.prompt.layouts import prompts_for
from rectune.prompt.pieces import Pieces
from rectune.prompt.pointwise import PointwisePrompts
from rectune.prompt.tree import Trees
from rectune.wording import history_line, texts_for, user_input

Make = Callable[..., Config]


def silent(_line: str) -> None:
    """Say nothing."""


def encoded(config: Config, data: Dataset, pieces: Pieces, said: list[str] | None = None) -> Trees:
    rows = sample_rows(data.events, "train", 20, config.seed)
    say = silent if said is None else said.append
    prompts = PointwisePrompts(config, pieces)
    return encode(config, data.events, data.catalog, data.content_hash, prompts, rows, say)


def same(left: Trees, right: Trees) -> bool:
    return all(np.array_equal(getattr(left, item.name), getattr(right, item.name)) for item in fields(Trees))


def files(config: Config) -> list[Path]:
    return sorted(config.preprocessing_cache_dir.glob("*/*.arrow"))


def test_a_second_call_reads_the_cache_and_gives_the_same_trees(tiny_config: Make, tiny_pieces: Pieces) -> None:
    config, said = tiny_config(), []
    data = open_dataset(config, silent)
    first = encoded(config, data, tiny_pieces, said)
    assert said == []
    assert same(encoded(config, data, tiny_pieces, said), first)
    assert said == [f"tokens: 20 sequences from the cache {files(config)[0].parent}"]
    assert first.labels.tolist() == data.events["label"].to_numpy()[first.rows].tolist()
    assert first.answer_at.tolist() == (first.lengths - 1).tolist()


@pytest.mark.parametrize("damage", ["cut", "flipped", "no hash", "empty", "other hash"])
def test_a_damaged_cache_file_is_made_again_with_a_line(tiny_config: Make, tiny_pieces: Pieces, damage: str) -> None:
    config, said = tiny_config(), []
    data = open_dataset(config, silent)
    first = encoded(config, data, tiny_pieces)
    (file,) = files(config)
    content = file.read_bytes()
    if damage == "cut":
        file.write_bytes(content[:-7])
    elif damage == "flipped":
        file.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "no hash":
        file.with_suffix(".done").unlink()
    else:
        file.with_suffix(".done").write_bytes(b"\xff\xfe")
    assert same(encoded(config, data, tiny_pieces, said), first)
    assert said == [f"tokens: the cache {file.parent} is damaged; it is made again"]
    assert file.read_bytes() == content
    said.clear()
    encoded(config, data, tiny_pieces, said)
    assert "from the cache" in said[0]


def test_whatever_changes_a_prompt_changes_the_key(
    tiny_config: Make, qwen3_tokenizer: Any, tiny_pieces: Pieces, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config()
    rows = np.arange(5)
    known = {cache_key(config, "hash", tiny_pieces, rows)}
    changes: list[dict[str, Any]] = [
        {"history_len": 7}, {"history_shows": "label"}, {"item_text": "id"}, {"question": "So?"}, {"cutoff_len": 999},
        {"prompt_format": "completion"}, {"prompt_domain": "food"}, {"positive_label": "No", "negative_label": "Yes"},
        {"system_prompt": ""}, {"instruction": ""}, {"history_header": ""}, {"candidate_header": ""},
        {"layout": "stream"}, {"stream_header": "Films:"}, {"stream_cue": " ->"}, {"window_overlap": 0.5},
        {"item_rate_text": True}, {"prior": "item_rate"}, {"item_rate_from": "other_users"}, {"item_rate_strength": 1},
    ]  # fmt: skip
    known |= {cache_key(config.with_overrides(**change), "hash", tiny_pieces, rows) for change in changes}
    known.add(cache_key(config, "other data", tiny_pieces, rows))
    known.add(cache_key(config, "hash", tiny_pieces, np.arange(6)))
    known.add(cache_key(config, "hash", tiny_pieces, np.array([0, 1, 2, 4, 3])))
    augments = [Augment(42, True), Augment(7, True), Augment(42, drop=0.1), Augment(42, shuffle=0.1)]
    known |= {cache_key(config, "hash", tiny_pieces, rows, augment) for augment in augments}
    template = qwen3_tokenizer.chat_template
    monkeypatch.setattr(qwen3_tokenizer, "chat_template", template + " ")
    known.add(cache_key(config, "hash", tiny_pieces, rows))
    monkeypatch.setattr(qwen3_tokenizer, "chat_template", template)
    assert len(known) == len(changes) + len(augments) + 5
    unrelated = config.with_overrides(learning_rate=0.5, output_dir="elsewhere", seed=7)
    assert cache_key(unrelated, "hash", tiny_pieces, rows) in known
    assert len(known) == len(changes) + len(augments) + 5


def test_a_shipped_text_that_is_reworded_changes_the_key(
    tiny_config: Make, tiny_pieces: Pieces, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from rectune import wording

    config, rows = tiny_config(), np.arange(5)
    before = cache_key(config, "hash", tiny_pieces, rows)
    monkeypatch.setitem(wording._SHIPPED, "films", replace(wording._SHIPPED["films"], question="Reworded?"))
    assert cache_key(config, "hash", tiny_pieces, rows) != before


def test_another_tokenizer_has_another_fingerprint(tiny_pieces: Pieces, qwen_pieces: Pieces) -> None:
    assert tiny_pieces.fingerprint() == tiny_pieces.fingerprint() != qwen_pieces.fingerprint()


def test_clearing_the_cache_leaves_other_files_alone(tiny_config: Make, tiny_pieces: Pieces) -> None:
    config, said = tiny_config(), []
    encoded(config, open_dataset(config, silent), tiny_pieces)
    foreign = config.preprocessing_cache_dir / "adapter_model.safetensors"
    foreign.write_bytes(b"weights")
    clear_cache(config, said.append)
    assert sorted(config.preprocessing_cache_dir.iterdir()) == [foreign]
    assert said == [f"tokens: cleared 1 entries of {config.preprocessing_cache_dir}"]
    clear_cache(config.with_overrides(preprocessing_cache_dir="/nowhere/at/all"), said.append)


def test_a_killed_write_leaves_nothing_that_is_read(
    tiny_config: Make, tiny_pieces: Pieces, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config()
    data = open_dataset(config, silent)

    def killed(*_paths: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            encoded(config, data, tiny_pieces)
    assert files(config) == []
    said: list[str] = []
    encoded(config, data, tiny_pieces, said)
    assert said == []


def test_prompts_that_lose_events_are_counted(tiny_config: Make, tiny_pieces: Pieces) -> None:
    free = tiny_config()
    data = open_dataset(free, silent)
    longest = int(encoded(free, data, tiny_pieces).lengths.max())
    said: list[str] = []
    cut = encoded(free.with_overrides(cutoff_len=longest - 40), data, tiny_pieces, said)
    assert int(cut.lengths.max()) + 2 <= longest - 40
    starts, stops = history_slices(data.events, free.history_len)
    lost = int((cut.shown_from > starts[cut.rows]).sum())
    assert lost > 0
    assert (cut.shown_from <= stops[cut.rows]).all()
    assert said == [
        f"tokens: {lost} of 20 prompts lost their oldest events to fit cutoff_len={longest - 40}",
    ]


def test_encoded_trees_equal_the_tokenised_strings_of_the_alpaca_records(
    tiny_config: Make, tiny_pieces: Pieces
) -> None:
    config = tiny_config()
    data = open_dataset(config, silent)
    trees, texts, events = encoded(config, data, tiny_pieces), texts_for(config), data.events
    titles = dict(data.catalog.select("item_id", "title").iter_rows())
    for index, row in enumerate(trees.rows.tolist()):
        user, time, at = (events[name][row] for name in ("user_id", "timestamp", "position"))
        own = events.filter(
            (events["user_id"] == user) & (events["timestamp"] < time) & (events["position"] + config.history_len >= at)
        )
        lines = [
            history_line(number, titles[item], rating, None, "rating")
            for number, (item, rating) in enumerate(own.select("item_id", "rating").iter_rows(), start=1)
        ]
        content = texts.instruction + "\n\n" + user_input(texts, lines, titles[events["item_id"][row]])
        messages = [{"role": "system", "content": texts.system}, {"role": "user", "content": content}]
        whole = tiny_pieces.tokenizer.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=True, enable_thinking=False, return_dict=False
        )
        assert trees.tree_tokens(index).tolist() == whole


def test_a_tokenizer_that_merges_across_items_is_refused(
    tiny_config: Make, tiny_pieces: Pieces, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config()
    data = open_dataset(config, silent)
    monkeypatch.setattr(Pieces, "template", lambda self, text: self.text(text.replace("<|im_end|>", "")))
    with pytest.raises(ModelError, match="joins text across the items"):
        encoded(config, data, tiny_pieces)


def test_a_sample_is_drawn_once_and_kept_in_file_order(tiny_config: Make) -> None:
    events = open_dataset(tiny_config(), silent).events
    all_rows = sample_rows(events, "train", None, 1)
    assert all_rows.tolist() == [row for row, split in enumerate(events["split"].to_list()) if split == "train"]
    few = sample_rows(events, "train", 7, 1)
    assert len(few) == 7 and few.tolist() == sorted(few.tolist()) and set(few) <= set(all_rows)
    assert few.tolist() == sample_rows(events, "train", 7, 1).tolist() != sample_rows(events, "train", 7, 2).tolist()
    assert sample_rows(events, "train", 10**6, 1).tolist() == all_rows.tolist()
    assert sample_rows(events, "nothing", None, 1).tolist() == []


@pytest.mark.parametrize("layout", ["pointwise", "stream"])
def test_training_since_a_time_asks_about_later_events_and_shows_earlier_ones(
    layout: str, tiny_config: Make, tiny_pieces: Pieces
) -> None:
    events = open_dataset(tiny_config(), silent).events
    train = events.filter(events["split"] == "train")["timestamp"]
    cut = int(np.quantile(train.to_numpy(), 0.6))
    config = tiny_config(layout=layout, train_since=cut, prompt_format="completion")
    rows = split_sample(config, events, "train")
    assert 0 < len(rows) < len(train)
    assert rows.tolist() == [
        row for row, (split, time) in enumerate(events.select("split", "timestamp").iter_rows())
        if split == "train" and time >= cut
    ]  # fmt: skip
    for split in ("validation", "test"):
        assert len(split_sample(config, events, split)) == events["split"].to_list().count(split)
    data = open_dataset(config, silent)
    trees = encode(config, events, data.catalog, data.content_hash, prompts_for(config, tiny_pieces), rows, silent)
    assert sorted(trees.rows.tolist()) == rows.tolist()
    # The first event asked about of a user who was there before is shown after events of that time.
    users, times = events["user_id"].to_list(), events["timestamp"].to_list()
    firsts = [row for row in rows.tolist() if row and users[row] == users[row - 1] and times[row - 1] < cut]
    assert firsts
    for row in firsts:
        assert int(trees.shown_from[trees.rows.tolist().index(row)]) < row
    few = split_sample(tiny_config(layout=layout, train_since=cut, max_train_samples=3), events, "train")
    assert len(few) == 3 and set(few) <= set(rows)


def test_a_time_after_all_training_events_is_one_line(tiny_config: Make) -> None:
    events = open_dataset(tiny_config(), silent).events
    latest = events.filter(events["split"] == "train")["timestamp"].to_numpy().max()
    with pytest.raises(
        DataError, match=f"train_since: got {latest + 1}, but the latest training event is of {latest};"
    ):
        split_sample(tiny_config(train_since=int(latest) + 1), events, "train")
