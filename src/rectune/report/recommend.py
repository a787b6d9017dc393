"""`rectune recommend`: a user's last events, the retriever's items ranked again by the model, and what it took."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter

import polars as pl
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rectune.data.columns import ITEM_ID, LABEL, RATING
from rectune.report.rank import as_records, ranking_table
from rectune.score.pairs import NOW
from rectune.score.recommender import POOL, Recommender

_SHOWN = 5
"""Events of the user that are shown."""

Say = Callable[[str], None]


def _last_events(recommender: Recommender, past: pl.DataFrame) -> Table:
    """The user's last events, oldest first: rating, label word, title."""
    words = recommender.run.prompts.verbalizer
    table = Table(box=None, pad_edge=False, show_header=False)
    for item, rating, label in past.tail(_SHOWN).select(ITEM_ID, RATING, LABEL).iter_rows():
        rated = "" if rating is None else f"{rating:g}"
        table.add_row("  ", rated, words.word(label).strip(), Text(recommender.titles.title(item)))
    return table


def recommend(
    source: Path,
    overrides: Sequence[str],
    user: str,
    k: int,
    pool: int | None,
    retriever: str,
    as_of: str,
    as_json: bool,
    say: Say,
    console: Console,
) -> None:
    """Recommend items to a user of the dataset.

    With `as_json` one line: user_id, retriever, pool, as_of, events, seconds (load, fit, recommend) and
    `recommended`, a list of rank, title, item_id, score, log_odds and retriever_rank.

    Args:
        source, overrides: as `Recommender.load` takes them.
        user, k, pool, retriever, as_of: as `Recommender.recommend` takes them.
        as_json: print JSON in place of a table.
        say: prints one line beside the result.
        console: prints the result.

    Raises:
        ConfigError, DataError, ModelError, ResourceError: see `Recommender`.
    """
    pool = max(POOL, k) if pool is None else pool
    started = perf_counter()
    recommender = Recommender.load(source, overrides, say)
    loaded = perf_counter()
    past = recommender.events_of(user, as_of)
    recommender.fit_retriever(retriever, as_of)
    fitted = perf_counter()
    found = recommender.recommend(user, k, pool, as_of, retriever)
    done = perf_counter()
    by = found[0].retriever if found else retriever
    seconds = {"load": loaded - started, "fit": fitted - loaded, "recommend": done - fitted}
    if as_json:
        line = {
            "user_id": user, "retriever": by, "pool": pool, "as_of": as_of, "events": past.height,
            "seconds": {name: round(value, 3) for name, value in seconds.items()}, "recommended": as_records(found),
        }  # fmt: skip
        print(json.dumps(line), flush=True)
        return
    until = "" if as_of == NOW else f" before {as_of}"
    liked = int(past[LABEL].sum())
    console.print(Text(f"user {user}: {past.height:,} events{until}, {liked:,} liked; the last are"), soft_wrap=True)
    console.print(_last_events(recommender, past))
    console.print()
    console.print(ranking_table(found, recommender.run.prompts.verbalizer.positive, f"{by} rank"))
    unseen = len(recommender.titles) - past[ITEM_ID].n_unique()
    console.print(
        Text(
            f"time: {seconds['fit']:.2f} s to fit {retriever}, {seconds['recommend']:.2f} s to take "
            f"{min(pool, unseen):,} of {unseen:,} unseen items and rank them by the model ({seconds['load']:.1f} s to "
            "load it)"
        ),
        soft_wrap=True,
    )
