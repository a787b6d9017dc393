"""Factorisation against a plain alternating least squares, and folded-in users against ridge regressions one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import ITEMS, Row, and_known, flip, leaks, log_of, small_rows, tastes

from rectune.baselines import factors as f
from rectune.baselines.factors import Factors, fit_factors, fold_in
from rectune.baselines.questions import FROZEN, ONLINE, Floats, Log, Questions, ask
from rectune.measure.classification import auc

RANK = 3


def ridge_regression(inputs: Floats, target: Floats, ridge: Floats) -> Floats:
    """By least squares of the rows and one row per penalty, not by the normal equations."""
    rows = np.vstack([inputs, np.diag(np.sqrt(ridge))])
    return np.linalg.lstsq(rows, np.append(target, np.zeros(len(ridge))), rcond=None)[0]


def plain_fit(
    log: Log, use: Floats, rank: int, penalty: float, bias_penalty: float, seed: int
) -> tuple[Floats, Floats]:
    events = [event for event in range(len(log.user)) if use[event]]
    places, mean = len(log.items) + 1, float(np.mean([log.label[event] for event in events]))
    ridge = np.array([bias_penalty] + [penalty] * rank)
    bias, factors = np.zeros(places), np.random.default_rng(seed).normal(0.0, 0.1, (places, rank))
    of_users = np.zeros((log.users, 1 + rank))
    for _ in range(f.ROUNDS):
        for user in range(log.users):
            mine = [event for event in events if log.user[event] == user]
            inputs = np.array([[1.0, *factors[log.item[event]]] for event in mine]).reshape(-1, 1 + rank)
            target = np.array([log.label[event] - mean - bias[log.item[event]] for event in mine])
            of_users[user] = ridge_regression(inputs, target, ridge)
        bias, factors = bias.copy(), factors.copy()
        for item in range(places):
            mine = [event for event in events if log.item[event] == item]
            inputs = np.array([[1.0, *of_users[log.user[event], 1:]] for event in mine]).reshape(-1, 1 + rank)
            target = np.array([log.label[event] - mean - of_users[log.user[event], 0] for event in mine])
            found = ridge_regression(inputs, target, ridge)
            bias[item], factors[item] = found[0], found[1:]
    return bias, factors


def test_biases_of_one_round_are_as_worked_out_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f, "ROUNDS", 1)
    # a likes 0 and 1, b dislikes 0: the mean is 2/3. a is (1/3 + 1/3) / (2 + 3) above it, b (-2/3) / (1 + 3).
    log = log_of([("a", "0", 1, 1), ("a", "1", 2, 1), ("b", "0", 1, 0), ("b", "2", 2, 0)], ITEMS)
    found = fit_factors(log, np.array([True, True, True, False]), 0, 1.0)
    assert found.mean == pytest.approx(2 / 3) and found.factors.shape == (ITEMS + 1, 0)
    item_0 = ((1 / 3 - 2 / 15) + (-2 / 3 + 1 / 6)) / (2 + 3)
    np.testing.assert_allclose(found.bias, [item_0, (1 / 3 - 2 / 15) / (1 + 3), 0, 0, 0, 0], atol=1e-15)


def test_a_fit_is_that_of_a_plain_alternating_least_squares() -> None:
    log = log_of(tastes(users=12, items=9, each=7, seed=1), 9)
    found = fit_factors(log, log.known, RANK, 2.0, 1.5, seed=4)
    bias, factors = plain_fit(log, log.known, RANK, 2.0, 1.5, 4)
    np.testing.assert_allclose(found.bias, bias, atol=1e-9)
    np.testing.assert_allclose(found.factors, factors, atol=1e-9)
    assert found.ridge.tolist() == [1.5, 2.0, 2.0, 2.0]


def test_items_without_events_and_the_unknown_item_have_nothing() -> None:
    log = log_of(tastes(users=6, items=9, each=5), 12)
    found = fit_factors(log, log.known, RANK, 2.0)
    assert not found.bias[9:].any() and not found.factors[9:].any()


def made_up(seed: int = 0, rank: int = RANK) -> Factors:
    draw = np.random.default_rng(seed)
    bias, factors = draw.normal(0.0, 0.2, ITEMS + 1), draw.normal(size=(ITEMS + 1, rank))
    return Factors(0.6, bias, factors, np.array([3.0] + [2.0] * rank))


def test_a_folded_in_user_is_as_worked_out_by_hand() -> None:
    # One factor. History: item 0 (bias 0.1, factor 1) liked; asked: item 1 (bias -0.2, factor 2). The rest of the
    # like is 1 - 0.5 - 0.1 = 0.4, so (1 + 1) u + 1 v = 0.4 and 1 u + (1 + 3) v = 0.4: u = 1.2 / 7, v = 0.4 / 7.
    model = Factors(
        0.5, np.array([0.1, -0.2, 0, 0, 0, 0]), np.array([[1.0], [2], [0], [0], [0], [0]]), np.array([1.0, 3])
    )
    log = log_of([("a", "0", 1, 1), ("a", "1", 2, 0)], ITEMS)
    found = fold_in(model, log, ask(log, np.arange(2), ONLINE))
    np.testing.assert_allclose(found.user_bias, [0, 1.2 / 7])
    np.testing.assert_allclose(found.taste, [0, 2 * 0.4 / 7])
    np.testing.assert_allclose(found.score, [0.6, 0.5 - 0.2 + 1.2 / 7 + 0.8 / 7])


def by_regressions(model: Factors, log: Log, asked: Questions) -> Floats:
    """Score, user bias and taste [n, 3], each from the raw history of its question."""
    found = []
    for row, stop in zip(asked.rows, asked.stops, strict=True):
        history = range(log.first[row], stop)
        inputs = np.array([[1.0, *model.factors[log.item[event]]] for event in history]).reshape(-1, len(model.ridge))
        target = np.array([log.label[event] - model.mean - model.bias[log.item[event]] for event in history])
        user = ridge_regression(inputs, target, model.ridge)
        taste = user[1:] @ model.factors[log.item[row]]
        found.append([model.mean + model.bias[log.item[row]] + user[0] + taste, user[0], taste])
    return np.array(found).reshape(-1, 3)


@given(rows=small_rows(), data=st.data())
@settings(max_examples=40, deadline=None)
def test_folded_in_users_are_the_ridge_regressions_of_their_histories(rows: list[Row], data: st.DataObject) -> None:
    log, model = log_of(rows, ITEMS), made_up()
    # Any questions, in any order and more than once.
    chosen = np.array(data.draw(st.lists(st.integers(0, len(log.user) - 1), max_size=12)), dtype=np.int64)
    every = np.arange(len(log.user))
    for asked in (ask(log, every, ONLINE), ask(log, every, FROZEN), Questions(chosen, log.stop[chosen])):
        found = fold_in(model, log, asked)
        together = np.column_stack([found.score, found.user_bias, found.taste])
        np.testing.assert_allclose(together, by_regressions(model, log, asked), atol=1e-10)


def test_an_item_that_the_catalog_does_not_hold_is_scored_with_what_is_known_of_the_user() -> None:
    log = log_of([("a", "0", 1, 1), ("a", "1", 2, 1), ("a", "2", 3, 1)], ITEMS)
    fitted = fit_factors(log, np.ones(3, dtype=bool), RANK, 2.0)
    unknown = replace(log, item=np.array([0, ITEMS, ITEMS]))
    found = fold_in(fitted, unknown, ask(unknown, np.arange(3), ONLINE))
    assert found.taste[1:].tolist() == [0, 0]
    np.testing.assert_allclose(found.score[1:], fitted.mean + found.user_bias[1:])


def test_the_number_of_systems_solved_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    log = log_of(tastes(users=9, items=ITEMS, each=5), ITEMS)
    asked = ask(log, np.arange(len(log.user)), ONLINE)
    expected = fold_in(made_up(), log, asked)
    for block in (1, 3, 5):
        monkeypatch.setattr(f, "_BLOCK", block)
        np.testing.assert_array_equal(fold_in(made_up(), log, asked).score, expected.score)


def test_no_question_gives_no_score_and_no_event_is_an_error() -> None:
    log = log_of([("a", "0", 1, 1), ("a", "1", 2, 0)], ITEMS)
    empty = np.empty(0, dtype=np.int64)
    assert [len(each) for each in vars(fold_in(made_up(), log, Questions(empty, empty))).values()] == [0, 0, 0]
    with pytest.raises(ValueError, match="use: no event to fit on"):
        fit_factors(log, np.zeros(2, dtype=bool), RANK, 2.0)


@given(rows=small_rows())
@settings(max_examples=30, deadline=None)
def test_no_folded_in_score_changes_with_a_label_that_its_question_may_not_see(rows: list[Row]) -> None:
    log, model = log_of(rows, ITEMS), made_up()

    def folded(log: Log, asked: Questions) -> Floats:
        return np.column_stack(list(vars(fold_in(model, log, asked)).values()))

    for protocol in (ONLINE, FROZEN):
        assert leaks(folded, log, np.arange(len(log.user)), protocol) == []


def test_a_model_fitted_on_training_scores_held_out_events_without_their_labels_and_one_fitted_on_all_is_caught() -> (
    None
):
    log = log_of(tastes(users=5, items=ITEMS, each=5, seed=2), ITEMS)
    held_out = np.flatnonzero(~log.known)

    def fitted(log: Log, asked: Questions) -> Floats:
        return fold_in(fit_factors(log, log.known, RANK, 2.0), log, asked).score

    def leaky(log: Log, asked: Questions) -> Floats:
        return fold_in(fit_factors(log, np.ones(len(log.user), dtype=bool), RANK, 2.0), log, asked).score

    for protocol in (ONLINE, FROZEN):
        assert leaks(fitted, log, held_out, protocol, and_known) == []
        assert {(row, row) for row in held_out} <= set(leaks(leaky, log, held_out, protocol, and_known))


def test_the_same_seed_gives_the_same_fit_and_tastes_are_found() -> None:
    log = log_of(tastes(), 40, 5)
    model, again, other = (fit_factors(log, log.known, RANK, 2.0, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(model.factors, again.factors)
    assert not np.array_equal(model.factors, other.factors)
    rows = np.flatnonzero(~log.known)
    found = fold_in(model, log, ask(log, rows, ONLINE))
    without_taste = auc(log.label[rows], found.score - found.taste)
    assert (auc(log.label[rows], found.score) or 0) > (without_taste or 1) + 0.05
    # A new event counts at once: the user's own earlier labels move the score.
    moved = flip(log, np.flatnonzero((log.user == 0) & log.known))
    assert not np.allclose(fold_in(model, moved, ask(log, rows[:1], ONLINE)).score, found.score[:1])
