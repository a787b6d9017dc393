"""What a user's history says by counting: how much they like, lately, and of the candidate's genres.

All of it is computed from sums over the timeline, so a question costs the same whatever its history's length.
"""

from __future__ import annotations

import numpy as np

from rectune.baselines.questions import Floats, Log, Questions

STRENGTH = 5.0
"""How many events' worth of the mean like-rate a user starts with."""
_GENRE_STRENGTH = 3.0
_RECENT = (3, 10, 30)
_RECENT_STRENGTH = 2.0

NAMES = (
    "history_length", "user_rate", "genre_affinity", "genre_count", *(f"last_{length}" for length in _RECENT),
)  # fmt: skip


def _sums(values: Floats) -> Floats:
    """Sums of the first 0, 1, 2 ... rows."""
    return np.concatenate([np.zeros((1, *values.shape[1:])), np.cumsum(values, axis=0)])


def user_rate(log: Log, asked: Questions, mean: float, strength: float = STRENGTH) -> Floats:
    """The user's like-rate in the known history, (likes + strength * mean) / (events + strength), float64 [n]."""
    likes = _sums(log.label)
    begins = log.first[asked.rows]
    found: Floats = (likes[asked.stops] - likes[begins] + strength * mean) / (asked.stops - begins + strength)
    return found


def moving_average(log: Log, asked: Questions, length: int, start: Floats) -> Floats:
    """Like-rate of the last `length` events of the known history, which starts from two events' worth of `start`.

    Strict: events of the moment asked about are not in the history. float64 [n].
    """
    likes = _sums(log.label)
    begins = np.maximum(log.first[asked.rows], asked.stops - length)
    above = likes[asked.stops] - likes[begins] + _RECENT_STRENGTH * start
    found: Floats = above / (asked.stops - begins + _RECENT_STRENGTH)
    return found


def history_features(log: Log, asked: Questions, mean: float) -> Floats:
    """Counts and rates of the known history, float64 [n, len(NAMES)].

    Args:
        log: all events.
        asked: the questions.
        mean: like-rate that a user without history is taken to have.
    """
    rate = user_rate(log, asked, mean)
    begins, item = log.first[asked.rows], log.item[asked.rows]
    genres = log.genres[log.item]
    counts, likes = _sums(genres), _sums(genres * log.label[:, None])
    of_item = log.genres[item]
    seen = counts[asked.stops] - counts[begins]
    liked = likes[asked.stops] - likes[begins]
    by_genre = (liked + _GENRE_STRENGTH * rate[:, None]) / (seen + _GENRE_STRENGTH)
    affinity = (of_item * by_genre).sum(axis=1) / np.maximum(of_item.sum(axis=1), 1.0)
    affinity = np.where(of_item.any(axis=1), affinity - rate, 0.0)
    recent = [moving_average(log, asked, length, rate) for length in _RECENT]
    return np.column_stack([asked.stops - begins, rate, affinity, (of_item * seen).sum(axis=1), *recent])
