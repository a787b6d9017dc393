"""Biased matrix factorisation whose users are worked out from their history, so that a new event counts at once.

label = mean + item bias + user bias + user factors . item factors, fitted by alternating least squares with a ridge
penalty. Given the items' side, a user's side is a ridge regression on their history: it needs no training, and at any
moment it uses what is known at that moment.

Source: Koren, Bell and Volinsky, "Matrix factorization techniques for recommender systems", IEEE Computer 42(8), 2009
(biased model, equation 4); alternating least squares as in Zhou et al., "Large-scale parallel collaborative filtering
for the Netflix prize", AAIM 2008.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rectune.baselines.questions import Floats, Ints, Log, Questions

ROUNDS = 8
"""Of alternating least squares; validation AUC does not change any more in the third digit from five on."""
_BLOCK = 4096
"""Systems that are solved at once."""


@dataclass(frozen=True)
class Factors:
    """The items' side of a fitted model.

    Attributes:
        mean: mean label of the events fitted on.
        bias: float64 [items + 1]; 0 for items without events, the last one being an item that is in no catalog.
        factors: float64 [items + 1, rank]; likewise.
        ridge: float64 [rank + 1]; penalty of the user's bias and of each of their factors.
    """

    mean: float
    bias: Floats
    factors: Floats
    ridge: Floats


def _solve(inputs: Floats, target: Floats, group: Ints, groups: int, ridge: Floats) -> Floats:
    """Ridge regressions of many groups at once.

    Args:
        inputs: [rows, columns].
        target: [rows].
        group: [rows]; 0 .. groups - 1, ascending.
        groups: how many.
        ridge: [columns].

    Returns:
        Coefficients [groups, columns]; 0 where a group has no rows.
    """
    found = np.zeros((groups, inputs.shape[1]))
    edges = np.searchsorted(group, np.arange(groups + 1))
    penalty = np.diag(ridge)
    for one in np.flatnonzero(np.diff(edges)):
        rows = slice(edges[one], edges[one + 1])
        x = inputs[rows]
        found[one] = np.linalg.solve(x.T @ x + penalty, x.T @ target[rows])
    return found


def fit_factors(
    log: Log, use: npt.NDArray[np.bool_], rank: int, penalty: float, bias_penalty: float = 3.0, seed: int = 0
) -> Factors:
    """Fit the model on some events.

    Args:
        log: all events.
        use: bool [events]; those to fit on.
        rank: number of factors.
        penalty: of a factor's square, in units of one event's squared error.
        bias_penalty: of a bias's square.
        seed: where the items' factors start.

    Raises:
        ValueError: no event is used.
    """
    rows = np.flatnonzero(use)
    if not len(rows):
        raise ValueError("use: no event to fit on")
    user, item, label = log.user[rows], log.item[rows], log.label[rows]
    places = len(log.items) + 1
    mean = float(label.mean())
    ridge = np.array([bias_penalty] + [penalty] * rank)
    by_item = np.argsort(item, kind="stable")
    bias, factors = np.zeros(places), np.random.default_rng(seed).normal(0.0, 0.1, (places, rank))
    for _ in range(ROUNDS):
        ones = np.ones((len(rows), 1))
        of_users = _solve(np.hstack([ones, factors[item]]), label - mean - bias[item], user, log.users, ridge)
        mine = of_users[user]
        inputs = np.hstack([ones, mine[:, 1:]])[by_item]
        of_items = _solve(inputs, (label - mean - mine[:, 0])[by_item], item[by_item], places, ridge)
        bias, factors = of_items[:, 0].copy(), of_items[:, 1:].copy()
    return Factors(mean, bias, factors, ridge)


@dataclass(frozen=True)
class Folded:
    """What a model with folded-in users says.

    Attributes:
        score: float64 [n]; expected label, which may lie outside 0 .. 1.
        user_bias: float64 [n]; the user's part that is the same for all items.
        taste: float64 [n]; user factors . item factors.
    """

    score: Floats
    user_bias: Floats
    taste: Floats


def fold_in(model: Factors, log: Log, asked: Questions) -> Folded:
    """Scores of questions, each with the user's side worked out from the history that the question knows.

    A user's histories grow by a few events from question to question, so sums of squares are carried on.
    """
    order = np.lexsort((asked.stops, log.user[asked.rows]))
    rows, stops = asked.rows[order], asked.stops[order]
    user, item = log.user[rows], log.item[rows]
    width = model.factors.shape[1] + 1
    shown = np.hstack([np.ones((len(model.bias), 1)), model.factors])
    left = log.label - model.mean - model.bias[log.item]
    is_new = np.ones(len(rows), dtype=bool)
    is_new[1:] = (user[1:] != user[:-1]) | (stops[1:] != stops[:-1])
    new = np.flatnonzero(is_new)
    solved = np.empty((len(new), width))
    products, sums = np.empty((min(_BLOCK, len(new)), width, width)), np.empty((min(_BLOCK, len(new)), width))
    at, current, square, cross = 0, -1, np.diag(model.ridge), np.zeros(width)
    for number, place in enumerate(new):
        if user[place] != current:
            current, at = user[place], int(log.first[rows[place]])
            square, cross = np.diag(model.ridge), np.zeros(width)
        if stops[place] > at:
            events = slice(at, int(stops[place]))
            x = shown[log.item[events]]
            square, cross, at = square + x.T @ x, cross + x.T @ left[events], events.stop
        slot = number % _BLOCK
        products[slot], sums[slot] = square, cross
        if slot == _BLOCK - 1 or number == len(new) - 1:
            begin = number - slot
            solved[begin : number + 1] = np.linalg.solve(products[: slot + 1], sums[: slot + 1, :, None])[..., 0]
    mine = solved[np.cumsum(is_new) - 1] if len(rows) else solved
    taste = np.einsum("nk,nk->n", mine[:, 1:], model.factors[item])
    back = np.argsort(order, kind="stable")
    score = model.mean + model.bias[item] + mine[:, 0] + taste
    return Folded(score[back], mine[back, 0], taste[back])
