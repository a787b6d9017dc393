"""What `task: classify` means for other keys, and what does not go with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rectune.cli import main
from rectune.config import Config, load_config, parse_config, parse_override
from rectune.errors import ConfigError

TWO = {"Rules Question": "RQ", "Other": "O"}
THREE = {"a": "A", "b": "B", "c": "C"}


def texts(**values: Any) -> Config:
    return parse_config({"task": "classify", "labels": TWO, **values}, "test")


def test_a_text_has_no_history_and_is_split_within_its_class() -> None:
    config = texts()
    got = (config.layout, config.history_len, config.label_from, config.split, config.warmup)
    assert got == ("pointwise", 0, "column", "stratified", 0)
    assert texts(split_column="part").split == "column"


def test_of_two_classes_the_first_is_positive_and_label_one() -> None:
    config = texts()
    assert config.classes == ("Other", "Rules Question") and config.label_words == ("O", "RQ")
    assert (config.positive_label, config.negative_label) == ("RQ", "O")
    turned = config.with_overrides(labels={"Other": "O", "Rules Question": "RQ"})
    assert turned.positive_label == "O"  # the words follow the classes, whatever was saved


def test_of_more_classes_labels_count_from_the_first() -> None:
    config = texts(labels=THREE)
    assert config.classes == ("a", "b", "c") and config.label_words == ("A", "B", "C")
    assert config.metric_for_best_model == "macro_f1" and config.panel_samples == 0


def test_it_is_the_same_after_it_was_written_and_read_again(tmp_path: Path) -> None:
    for labels in (TWO, THREE):
        config = texts(labels=labels)
        (tmp_path / "a.yaml").write_text(config.to_yaml(), encoding="utf-8")
        again = load_config(tmp_path / "a.yaml")
        assert again == config and again.classes == config.classes


def test_classes_can_be_given_on_the_command_line() -> None:
    assert parse_override('labels={"Rules Question": RQ, Other: O}') == ("labels", TWO)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"layout": "stream"}, "layout: got 'stream' beside task: classify, where it is pointwise; leave it out"),
        ({"history_len": 5}, "history_len: got 5 beside task: classify, where it is 0; leave it out"),
        ({"prior": "item_rate"}, "prior: does nothing beside task: classify; leave it out"),
        ({"blend": ["stack"]}, "blend: does nothing beside task: classify; leave it out"),
        ({"labels": {"a": "A"}}, "labels: got one class, 'a'; name at least two"),
        ({"labels": {"a": "X", "b": " X"}}, "labels: the word 'x' stands for two classes; give each its own"),
        ({"labels": {"a": "X", "b": "x"}}, "labels: the word 'x' stands for two classes; give each its own"),
        ({"labels": {"A": "b", "B": "c"}}, "labels: the word 'b' of 'A' is the name of another class; choose another"),
        ({"labels": {"a": "X", "A ": "Y"}}, "labels: the name 'a' stands for two classes; give each its own"),
        ({"labels": {"a": "X", "b": " "}}, "labels: a class has an empty word; give each a short word of its own"),
        ({"oversample": 1.5}, "oversample: got 1.5, allowed: none, or a share between 0 and 1 such as 0.5"),
        ({"metric_for_best_model": "uauc"}, "metric_for_best_model: got 'uauc' beside task: classify"),
        ({"labels": THREE, "loss_over": "labels"}, "loss_over: got 'labels' beside 3 labels, allowed: vocabulary"),
        ({"labels": THREE, "metric_for_best_model": "auc"}, "metric_for_best_model: got 'auc' beside 3 labels"),
        ({"labels": THREE, "prompt_format": "classifier"}, "prompt_format: got 'classifier' beside 3 labels"),
        ({"labels": {True: "Y", "b": "N"}}, "labels: got"),
    ],
)
def test_what_does_not_go_with_it_is_said(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        texts(**values)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"labels": TWO}, "labels: does nothing beside task: recommend; set task=classify"),
        ({"oversample": 0.5}, "oversample: does nothing beside task: recommend; set task=classify"),
        ({"text_column": "x"}, "text_column: does nothing beside task: recommend"),
        ({"split": "stratified"}, "split: got 'stratified' beside task: recommend; it is for texts"),
        ({"metric_for_best_model": "macro_f1"}, "metric_for_best_model: got 'macro_f1', which is for task: classify"),
    ],
)
def test_its_keys_do_nothing_elsewhere_and_that_is_said(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_config(values, "test")
    assert said in str(error.value)


def test_texts_of_a_file_are_not_asked_by_generation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text(texts().to_yaml(), encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        main(["score", str(tmp_path), "--input", "mail.csv", "--mode", "generate"])
    assert ended.value.code == 2
    assert "--mode: does nothing with --input of texts; leave it out" in capsys.readouterr().err
