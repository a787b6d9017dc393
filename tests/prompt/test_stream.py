"""Streams say what they should: every path of a tree is the tokenisation of a string written out here by hand."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rectune.config import Config, parse_config
from rectune.errors import ConfigError, DataError, ModelError
from rectune.prompt.augment import Augment
from rectune.prompt.encode import EventHistories, encode_stream, sample_rows
from rectune.prompt.events import Event
from rectune.prompt.layouts import prompts_for
from rectune.prompt.pieces import Pieces
from rectune.prompt.stream import StreamPrompts
from rectune.prompt.tree import Trees
from rectune.wording import one_line

ODD = ["Heat (1995)", "L'été — 日本語 (2001)!", "e\u0301clair", "\u0301accent first", "👩‍👩‍👧 family", "…And Justice",
       "12 Monkeys", "1. 2. 3.", "'s", "don't", "'", '"Quoted"', "\x00null", "\u200bzero width\u200b", "\ufeffbom",
       "\u202ertl", "$", "→", ":", "::", "Yes", "x: Yes", "5", "[/INST]", "a" * 300, "؟ العربية", "\u037e",
       "(rating 5.0)", "Film -", "Ends with |", "Up!?"]  # fmt: skip
titles = (
    st.one_of(st.sampled_from(ODD), st.text(max_size=24), st.text(alphabet=" .\n\r'\"()!?:|1a→é\u0301", max_size=8))
    .map(one_line)
    .filter(lambda title: title and "<" not in title)
)
shown_events = st.builds(
    Event, titles, st.sampled_from([0.5, 3.0, 4.0, 4.5, 5.0]), st.integers(min_value=0, max_value=1)
)
choices = st.fixed_dictionaries(
    {
        "prompt_format": st.sampled_from(["chat", "completion"]),
        "history_shows": st.sampled_from(["rating", "label"]),
        "system_prompt": st.sampled_from(["", "You know films.", "Two\nlines."]),
        "stream_header": st.sampled_from(["", "Films, oldest first:", "Two\nlines: Yes or No?"]),
        "stream_cue": st.sampled_from([":", " |", " liked", "?", " ->", ")"]),
        "positive_label": st.sampled_from(["Yes"]),
    }
)
BARE = {"system_prompt": "", "stream_header": "", "history_shows": "label"}
TWO = [Event("Heat (1995)", 4.0, 1), Event("Up!", 2.5, 0)]
QUIETLY = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))


def config_of(**values: Any) -> Config:
    return parse_config({"cutoff_len": 1 << 20, **values}, origin="test")


def head_string(tokenizer: Any, config: Config) -> str:
    """What stands before the first line: the chat template's own rendering, or the bare header."""
    if config.prompt_format == "completion":
        return f"{config.stream_header}\n" if config.stream_header else ""
    messages: list[dict[str, Any]] = (
        [{"role": "system", "content": config.system_prompt}] if config.system_prompt else []
    )
    messages.append({"role": "user", "content": config.stream_header})
    return str(
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    )


def outcome(config: Config, event: Event) -> str:
    """What a later event reads behind a cue."""
    number = str(event.rating).removesuffix(".0")
    words = {"label": " Yes" if event.label else " No", "rating": f" {number}", "nothing": " ?"}
    return words[config.history_shows] + "\n"


def whole_string(tokenizer: Any, config: Config, history: list[Event], candidate: str) -> str:
    lines = [event.title + config.stream_cue + outcome(config, event) for event in history]
    return head_string(tokenizer, config) + "".join(lines) + candidate + config.stream_cue


def check(pieces: Pieces, values: dict[str, Any], history: list[Event], candidate: str) -> None:
    config = config_of(**values)
    prompts = StreamPrompts(config, pieces)
    whole = whole_string(pieces.tokenizer, config, history, candidate)
    assert prompts.text(history, candidate) == whole
    built = prompts.build(history, candidate)
    assert built.tokens == pieces.tokenizer(whole, add_special_tokens=False).input_ids
    assert built.dropped == 0
    prompts.check_pieces(history, candidate)
    # The label's token is what the tokenizer would put next.
    for word, token in ((" Yes", prompts.verbalizer.positive_id), (" No", prompts.verbalizer.negative_id)):
        ended = pieces.tokenizer(whole + word + "\n", add_special_tokens=False).input_ids
        assert ended == [*built.tokens, token, prompts.verbalizer.end_id]


# --- texts and ids ---


def test_a_stream_reads_as_written_here(tiny_pieces: Pieces) -> None:
    values = {"prompt_format": "completion", "stream_header": "Films:", "history_shows": "label"}
    assert StreamPrompts(config_of(**values), tiny_pieces).text(TWO, "Alien") == (
        "Films:\nHeat (1995): Yes\nUp!: No\nAlien:"
    )
    values |= {"history_shows": "rating", "stream_cue": " ->"}
    assert StreamPrompts(config_of(**values), tiny_pieces).text(TWO, "Alien") == (
        "Films:\nHeat (1995) -> 4\nUp! -> 2.5\nAlien ->"
    )
    values |= {"history_shows": "nothing", "stream_header": ""}
    assert StreamPrompts(config_of(**values), tiny_pieces).text(TWO, "Alien") == (
        "Heat (1995) -> ?\nUp! -> ?\nAlien ->"
    )


def test_a_chat_stream_reads_as_written_here(tiny_pieces: Pieces) -> None:
    config = config_of(system_prompt="You know films.", stream_header="Films, {positive} or {negative}:",
                       history_shows="label")  # fmt: skip
    assert StreamPrompts(config, tiny_pieces).text(TWO[:1], "Alien") == (
        "<|im_start|>system\nYou know films.<|im_end|>\n<|im_start|>user\nFilms, Yes or No:<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\nHeat (1995): Yes\nAlien:"
    )


def test_the_layout_decides_the_builder(tiny_pieces: Pieces) -> None:
    assert isinstance(prompts_for(config_of(layout="stream"), tiny_pieces), StreamPrompts)
    assert not isinstance(prompts_for(config_of(layout="pointwise"), tiny_pieces), StreamPrompts)


@example(values=BARE | {"prompt_format": "completion", "stream_cue": ":"}, history=[], candidate="!")
@example(values=BARE | {"prompt_format": "chat", "stream_cue": ":"}, history=TWO, candidate=":")
@given(values=choices, history=st.lists(shown_events, max_size=12), candidate=titles)
@QUIETLY
def test_pieces_equal_the_whole_string_with_the_tiny_tokenizer(
    tiny_pieces: Pieces, values: dict[str, Any], history: list[Event], candidate: str
) -> None:
    check(tiny_pieces, values, history, candidate)


@example(values=BARE | {"prompt_format": "completion", "stream_cue": ":"}, history=[], candidate="!")
@example(values=BARE | {"prompt_format": "chat", "stream_cue": ":"}, history=TWO, candidate=":")
@given(values=choices, history=st.lists(shown_events, max_size=12), candidate=titles)
@QUIETLY
def test_pieces_equal_the_whole_string_with_qwens_real_tokenizer(
    qwen_pieces: Pieces, values: dict[str, Any], history: list[Event], candidate: str
) -> None:
    check(qwen_pieces, values, history, candidate)


@pytest.mark.slow
@example(values=BARE | {"prompt_format": "completion", "stream_cue": ":"}, history=[], candidate="!")
@example(values=BARE | {"prompt_format": "chat", "stream_cue": ":"}, history=TWO, candidate=":")
@given(values=choices, history=st.lists(shown_events, max_size=12), candidate=titles)
@QUIETLY
def test_pieces_equal_the_whole_string_with_smollm2s_real_tokenizer(
    smollm2_pieces: Pieces, values: dict[str, Any], history: list[Event], candidate: str
) -> None:
    check(smollm2_pieces, values, history, candidate)


@pytest.mark.parametrize("title", ODD)
@pytest.mark.parametrize("shows", ["label", "rating"])
def test_odd_titles_keep_their_pieces_apart(qwen_pieces: Pieces, title: str, shows: str) -> None:
    line = one_line(title)
    check(qwen_pieces, BARE | {"history_shows": shows}, [Event(line, 4.0, 1), Event(line, 0.5, 0)], line)
    check(qwen_pieces, BARE | {"prompt_format": "completion"}, [Event(line, 4.0, 1)], line)


@pytest.mark.parametrize(("shows", "rating"), [("nothing", 4.0), ("rating", None)])
def test_a_history_that_shows_nothing_works_with_qwens_real_tokenizer(
    qwen_pieces: Pieces, shows: str, rating: float | None
) -> None:
    prompts = StreamPrompts(config_of(history_shows=shows), qwen_pieces)
    prompts.check_pieces([Event("Heat (1995)", rating, 1)], "Alien")


def test_a_cue_that_joins_the_label_is_refused(tiny_pieces: Pieces) -> None:
    """A tokenizer is asked about label words behind the cue, so it is the cue that it must keep apart."""
    with pytest.raises(ModelError, match=r"^positive_label: 'Excellent' is \d+ tokens for this model"):
        StreamPrompts(config_of(positive_label="Excellent"), tiny_pieces)
    with pytest.raises(ConfigError, match="stream_cue"):
        config_of(stream_cue=": ")
    with pytest.raises(ConfigError, match="stream_cue"):
        config_of(stream_cue=" ")


@pytest.mark.parametrize("marker", ["<|im_end|>", "<|im_start|>", "<|endoftext|>"])
@pytest.mark.parametrize("prompt_format", ["chat", "completion"])
def test_a_marker_in_a_title_stays_text(tiny_pieces: Pieces, marker: str, prompt_format: str) -> None:
    config = config_of(prompt_format=prompt_format, system_prompt="", stream_header="Films:", history_shows="label")
    prompts, tokenizer = StreamPrompts(config, tiny_pieces), tiny_pieces.tokenizer
    title = f"Film {marker}{marker}"
    built = prompts.build([Event(title, 4.0, 1)], title).tokens
    head = tokenizer(head_string(tokenizer, config), add_special_tokens=False).input_ids
    lines = f"{title}: Yes\n{title}:"
    assert built == head + tokenizer(lines, add_special_tokens=False, split_special_tokens=True).input_ids
    index = tokenizer.convert_tokens_to_ids(marker)
    assert built.count(index) == head.count(index)
    assert tokenizer.decode(built).count(title) == 2
    prompts.check_pieces([Event(title, 4.0, 1)], title)


def test_a_prompt_loses_whole_oldest_events_to_fit(tiny_pieces: Pieces) -> None:
    def prompts_of(cutoff_len: int) -> StreamPrompts:
        values = BARE | {"stream_header": "Films:", "prompt_format": "completion", "cutoff_len": cutoff_len}
        return StreamPrompts(config_of(**values), tiny_pieces)

    history = [Event(f"Film {number}", 4.0, number % 2) for number in range(9)]
    whole = prompts_of(1 << 20)
    # The candidate's line reserves 32 tokens, whatever its length up to that.
    fits = len(whole.build(history[4:], "Alien").tokens) + 32 - len(tiny_pieces.text("Alien:"))
    for room, dropped in ((fits, 4), (fits - 1, 5), (fits + 1, 4)):
        built = prompts_of(room).build(history, "Alien")
        assert built.dropped == dropped and len(built.tokens) <= room
        assert built.tokens == whole.build(history[dropped:], "Alien").tokens
        assert prompts_of(room).build(history, "Z").dropped == dropped
    least = len(whole.build([], "A long title of many tokens").tokens)
    with pytest.raises(DataError, match=f"^cutoff_len: got {least - 1}, but .* needs {least} tokens"):
        prompts_of(least - 1).build(history, "A long title of many tokens")


# --- trees of whole datasets ---

NAMES = ["user_id", "item_id", "rating", "timestamp", "label", "split", "position", "history_end", "row_id"]


def drawn_events(draw: random.Random, users: int, longest: int, films: int) -> pl.DataFrame:
    """Users with many ties; with as many films as events, every event has a title of its own."""
    rows: list[tuple[Any, ...]] = []
    for user in range(users):
        times = [0]
        for _ in range(draw.randrange(longest)):
            times.append(times[-1] + draw.choice([0, 0, 1]))
        for place, time in enumerate(times):
            rating = draw.choice([1.0, 2.5, 4.0, 5.0])
            film = str(len(rows) % films)
            rows.append(
                (f"u{user}", film, rating, time, int(rating >= 4), "train", place, times.index(time), len(rows))
            )
    return pl.DataFrame(rows, schema=NAMES, orient="row")


def catalog_of(texts: list[str]) -> pl.DataFrame:
    return pl.DataFrame({"item_id": [str(at) for at in range(len(texts))], "title": texts, "genres": "", "year": None})


def earlier_rate_text(rows: list[dict[str, Any]], row: dict[str, Any], strength: float = 5.0) -> str:
    """An item's like-rate before an event, counted one by one."""
    before = [other for other in rows if other["timestamp"] < row["timestamp"]]
    mean = (sum(other["label"] for other in before) + 1) / (len(before) + 2)
    same = [other["label"] for other in before if other["item_id"] == row["item_id"]]
    return f" ({100 * (sum(same) + strength * mean) / (len(same) + strength):.0f}% of {len(same)})"


def check_paths(pieces: Pieces, values: dict[str, Any], seed: int, room: int) -> Trees:
    """Every root-to-answer path against a string made from the table of events."""
    draw = random.Random(seed)
    events = drawn_events(draw, 3, 12, 7)
    texts = draw.sample([one_line(title) for title in ODD if len(title) < 99], 7)
    config = config_of(**values)
    rows = events.rows(named=True)
    titles_of = [texts[int(row["item_id"])] for row in rows]
    if config.item_rate_text:
        titles_of = [title + earlier_rate_text(rows, row) for title, row in zip(titles_of, rows, strict=True)]
    line_ids = [pieces.tokenizer(title + config.stream_cue, add_special_tokens=False).input_ids for title in titles_of]
    head = len(pieces.tokenizer(head_string(pieces.tokenizer, config), add_special_tokens=False).input_ids)
    # Every line is given the room that the longest like-rate text would take.
    spare = 16 if config.item_rate_text else 0
    config = config.with_overrides(cutoff_len=max(8, head + max(map(len, line_ids)) + spare + room))
    asked = np.array(sorted(draw.sample(range(len(rows)), draw.randint(1, len(rows)))))
    histories = EventHistories(events, catalog_of(texts), config)
    trees = encode_stream(StreamPrompts(config, pieces), histories, events, asked, config.window_overlap)
    assert trees.rows.tolist() == asked.tolist()
    assert trees.labels.tolist() == [rows[row]["label"] for row in asked]
    assert (trees.lengths <= config.cutoff_len).all()
    index = 0
    for tree in range(len(trees)):
        for at in trees.answer_at[trees.answers(tree)]:
            mine = rows[int(asked[index])]
            history = [
                Event(titles_of[other], rows[other]["rating"], rows[other]["label"])
                for other in range(int(trees.shown_from[index]), len(rows))
                if rows[other]["user_id"] == mine["user_id"] and rows[other]["timestamp"] < mine["timestamp"]
            ]
            whole = whole_string(pieces.tokenizer, config, history, titles_of[int(asked[index])])
            path = trees.path(tree, int(at)).tolist()
            assert path == pieces.tokenizer(whole, add_special_tokens=False).input_ids
            # A tree's depth is the place in the plain prompt.
            assert trees.depths(tree)[at] == len(path) - 1
            index += 1
    return trees


tree_choices = st.fixed_dictionaries(
    {
        "prompt_format": st.sampled_from(["chat", "completion"]),
        "history_shows": st.sampled_from(["rating", "label"]),
        "system_prompt": st.sampled_from(["", "You know films."]),
        "stream_header": st.sampled_from(["", "Films:"]),
        "stream_cue": st.sampled_from([":", " |", " liked"]),
        "window_overlap": st.sampled_from([0.0, 0.3, 0.9]),
        "item_rate_text": st.booleans(),
    }
)
rooms = st.sampled_from([0, 7, 30, 2000])


@given(values=tree_choices, seed=st.integers(0, 1 << 30), room=rooms)
@QUIETLY
def test_every_path_is_the_plain_string_with_the_tiny_tokenizer(
    tiny_pieces: Pieces, values: dict[str, Any], seed: int, room: int
) -> None:
    check_paths(tiny_pieces, values, seed, room)


@given(values=tree_choices, seed=st.integers(0, 1 << 30), room=rooms)
@QUIETLY
def test_every_path_is_the_plain_string_with_qwens_real_tokenizer(
    qwen_pieces: Pieces, values: dict[str, Any], seed: int, room: int
) -> None:
    check_paths(qwen_pieces, values, seed, room)


@pytest.mark.slow
@given(values=tree_choices, seed=st.integers(0, 1 << 30), room=rooms)
@QUIETLY
def test_every_path_is_the_plain_string_with_smollm2s_real_tokenizer(
    smollm2_pieces: Pieces, values: dict[str, Any], seed: int, room: int
) -> None:
    check_paths(smollm2_pieces, values, seed, room)


def test_plain_trees_are_the_paths_one_by_one(tiny_pieces: Pieces) -> None:
    trees = check_paths(tiny_pieces, {**BARE, "prompt_format": "completion", "stream_header": "Films:"}, 4, 2000)
    assert trees.branching
    plain = trees.plain()
    assert len(plain) == len(trees.rows) and not plain.branching
    paths = [trees.path(tree, int(at)) for tree in range(len(trees)) for at in trees.answer_at[trees.answers(tree)]]
    for index, path in enumerate(paths):
        assert plain.tree_tokens(index).tolist() == path.tolist()
        assert plain.answer_at[index] == len(path) - 1
    for name in ("labels", "rows", "shown_from", "prior"):
        assert getattr(plain, name).tolist() == getattr(trees, name).tolist()
    assert plain.plain() is plain


def test_chosen_trees_keep_their_branches(tiny_pieces: Pieces) -> None:
    trees = check_paths(tiny_pieces, {**BARE, "prompt_format": "completion", "window_overlap": 0.3}, 6, 7)
    order = np.arange(len(trees))[::-1].copy()
    chosen = trees.select(order)
    assert trees.branching and len(trees) > 2
    for at, tree in enumerate(order.tolist()):
        assert chosen.tree_tokens(at).tolist() == trees.tree_tokens(tree).tolist()
        assert chosen.depths(at).tolist() == trees.depths(tree).tolist()
        assert [list(column) for column in chosen.runs(at)] == [list(column) for column in trees.runs(tree)]
        assert chosen.rows[chosen.answers(at)].tolist() == trees.rows[trees.answers(tree)].tolist()


# --- random order inside moments ---


@pytest.mark.parametrize("cutoff_len", [64, 1024])
def test_shuffled_events_stay_inside_their_moments_and_are_answered_once(tiny_pieces: Pieces, cutoff_len: int) -> None:
    config = config_of(prompt_format="completion", stream_header="", history_shows="label", cutoff_len=cutoff_len)
    prompts = StreamPrompts(config, tiny_pieces)
    orders = set()
    for seed in range(12):
        events = drawn_events(random.Random(3), 3, 14, 99)
        histories = EventHistories(events, catalog_of([f"f{at}" for at in range(99)]), config)
        rows = events.rows(named=True)
        asked = np.array([at for at in range(len(rows)) if at % 4])
        trees = encode_stream(prompts, histories, events, asked, 0.25, augment=Augment(seed, moments=True))
        assert sorted(trees.rows.tolist()) == asked.tolist()
        orders.add(tuple(trees.rows.tolist()))
        index = 0
        for tree in range(len(trees)):
            for at in trees.answer_at[trees.answers(tree)]:
                row = int(trees.rows[index])
                *history, own = tiny_pieces.tokenizer.decode(trees.path(tree, int(at))).split("\n")
                assert own == f"f{row}:"
                shown = [int(line[1 : line.index(":")]) for line in history]
                # Titles name events: all are the user's, strictly earlier, in the order of time, each with its label.
                assert all(rows[other]["user_id"] == rows[row]["user_id"] for other in shown)
                times = [rows[other]["timestamp"] for other in shown]
                assert times == sorted(times) and all(time < rows[row]["timestamp"] for time in times)
                assert len(set(shown)) == len(shown)
                words = ["Yes" if rows[other]["label"] else "No" for other in shown]
                assert [line.split(": ")[1] for line in history] == words
                # Only the oldest moment shown may be cut: the later ones are whole.
                if times:
                    whole = {
                        other
                        for other in range(len(rows))
                        if rows[other]["user_id"] == rows[row]["user_id"]
                        and times[0] < rows[other]["timestamp"] < rows[row]["timestamp"]
                    }
                    assert whole <= set(shown)
                assert trees.labels[index] == rows[row]["label"]
                index += 1
        again = encode_stream(prompts, histories, events, asked, 0.25, augment=Augment(seed, moments=True))
        assert again.tokens.tolist() == trees.tokens.tolist() and again.rows.tolist() == trees.rows.tolist()
    assert len(orders) > 6


# --- samples ---


def test_a_sample_of_whole_users_holds_all_their_events_but_the_last_ones() -> None:
    events = drawn_events(random.Random(8), 9, 14, 99)
    users = events["user_id"].to_numpy()
    total = events.height
    drawn = set()
    for seed in range(8):
        rows = sample_rows(events, "train", total // 2, seed, whole_users=True)
        assert len(rows) == total // 2 and (np.diff(rows) > 0).all()
        partly = []
        for user in set(users[rows].tolist()):
            mine, taken = np.flatnonzero(users == user), rows[users[rows] == user]
            assert taken.tolist() == mine[: len(taken)].tolist()  # the oldest of each
            partly += [user] if len(taken) < len(mine) else []
        assert len(partly) <= 1
        drawn.add(tuple(rows.tolist()))
        assert rows.tolist() == sample_rows(events, "train", total // 2, seed, whole_users=True).tolist()
    assert len(drawn) > 4
    assert sample_rows(events, "train", None, 0, whole_users=True).tolist() == list(range(total))
    assert sample_rows(events, "train", total, 0, whole_users=True).tolist() == list(range(total))


def test_a_sample_of_whole_users_takes_one_splits_events_only() -> None:
    events = drawn_events(random.Random(8), 6, 14, 99)
    events = events.with_columns(
        split=pl.when(pl.col("position") % 2 == 0).then(pl.lit("train")).otherwise(pl.lit("test"))
    )
    rows = sample_rows(events, "train", 5, 1, whole_users=True)
    assert len(rows) == 5 and set(events["split"].gather(rows)) == {"train"}
