"""Metrics by class, for two classes or more: what a mean over all rows hides where one class is rare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rectune.measure.classification import auc

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


def confusion_table(labels: Array, predicted: Array, classes: int) -> npt.NDArray[np.int64]:
    """Rows by class and prediction, [classes, classes], the true class down.

    >>> confusion_table(np.array([0, 1, 1]), np.array([0, 0, 1]), 2).tolist()
    [[1, 0], [1, 1]]
    """
    cell = np.asarray(labels, dtype=np.int64) * classes + np.asarray(predicted, dtype=np.int64)
    return np.bincount(cell, minlength=classes * classes).reshape(classes, classes).astype(np.int64)


def by_class(table: npt.NDArray[np.int64], names: Sequence[str]) -> dict[str, dict[str, float | int]]:
    """Precision, recall and F1 of each class and how many rows it has; 0 where nothing is to be divided by.

    >>> by_class(np.array([[1, 0], [1, 1]]), ["a", "b"])["b"]
    {'precision': 1.0, 'recall': 0.5, 'f1': 0.6666666666666666, 'rows': 2}
    """
    found: dict[str, dict[str, float | int]] = {}
    for at, name in enumerate(names):
        hits, said, there = int(table[at, at]), int(table[:, at].sum()), int(table[at].sum())
        found[name] = {
            "precision": hits / max(said, 1),
            "recall": hits / max(there, 1),
            "f1": 2 * hits / max(said + there, 1),
            "rows": there,
        }
    return found


def over_classes(table: npt.NDArray[np.int64]) -> dict[str, float]:
    """Accuracy, and the plain means over classes of F1 (macro F1) and of recall (balanced accuracy).

    A class without rows counts in neither mean of its own accord: its recall is left out of balanced accuracy, as
    scikit-learn does, and its F1 is 0.

    >>> over_classes(np.array([[8, 0], [1, 1]]))
    {'accuracy': 0.9, 'macro_f1': 0.803921568627451, 'balanced_accuracy': 0.75}
    """
    there = table.sum(axis=1)
    each = by_class(table, [str(at) for at in range(len(table))])
    recalls = [each[str(at)]["recall"] for at in range(len(table)) if there[at]]
    return {
        "accuracy": float(np.trace(table) / max(int(table.sum()), 1)),
        "macro_f1": float(np.mean([one["f1"] for one in each.values()])),
        "balanced_accuracy": float(np.mean(recalls)),
    }


def drawn_tables(
    labels: Array, predicted: Array, users: Array, classes: int, draws: int, seed: int
) -> npt.NDArray[np.float64]:
    """Confusion tables of whole users drawn with replacement, [draws, classes, classes].

    Args:
        labels, predicted: [n].
        users: [n]; each row's user as a number 0 .. users - 1. The same users and seed give the same draws.
        classes: how many there are.
        draws, seed: of the bootstrap.
    """
    from rectune.measure.bootstrap import draw_counts

    count = int(users.max()) + 1
    cell = np.asarray(users) * classes**2 + np.asarray(labels) * classes + np.asarray(predicted)
    per_user = np.bincount(cell, minlength=count * classes**2).reshape(count, classes**2)
    parts = [counts @ per_user for counts in draw_counts(count, draws, seed, 100)]
    return np.concatenate(parts).reshape(-1, classes, classes)


def macro_f1(tables: npt.NDArray[Any]) -> Floats:
    """Mean F1 over the classes of each table, [tables]; 0 for a class that is neither there nor predicted.

    >>> macro_f1(np.array([[[8, 0], [1, 1]]])).round(4).tolist()
    [0.8039]
    """
    hits = np.einsum("tcc->tc", tables)
    found: Floats = (2 * hits / np.maximum(tables.sum(axis=1) + tables.sum(axis=2), 1)).mean(axis=1)
    return found


def balanced_rows(labels: Array, classes: int, seed: int) -> npt.NDArray[np.int64]:
    """Indices of as many rows of every class as the rarest one has, drawn with the seed, ascending.

    A class without rows is left out.

    >>> balanced_rows(np.array([1, 0, 0, 0]), 2, seed=0).tolist()[0]
    0
    """
    draw = np.random.default_rng(seed)
    groups = [np.flatnonzero(np.asarray(labels) == label) for label in range(classes)]
    size = min((len(group) for group in groups if len(group)), default=0)
    chosen = [draw.permutation(group)[:size] for group in groups]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def log_softmax(logits: Array) -> Floats:
    """Log-probabilities of logits, [n, classes]."""
    logits = np.asarray(logits, dtype=np.float64)
    top = logits - logits.max(axis=1, keepdims=True)
    found: Floats = top - np.log(np.exp(top).sum(axis=1, keepdims=True))
    return found


def class_metrics(labels: Array, log_probabilities: Array) -> dict[str, float | int | None]:
    """Metrics of the most probable class: loss (nats), those of `over_classes`, auc (one class against the rest, then
    the mean over the classes that have rows of both kinds) and n.

    Args:
        labels: [n] of 0 .. classes - 1.
        log_probabilities: [n, classes].

    Raises:
        ValueError: no rows, or values that are not finite.
    """
    labels, found = np.asarray(labels, dtype=np.int64), np.asarray(log_probabilities, dtype=np.float64)
    if not len(labels) or len(labels) != len(found) or not np.isfinite(found).all():
        raise ValueError(f"got {len(labels)} labels and {len(found)} rows of log-probabilities, which must be finite")
    areas = [auc((labels == at).astype(np.int64), found[:, at]) for at in range(found.shape[1])]
    known = [area for area in areas if area is not None]
    return {
        "loss": float(-found[np.arange(len(labels)), labels].mean()),
        **over_classes(confusion_table(labels, found.argmax(axis=1), found.shape[1])),
        "auc": float(np.mean(known)) if known else None,
        "n": len(labels),
    }
