"""Neighbours against a dense adjusted cosine with shrinkage, tastes against loops; held-out labels are not seen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from scipy.sparse import csr_matrix
from synthetic import ITEMS, Row, and_known, leaks, log_of, small_rows, tastes

from rectune.baselines import neighbours as n
from rectune.baselines.neighbours import Neighbours, fit_neighbours, taste_by_neighbours
from rectune.baselines.questions import FROZEN, ONLINE, Floats, Log, Questions, ask
from rectune.measure.classification import auc

ROUNDING = 1e-12
"""The user's own mean is a difference of sums over the whole log, so other users' labels move its last digits."""


def dense(log: Log, use: Floats, shrink: float) -> tuple[float, Floats, Floats]:
    """Mean, biases and all similarities; for logs in which no user meets an item twice."""
    events = [event for event in range(len(log.user)) if use[event]]
    places, mean = len(log.items) + 1, float(np.mean([log.label[event] for event in events]))
    bias = np.zeros(places)
    for item in range(places):
        mine = [log.label[event] - mean for event in events if log.item[event] == item]
        bias[item] = sum(mine) / (len(mine) + 5)
    table = np.full((log.users, places), np.nan)
    for event in events:
        table[log.user[event], log.item[event]] = log.label[event] - mean - bias[log.item[event]]
    for user in range(log.users):
        there = ~np.isnan(table[user])
        table[user] -= table[user, there].sum() / (there.sum() + 5)
    similar = np.zeros((places, places))
    for one in range(places):
        for other in range(places):
            both = ~np.isnan(table[:, one]) & ~np.isnan(table[:, other])
            if one != other and both.any():
                a, b = table[both, one], table[both, other]
                cosine = a @ b / np.sqrt((a @ a) * (b @ b))
                similar[one, other] = cosine * both.sum() / (both.sum() + shrink)
    return mean, bias, similar


@pytest.mark.parametrize("shrink", [2.0, 50.0])
def test_similarities_are_a_dense_adjusted_cosine_with_shrinkage(shrink: float) -> None:
    log = log_of(tastes(users=15, items=12, each=8, seed=3), 13)
    found = fit_neighbours(log, log.known, shrink)
    mean, bias, similar = dense(log, log.known, shrink)
    assert found.mean == pytest.approx(mean)
    np.testing.assert_allclose(found.bias, bias, atol=1e-12)
    np.testing.assert_allclose(found.similar.toarray(), similar, atol=1e-6)  # kept as float32
    assert not found.similar.diagonal().any()
    # Item 12 and the one that is in no catalog have no events.
    assert not found.bias[12:].any() and not similar[12:].any()


def test_a_similarity_is_as_worked_out_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    # Without pull to the mean: a and b have items 0 and 1 as (like, dislike) and (dislike, like), and the mean is 1/2,
    # as are items' and users' means. So left are +-1/2, cosine -1, carried by two users: -2 / (2 + 3).
    monkeypatch.setattr(n, "_MEAN_STRENGTH", 0.0)
    rows = [("a", "0", 1, 1), ("a", "1", 2, 0), ("b", "0", 1, 0), ("b", "1", 2, 1)]
    log = log_of(rows, 2)
    with np.errstate(invalid="ignore"):  # 0 / 0 is the mean of the item without events
        found = fit_neighbours(log, np.ones(4, dtype=bool), 3.0)
    np.testing.assert_allclose(found.similar.toarray()[:2, :2], [[0, -0.4], [-0.4, 0]])


def test_only_the_strongest_neighbours_are_kept_whatever_the_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    # Enough users for no two neighbours to be alike, as those with one user in common are.
    log = log_of(tastes(users=60, items=12, each=8, seed=3), 12)
    similar = dense(log, log.known, 20.0)[2]
    monkeypatch.setattr(n, "KEPT", 4)
    found = fit_neighbours(log, log.known, 20.0).similar.toarray()
    fourth = -np.sort(-np.abs(similar), axis=1)[:, 3:4]
    kept = (np.abs(similar) >= fourth) & (similar != 0)
    assert kept.sum(axis=1).tolist() == [*[4] * 12, 0] and (similar[kept] < 0).any()
    np.testing.assert_allclose(found, np.where(kept, similar, 0.0), atol=1e-6)


def test_the_number_of_items_worked_out_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    log = log_of(tastes(users=15, items=12, each=8), 12)
    expected = fit_neighbours(log, log.known, 20.0).similar.toarray()
    for block in (1, 5, 13):
        monkeypatch.setattr(n, "_BLOCK", block)
        np.testing.assert_allclose(fit_neighbours(log, log.known, 20.0).similar.toarray(), expected, atol=1e-7)


def made_up() -> Neighbours:
    draw = np.random.default_rng(0)
    similar = draw.normal(0.0, 0.3, (ITEMS + 1, ITEMS + 1)).astype(np.float32)
    similar[ITEMS], similar[:, ITEMS], similar[0, 2:] = 0.0, 0.0, 0.0
    np.fill_diagonal(similar, 0.0)
    return Neighbours(0.6, np.append(draw.normal(0.0, 0.2, ITEMS), 0.0), csr_matrix(similar))


def test_a_taste_is_as_worked_out_by_hand() -> None:
    # History: item 0 liked, item 1 disliked, left +0.4 and -0.4 beside biases 0.1 and -0.1 and the mean 0.5; the
    # user's own mean is 0 / (2 + 5). Item 2 is like them by 0.5 and -0.25.
    similar = csr_matrix(
        np.array([[0, 0, 0.5, 0], [0, 0, -0.25, 0], [0.5, -0.25, 0, 0], [0, 0, 0, 0]], dtype=np.float32)
    )
    model = Neighbours(0.5, np.array([0.1, -0.1, 0.0, 0.0]), similar)
    log = log_of([("a", "0", 1, 1), ("a", "1", 2, 0), ("a", "2", 3, 1)], 3)
    found = taste_by_neighbours(model, log, ask(log, np.arange(3), ONLINE), 1.0)
    np.testing.assert_allclose(found, [0, 0, (0.5 * 0.4 + 0.25 * 0.4) / (0.75 + 1)], atol=1e-15)
    careful = taste_by_neighbours(model, log, ask(log, np.arange(3), ONLINE), 5.0)
    np.testing.assert_allclose(careful[2], 0.3 / 5.75)


def by_loops(model: Neighbours, log: Log, row: int, stop: int, caution: float) -> float:
    history = range(log.first[row], stop)
    left = [log.label[event] - model.mean - model.bias[log.item[event]] for event in history]
    own = sum(left) / (len(left) + 5)
    weights = [float(model.similar[log.item[row], log.item[event]]) for event in history]
    above = sum(weight * (each - own) for weight, each in zip(weights, left, strict=True))
    return above / (sum(abs(weight) for weight in weights) + caution)


@given(rows=small_rows())
@settings(max_examples=40, deadline=None)
def test_tastes_are_those_of_loops_over_the_history(rows: list[Row]) -> None:
    log, model = log_of(rows, ITEMS), made_up()
    for protocol in (ONLINE, FROZEN):
        asked = ask(log, np.arange(len(log.user)), protocol)
        for caution in (1.0, 5.0):
            found = taste_by_neighbours(model, log, asked, caution)
            expected = [by_loops(model, log, *each, caution) for each in zip(asked.rows, asked.stops, strict=True)]
            np.testing.assert_allclose(found, expected, atol=1e-7)  # weights are float32


@given(rows=small_rows())
@settings(max_examples=30, deadline=None)
def test_no_taste_changes_with_a_label_that_its_question_may_not_see(rows: list[Row]) -> None:
    log, model = log_of(rows, ITEMS), made_up()

    def taste(log: Log, asked: Questions) -> Floats:
        return taste_by_neighbours(model, log, asked)

    for protocol in (ONLINE, FROZEN):
        assert leaks(taste, log, np.arange(len(log.user)), protocol, within=ROUNDING) == []


def test_neighbours_of_training_see_no_held_out_label_and_a_history_that_holds_the_event_is_caught() -> None:
    log = log_of(tastes(users=6, items=ITEMS, each=5, seed=2), ITEMS)
    held_out = np.flatnonzero(~log.known)

    def fitted(log: Log, asked: Questions) -> Floats:
        return taste_by_neighbours(fit_neighbours(log, log.known, 5.0), log, asked)

    def of_all(log: Log, asked: Questions) -> Floats:
        return taste_by_neighbours(fit_neighbours(log, np.ones(len(log.user), dtype=bool), 5.0), log, asked)

    def with_itself(log: Log, asked: Questions) -> Floats:
        return fitted(log, Questions(asked.rows, asked.rows + 1))

    for protocol in (ONLINE, FROZEN):
        assert leaks(fitted, log, held_out, protocol, and_known, ROUNDING) == []
        for leaky in (of_all, with_itself):
            found = leaks(leaky, log, held_out, protocol, and_known, ROUNDING)
            # An event that no neighbour of its user's history is near stays unmoved.
            assert len({(row, row) for row in held_out} & set(found)) > len(held_out) / 2


def test_unknown_items_and_empty_histories_and_no_questions_have_no_taste() -> None:
    log, model = log_of([("a", "0", 1, 1), ("a", "1", 2, 1)], ITEMS), made_up()
    unknown = replace(log, item=np.array([ITEMS, ITEMS]))
    assert taste_by_neighbours(model, unknown, ask(log, np.arange(2), ONLINE)).tolist() == [0, 0]
    empty = np.empty(0, dtype=np.int64)
    assert len(taste_by_neighbours(model, log, Questions(empty, empty))) == 0
    with pytest.raises(ValueError, match="use: no event to fit on"):
        fit_neighbours(log, np.zeros(2, dtype=bool), 5.0)


def test_tastes_of_made_up_users_are_found() -> None:
    log = log_of(tastes(), 40, 5)
    rows = np.flatnonzero(~log.known)
    found = taste_by_neighbours(fit_neighbours(log, log.known, 20.0), log, ask(log, rows, ONLINE))
    assert (auc(log.label[rows], found) or 0) > 0.65
