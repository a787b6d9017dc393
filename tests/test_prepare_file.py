"""From a table and no configuration to a dataset, a configuration and a trained model."""

from __future__ import annotations

import random
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pytest
import yaml

from rectune.cli import main
from rectune.cli_prepare import is_config
from rectune.config import default_of
from rectune.data.folder import load_catalog, load_events, load_meta
from rectune.data.sources.source import Source
from rectune.model.lora import ADAPTER_FILE
from rectune.prepare_file import _text

ODD = [
    "--user",
    "Kunden-Nr",
    "--item",
    "Artikel",
    "--time",
    "Gekauft am",
    "--rating",
    "Sterne",
    "--title",
    "Bezeichnung",
]


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def rectune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> Callable[..., Ended]:
    """The command line in a folder of its own."""
    import torch

    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)

    def run(*arguments: object) -> Ended:
        capfd.readouterr()
        code = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as ended:
            code = int(ended.code or 0)
        told = capfd.readouterr()
        return Ended(code, told.out, told.err)

    return run


@pytest.fixture
def odd_table(tmp_path: Path) -> Path:
    """A table as a shop's export may be: `;`, a byte order mark, odd names, decimal commas, dates, two bad rows."""
    draw = random.Random(0)
    rows = ["Kunden-Nr;Artikel;Bezeichnung;Sterne;Gekauft am;Preis"]
    for user in range(1, 13):
        minute = draw.randrange(600)
        for item in draw.sample(range(1, 31), 22):
            minute += draw.randrange(1, 60)
            stars = draw.choice(["4,0", "4,5", "5,0"] if item % 2 else ["1,0", "2,5", "3,5"])
            when = f"{minute // 1440 + 1:02}.03.2024 {minute // 60 % 24:02}:{minute % 60:02}"
            title = f'"Dose; groß\nNr. {item}"' if item == 7 else f"Dose {item}"
            rows.append(f"K{user};A{item:03};{title};{stars};{when};{item},5")
    rows += ["K1;A001;Dose 1;viel;01.03.2024 10:00;1,5", "K1;A001"]
    path = tmp_path / "verkauf.csv"
    path.write_bytes("\ufeff".encode() + "\r\n".join(rows).encode() + b"\r\n")
    return path


SMALL = [
    "max_steps=2", "eval_steps=2", "save_steps=2", "bf16=false", "report_to=none", "max_eval_samples=8",
    "preprocessing_cache_dir=cache",
]  # fmt: skip


def test_an_odd_table_goes_to_a_trained_model_with_one_prepare_and_one_train(
    rectune: Callable[..., Ended], odd_table: Path, tiny_qwen3: Path, tmp_path: Path
) -> None:
    prepared = rectune("prepare", odd_table.name, *ODD, f"model_name_or_path={tiny_qwen3}", *SMALL)
    assert prepared.code == 0, prepared.err
    for words in (
        "verkauf.csv: read as UTF-8 with a byte order mark, columns divided by semicolons",
        "column of the time: 'Gekauft am' (named, day.month.year dates with times of the day",
        "column of the rating: 'Sterne' (named, decimal commas)",
        "look: 264 ratings of 12 users about 30 items",
        "proposed: history_len 10: leaves 55% of the events to ask about, of 12 users",
        f"tokens an event on average (by the tokenizer of {tiny_qwen3})",
        "written: data/verkauf.yaml",
        "rejected 1: verkauf.csv: rating is not a number",
        "next: rectune train data/verkauf.yaml",
    ):
        assert words in prepared.out, words
    values = yaml.safe_load(Path("data/verkauf.yaml").read_text())
    assert values["rating_column"] == "Sterne" and values["rating_threshold"] == 4.0 and values["layout"] == "stream"
    events = load_events(tmp_path / "data/verkauf")
    assert events.height == 264 and events["rating"].max() == 5.0
    titles = dict(load_catalog(tmp_path / "data/verkauf").select("item_id", "title").iter_rows())
    assert titles["A007"] == "Dose; groß\nNr. 7"
    trained = rectune("train", "data/verkauf.yaml")
    assert trained.code == 0, trained.err
    assert (tmp_path / "output/verkauf" / ADAPTER_FILE).is_file()
    assert "used as it is" in trained.out


def test_titles_that_end_in_years_are_films_and_the_next_command_can_be_pasted(
    rectune: Callable[..., Ended], tmp_path: Path, tiny_qwen3: Path
) -> None:
    rows = [f"u{user},i{item},{item % 5 + 1},{item},Heat {item} (1995)" for user in range(6) for item in range(12)]
    (tmp_path / "my log.csv").write_text("user,item,rating,time,title\n" + "\n".join(rows) + "\n")
    said = rectune("prepare", "my log.csv", f"model_name_or_path={tiny_qwen3}", *SMALL).out
    assert "proposed: prompt_domain films, item_text '{name}'" in said
    command = next(line for line in said.splitlines() if line.startswith("next: ")).split("   ")[0]
    assert shlex.split(command) == ["next:", "rectune", "train", "data/my log.yaml"]
    assert "#   rectune train 'data/my log.yaml'  " in (tmp_path / "data/my log.yaml").read_text()


def test_a_table_larger_than_a_part_is_said_to_be_held_whole(
    rectune: Callable[..., Ended], odd_table: Path, tiny_qwen3: Path
) -> None:
    command = ("prepare", odd_table.name, *ODD, f"model_name_or_path={tiny_qwen3}")
    assert "memory: more than part_rows=263 rows, and held whole" in rectune(*command, "part_rows=263").out
    assert "held whole" not in rectune(*command, "part_rows=264", "dataset_dir=data/other").out


def test_the_same_options_write_the_same_configuration_and_a_changed_one_is_left_alone(
    rectune: Callable[..., Ended], odd_table: Path, tiny_qwen3: Path
) -> None:
    command = ("prepare", odd_table.name, *ODD, f"model_name_or_path={tiny_qwen3}")
    assert rectune(*command).code == 0
    config = Path("data/verkauf.yaml")
    first = config.read_text()
    again = rectune(*command)
    assert again.code == 0 and "used as it is" in again.out and config.read_text() == first
    config.write_text(first.replace("rating_threshold: 4.0", "rating_threshold: 5.0"))
    refused = rectune(*command)
    assert refused.code == 2 and "data/verkauf.yaml: is there already and says something else" in refused.err
    assert "rating_threshold: 5.0" in config.read_text()
    assert rectune(*command, "--force").code == 0 and config.read_text() == first


def test_strict_names_the_first_bad_line_and_a_share_counts_them(
    rectune: Callable[..., Ended], odd_table: Path, tiny_qwen3: Path
) -> None:
    command = ("prepare", odd_table.name, *ODD, f"model_name_or_path={tiny_qwen3}")
    strict = rectune(*command, "--strict")
    assert strict.code == 3 and "rating is not a number" in strict.err and len(strict.err.splitlines()) == 1
    # 264 rows, one title of which runs over two lines in each of the users' rows that have it.
    line = int(strict.err.split("line ")[1].split()[0])
    assert "viel" in odd_table.read_text(encoding="utf-8-sig").split("\n")[line - 1]
    assert "2 of 266 rows" in rectune(*command, "--max-rejects", "0.5%").err
    assert rectune(*command, "--max-rejects", "1%").code == 0
    assert rectune("prepare", "data/verkauf.yaml", "--strict").code == 3
    both = rectune(*command, "--strict", "--max-rejects", "1%")
    assert both.code == 2 and "--strict: beside --max-rejects" in both.err


def test_what_cannot_be_told_is_asked_in_one_line(rectune: Callable[..., Ended], tmp_path: Path) -> None:
    table = tmp_path / "log.csv"
    for header, options, words in (
        ("user,item,ts,stars,liked", [], "say --rating 'stars' or --label 'liked'"),
        ("user,item,ts,x,y", [], "with --rating COLUMN or --label COLUMN, or say --purchases"),
        ("who,item,ts,stars,y", [], "no column name says that it holds the users"),
        ("user,customer,item,ts,stars", ["--user", "usr"], "no column 'usr' (nearest: 'user')"),
        ("user,item,ts,stars,liked", ["--label", "liked", "--purchases"], "--purchases: beside --label"),
    ):
        table.write_text(f"{header}\na,b,1,1,1\n")
        ended = rectune("prepare", "log.csv", *options)
        assert ended.code in (2, 3) and words in ended.err and len(ended.err.splitlines()) == 1, ended.err
        assert not (tmp_path / "data").exists()
    assert "nope.csv: no such file; give a table" in rectune("prepare", "nope.csv").err
    idle = rectune("prepare", "demo_cpu", "--user", "x")
    assert idle.code == 2 and "--user: is for a table without a configuration" in idle.err


def test_purchases_and_labels_need_no_ratings(rectune: Callable[..., Ended], tmp_path: Path, tiny_qwen3: Path) -> None:
    rows = [f"u{user},i{item},{100 * user + item},{item % 2}" for user in range(6) for item in range(6)]
    Path("log.csv").write_text("user,item,when,chosen\n" + "\n".join(rows) + "\n")
    common = ("--time", "when", f"model_name_or_path={tiny_qwen3}")
    bought = rectune("prepare", "log.csv", "--purchases", *common)
    # Everybody bought everything, so that no negative can be drawn.
    assert bought.code == 3 and "negatives: none can be drawn for any of the" in bought.err
    assert "next: rectune train" not in bought.out and not (tmp_path / "data/log").exists()
    Path("log.csv").write_text(
        "user,item,when,chosen\n" + "\n".join(row for at, row in enumerate(rows) if at % 5) + "\n"
    )
    bought = rectune("prepare", "log.csv", "--purchases", "--force", *common, "negatives=2")
    assert bought.code == 0, bought.err
    events = load_events(tmp_path / "data/log")
    assert 0 < events.filter(pl.col("label") == 0).height == events["drawn_for"].drop_nulls().len()
    assert "proposed: history_shows label" in bought.out and "next: rectune train data/log.yaml" in bought.out
    written = yaml.safe_load(Path("data/log.yaml").read_text())
    assert (written["label_from"], written["negatives"], written["history_shows"]) == ("purchases", 2, "label")
    Path("log.csv").write_text("user,item,when,chosen\n" + "\n".join(rows) + "\n")
    told = rectune("prepare", "log.csv", "--label", "chosen", "--force", *common)
    assert told.code == 0, told.err
    events = load_events(tmp_path / "data/log")
    assert events["label"].mean() == 0.5 and events["rating"].null_count() == 36
    meta = load_meta(tmp_path / "data/log")
    assert meta["protocol"]["label_from"] == "column" and "rating_threshold" not in meta["protocol"]


def test_a_key_that_is_switched_off_stays_off_in_what_is_written() -> None:
    source = Source(pl.DataFrame(), pl.DataFrame({"item_id": ["1"]}), pl.DataFrame())
    values = {"output_dir": "o", "max_eval_samples": None, "user_column": None}
    text = _text(values, Path("c.yaml"), Path("a.csv"), "demo_cpu", "m", source)
    assert default_of("max_eval_samples") is not None and default_of("user_column") is None
    assert yaml.safe_load(text) == {"output_dir": "o", "max_eval_samples": None}


@pytest.mark.parametrize(
    ("name", "config"),
    [("a.yaml", True), ("a.yml", True), ("demo_cpu", True), ("a.csv", False), ("a.CSV.gz", False), ("a.jsonl", False)],
)
def test_a_table_and_a_configuration_are_told_apart_by_their_endings(name: str, config: bool) -> None:
    assert is_config(Path(name)) == config


def test_a_parquet_file_of_any_name_is_a_table(tmp_path: Path) -> None:
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "events")
    assert not is_config(tmp_path / "events")
    (tmp_path / "settings").write_text("dataset: x\n")
    assert is_config(tmp_path / "settings")
