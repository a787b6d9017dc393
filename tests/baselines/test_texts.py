"""The baselines of texts: what they see, that they are tuned on validation alone, and what they answer."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from rectune.baselines.texts import MAJORITY, TF_IDF, fit_text_baselines
from rectune.errors import DataError


def tables(classes: int = 2, only: int | None = None) -> tuple[pl.DataFrame, pl.DataFrame]:
    draw = random.Random(1)
    rows, titles = [], []
    for at in range(120):
        label = at % 4 == 0 if classes == 2 else at % classes
        split = ("train", "train", "validation", "test")[at // 30]
        label = int(label) if only is None or split != "train" else only
        titles.append(f"{['good', 'bad', 'odd'][label]} {draw.choice('xyz')}{at}")
        rows.append({"item_id": str(at), "label": label, "split": split, "row_id": at})
    events = pl.DataFrame(rows, schema_overrides={"row_id": pl.UInt32, "label": pl.UInt8})
    return events, pl.DataFrame({"item_id": events["item_id"], "title": titles})


def test_the_commonest_class_answers_with_the_shares_of_training(tmp_path: Path) -> None:
    events, catalog = tables()
    found = fit_text_baselines(tmp_path, events, catalog, "hash", 2, lambda line: None, quick=True)
    test = events.filter(pl.col("split") == "test")["row_id"]
    shares = np.exp(found.log_probabilities(MAJORITY, test))
    train = events.filter(pl.col("split") == "train")["label"]
    assert shares[:, 1] == pytest.approx(train.mean() * np.ones(len(test)))


@pytest.mark.parametrize("classes", [2, 3])
def test_words_tell_the_class_and_probabilities_sum_to_one(tmp_path: Path, classes: int) -> None:
    events, catalog = tables(classes)
    found = fit_text_baselines(tmp_path, events, catalog, "hash", classes, lambda line: None)
    rows = events.filter(pl.col("split") == "test")
    log_p = found.log_probabilities(TF_IDF, rows["row_id"])
    assert np.exp(log_p).sum(axis=1) == pytest.approx(np.ones(len(rows)))
    assert (log_p.argmax(axis=1) == rows["label"].to_numpy()).all()
    tried = found.notes[TF_IDF]["tried"]
    assert len(tried) == 8
    assert found.notes[TF_IDF]["setting"] == min(tried, key=lambda one: one["loss"])["setting"]


def test_labels_of_test_change_nothing(tmp_path: Path) -> None:
    events, catalog = tables()
    turned = events.with_columns(
        pl.when(pl.col("split") == "test").then(1 - pl.col("label")).otherwise("label").cast(pl.UInt8).alias("label")
    )
    found = [
        fit_text_baselines(tmp_path / str(at), each, catalog, f"hash {at}", 2, lambda line: None).table
        for at, each in enumerate((events, turned))
        if not (tmp_path / str(at)).mkdir()
    ]
    assert found[0].equals(found[1])


def test_a_second_call_reads_what_the_first_has_written_unless_the_data_are_others(tmp_path: Path) -> None:
    events, catalog = tables()
    said: list[str] = []
    first = fit_text_baselines(tmp_path, events, catalog, "hash", 2, said.append, quick=True)
    second = fit_text_baselines(tmp_path, events, catalog, "hash", 2, said.append, quick=True)
    assert second.table.equals(first.table) and said[-1].startswith("baselines: 2 from")
    fit_text_baselines(tmp_path, events, catalog, "other", 2, said.append, quick=True)
    assert said[-1].startswith("baselines: fitted in")


def test_training_texts_of_one_class_are_refused(tmp_path: Path) -> None:
    events, catalog = tables(only=0)
    with pytest.raises(DataError, match="all training texts are of one class"):
        fit_text_baselines(tmp_path, events, catalog, "hash", 2, lambda line: None)
