"""The users of a top-K evaluation, and the models' scores of every item that they are asked about."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rectune.baselines.retrieve import Retrieved, Retriever
from rectune.data.candidate_sets import NEGATIVE, RELEVANT, events_until, history_at
from rectune.data.columns import ITEM_ID, LABEL, RATING, USER_ID
from rectune.errors import DataError
from rectune.files import atomic_path
from rectune.model.lora import check_effect
from rectune.prompt.dataset import Dataset
from rectune.score.candidates import CandidateScorer, Request
from rectune.score.items import Items
from rectune.score.open_run import OpenRun
from rectune.score.score import TUNED, UNTUNED

POOL = 100
"""Items of the retriever that the model ranks again."""
CHUNK = 16
"""Users that are scored together and kept together."""

Floats = npt.NDArray[np.float64]
Say = Callable[[str], None]


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


def _chunk_scores(
    scorer: CandidateScorer,
    cases: Sequence[Case],
    which: str,
    ask: Callable[[Case, str], Request],
    advance: Callable[[int], None],
) -> pl.DataFrame:
    found = scorer.score([ask(case, which) for case in cases], advance)
    parts = [
        pl.DataFrame(
            {USER_ID: [case.user] * len(odds), ITEM_ID: case.asked(which), "log_odds": odds},
            schema={USER_ID: pl.String, ITEM_ID: pl.String, "log_odds": pl.Float64},
        )
        for case, odds in zip(cases, found, strict=True)
    ]
    return pl.concat(parts)


def _stored(file: Path) -> pl.DataFrame | None:
    """A chunk kept by an earlier call, or None when there is none or it is damaged."""
    try:
        return pl.read_parquet(file) if file.is_file() else None
    except (OSError, pl.exceptions.PolarsError):
        return None


def score_cases(
    run: OpenRun, data: Dataset, split: str, cases: Sequence[Case], models: Sequence[str], say: Say, console: Console
) -> dict[str, pl.DataFrame]:
    """Log-odds of every item that the models are asked about, one request a user.

    Finished chunks of users are kept under the run folder until all are done, so that a killed call goes on.

    Returns:
        For each model user_id, item_id, log_odds, in the order of the cases.

    Raises:
        ModelError: the adapter changes no answer.
    """
    scorers = {which: CandidateScorer(run, say, tuned=which == TUNED) for which in models}
    items = Items(run, data.catalog)
    candidate = cache(items.candidate)
    users = {case.user for case in cases}
    past = history_at(data.events.filter(pl.col(USER_ID).is_in(users)), split)
    rows = dict(past.group_by(USER_ID, maintain_order=True).agg(pl.struct(ITEM_ID, RATING, LABEL)).iter_rows())

    def ask(case: Case, which: str) -> Request:
        history = [items.event(row[ITEM_ID], row[RATING], int(row[LABEL])) for row in rows.get(case.user, ())]
        return Request(history, [candidate(item) for item in case.asked(which)])

    # In half precision it shows in the scores how many tokens go into a pass.
    passes = str(next(iter(scorers.values())).budget.tokens)
    asked = (part for case in cases for part in (case.user, *case.asked(TUNED)))
    key = run.scoring_key(data.content_hash, "topk", split, str(CHUNK), passes, *asked)
    store = run.folder / "scoring" / key
    columns = (
        TextColumn("scoring"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )  # fmt: skip
    parts: dict[str, list[pl.DataFrame]] = {which: [] for which in models}
    total = sum(len(case.asked(which)) for case in cases for which in models)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("scoring", total=total, note="")
        for first in range(0, len(cases), CHUNK):
            chosen = cases[first : first + CHUNK]
            for which in models:
                file = store / f"{which}-{first:09d}.parquet"
                bar.update(task, note=which)
                frame = _stored(file)
                if frame is not None:
                    bar.advance(task, len(frame))
                else:
                    frame = _chunk_scores(scorers[which], chosen, which, ask, lambda n: bar.advance(task, n))
                    with atomic_path(file) as temporary:
                        frame.write_parquet(temporary)
                    if not console.is_terminal:
                        say(f"scored {which}: {first + len(chosen):,} of {len(cases):,} users")
                parts[which].append(frame)
    scored = {which: pl.concat(frames) for which, frames in parts.items()}
    if TUNED in scored and UNTUNED in scored:
        _check_adapter(run, scored)
    shutil.rmtree(store, ignore_errors=True)
    with suppress(OSError):  # another call's chunks may lie beside them
        store.parent.rmdir()
    return scored


def _check_adapter(run: OpenRun, scored: Mapping[str, pl.DataFrame]) -> None:
    import torch

    both = scored[UNTUNED].join(scored[TUNED], on=[USER_ID, ITEM_ID], suffix="_tuned", maintain_order="left")
    tuned, untuned = (torch.from_numpy(both[name].to_numpy().copy()) for name in ("log_odds_tuned", "log_odds"))
    check_effect(run.model, tuned, untuned)


class Lookup:
    """A model's log-odds by user and item."""

    def __init__(self, frame: pl.DataFrame) -> None:
        self._of = {
            str(user): dict(zip(group[ITEM_ID].to_list(), group["log_odds"].to_list(), strict=True))
            for (user,), group in frame.group_by(USER_ID)
        }

    def __call__(self, user: str, items: Sequence[str]) -> Floats:
        """Log-odds of these items, float64 [items]."""
        return np.array([self._of[user][item] for item in items], dtype=np.float64)
