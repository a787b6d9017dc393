"""Scores of users whose history is frozen at a split: each user's items after the same history, in one request."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Protocol

import numpy as np
import numpy.typing as npt
import polars as pl
from rich.console import Console

from rectune.data.candidate_sets import history_at
from rectune.data.columns import ITEM_ID, LABEL, RATING, USER_ID
from rectune.files import atomic_path
from rectune.model.lora import check_effect
from rectune.prompt.dataset import Dataset
from rectune.score.candidates import CandidateScorer, Request
from rectune.score.chunks import scoring_bar, stored_chunk
from rectune.score.items import Items
from rectune.score.open_run import OpenRun
from rectune.score.score import TUNED, UNTUNED

CHUNK = 16
"""Users that are scored together and kept together."""

Floats = npt.NDArray[np.float64]
Say = Callable[[str], None]


class AskedUser(Protocol):
    """A user, and the items that a model is asked about."""

    @property
    def user(self) -> str:
        """Their id."""

    def asked(self, which: str) -> list[str]:
        """Item ids for the tuned or the untuned model, each once; the tuned one's hold the untuned one's."""


def _chunk_scores(
    scorer: CandidateScorer,
    cases: Sequence[AskedUser],
    which: str,
    ask: Callable[[AskedUser, str], Request],
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


def score_frozen(
    run: OpenRun,
    data: Dataset,
    split: str,
    cases: Sequence[AskedUser],
    models: Sequence[str],
    purpose: str,
    say: Say,
    console: Console,
    calibrated: bool = True,
) -> dict[str, pl.DataFrame]:
    """Log-odds of every item that the models are asked about, one request a user.

    Finished chunks of users are kept under the run folder until all are done, so that a killed call goes on.

    Args:
        run: the opened run.
        data: its dataset.
        split: `test` or `validation`; histories are those of `history_at`.
        cases: the users.
        models: any of `tuned` and `untuned`.
        purpose: keeps the chunks of one kind of evaluation apart from another's.
        say: prints one line.
        console: shows progress.
        calibrated: False leaves the tuned model's log-odds as they are, prior added.

    Returns:
        For each model user_id, item_id, log_odds, in the order of the cases.

    Raises:
        ModelError: the adapter changes no answer.
    """
    scorers = {which: CandidateScorer(run, say, tuned=which == TUNED, calibrated=calibrated) for which in models}
    items = Items(run, data.catalog)
    candidate = cache(items.candidate)
    users = {case.user for case in cases}
    past = history_at(data.events.filter(pl.col(USER_ID).is_in(users)), split)
    rows = dict(past.group_by(USER_ID, maintain_order=True).agg(pl.struct(ITEM_ID, RATING, LABEL)).iter_rows())

    def ask(case: AskedUser, which: str) -> Request:
        history = [items.event(row[ITEM_ID], row[RATING], int(row[LABEL])) for row in rows.get(case.user, ())]
        return Request(history, [candidate(item) for item in case.asked(which)])

    # In half precision it shows in the scores how many tokens go into a pass.
    passes = str(next(iter(scorers.values())).budget.tokens)
    asked = (part for case in cases for part in (case.user, *case.asked(TUNED)))
    key = run.scoring_key(
        data.content_hash, purpose, run.settings.correction if calibrated else "", split, str(CHUNK), passes, *asked
    )
    store = run.folder / "scoring" / key
    parts: dict[str, list[pl.DataFrame]] = {which: [] for which in models}
    total = sum(len(case.asked(which)) for case in cases for which in models)
    with scoring_bar(console) as bar:
        task = bar.add_task("scoring", total=total, note="")
        for first in range(0, len(cases), CHUNK):
            chosen = cases[first : first + CHUNK]
            for which in models:
                file = store / f"{which}-{first:09d}.parquet"
                bar.update(task, note=which)
                frame = stored_chunk(file)
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
