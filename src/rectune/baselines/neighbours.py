"""Item-kNN on labels: what the user made of the items most like this one.

An item's neighbours are those whose labels, cleaned of user and item means, go the same way in the users who have
both. The score is the neighbours' mean deviation in the user's history, weighted by similarity.

Source: Sarwar et al., "Item-based collaborative filtering recommendation algorithms", WWW 2001 (adjusted cosine),
with the shrinkage by common users of Koren, "Factorization meets the neighborhood", KDD 2008, equation 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from rectune.baselines.questions import Floats, Log, Questions

KEPT = 200
"""Neighbours kept of each item, and those as strong as the last of them."""
_BLOCK = 512
"""Items whose similarities are worked out at once."""
_MEAN_STRENGTH = 5.0
"""How many events' worth of the mean each user's and item's mean starts with."""


@dataclass(frozen=True)
class Neighbours:
    """Similarities between items.

    Attributes:
        mean: mean label of the events fitted on.
        bias: float64 [items + 1]; an item's mean label above that.
        similar: float32 [items + 1, items + 1], sparse; 0 on the diagonal, and KEPT a row, or a few more where
            the last of them are alike.
    """

    mean: float
    bias: Floats
    similar: csr_matrix


def _means(group: npt.NDArray[np.int64], values: Floats, groups: int) -> Floats:
    sums = np.bincount(group, weights=values, minlength=groups)
    found: Floats = sums / (np.bincount(group, minlength=groups) + _MEAN_STRENGTH)
    return found


def fit_neighbours(log: Log, use: npt.NDArray[np.bool_], shrink: float) -> Neighbours:
    """Find every item's neighbours.

    Args:
        log: all events.
        use: bool [events]; those to fit on.
        shrink: a similarity that n users carry is multiplied by n / (n + shrink).

    Raises:
        ValueError: no event is used.
    """
    rows = np.flatnonzero(use)
    if not len(rows):
        raise ValueError("use: no event to fit on")
    places, item, user = len(log.items) + 1, log.item[rows], log.user[rows]
    mean = float(log.label[rows].mean())
    bias = _means(item, log.label[rows] - mean, places)
    left = log.label[rows] - mean - bias[item]
    left -= _means(user, left, log.users)[user]
    shape = (log.users, places)
    deviation = csr_matrix((left, (user, item)), shape=shape)
    there = csr_matrix((np.ones(len(rows)), (user, item)), shape=shape)
    squares = csr_matrix((left**2, (user, item)), shape=shape)
    parts = []
    for begin in range(0, places, _BLOCK):
        mine = slice(begin, min(begin + _BLOCK, places))
        common = (there[:, mine].T @ there).toarray()
        lengths = (squares[:, mine].T @ there).toarray() * (there[:, mine].T @ squares).toarray()
        block = (deviation[:, mine].T @ deviation).toarray() / np.sqrt(np.maximum(lengths, 1e-12))
        block *= common / (common + shrink)
        block[np.arange(block.shape[0]), np.arange(mine.start, mine.stop)] = 0.0
        if places > KEPT:
            edge = -np.partition(-np.abs(block), KEPT - 1, axis=1)[:, KEPT - 1 : KEPT]
            block[np.abs(block) < edge] = 0.0
        parts.append(csr_matrix(block.astype(np.float32)))
    from scipy.sparse import vstack

    return Neighbours(mean, bias, csr_matrix(vstack(parts)))


def neighbour_sums(model: Neighbours, log: Log, asked: Questions) -> tuple[Floats, Floats]:
    """Sums over the history's events: similarity times deviation from the item's and the user's means, and similarity.

    Returns:
        Both float64 [n]; the second counts every similarity as positive.
    """
    left = log.label - model.mean - model.bias[log.item]
    sums = np.concatenate([[0.0], np.cumsum(left)])
    begins = log.first[asked.rows]
    own = (sums[asked.stops] - sums[begins]) / (asked.stops - begins + _MEAN_STRENGTH)
    above, below = np.zeros(len(asked)), np.zeros(len(asked))
    weights = np.zeros(model.similar.shape[1])
    indptr, indices, data = model.similar.indptr, model.similar.indices, model.similar.data
    for number, (row, begin, stop) in enumerate(zip(asked.rows, begins, asked.stops, strict=True)):
        item = log.item[row]
        near = slice(indptr[item], indptr[item + 1])
        weights[indices[near]] = data[near]
        similar = weights[log.item[begin:stop]]
        above[number] = similar @ (left[begin:stop] - own[number])
        below[number] = np.abs(similar).sum()
        weights[indices[near]] = 0.0
    return above, below


def taste_by_neighbours(model: Neighbours, log: Log, asked: Questions, caution: float = 1.0) -> Floats:
    """The similarity-weighted mean deviation of the history's events from their items' and the user's means.

    Args:
        model: fitted similarities.
        log: all events.
        asked: the questions.
        caution: added to the sum of similarities, so that few neighbours say little.

    Returns:
        float64 [n]; 0 where no event of the history is a neighbour.
    """
    above, below = neighbour_sums(model, log, asked)
    found: Floats = above / (below + caution)
    return found
