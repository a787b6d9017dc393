"""The baselines: what each one sees, what of it is tuned, and how it scores questions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rectune.baselines.boosting import boost, boosted_log_odds
from rectune.baselines.counts import (
    five_features,
    log_odds,
    rolling_features,
    rolling_item_rate,
    static_rate,
)
from rectune.baselines.factors import fit_factors, fold_in
from rectune.baselines.history_features import moving_average, user_rate
from rectune.baselines.neighbours import fit_neighbours, taste_by_neighbours
from rectune.baselines.questions import Floats, Log, Questions
from rectune.baselines.served import Served

Setting = Mapping[str, Any]
TRAINED = "training events of all users"
HISTORY = "the user's strictly earlier events"
ROLLING = "all users' strictly earlier events"


class Baseline(NamedTuple):
    """A simple model.

    Attributes:
        name: as reports call it.
        sees: whose labels it uses when it answers a question.
        settings: what is tried on validation; the first of equally good ones is taken.
        score: log, validation questions, all sets of questions, a setting and a seed → a score of each question in
            each set, float64, higher for likelier likes. It may be on any scale: see `fit`.
    """

    name: str
    sees: str
    settings: Sequence[Setting]
    score: Callable[[Log, Questions, Sequence[Questions], Setting, int], list[Floats]]


def _item_static(log: Log, asked: Questions) -> Floats:
    return log_odds(static_rate(log, log.known, log.item, len(log.items) + 1, asked).rate)


def _user_static(log: Log, asked: Questions) -> Floats:
    return log_odds(static_rate(log, log.known, log.user, log.users, asked).rate)


def _item_rolling(log: Log, asked: Questions) -> Floats:
    return log_odds(rolling_item_rate(log, asked).rate)


def _mean(log: Log) -> float:
    return float(log.label[log.known].mean())


def _user_rolling(log: Log, asked: Questions) -> Floats:
    return log_odds(user_rate(log, asked, _mean(log)))


def _each(
    score: Callable[[Log, Questions], Floats],
) -> Callable[[Log, Questions, Sequence[Questions], Setting, int], list[Floats]]:
    """A baseline with nothing to tune."""
    return lambda log, _held_out, asked, _setting, _seed: [score(log, each) for each in asked]


def _average(log: Log, _held_out: Questions, asked: Sequence[Questions], setting: Setting, _seed: int) -> list[Floats]:
    rates = [user_rate(log, each, _mean(log)) for each in asked]
    return [
        log_odds(moving_average(log, each, setting["length"], rate)) for each, rate in zip(asked, rates, strict=True)
    ]


def _factorised(
    log: Log, _held_out: Questions, asked: Sequence[Questions], setting: Setting, seed: int
) -> list[Floats]:
    model = fit_factors(log, log.known, setting["rank"], setting["penalty"], seed=seed)
    return [fold_in(model, log, each).score for each in asked]


def _by_neighbours(
    log: Log, _held_out: Questions, asked: Sequence[Questions], setting: Setting, _seed: int
) -> list[Floats]:
    model = fit_neighbours(log, log.known, setting["shrink"])
    found = []
    for each in asked:
        own = user_rate(log, each, model.mean) - model.mean
        taste = taste_by_neighbours(model, log, each, setting["caution"])
        found.append(model.mean + model.bias[log.item[each.rows]] + own + setting["weight"] * taste)
    return found


def _boosted(
    features: Callable[[Log, Questions], Floats],
) -> Callable[[Log, Questions, Sequence[Questions], Setting, int], list[Floats]]:
    def score(log: Log, held_out: Questions, asked: Sequence[Questions], setting: Setting, seed: int) -> list[Floats]:
        rows = np.flatnonzero(log.asked)
        train = features(log, Questions(rows, log.stop[rows]))
        watched = (features(log, held_out), log.label[held_out.rows])
        model = boost(train, log.label[rows], setting["leaves"], seed, watched)
        return [boosted_log_odds(model, features(log, each)) for each in asked]

    return score


BASELINES = (
    Baseline("item like-rate", TRAINED, [{}], _each(_item_static)),
    Baseline("user like-rate", "the user's training events", [{}], _each(_user_static)),
    Baseline(
        "item + user like-rate", f"{TRAINED}", [{}],
        _each(lambda log, asked: _item_static(log, asked) + _user_static(log, asked)),
    ),
    Baseline("item like-rate, rolling", ROLLING, [{}], _each(_item_rolling)),
    Baseline("user like-rate, rolling", HISTORY, [{}], _each(_user_rolling)),
    Baseline(
        "item + user like-rate, rolling", ROLLING, [{}],
        _each(lambda log, asked: _item_rolling(log, asked) + _user_rolling(log, asked)),
    ),
    Baseline("moving average", HISTORY, [{"length": length} for length in (10, 5, 20, 40)], _average),
    Baseline(
        "item-kNN", f"items: {TRAINED}; user: {HISTORY}",
        [
            {"shrink": shrink, "caution": caution, "weight": weight}
            for shrink in (100.0, 20.0, 300.0) for caution in (5.0, 2.0) for weight in (2.0, 3.0)
        ],
        _by_neighbours,
    ),
    Baseline(
        "matrix factorisation", f"items: {TRAINED}; user: {HISTORY}",
        [{"rank": rank, "penalty": penalty} for rank in (32, 16) for penalty in (8.0, 6.0, 12.0)], _factorised,
    ),
    Baseline("LightGBM, five rates", ROLLING, [{"leaves": leaves} for leaves in (15, 7, 31)], _boosted(five_features)),
    Baseline("LightGBM", ROLLING, [{"leaves": leaves} for leaves in (15, 7, 31)], _boosted(rolling_features)),
)  # fmt: skip


def of_served(name: str, served: Served) -> Baseline:
    """A fitted baseline that adapters are saved with; its setting was chosen when it was fitted."""
    return Baseline(
        name, f"items: {TRAINED}; user: {HISTORY}", [{}], _each(lambda log, asked: served.score(log, asked))
    )
