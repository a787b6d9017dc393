"""`rectune prepare FILE --text COLUMN`: classes, words and lengths are found, and what is written trains."""

from __future__ import annotations

import io
from pathlib import Path

import polars as pl
import pytest
import yaml
from rich.console import Console

from rectune.cli import main
from rectune.config import load_config
from rectune.data.folder import load_meta
from rectune.errors import DataError
from rectune.prepare_texts import propose_labels
from rectune.train.train import train


def write_mail(path: Path, rare: int = 12, common: int = 88) -> None:
    kinds = ["spam"] * rare + ["ham"] * common
    lines = [f"{at}\t{kind} words number {at}\t{kind}" for at, kind in enumerate(kinds)]
    path.write_text("\n".join(["nr\tmessage\tkind", *lines]) + "\n", encoding="utf-8")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_mail(tmp_path / "mail.tsv")
    return tmp_path


def prepare(*words: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["prepare", *words])
    assert ended.value.code == 0


def test_a_table_of_texts_becomes_a_configuration_that_trains(
    here: Path, tiny_qwen3: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare("mail.tsv", "--text", "message", "--label", "kind", "test_ratio=0.3", "validation_ratio=0.2")
    said = capsys.readouterr().out
    assert "proposed: labels A for spam, B for ham" in said
    assert "proposed: oversample 0.5, since the rarer class is 12.0% of the rows" in said
    assert "next: rectune train data/mail.yaml" in said
    config = load_config(here / "data" / "mail.yaml")
    assert config.labels == {"spam": "A", "ham": "B"} and config.classes[1] == "spam" and config.test_ratio == 0.3
    assert load_meta(config.dataset_folder())["classes"]["train"]["spam"] == 6
    tiny = config.with_overrides(
        model_name_or_path=str(tiny_qwen3), bf16=False, report_to="none", max_steps=2, eval_steps=2, save_steps=2,
        cutoff_len=256, preprocessing_cache_dir="cache",
    )  # fmt: skip
    run = train(tiny, lambda line: None, Console(file=io.StringIO()))
    assert (run / "rectune.json").is_file()


def test_what_is_given_goes_before_what_is_proposed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare("mail.tsv", "--text", "message", "--label", "kind", "labels={spam: X, ham: Y}", "oversample=none",
            "cutoff_len=90", "rubric=Is it spam?")  # fmt: skip
    assert "proposed" not in capsys.readouterr().out
    written = yaml.safe_load((here / "data" / "mail.yaml").read_text())
    assert written["labels"] == {"spam": "X", "ham": "Y"} and written["cutoff_len"] == 90
    assert written["rubric"] == "Is it spam?" and written["oversample"] == "none"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--text", "body", "--label", "kind"], "--text: no column 'body'; found nr, message, kind"),
        (["--text", "message"], "label_column: no column's name says so; found nr, message, kind"),
        (["--text", "message", "--label", "nr"], "nr: holds 100 different labels"),
        (["--text", "message", "--label", "kind", "--item", "nr"], "--item: does nothing beside --text"),
    ],
)
def test_mistakes_are_one_line(here: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["prepare", "mail.tsv", *words])
    assert ended.value.code in (2, 3)
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_letters_go_from_the_rarest_class_on() -> None:
    said = pl.Series("kind", ["b"] * 3 + ["a"] * 2 + ["c"] * 4 + [None])
    assert propose_labels(said, "kind") == {"a": "A", "b": "B", "c": "C"}
    with pytest.raises(DataError, match="kind: holds 1 different labels"):
        propose_labels(pl.Series("kind", ["a", "a"]), "kind")


def test_a_class_called_by_a_letter_is_answered_by_it() -> None:
    grades = pl.Series(["A"] * 5 + ["b"] * 2 + ["none"])
    assert propose_labels(grades, "grade") == {"none": "C", "b": "B", "A": "A"}


def test_case_tells_no_classes_apart_and_the_commonest_spelling_names_one() -> None:
    said = pl.Series(["Spam", "spam", "spam", "SPAM", "ham", "ham"])
    assert propose_labels(said, "kind") == {"ham": "A", "spam": "B"}
