"""What a tuned model has to beat on texts: the commonest class, and logistic regression on weighted words."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from rectune.data.columns import ITEM_ID, LABEL, ROW_ID, SPLIT, TEST, TITLE, TRAIN, VALIDATION
from rectune.errors import DataError
from rectune.files import atomic_path, hash_file, hash_text, write_json
from rectune.measure.classes import Floats, class_metrics
from rectune.version import __version__

TABLE, NOTES = "text_baselines.parquet", "text_baselines.json"
MAJORITY, TF_IDF = "commonest class", "TF-IDF"
_BASELINE, _LOG_P = "baseline", "log_p"
_SETTINGS: tuple[Mapping[str, Any], ...] = tuple(
    {"C": strength, "ngrams": words} for words in (2, 1) for strength in (3.0, 10.0, 30.0, 1.0)
)
"""Inverse of the penalty, and how many words a feature may be; the first is what `baselines: quick` takes."""
_FORMAT = "1"

Say = Callable[[str], None]


@dataclass(frozen=True)
class TextBaselines:
    """The baselines' answers to all validation and test texts.

    Attributes:
        table: baseline, row_id, log_p (list of Float64, a log-probability a class).
        notes: baseline → sees, setting, tried (setting and metrics on validation), seconds.
    """

    table: pl.DataFrame
    notes: dict[str, dict[str, Any]]

    def log_probabilities(self, name: str, row_ids: pl.Series) -> Floats:
        """A baseline's log-probabilities of these events, [n, classes].

        Raises:
            DataError: it has no answer for one of them.
        """
        mine = self.table.filter(pl.col(_BASELINE) == name)
        found = pl.DataFrame({ROW_ID: row_ids}).join(mine, on=ROW_ID, how="left", maintain_order="left")[_LOG_P]
        if found.null_count():
            raise DataError(f"{TABLE}: no answer of {name!r} for {found.null_count()} texts")
        return np.array(found.to_list(), dtype=np.float64)


def _commonest(labels: np.ndarray[Any, Any], classes: int, rows: int) -> Floats:
    """The shares of the classes in training, whatever the text; a class that is not there counts half a text."""
    counts = np.maximum(np.bincount(labels, minlength=classes), 0.5)
    found: Floats = np.tile(np.log(counts / counts.sum()), (rows, 1))
    return found


def _fit_words(
    texts: Sequence[str], labels: np.ndarray[Any, Any], asked: Sequence[Sequence[str]], classes: int,
    setting: Mapping[str, Any],
) -> list[Floats]:  # fmt: skip
    """Log-probabilities of logistic regression on TF-IDF of words and pairs of words, for each list of texts."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    words = TfidfVectorizer(ngram_range=(1, setting["ngrams"]), sublinear_tf=True, min_df=2 if len(texts) > 999 else 1)
    try:
        features = words.fit_transform(texts)
    except ValueError as error:  # such as texts of punctuation alone
        raise DataError(f"{TF_IDF}: the training texts hold no words ({error})") from error
    model = LogisticRegression(C=setting["C"], max_iter=1000).fit(features, labels)
    found = []
    for each in asked:
        part = np.full((len(each), classes), -np.inf)
        part[:, model.classes_] = model.predict_log_proba(words.transform(each))
        # A class that training never saw is as likely as half a text among all.
        found.append(np.where(np.isfinite(part), part, np.log(0.5 / len(texts))))
    return found


def _stored(folder: Path, key: str) -> TextBaselines | None:
    """What an earlier call found, where it was on the same data and is whole."""
    try:
        told = json.loads((folder / NOTES).read_text(encoding="utf-8"))
        if told["key"] != key or told["sha256"] != hash_file(folder / TABLE):
            return None
        return TextBaselines(pl.read_parquet(folder / TABLE), told["baselines"])
    except (OSError, ValueError, KeyError, TypeError, pl.exceptions.PolarsError):
        return None


def fit_text_baselines(
    folder: Path, events: pl.DataFrame, catalog: pl.DataFrame, content_hash: str, classes: int, say: Say,
    quick: bool = False,
) -> TextBaselines:  # fmt: skip
    """Fit the baselines on all training texts, tune on validation by log loss, and answer validation and test.

    Writes `text_baselines.parquet` and `text_baselines.json` into the dataset folder, and reads them where they are
    of the same data.

    Args:
        folder: the dataset folder.
        events, catalog, content_hash: of the dataset.
        classes: how many there are.
        say: prints one line.
        quick: try one setting.

    Raises:
        DataError: the training texts are all of one class, or hold no words.
    """
    settings = _SETTINGS[:1] if quick else _SETTINGS
    key = hash_text(_FORMAT, __version__, content_hash, str(classes), json.dumps([dict(each) for each in settings]))
    stored = _stored(folder, key)
    if stored is not None:
        say(f"baselines: {len(stored.notes)} from {folder / TABLE}")
        return stored
    began = time.perf_counter()
    told = events.join(catalog.select(ITEM_ID, TITLE), on=ITEM_ID, how="left", maintain_order="left")
    parts = {split: told.filter(pl.col(SPLIT) == split) for split in (TRAIN, VALIDATION, TEST)}
    texts = {split: part[TITLE].to_list() for split, part in parts.items()}
    labels = {split: part[LABEL].to_numpy().astype(np.int64) for split, part in parts.items()}
    if len(np.unique(labels[TRAIN])) < 2:
        raise DataError(f"{TRAIN}: all training texts are of one class, so there is nothing to tell apart")
    asked = [texts[VALIDATION], texts[TEST]]
    found = {MAJORITY: [_commonest(labels[TRAIN], classes, len(each)) for each in asked]}
    seen = f"all {len(texts[TRAIN]):,} training texts"
    notes: dict[str, dict[str, Any]] = {
        MAJORITY: {"sees": f"the classes of {seen}", "setting": {}, "tried": [], "seconds": 0.0}
    }
    say(f"baselines: {TF_IDF} and logistic regression on {seen}, in {len(settings)} settings")
    tried = []
    best: float | None = None
    for setting in settings:
        answers = _fit_words(texts[TRAIN], labels[TRAIN], asked, classes, setting)
        measured = class_metrics(labels[VALIDATION], answers[0])
        tried.append({"setting": dict(setting), **measured})
        loss = float(measured["loss"] or 0.0)
        if best is None or loss < best:
            best, found[TF_IDF] = loss, answers
            notes[TF_IDF] = {"sees": seen, "setting": dict(setting), "tried": tried}
    notes[TF_IDF]["seconds"] = time.perf_counter() - began
    rows = pl.concat([parts[VALIDATION][ROW_ID], parts[TEST][ROW_ID]])
    kind = pl.List(pl.Float64)
    table = pl.concat(
        pl.DataFrame({_BASELINE: [name] * len(rows), ROW_ID: rows,
                      _LOG_P: pl.Series(np.concatenate(answers).tolist(), dtype=kind)})
        for name, answers in found.items()
    )  # fmt: skip
    with atomic_path(folder / TABLE) as temporary:
        table.write_parquet(temporary)
    write_json(folder / NOTES, {"key": key, "sha256": hash_file(folder / TABLE), "baselines": notes})
    say(f"baselines: fitted in {time.perf_counter() - began:.0f} s; written: {folder / TABLE}")
    return TextBaselines(table, notes)
