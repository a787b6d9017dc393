"""Labels of tied and later events move no score by one bit, and labels of earlier events do."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from rectune.config import Config, parse_config
from rectune.model import blocks
from rectune.model.answers import hidden_at, label_logits
from rectune.model.attention import attention_mask
from rectune.prompt.encode import EventHistories, encode_stream
from rectune.prompt.pieces import Pieces
from rectune.prompt.stream import StreamPrompts
from rectune.prompt.tree import Trees
from rectune.score.scorer import score_trees
from rectune.train.batches import TrainingCollator

Floats = np.ndarray[Any, np.dtype[np.float64]]
KINDS = [
    ("sdpa", torch.float32),
    ("eager", torch.float32),
    (blocks.KERNEL, torch.float32),
    (blocks.KERNEL, torch.bfloat16),
]
NAMES = ["Heat (1995)", "Up!", "12 Monkeys", "No: No", "L'été", "Film 9, The (2001)", "user's last films"]
CATALOG = pl.DataFrame({"item_id": [str(number) for number in range(7)], "title": NAMES, "genres": "", "year": None})
OTHER = {5.0: 2.0, 2.0: 5.0}  # each one digit, so that flipping moves no token


def drawn_events(seed: int, users: int = 3, longest: int = 14) -> pl.DataFrame:
    """Users with ties, about few items, liked (5) or not (2)."""
    draw = random.Random(seed)
    rows: list[tuple[Any, ...]] = []
    for user in range(users):
        time, moments = draw.randrange(3), []
        for _ in range(draw.randint(6, longest)):
            time += draw.choice([0, 0, 1, 2])
            moments.append(time)
        for place, moment in enumerate(moments):
            rating = draw.choice([2.0, 5.0])
            ended = moments.index(moment)
            rows.append(
                (f"u{user}", str(draw.randrange(7)), rating, moment, int(rating > 4), "train", place, ended, len(rows))
            )
    names = ["user_id", "item_id", "rating", "timestamp", "label", "split", "position", "history_end", "row_id"]
    return pl.DataFrame(rows, schema=names, orient="row")


def flipped(events: pl.DataFrame, chosen: pl.Expr) -> pl.DataFrame:
    """The same events, those chosen with the other label and the other rating."""
    return events.with_columns(
        pl.when(chosen).then(1 - pl.col("label")).otherwise("label").alias("label"),
        pl.when(chosen).then(pl.col("rating").replace_strict(OTHER)).otherwise("rating").alias("rating"),
    )


def config_of(**values: Any) -> Config:
    short = {"system_prompt": "", "stream_header": "Films:", "history_shows": "label"}
    return parse_config({**short, **values}, origin="test")


def trees_of(config: Config, events: pl.DataFrame, pieces: Pieces) -> tuple[Trees, StreamPrompts]:
    prompts = StreamPrompts(config, pieces)
    rows = np.arange(events.height)
    return encode_stream(prompts, EventHistories(events, CATALOG, config), events, rows, config.window_overlap), prompts


@pytest.fixture(scope="module")
def pieces(qwen3_tokenizer: Any) -> Pieces:
    return Pieces(qwen3_tokenizer)


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: f"{kind[0]}-{str(kind[1])[6:]}")
def kind(request: pytest.FixtureRequest, tiny_qwen3: Path) -> Iterator[tuple[Any, str]]:
    """A model in each precision and kernel, and the kernel's name."""
    from transformers import AutoModelForCausalLM

    blocks.register()
    name, dtype = request.param
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield AutoModelForCausalLM.from_pretrained(tiny_qwen3, dtype=dtype, attn_implementation=name).eval(), name
    torch.set_num_threads(before)


def packed_scores(model: Any, trees: Trees, words: Any, kernel: str) -> Floats:
    """Log-odds of all trees in one row, as a training step reads them."""
    batch = TrainingCollator(trees, words, with_end=False)([list(range(len(trees)))])
    mask = None
    if "run" in batch:
        mask = attention_mask(batch["run"], batch["first"], batch["fork"], kernel, model.dtype)
    with torch.inference_mode():
        hidden = hidden_at(
            model, batch["input_ids"], batch["rows"], batch["positions"], mask, batch.get("position_ids")
        )
        logits = label_logits(model, hidden, words.negative_id, words.positive_id)
    return (logits[:, 1] - logits[:, 0]).double().numpy()


@pytest.mark.parametrize(("cutoff_len", "shows"), [(80, "label"), (150, "rating"), (600, "label")])
def test_only_labels_of_strictly_earlier_events_move_a_score(
    kind: tuple[Any, str], pieces: Pieces, cutoff_len: int, shows: str
) -> None:
    model, kernel = kind
    config = config_of(cutoff_len=cutoff_len, history_shows=shows)
    moved = asked = 0
    for seed in (1, 3):
        events = drawn_events(seed)
        trees, prompts = trees_of(config, events, pieces)
        words = prompts.verbalizer
        scores, packed = score_trees(model, trees, words, 4, kernel), packed_scores(model, trees, words, kernel)
        times = events["timestamp"].to_numpy()
        own = events["user_id"].to_numpy() == "u1"
        for moment in sorted(set(times[own].tolist())):
            changed = flipped(events, (pl.col("user_id") == "u1") & (pl.col("timestamp") >= moment))
            others, _ = trees_of(config, changed, pieces)
            assert len(others.tokens) == len(trees.tokens) and (others.offsets == trees.offsets).all()
            assert (others.labels != trees.labels).sum() == (own & (times >= moment)).sum()
            # Bit for bit: the event itself, those tied with it, those before it, and the other users'.
            kept = ~own | (times <= moment)
            found = score_trees(model, others, words, 4, kernel)
            np.testing.assert_array_equal(found[kept], scores[kept])
            np.testing.assert_array_equal(packed_scores(model, others, words, kernel)[kept], packed[kept])
            # And the test can fail: an event whose window shows a changed label is scored otherwise.
            ends = np.arange(len(times)) - events["position"].to_numpy() + events["history_end"].to_numpy()
            first = int(np.flatnonzero(own & (times >= moment))[0])
            shows_it = ~kept & (np.maximum(trees.shown_from, first) < ends)
            moved += int((found[shows_it] != scores[shows_it]).sum())
            asked += int(shows_it.sum())
            assert (found[~kept & ~shows_it] == scores[~kept & ~shows_it]).all()
    assert asked > 20 and moved > 0.9 * asked


@pytest.mark.parametrize("text", [False, True])
def test_with_item_rates_no_plain_prompt_and_no_prior_holds_a_tied_or_later_label(pieces: Pieces, text: bool) -> None:
    """Rates count everyone's events, so here labels of all users are flipped from a moment on."""
    config = config_of(item_rate_text=text, prior="item_rate", cutoff_len=4096)
    for seed in range(6):
        events = drawn_events(seed)
        plain = trees_of(config, events, pieces)[0].plain()
        times = events["timestamp"].to_numpy()
        for moment in sorted(set(times.tolist())):
            others = trees_of(config, flipped(events, pl.col("timestamp") >= moment), pieces)[0].plain()
            for row in np.flatnonzero(times <= moment).tolist():
                assert others.tree_tokens(row).tolist() == plain.tree_tokens(row).tolist()
                assert others.prior[row] == plain.prior[row]
            later = np.flatnonzero(times > moment)
            assert not len(later) or len(later) < 3 or (others.prior[later] != plain.prior[later]).any()


def test_the_prior_is_added_to_the_models_log_odds(kind: tuple[Any, str], pieces: Pieces) -> None:
    model, kernel = kind
    events = drawn_events(1)
    trees, prompts = trees_of(config_of(), events, pieces)
    priors, _ = trees_of(config_of(prior="item_rate"), events, pieces)
    assert (trees.prior == 0).all() and np.abs(priors.prior).max() > 0.1
    without = score_trees(model, trees, prompts.verbalizer, 4, kernel)
    np.testing.assert_array_equal(score_trees(model, priors, prompts.verbalizer, 4, kernel), without + priors.prior)


def test_how_far_back_an_event_sees_does_not_depend_on_its_own_rating(pieces: Pieces) -> None:
    events = drawn_events(0, users=1, longest=6).with_columns(
        timestamp=pl.int_range(pl.len()), history_end=pl.int_range(pl.len()), rating=pl.lit(4.0)
    )
    config = config_of(history_shows="rating", window_overlap=0.0)
    prompts, last = StreamPrompts(config, pieces), events.height - 1
    histories = EventHistories(events, CATALOG, config)
    shown = []
    # A cutoff that just holds two events of history before the last two answers.
    full = len(prompts.build(histories.history(last)[-3:], histories.titles[last]).tokens)
    for rating in (4.0, 4.5):
        changed = events.with_columns(
            rating=pl.when(pl.int_range(pl.len()) == last - 1).then(rating).otherwise("rating")
        )
        prompts = StreamPrompts(config.with_overrides(cutoff_len=full), pieces)
        found = encode_stream(
            prompts, EventHistories(changed, CATALOG, config), changed, np.array([last - 1, last]), 0.0
        )
        shown.append(int(found.shown_from[0]))
    assert shown[0] == shown[1]


@pytest.mark.parametrize("seed", range(4))
def test_windows_are_cut_alike_whatever_like_rates_later_labels_make(seed: int, pieces: Pieces) -> None:
    events = drawn_events(seed, users=2, longest=30)
    # A weak pull to the mean, so that like-rates take from one digit to three.
    config = config_of(item_rate_text=True, item_rate_strength=0.01, window_overlap=0.25, cutoff_len=110)
    trees, _ = trees_of(config, events, pieces)
    others, _ = trees_of(config, flipped(events, pl.col("timestamp") >= events["timestamp"].max() - 3), pieces)
    assert len(trees) > 4
    assert others.answer_offsets.tolist() == trees.answer_offsets.tolist()
    assert others.shown_from.tolist() == trees.shown_from.tolist()
