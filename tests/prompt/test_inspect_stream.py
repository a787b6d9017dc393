"""`inspect` on streams: windows followed through the six steps, and what they hold."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from rectune.config import Config
from rectune.errors import DataError
from rectune.prompt import inspect as stage
from rectune.prompt.dataset import open_dataset
from rectune.prompt.encode import EventHistories, encode_stream, sample_rows
from rectune.prompt.lengths import window_figures
from rectune.prompt.pieces import Pieces
from rectune.prompt.stream import StreamPrompts

Make = Callable[..., Config]


def silent(_line: str) -> None:
    """Say nothing."""


def run(config: Config, **options: Any) -> tuple[str, list[str]]:
    """What the stage prints on the console and says."""
    stream, said = io.StringIO(), []
    values: dict[str, Any] = {
        "examples": 0, "limit": None, "percentiles": "50,100", "characters": False, "packed": True, "json_path": None,
    }  # fmt: skip
    stage.inspect(config, **(values | options), say=said.append, console=Console(file=stream, width=1000))
    return stream.getvalue(), said


def made(config: Config, tokenizer: Any) -> tuple[Any, StreamPrompts, EventHistories, Any]:
    data = open_dataset(config, silent)
    prompts = StreamPrompts(config, Pieces(tokenizer))
    histories = EventHistories(data.events, data.catalog, config)
    rows = sample_rows(data.events, "train", config.max_train_samples, config.seed, True)
    return data, prompts, histories, encode_stream(prompts, histories, data.events, rows, config.window_overlap)


@pytest.mark.parametrize("prompt_format", ["chat", "completion"])
def test_a_window_is_followed_through_the_steps(tiny_config: Make, qwen3_tokenizer: Any, prompt_format: str) -> None:
    config = tiny_config(layout="stream", prompt_format=prompt_format, cutoff_len=400, prior="item_rate")
    data, _, _, trees = made(config, qwen3_tokenizer)
    printed, _ = run(config, examples=len(trees))
    examples = re.split(r"EXAMPLE \d+\n─+\n", printed.split("LENGTHS of")[0])[1:]
    assert len(examples) == len(trees)
    branched = 0
    for index, example in enumerate(examples):
        record, messages, text, tokens, cut, loss = re.split(r"\[STEP \d\] ", example)[1:]
        loss, plain = loss.split("[PLAIN PROMPT] of one answer\n")
        mine = trees.answers(index)
        rows, words = trees.rows[mine].tolist(), [("No", "Yes")[label] for label in trees.labels[mine]]
        # Record: every event that is asked about is there, tied ones are marked as the table has them.
        shown = re.findall(r"^ +(\d+) +(\d+) (=| ) .* \[[\d.]+ (Yes|No)\] (.*)$", record, re.MULTILINE)
        start = int(data.events["position"][rows[0]])
        asked = {int(position): (time, word) for position, time, _, word, role in shown if role.startswith("asked")}
        assert {p: (int(t), w) for p, (t, w) in asked.items()} == {
            start + row - rows[0]: (data.events["timestamp"][row], word) for row, word in zip(rows, words, strict=True)
        }
        user = data.events.filter(data.events["user_id"] == data.events["user_id"][rows[0]])
        times = user["timestamp"].to_list()
        assert all((times.count(int(time)) > 1) == (tie == "=") for _, time, tie, _, _ in shown)
        # Text: each answer once, and without the marks it is the trunk's own text.
        assert len(re.findall("⟨(?:Yes|No)⟩", text)) == len(rows)
        run_of, _ = trees.runs(index)
        trunk = trees.tree_tokens(index)[run_of == 0].tolist()
        shown_text = re.sub("⟨(Yes|No)⟩", "", text.partition("\n")[2].split("\n  branch 1 ")[0]).rstrip("\n")
        assert shown_text == qwen3_tokenizer.decode(trunk).rstrip("\n")
        assert text.count("\n  branch ") == int(run_of.max())
        branched += int(run_of.max())
        assert tokens.startswith(f"Tokens: {len(run_of)}, {len(trunk)} on the trunk and {len(run_of) - len(trunk)} on")
        assert f"{len(run_of)} of 400 tokens" in cut and f"answers: {len(rows)}," in cut
        # Loss: the places and words of the answers.
        found = [(int(at), word) for at, word in re.findall(r"(\d+) (Yes|No)", loss)]
        assert sorted(found) == sorted(zip(trees.answer_at[mine].tolist(), words, strict=True))
        # The plain prompt is a path through the tree that tokenises to itself.
        ids = qwen3_tokenizer(plain.rsplit("\n  these ", 1)[0], add_special_tokens=False).input_ids
        assert f"these {len(ids)} tokens" in plain and re.search(r"prior [+-]\d", plain)
        paths = [trees.path(index, at).tolist() for at in trees.answer_at[mine]]
        assert ids in paths
        assert ("<|im_start|>" in text) == (prompt_format == "chat") == ("assistant: the stream" in messages)
    assert branched


def test_what_windows_repeat_is_counted_token_by_token(tiny_config: Make, qwen3_tokenizer: Any) -> None:
    config = tiny_config(layout="stream", prompt_format="completion", cutoff_len=300, window_overlap=0.4)
    data, prompts, histories, trees = made(config, qwen3_tokenizer)
    found = window_figures(data, prompts, histories, trees)
    repeated, before = 0, None
    for index in range(len(trees)):
        rows = trees.rows[trees.answers(index)].tolist()
        user = data.events["user_id"][rows[0]]
        start = int(trees.shown_from[trees.answers(index).start])
        if user == before:
            for row in range(start, int(histories.stops[rows[0]])):
                event = histories.event(row)
                repeated += len(prompts.pieces.text(prompts.line(event.title) + prompts.suffix(event)))
        before = user
    assert repeated > 0
    assert found["repeated_share"] == pytest.approx(repeated / len(trees.tokens))
    assert found["trunk_answers"] + found["branch_answers"] == found["labels"] == len(trees.labels)
    on_trunk = sum(
        int((trees.runs(index)[0][trees.answer_at[trees.answers(index)]] == 0).sum()) for index in range(len(trees))
    )
    assert found["trunk_answers"] == on_trunk
    shown = [int(histories.stops[row]) - int(first) for row, first in zip(trees.rows, trees.shown_from, strict=True)]
    assert found["history_events_mean"] == pytest.approx(np.mean(shown))


def test_the_json_holds_what_is_printed(tiny_config: Make, qwen3_tokenizer: Any, tmp_path: Path) -> None:
    config = tiny_config(layout="stream", cutoff_len=300)
    printed, said = run(config, percentiles="5,50", json_path=tmp_path / "found.json", limit=40)
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert found["labels"] == 40 and found["max"] <= 300
    assert f"LENGTHS of {found['windows']} training windows" in printed
    shown = dict(re.findall(r"^\s+(min|max|mean|p[\d.]+): ([\d,.]+)$", printed, re.MULTILINE))
    assert {name: f"{found[name]:,.2f}" for name in shown} == shown
    assert set(shown) == {"min", "max", "mean", "p5", "p50"}
    packing = found["packing"]
    assert packing["windows"] == found["windows"] and packing["lost"] == 0
    assert f"packing: {found['windows']} windows in {packing['packs']} packs of 300 tokens" in printed
    assert f"labels: 40, {found['tokens'] / 40:.1f} tokens a label" in printed
    assert "verdict" not in found and "suggested" not in printed
    assert said[-2].startswith(f"tokenised 40 labels in {found['windows']} windows in ")
    assert said[-2].endswith(" labels/s)") and found["labels_per_second"] > 0
    assert "packing" not in run(config, packed=False)[0]


def test_characters_of_lines_need_no_tokenizer(
    tiny_config: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(stage, "load_tokenizer", lambda *_: pytest.fail("a tokenizer was loaded"))
    config = tiny_config(layout="stream", model_name_or_path="Qwen/does-not-exist", history_shows="label")
    printed, _ = run(config, characters=True, examples=2, json_path=tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert "in characters" in printed and found["unit"] == "characters"
    data = open_dataset(config, silent)
    train = data.events.filter(data.events["split"] == "train").join(data.catalog, on="item_id", how="left")
    lines = [f"{title}: {'Yes' if label else 'No'}\n" for title, label in train.select("title", "label").iter_rows()]
    assert (found["labels"], found["min"], found["max"]) == (len(lines), min(map(len, lines)), max(map(len, lines)))
    assert found["mean"] == pytest.approx(np.mean([len(line) for line in lines]))


def test_shuffling_in_training_is_said(tiny_config: Make) -> None:
    _, said = run(tiny_config(layout="stream", shuffle_moments=True))
    assert any("training shuffles the events of one moment" in line for line in said)


def test_a_line_that_does_not_fit_is_one_error(tiny_config: Make) -> None:
    with pytest.raises(DataError, match=r"set cutoff_len=\d+ or more") as caught:
        run(tiny_config(layout="stream", cutoff_len=8), examples=1)
    assert "\n" not in str(caught.value)
