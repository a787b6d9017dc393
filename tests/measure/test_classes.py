"""Metrics by class against scikit-learn, and the balanced draw."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import (
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
    roc_auc_score,
)

from rectune.measure.classes import (
    balanced_rows,
    by_class,
    class_metrics,
    confusion_table,
    drawn_tables,
    log_softmax,
    macro_f1,
    over_classes,
)

PAIRS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60)


@given(PAIRS)
def test_tables_and_what_is_made_of_them_are_those_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    labels, predicted = np.array(pairs).T
    table = confusion_table(labels, predicted, 4)
    assert table.tolist() == confusion_matrix(labels, predicted, labels=range(4)).tolist()
    wanted = precision_recall_fscore_support(labels, predicted, labels=range(4), zero_division=0)
    found = by_class(table, list("abcd"))
    for at, name in enumerate("abcd"):
        got = [found[name][key] for key in ("precision", "recall", "f1", "rows")]
        assert got == pytest.approx([column[at] for column in wanted])
    means = over_classes(table)
    assert means["accuracy"] == pytest.approx((labels == predicted).mean())
    assert means["macro_f1"] == pytest.approx(
        f1_score(labels, predicted, labels=range(4), average="macro", zero_division=0)
    )
    with np.errstate(all="ignore"):
        assert means["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert macro_f1(table[None])[0] == pytest.approx(means["macro_f1"])


def test_the_most_probable_class_is_measured() -> None:
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 3, 80)
    log_p = log_softmax(draw.normal(size=(80, 3)) + 1.5 * np.eye(3)[labels])
    assert np.exp(log_p).sum(axis=1) == pytest.approx(np.ones(80))
    found = class_metrics(labels, log_p)
    assert found["loss"] == pytest.approx(log_loss(labels, np.exp(log_p)))
    assert found["auc"] == pytest.approx(roc_auc_score(labels, np.exp(log_p), multi_class="ovr"))
    assert found["accuracy"] == pytest.approx((labels == log_p.argmax(axis=1)).mean())


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="must be finite"):
        class_metrics(np.array([0]), np.array([[np.nan, 0.0]]))
    with pytest.raises(ValueError, match="0 labels"):
        class_metrics(np.array([]), np.empty((0, 2)))


@given(st.lists(st.integers(0, 2), min_size=1, max_size=60), st.integers(0, 5))
def test_a_balanced_draw_has_as_many_of_every_class_that_is_there(labels: list[int], seed: int) -> None:
    found = balanced_rows(np.array(labels), 3, seed)
    counts = np.bincount(np.array(labels)[found], minlength=3)
    there = np.bincount(labels, minlength=3)
    assert set(counts[there > 0]) == {there[there > 0].min()} and not counts[there == 0].any()
    assert len(set(found.tolist())) == len(found) and (np.diff(found) > 0).all()
    assert found.tolist() == balanced_rows(np.array(labels), 3, seed).tolist()


def test_tables_are_drawn_by_user() -> None:
    labels, predicted, users = np.array([0, 0, 1]), np.array([0, 0, 0]), np.array([0, 0, 1])
    tables = drawn_tables(labels, predicted, users, 2, draws=300, seed=0)
    # Two users: each draw holds one of them twice, or both once; the first one's two rows always come together.
    kinds = {tuple(table.ravel().astype(int).tolist()) for table in tables}
    assert kinds == {(4, 0, 0, 0), (2, 0, 1, 0), (0, 0, 2, 0)}
