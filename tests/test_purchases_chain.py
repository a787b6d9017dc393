"""A log of purchases all the way to a tuned model; no sampled negative ever stands in a history, whoever reads it.

The reference is worked out here from the purchases alone: those of the user with a strictly earlier time.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from rectune.baselines.questions import FROZEN, ONLINE, Log, ask
from rectune.baselines.sequential_input import Blocks, RatingScale
from rectune.config import Config, parse_config
from rectune.data.candidate_sets import draw, events_until, history_at
from rectune.data.folder import own_events
from rectune.data.prepare import prepare
from rectune.errors import ConfigError, DataError
from rectune.prompt.augment import Augment
from rectune.prompt.dataset import Dataset, open_dataset
from rectune.prompt.encode import EventHistories, encode, encode_pointwise, encode_stream, sample_rows
from rectune.prompt.pieces import Pieces
from rectune.prompt.pointwise import PointwisePrompts
from rectune.prompt.stream import StreamPrompts
from rectune.report.baselines import measure_baselines
from rectune.report.evaluate import evaluate
from rectune.report.infer import question
from rectune.score.open_run import open_run
from rectune.score.pairs import histories as pair_histories
from rectune.score.recommender import Recommender
from rectune.score.score import score_rows, split_rows
from rectune.score.scorer import score_trees
from rectune.train.panel import panel_events
from rectune.train.train import train

QUIET = Console(quiet=True)


def silent(_line: str) -> None:
    """Say nothing."""


def write_purchases(path: Path) -> None:
    """Fourteen users buy 30 things, several at one moment, some again."""
    draw_of = random.Random(7)
    lines = ["who,what,at,called,kind"]
    for user in range(14):
        for at in range(22 if user < 12 else 3):
            item = draw_of.randrange(30)
            moment = 1_700_000_000 + 1000 * (at - at % 3)
            lines.append(f"p{user},t{item},{moment},Thing {item},kind {item % 4}")
    path.write_text("\n".join(dict.fromkeys(lines)) + "\n")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path) -> Config:
    root = tmp_path_factory.mktemp("purchases")
    write_purchases(root / "log.csv")
    values: dict[str, Any] = {
        "model_name_or_path": str(tiny_qwen3), "dataset": str(root / "log.csv"), "dataset_dir": str(root / "data"),
        "output_dir": str(root / "run"), "preprocessing_cache_dir": str(root / "cache"), "user_column": "who",
        "item_column": "what", "time_column": "at", "title_column": "called", "category_column": "kind",
        "label_from": "purchases", "negatives": 2, "negative_sampling": "hard", "history_len": 5, "min_history": 1,
        "item_text": "{title}, {genres}", "history_shows": "label", "layout": "stream", "cutoff_len": 400,
        "prompt_format": "completion", "prompt_domain": "products", "bf16": False, "report_to": "none", "max_steps": 4,
        "eval_steps": 4, "save_steps": 4, "learning_rate": 0.01, "baselines": "quick", "metric_for_best_model": "auc",
        "max_eval_samples": None, "validation_ratio": 0.15,
    }  # fmt: skip
    return parse_config(values, "test")


@pytest.fixture(scope="module")
def data(config: Config) -> Dataset:
    return open_dataset(config, silent)


@pytest.fixture(scope="module")
def reference(data: Dataset) -> list[list[str]]:
    """The history of every event: what the user bought strictly before its time, oldest first."""
    bought = data.events.filter(pl.col("drawn_for").is_null())
    assert bought["label"].to_list() == [1] * bought.height
    of_user = {str(user): rows for (user,), rows in bought.group_by("user_id", maintain_order=True)}
    found = []
    for user, time in data.events.select("user_id", "timestamp").iter_rows():
        mine = of_user[user]
        found.append([item for item, at in mine.select("item_id", "timestamp").iter_rows() if at < time])
    return found


def asked_rows(data: Dataset) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.flatnonzero((data.events["split"] != "warmup").to_numpy())


def test_the_dataset_holds_two_negatives_for_each_purchase_asked_about(data: Dataset) -> None:
    sampled = data.events.filter(pl.col("drawn_for").is_not_null())
    purchases = own_events(data.events)
    assert sampled.height == 2 * purchases.filter(pl.col("split") != "warmup").height > 0
    met = set(purchases.select("user_id", "item_id").iter_rows())
    assert not met & set(sampled.select("user_id", "item_id").iter_rows())
    meta = data.meta
    assert meta["negatives"]["negatives"] == sampled.height and meta["events"] == data.events.height
    assert meta["splits"]["test"]["positive_rate"] == pytest.approx(1 / 3, abs=1e-6)
    assert meta["protocol"]["negatives"] == 2 and meta["protocol"]["seed"] == 42


def test_records_for_other_programs_show_purchases_only(data: Dataset, reference: list[list[str]]) -> None:
    lines = [json.loads(line) for line in (data.folder / "test_raw.jsonl").read_text().splitlines()]
    row_of = dict(zip(data.events["row_id"].to_list(), range(data.events.height), strict=True))
    assert {line["label"] for line in lines} == {"Yes", "No"}
    for line in lines:
        longest = reference[row_of[line["row_id"]]]
        # The last five events before the purchase, less those of its own moment.
        assert line["history_item_ids"] == longest[len(longest) - len(line["history_item_ids"]) :]
        assert len(line["history_item_ids"]) <= 5 and set(line["history_labels"]) <= {"Yes"}


@pytest.mark.parametrize("cutoff", [120, 100_000])
@pytest.mark.parametrize("moments", [False, True])
def test_a_stream_asks_about_negatives_and_shows_none(
    config: Config, data: Dataset, reference: list[list[str]], qwen3_tokenizer: Any, cutoff: int, moments: bool
) -> None:
    keys = config.with_overrides(cutoff_len=cutoff, stream_header="Bought:", system_prompt="")
    prompts = StreamPrompts(keys, Pieces(qwen3_tokenizer))
    rows = asked_rows(data)
    histories = EventHistories(data.events, data.catalog, keys)
    trees = encode_stream(prompts, histories, data.events, rows, 0.25, Augment(seed=3, moments=moments))
    assert sorted(trees.rows.tolist()) == rows.tolist()
    text = dict(zip(data.events["item_id"].to_list(), histories.titles, strict=True))
    plain, whole = trees.plain(), 0
    for index in range(len(plain)):
        row = int(plain.rows[index])
        lines = qwen3_tokenizer.decode(plain.tree_tokens(index)).split("\n")
        assert lines[0] == "Bought:" and lines[-1] == histories.titles[row] + ":"
        shown, past = lines[1:-1], [f"{text[item]}: Yes" for item in reference[row]]
        expected = past[len(past) - len(shown) :]
        assert (sorted(shown) == sorted(expected)) if moments and cutoff > 1000 else len(shown) <= len(past)
        assert set(shown) <= set(past)
        if not moments:
            assert shown == expected
        whole += len(shown) == len(past)
        assert plain.labels[index] == data.events["label"][row]
    assert whole == len(plain) if cutoff > 1000 else 0 < whole < len(plain)


def test_a_pointwise_prompt_shows_none(
    config: Config, data: Dataset, reference: list[list[str]], qwen3_tokenizer: Any
) -> None:
    keys = config.with_overrides(layout="pointwise", cutoff_len=4096)
    histories = EventHistories(data.events, data.catalog, keys)
    rows = asked_rows(data)
    trees = encode_pointwise(PointwisePrompts(keys, Pieces(qwen3_tokenizer)), histories, rows)
    text = dict(zip(data.events["item_id"].to_list(), histories.titles, strict=True))
    for index, row in enumerate(rows.tolist()):
        words = qwen3_tokenizer.decode(trees.tree_tokens(index))
        shown = [line.split(". ", 1)[1] for line in words.split("\n") if line[:1].isdigit() and ". " in line]
        past = [f"{text[item]} → Yes" for item in reference[row]]
        assert shown == past[len(past) - len(shown) :] and f": {histories.titles[row]}\n" in words
    # A negative has the history of its purchase, whatever was drawn before it.
    negatives = data.events.with_row_index("row").filter(pl.col("drawn_for").is_not_null()).iter_rows(named=True)
    for event in negatives:
        purchase = event["row"] - event["position"] + event["drawn_for"]
        assert histories.history(event["row"]) == histories.history(purchase)


def test_baselines_and_their_network_see_purchases_only(data: Dataset, reference: list[list[str]]) -> None:
    log = Log.of(data.events, data.catalog)
    rows = asked_rows(data)
    asked = ask(log, rows, ONLINE)
    names = [*log.items, None]
    for row, stop in zip(asked.rows.tolist(), asked.stops.tolist(), strict=True):
        assert [names[item] for item in log.item[log.first[row] : stop]] == reference[row]
    blocks = Blocks.of(log, asked, 10_000, RatingScale.of(log))
    batch = blocks.batch(np.arange(len(blocks.slots)))
    for group, place in np.argwhere(batch.place >= 0).tolist():
        row = rows[batch.place[group, place]]
        read = batch.event[group][batch.seen[group, place]]
        assert [names[item] for item in read] == reference[row]
        assert (batch.marks[group][batch.seen[group, place]][:, 0] == 1).all()
    # Frozen, histories end at the user's first purchase of the split.
    tests = np.flatnonzero((data.events["split"] == "test").to_numpy())
    frozen = ask(log, tests, FROZEN)
    for row, stop in zip(frozen.rows.tolist(), frozen.stops.tolist(), strict=True):
        mine = [other for other in tests.tolist() if log.user[other] == log.user[row]]
        shortest = min((reference[other] for other in mine), key=len)
        assert [names[item] for item in log.item[log.first[row] : stop]] == shortest


def test_candidate_sets_pairs_and_the_panel_see_purchases_only(data: Dataset, reference: list[list[str]]) -> None:
    events = data.events
    for split in ("validation", "test"):
        for known in (history_at(events, split), events_until(events, split)):
            assert known["drawn_for"].null_count() == known.height > 0
    sets = draw(events, data.catalog, "test", n=5)
    own = own_events(events)
    assert sets.equals(draw(own.drop("drawn_for"), data.catalog, "test", n=5))
    users = events.select(pl.col("user_id").unique(maintain_order=True))
    for as_of in ("now", "validation", "test"):
        found = users.hstack(pair_histories(events, users, as_of)).iter_rows(named=True)
        for line in found:
            assert events["drawn_for"].slice(line["start"], line["stop"] - line["start"]).null_count() == (
                line["stop"] - line["start"]
            )
            if as_of == "now":
                assert line["stop"] - line["start"] == own.filter(pl.col("user_id") == line["user_id"]).height
    rows = asked_rows(data)
    names = dict(data.catalog.select("item_id", "title").iter_rows())
    for line, row in zip(panel_events(data, rows), rows.tolist(), strict=True):
        assert line["history_titles"] == [names[item] for item in reference[row]][-3:]


def test_a_sample_of_whole_users_takes_negatives_with_their_purchases(data: Dataset) -> None:
    rows = sample_rows(data.events, "train", 30, 1, whole_users=True)
    chosen = data.events[rows]
    of_purchase = chosen.filter(pl.col("drawn_for").is_not_null()).group_by("user_id", "drawn_for").len()
    positives = chosen.filter(pl.col("drawn_for").is_null())
    assert len(rows) == 30 and positives.height == 10 and of_purchase.height == 10
    assert of_purchase["len"].to_list() == [2] * 10


@pytest.fixture(scope="module")
def run(config: Config) -> Path:
    return train(config, silent, QUIET)


def test_it_trains_is_measured_and_asks_every_model_the_same(
    run: Path, config: Config, data: Dataset, reference: list[list[str]]
) -> None:
    said: list[str] = []
    found = evaluate(run, [], "validation", "logits", True, said.append, QUIET, [])
    how = found.report["how_made"]["negatives"]
    assert how.startswith("2 sampled for each purchase (hard)") and how in found.page.read_text()
    # Streams answer in another order than that of the table; rows and scores still belong together.
    assert any("largest difference from the scores during training, row by row: 0 " in line for line in said), said
    opened = open_run(run, [], silent)
    rows = split_rows(opened, data, "test")
    tuned = score_rows(opened, data, rows, ("tuned",), "logits", silent, QUIET)["tuned"]
    assert tuned["row_id"].to_list() == data.events["row_id"].gather(rows).to_list()
    names = dict(data.catalog.select("item_id", "title").iter_rows())
    for row, shown in zip(rows.tolist(), tuned["history_titles"].to_list(), strict=True):
        past = [names[item] for item in reference[row]]
        assert shown == past[len(past) - len(shown) :]
    events = data.events, data.catalog, data.content_hash
    plain = encode(opened.config, *events, opened.prompts, rows, silent).plain()
    odds = score_trees(opened.model, plain, opened.prompts.verbalizer, 16, opened.loaded.attention, lambda _: None)
    of_row = dict(zip(plain.rows.tolist(), odds.tolist(), strict=True))
    assert tuned["model_log_odds"].to_list() == pytest.approx([of_row[row] for row in rows.tolist()], abs=1e-4)
    report = measure_baselines(config, "test", silent, QUIET)
    assert report
    recommender = Recommender.load(run, say=silent)
    bought = own_events(data.events).filter(pl.col("user_id") == "p0")["item_id"].to_list()
    assert recommender.events_of("p0")["item_id"].to_list() == bought
    assert not set(bought) & {item.item_id for item in recommender.recommend("p0", k=5)}
    # What stands in a history was bought, so that need not be said.
    plain, told = (recommender.score(history, ["Thing 5"]) for history in (["Thing 1"], [("Thing 1", True)]))
    assert plain == told
    record = json.loads((data.folder / "test_raw.jsonl").read_text().splitlines()[-1])
    asked = question(opened, record, "here").prompt.tokens
    del record["history_labels"], record["history_ratings"]
    assert record["history_titles"] and question(opened, record, "here").prompt.tokens == asked
    with pytest.raises(DataError, match="history, event 1: 'Thing 1' is said not to be chosen"):
        recommender.score([("Thing 1", False)], ["Thing 5"])


def test_another_number_or_way_of_drawing_prepares_anew_and_is_refused_beside_ratings(config: Config) -> None:
    said: list[str] = []
    root = config.dataset_dir.parent / "other"  # type: ignore[union-attr]
    first = config.with_overrides(dataset_dir=root)
    prepare(first, say=silent)
    before = {file.name: file.read_bytes() for file in root.iterdir()}
    prepare(first, say=silent, force=True)
    assert {file.name: file.read_bytes() for file in root.iterdir()} == before
    for change, word in (({"negatives": 1}, "negatives"), ({"negative_sampling": "uniform"}, "negative_sampling"),
                         ({"seed": 1}, "seed")):  # fmt: skip
        prepare(first.with_overrides(**change), say=said.append)
        assert f"prepared again, because {word} has changed" in said[0]
        assert (root / "events.parquet").read_bytes() != before["events.parquet"]
        prepare(first, say=silent)
        said.clear()
    with pytest.raises(ConfigError, match="negatives: does nothing beside label_from: rating"):
        parse_config({"negatives": 3}, "test")
    # Of one purchase and its negatives a user's items can be ranked.
    alone = {"split": "leave_one_out", "metric_for_best_model": "uauc"}
    assert parse_config({**alone, "label_from": "purchases"}, "test").split == "leave_one_out"
    with pytest.raises(ConfigError, match="metric_for_best_model: got 'uauc' beside split: leave_one_out"):
        parse_config(alone, "test")
