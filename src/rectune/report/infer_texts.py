"""Ask a run that classifies about one text, or about every text of a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from rectune.config_classify import CLASSIFY
from rectune.data.columns import LINE
from rectune.data.sources.labelled_text import as_lines, labels_of, text_column
from rectune.data.sources.table_file import TableFile, open_table
from rectune.data.sources.table_values import ids, rows_of
from rectune.errors import ConfigError, DataError
from rectune.files import write_json, write_text
from rectune.measure.classes import Floats, by_class, confusion_table, over_classes
from rectune.measure.classification import probability
from rectune.prompt.tree import Trees
from rectune.score.open_run import OpenRun
from rectune.score.score import TUNED, UNTUNED
from rectune.score.scorer import score_classes, score_trees
from rectune.wording import one_line

Say = Callable[[str], None]
_NAMES = ("text", "candidate_title")
"""Columns of texts that need not be named: a file's own, and that of `test_raw.jsonl`."""


def class_probabilities(run: OpenRun, texts: Sequence[str], which: str = TUNED) -> tuple[Floats, np.ndarray[Any, Any]]:
    """What a model makes of texts.

    Args:
        run: the opened run.
        texts: [n], each with at least a word.
        which: `tuned` or `untuned`.

    Returns:
        Probabilities, float64 [n, classes] in the order of the labels, and the label of each: of two classes by the
        run's threshold (one half for the untuned model), of more the most probable.
    """
    prompts = [run.prompts.build([], one_line(text)) for text in texts]
    nothing = np.zeros(len(prompts), dtype=np.int64)
    trees = Trees.of_prompts([prompt.tokens for prompt in prompts], nothing, np.arange(len(prompts)), nothing)
    size, words, kernel = run.config.per_device_eval_batch_size, run.prompts.verbalizer, run.loaded.attention
    tuned = which == TUNED
    with nullcontext() if tuned else run.model.disable_adapter():
        if run.many:
            log_p = score_classes(run.model, trees, words, size, kernel)
            found = np.exp(run.settings.class_log_probabilities(log_p) if tuned else log_p)
            return found, found.argmax(axis=1)
        odds = score_trees(run.model, trees, words, size, kernel)
    score = probability(run.settings.calibrated(odds) if tuned else odds)
    threshold = run.settings.threshold if tuned else 0.5
    return np.stack([1 - score, score], axis=1), (score >= threshold).astype(np.int64)


def _check_task(run: OpenRun) -> None:
    """Refuse a run that is asked about users and items.

    Raises:
        ConfigError: it is one.
    """
    if run.config.task != CLASSIFY:
        raise ConfigError("--text: this run answers for users and items (task: recommend); use --input or --pairs")


def infer_text(run: OpenRun, text: str, say: Say) -> None:
    """Say the class of one text and the probability of every class.

    Raises:
        ConfigError: the run does not classify.
        DataError: there is no text.
    """
    _check_task(run)
    if not one_line(text):
        raise DataError("--text: it is empty; give a text")
    found, labels = class_probabilities(run, [text])
    names = run.config.classes
    told = sorted(zip(found[0].tolist(), names, strict=True), reverse=True)
    say(f"{names[labels[0]]}   ({', '.join(f'{name} {share:.3f}' for share, name in told)})")


def _labels(run: OpenRun, table: TableFile, rows: pl.DataFrame, column: str | None) -> list[int | None]:
    """The labels that a file gives, by the classes' names or words; None where it gives none.

    Raises:
        DataError: a label is none of the classes.
    """
    if column is None:
        return [None] * rows.height
    said = ids(rows["field_1"])
    words = {word: name for name, word in run.config.labels.items()}
    found = labels_of(rows["field_1"], run.config.classes, words)
    wrong = (found.is_null() & said.is_not_null()).arg_max()
    if wrong is not None and found[wrong] is None and said[wrong] is not None:
        raise DataError(
            f"{table.path}: line {rows[LINE][wrong]}: label {said[wrong]!r}, allowed: {', '.join(run.config.classes)} "
            "or their words; rows may also have none"
        )
    return found.cast(pl.Int64).to_list()


def _metrics(run: OpenRun, labels: Sequence[int | None], predicted: Sequence[int]) -> dict[str, Any] | None:
    """By class, of the rows that have a label; None without any."""
    pairs = [(label, guess) for label, guess in zip(labels, predicted, strict=True) if label is not None]
    if not pairs:
        return None
    names = run.config.classes
    table = confusion_table(np.array([one for one, _ in pairs]), np.array([one for _, one in pairs]), len(names))
    return {
        "n": len(pairs), "classes": list(names), **over_classes(table), "per_class": by_class(table, names),
        "confusion": table.tolist(),
    }  # fmt: skip


def infer_texts(run: OpenRun, file: Path, output: Path, limit: int | None, compare_base: bool, say: Say) -> None:
    """The class of every text of a table, with its probabilities, and metrics by class where the table has labels.

    Writes `lora_predictions.jsonl` (and `base_predictions.jsonl`) and `metrics_summary.json`. A row without text is
    there too, without a class.

    Args:
        run: the opened run.
        file: CSV, TSV, JSONL or Parquet, or `test_raw.jsonl` of a dataset folder.
        output: the folder to write.
        limit: at most this many rows.
        compare_base: ask the untuned model too.
        say: prints one line.

    Raises:
        DataError: the file is unreadable, has no column of texts, no text, or a label that is none of the classes.
    """
    table = open_table(file)
    text = text_column(run.config, table, _NAMES)
    given = run.config.label_column
    label = next((name for name in (given, "label") if name is not None and name in table.names and name != text), None)
    rows = rows_of(table, [text, *([label] if label else [])])
    rows = rows.head(limit) if limit is not None else rows
    texts, labels = as_lines(rows["field_0"]).to_list(), _labels(run, table, rows, label)
    asked = [at for at, one in enumerate(texts) if one is not None]
    if not asked:
        raise DataError(f"{file}: no row has a text in {text!r}")
    if len(asked) < len(texts):
        say(f"{file.name}: {len(texts) - len(asked):,} of {len(texts):,} rows have no text, and so no class")
    output.mkdir(parents=True, exist_ok=True)
    names, summary = run.config.classes, {}
    for which, name in ((UNTUNED, "base"), (TUNED, "lora")) if compare_base else ((TUNED, "lora"),):
        found, predicted = class_probabilities(run, [texts[at] for at in asked], which)
        lines: list[dict[str, Any]] = [
            {"line": line, "text": one, "label": None if of is None else names[of], "prediction": None}
            for line, one, of in zip(rows[LINE].to_list(), texts, labels, strict=True)
        ]
        for at, shares, guess in zip(asked, found.tolist(), predicted.tolist(), strict=True):
            lines[at] |= {"prediction": names[guess], "probabilities": dict(zip(names, shares, strict=True))}
        written = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_text(output / f"{name}_predictions.jsonl", written)
        metrics = _metrics(run, [labels[at] for at in asked], predicted.tolist())
        if metrics is not None:
            summary[name] = metrics
            recalls = ", ".join(f"{one} {values['recall']:.3f}" for one, values in metrics["per_class"].items())
            say(f"{name}: macro F1 {metrics['macro_f1']:.3f} on {metrics['n']:,} labelled texts; recall: {recalls}")
    write_json(output / "metrics_summary.json", summary)
    say(f"written: {output} ({len(asked):,} texts)")
