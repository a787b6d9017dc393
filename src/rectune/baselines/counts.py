"""Like-rates of items and users for questions: static from training, or rolling up to the moment of asking."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rectune.baselines.history_features import history_features, moving_average, user_rate
from rectune.baselines.questions import Floats, Ints, Log, Questions

STRENGTH = 5.0
"""How many events' worth of the mean like-rate each item and user starts with."""
_EDGE = 1e-6


@dataclass(frozen=True)
class Counted:
    """A smoothed like-rate and the number of events behind it, both float64 [n]."""

    rate: Floats
    count: Floats


def log_odds(rate: Floats) -> Floats:
    """log(rate / (1 - rate)), rates kept a millionth away from 0 and 1."""
    inside = np.clip(rate, _EDGE, 1 - _EDGE)
    found: Floats = np.log(inside) - np.log1p(-inside)
    return found


def static_rate(log: Log, use: npt.NDArray[np.bool_], key: Ints, size: int, asked: Questions) -> Counted:
    """Like-rate of each question's item or user among some events, at any time.

    Args:
        log: all events.
        use: bool [events]; those counted.
        key: int64 [events]; `log.item` or `log.user`.
        size: one more than the largest key.
        asked: the questions.
    """
    mean = float(log.label[use].mean())
    count = np.bincount(key[use], minlength=size).astype(np.float64)
    likes = np.bincount(key[use], weights=log.label[use], minlength=size)
    mine = key[asked.rows]
    return Counted((likes[mine] + STRENGTH * mean) / (count[mine] + STRENGTH), count[mine])


def asked_at(log: Log, asked: Questions) -> Ints:
    """When each question is asked: the moment at which its history ends, int64 [n]; nothing from then on is known."""
    return log.timestamp[asked.stops]


def rolling_item_rate(log: Log, asked: Questions) -> Counted:
    """Like-rate of each question's item among all users' events strictly before the question is asked.

    The mean that an item starts from is rolling too, and itself starts from one like and one dislike.
    """
    moments, moment = np.unique(log.timestamp, return_inverse=True)
    by_time = np.argsort(moment, kind="stable")
    likes = np.concatenate([[0.0], np.cumsum(log.label[by_time])])
    at = np.searchsorted(moments, asked_at(log, asked))
    before = np.searchsorted(moment[by_time], at)
    mean = (likes[before] + 1.0) / (before + 2.0)
    key = log.item * len(moments) + moment
    order = np.argsort(key, kind="stable")
    sums = np.concatenate([[0.0], np.cumsum(log.label[order])])
    item = log.item[asked.rows]
    first = np.searchsorted(key[order], item * len(moments))
    stop = np.searchsorted(key[order], item * len(moments) + at)
    count = (stop - first).astype(np.float64)
    return Counted((sums[stop] - sums[first] + STRENGTH * mean) / (count + STRENGTH), count)


def rolling_features(log: Log, asked: Questions) -> Floats:
    """What gradient boosting on rolling aggregates sees, float64 [n, features].

    Item rate and count; history length, user rate, genre affinity and count, moving averages; year; and the days
    since the user's last event. All of events strictly before the question is asked.
    """
    item = rolling_item_rate(log, asked)
    mean = float(log.label[log.known].mean())
    last = log.timestamp[np.maximum(asked.stops - 1, 0)]
    days = np.where(asked.stops > log.first[asked.rows], (asked_at(log, asked) - last) / 86_400, np.nan)
    counted = history_features(log, asked, mean)
    return np.column_stack([log_odds(item.rate), item.count, counted, log.year[log.item[asked.rows]], days])


def five_features(log: Log, asked: Questions) -> Floats:
    """Rolling rate and count of user and item, and the moving average of the user's last ten labels, [n, 5]."""
    item, mean = rolling_item_rate(log, asked), float(log.label[log.known].mean())
    rate = user_rate(log, asked, mean)
    length = asked.stops - log.first[asked.rows]
    return np.column_stack([rate, length, item.rate, item.count, moving_average(log, asked, 10, rate)])
