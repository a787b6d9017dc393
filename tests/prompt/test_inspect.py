"""`inspect`: figures worked out by hand, the six steps, packing, JSON."""

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
from rectune.errors import ConfigError, DataError
from rectune.prompt import inspect as stage
from rectune.prompt.lengths import histogram, summary, truncation_verdict

Make = Callable[..., Config]


def run(config: Config, **options: Any) -> tuple[str, list[str]]:
    """What the stage prints on the console and says."""
    stream, said = io.StringIO(), []
    values: dict[str, Any] = {
        "examples": 0, "limit": None, "percentiles": "50,100", "characters": False, "packed": True, "json_path": None,
    }  # fmt: skip
    stage.inspect(config, **(values | options), say=said.append, console=Console(file=stream, width=110))
    return stream.getvalue(), said


def test_summary_is_least_most_mean_and_interpolated_percentiles() -> None:
    assert summary(np.array([1, 2, 3, 10]), [0, 50, 95, 99.5]) == pytest.approx(
        {"min": 1.0, "max": 10.0, "mean": 4.0, "p0": 1.0, "p50": 2.5, "p95": 8.95, "p99.5": 9.895}
    )


def test_a_histogram_counts_every_length_once() -> None:
    assert histogram(np.array([1, 1, 2]), width=4, bins=2) == ["      1-1         2 ████", "      2-2         1 ██"]
    assert histogram(np.array([7, 7])) == ["      7-7         2 " + "█" * 40]
    lengths = np.random.default_rng(0).integers(390, 880, 5000)
    lines = histogram(lengths)
    assert len(lines) == 16
    counted = 0
    for line in lines:
        low, high, count = (int(part) for part in re.match(r"\s*(\d+)-(\d+)\s+(\d+)", line).groups())  # type: ignore[union-attr]
        assert count == int(((lengths >= low) & (lengths <= high)).sum())
        counted += count
    assert counted == 5000


@pytest.mark.parametrize(
    ("lengths", "cutoff", "said"),
    [
        ([100] * 10, 100, "no prompt is longer than cutoff_len=100; suggested cutoff_len: 128"),
        ([128] * 10, 1024, "no prompt is longer than cutoff_len=1024; suggested cutoff_len: 128"),
        ([129] * 10, 128, "10 prompts (100.0%) lose their oldest events at cutoff_len=128: raise it, or lower "
         "history_len so that all prompts show alike; suggested cutoff_len: 192"),
        # 1 of 1,000 is far longer: the 99.5th percentile decides, the long one is cut.
        ([100] * 999 + [1000], 512, "1 prompts (0.10%) lose their oldest events at cutoff_len=512: acceptable; "
         "suggested cutoff_len: 128"),
        ([100] * 98 + [110] * 2, 100, "2 prompts (2.0%) lose their oldest events at cutoff_len=100: think of raising "
         "it; suggested cutoff_len: 128"),
    ],
)  # fmt: skip
def test_the_verdict_says_how_many_are_cut_and_what_would_do(lengths: list[int], cutoff: int, said: str) -> None:
    assert truncation_verdict(np.array(lengths), cutoff) == said


def test_the_six_steps_follow_one_event(tiny_config: Make, qwen3_tokenizer: Any) -> None:
    printed, _ = run(tiny_config(), examples=1)
    steps = re.split(r"\[STEP \d\] ", printed.split("LENGTHS of")[0])
    assert [step.split("\n")[0] for step in steps[1:4]] == [
        "Record",
        "Messages",
        "Text after the template, with the answer",
    ]
    assert len(steps) == 7
    record = json.loads(steps[1].partition("\n")[2])
    assert set(record) == {"instruction", "input", "output", "system"}
    assert f"  user: {record['instruction']}\n\n{record['input']}\n" in steps[2]
    assert f"  assistant: {record['output']}\n" in steps[2]
    whole = steps[3].partition("\n")[2].rstrip("\n")
    assert whole.endswith(f"<think>\n\n</think>\n\n{record['output']}<|im_end|>")
    ids = qwen3_tokenizer(whole, add_special_tokens=False).input_ids
    assert steps[4].splitlines() == [f"Tokens: {len(ids)}", f"  first 12: {ids[:12]}", f"  last 12:  {ids[-12:]}", ""]
    assert f"nothing is left out ({len(ids)} <= 1024)" in steps[5]
    assert f"masked: {len(ids) - 2} prompt tokens; trained: 2" in steps[6]
    assert f"after token {len(ids) - 3} comes {record['output']!r} ({ids[-2]})" in steps[6]


def test_the_messages_shown_are_those_of_the_template(tiny_config: Make) -> None:
    printed, _ = run(tiny_config(history_header="", system_prompt=""), examples=1)
    user = printed.split("  user: ")[1].split("\n  assistant: ")[0]
    assert user in printed.split("[STEP 3]")[1]
    assert "  system: " not in printed


@pytest.mark.parametrize("prompt_format", ["instruction", "completion"])
def test_plain_formats_show_their_text(tiny_config: Make, prompt_format: str) -> None:
    printed, _ = run(tiny_config(prompt_format=prompt_format), examples=1)
    assert f"none: prompt_format={prompt_format} is plain text" in printed
    assert re.search(r"Answer: (Yes|No)<\|im_end\|>\n", printed)


def test_truncation_is_shown_in_step_five(tiny_config: Make) -> None:
    config = tiny_config()
    longest = int(re.search(r"max: ([\d,]+)", run(config)[0]).group(1).replace(",", ""))  # type: ignore[union-attr]
    printed, _ = run(config.with_overrides(cutoff_len=longest - 60), examples=3)
    assert re.search(r"the \d+ oldest of \d+ events are left out, whole", printed)


def test_only_characters_are_counted_without_any_tokenizer(
    tiny_config: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refused(*_: Any) -> None:
        raise AssertionError("a tokenizer was loaded")

    monkeypatch.setattr(stage, "load_tokenizer", refused)
    config = tiny_config(model_name_or_path="Qwen/does-not-exist")
    printed, _ = run(config, characters=True, examples=2, json_path=tmp_path / "found.json")
    assert "in characters" in printed and "packing" not in printed
    first = json.loads((config.dataset_folder() / "train.json").read_text(encoding="utf-8"))
    sizes = [len(record["system"] + record["instruction"] + record["input"]) for record in first]
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert (found["prompts"], found["min"], found["max"]) == (len(sizes), min(sizes), max(sizes))
    assert found["mean"] == pytest.approx(sum(sizes) / len(sizes))


def test_the_json_holds_what_is_printed_and_packing_loses_none(tiny_config: Make, tmp_path: Path) -> None:
    config = tiny_config()
    printed, said = run(config, percentiles="5,50,99.5", json_path=tmp_path / "found.json", limit=30)
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert said[-1] == f"written: {tmp_path / 'found.json'}"
    assert found["prompts"] == 30 and "LENGTHS of 30 training prompts" in printed
    shown = dict(re.findall(r"^\s+(min|max|mean|p[\d.]+): ([\d,.]+)$", printed, re.MULTILINE))
    assert set(shown) == {"min", "max", "mean", "p5", "p50", "p99.5"}
    assert {name: f"{found[name]:,.2f}" for name in shown} == shown
    assert found["verdict"] in printed
    packing = found["packing"]
    assert packing["prompts"] == 30 and packing["lost"] == 0
    assert f"packing: 30 prompts in {packing['packs']} packs of 1024 tokens" in printed
    assert packing["fill"] == pytest.approx(found["mean"] * 30 / (packing["packs"] * 1024))
    assert "packing" not in run(config, packed=False)[0]


def test_lengths_are_measured_before_anything_is_cut(tiny_config: Make, tmp_path: Path) -> None:
    for cutoff in (1024, 600):
        run(tiny_config(cutoff_len=cutoff), json_path=tmp_path / f"{cutoff}.json")
    wide, narrow = (json.loads((tmp_path / f"{cutoff}.json").read_text()) for cutoff in (1024, 600))
    assert [wide[name] for name in ("min", "max", "mean")] == [narrow[name] for name in ("min", "max", "mean")]
    assert wide["truncated"] == 0 < narrow["truncated"]
    assert narrow["packing"]["lost"] == 0


@pytest.mark.parametrize("text", ["", "50,", "a", "50,101", "-1", "nan"])
def test_bad_percentiles_are_one_line(tiny_config: Make, text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"--percentiles: got {text!r}")):
        run(tiny_config(), percentiles=text)


@pytest.mark.parametrize("characters", [True, False])
def test_no_training_events_are_one_line(tiny_config: Make, characters: bool) -> None:
    # 26 events a user and a warm-up of 24 leave one event for validation and one for test.
    with pytest.raises(DataError, match="no training events to inspect"):
        run(tiny_config(history_len=24), characters=characters, examples=1)


def test_a_cutoff_too_small_for_the_answer_is_named_and_the_lengths_are_measured_all_the_same(
    tiny_config: Make,
) -> None:
    shown, _ = run(tiny_config(cutoff_len=8), examples=1, packed=False)
    assert re.search(r"set cutoff_len=\d+ or more", shown.replace("\n", " "))
    assert "suggested cutoff_len" in shown.replace("\n", " ")


def test_of_texts_the_middle_is_said_to_be_lost() -> None:
    lengths = np.array([10] * 9 + [100])
    assert truncation_verdict(lengths, 64, texts=True) == (
        "1 prompts (10.0%) lose the middle of their text at cutoff_len=64: raise it; suggested cutoff_len: 128"
    )
