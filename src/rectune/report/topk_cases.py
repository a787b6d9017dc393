"""The users of a top-K evaluation, and which items they are asked about."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from rectune.baselines.retrieve import Retrieved, Retriever
from rectune.data.candidate_sets import NEGATIVE, RELEVANT, events_until
from rectune.data.columns import ITEM_ID, USER_ID
from rectune.errors import DataError
from rectune.score.score import TUNED

POOL = 100
"""Items of the retriever that the model ranks again."""
CHUNK = 16
"""Users that are scored together and kept together."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """One user's questions.

    Attributes:
        user: their id.
        items: item ids of the frozen candidate set.
        relevant, negative: bool [items].
        known: items of all their events of earlier splits, which a whole-catalogue ranking leaves out.
        wanted: liked later items that are not known; a retriever should find them.
        pool: the default retriever's best.
    """

    user: str
    items: list[str]
    relevant: npt.NDArray[np.bool_]
    negative: npt.NDArray[np.bool_]
    known: frozenset[str]
    wanted: frozenset[str]
    pool: Retrieved

    def asked(self, which: str) -> list[str]:
        """The items that a model is asked about: the tuned one about the pool too."""
        return list(dict.fromkeys([*self.items, *self.pool.items])) if which == TUNED else self.items


def choose_users(users: Sequence[str], at_most: int | None) -> list[str]:
    """Those with the smallest hash of their id, in the order given, so that a smaller draw is part of a larger one.

    >>> choose_users(["a", "b", "c"], 2) == [user for user in "abc" if user in choose_users(["c", "b", "a"], 2)]
    True
    """
    if at_most is None or at_most >= len(users):
        return list(users)
    chosen = set(sorted(users, key=lambda user: hashlib.sha256(user.encode()).digest())[:at_most])
    return [user for user in users if user in chosen]


def make_cases(
    events: pl.DataFrame, frozen: pl.DataFrame, split: str, retriever: Retriever, at_most: int | None
) -> tuple[list[Case], dict[str, int]]:
    """The users to measure, and how many were left out and why.

    Args:
        events: whole timelines.
        frozen: candidate sets, as `candidate_sets` returns them.
        split: `test` or `validation`.
        retriever: gives the pools.
        at_most: users at most; None takes all.

    Raises:
        DataError: no user has liked an item in the split.
    """
    known = events_until(events, split).select(USER_ID, ITEM_ID)
    fresh = frozen.filter(RELEVANT).join(known, on=[USER_ID, ITEM_ID], how="anti", maintain_order="left")
    users, able = frozen[USER_ID].n_unique(), fresh[USER_ID].unique(maintain_order=True).to_list()
    if not able:
        raise DataError(f"--split {split}: none of {users:,} users liked an item that they had not met before it")
    chosen = choose_users(able, at_most)
    left_out = {"no_relevant_item": users - len(able), "not_drawn": len(able) - len(chosen)}
    seen, wanted = (
        {user: frozenset(items) for user, items in table.group_by(USER_ID).agg(ITEM_ID).iter_rows()}
        for table in (frame.filter(pl.col(USER_ID).is_in(chosen)) for frame in (known, fresh))
    )
    groups = {str(user): group for (user,), group in frozen.group_by(USER_ID)}
    cases = []
    for user in chosen:
        group, met = groups[user], seen.get(user, frozenset())
        relevant, negative = group[RELEVANT].to_numpy(), group[NEGATIVE].to_numpy()
        pool = retriever.top(user, POOL, met)
        cases.append(Case(user, group[ITEM_ID].to_list(), relevant, negative, met, wanted[user], pool))
    return cases, left_out
