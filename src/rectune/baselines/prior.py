"""The stacked baseline as the point a model starts from: fitted once for a dataset, and kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import polars as pl

from rectune.baselines.questions import GENRES_AND_YEARS, ONLINE, Floats, Log, Questions, ask, split_rows
from rectune.baselines.stack import FOLDS, NAMES, Seen, Settings, Stack, fit_stack, see
from rectune.config import Config
from rectune.data.columns import SPLIT, TRAIN, USER_ID, VALIDATION
from rectune.data.portions import Events, height, held
from rectune.errors import DataError
from rectune.files import atomic_path, hash_text
from rectune.measure.classification import log_loss
from rectune.version import __version__

SEED = 0
"""Fixed, not taken from a run's configuration, so that runs with other seeds start from the same place."""
SETTINGS: Sequence[Settings] = (Settings(), Settings(leaves=7))
"""What is tried on validation, online. A penalty of 12 was better than 8 on ML-100K and on ml-latest-small."""
_FORMAT = "1"

Say = Callable[[str], None]


def choose_stack(
    log: Log, held_out: Questions, seed: int, settings: Sequence[Settings] = SETTINGS
) -> tuple[Stack, Floats, Settings, float]:
    """The stack in its best setting by log loss on validation: itself, its log-odds of all events, setting, loss."""
    best: tuple[Stack, Floats, Settings, float] | None = None
    seen: dict[Settings, Seen] = {}
    for setting in settings:
        shown = replace(setting, leaves=0)  # the trees' size does not change what they see
        if shown not in seen:
            seen = {shown: see(log, setting, seed)}
        stack, odds = fit_stack(log, held_out, setting, seed, seen[shown])
        loss = log_loss(log.label[held_out.rows], odds[held_out.rows])
        if best is None or loss < best[3]:
            best = stack, odds, setting, loss
    if best is None:
        raise ValueError("settings: none to try")
    return best


def stack_key(content_hash: str) -> str:
    """Names the stack of a dataset among others: what it was fitted on, in which settings, by which version."""
    tried = json.dumps([repr(each) for each in SETTINGS])
    return hash_text(_FORMAT, GENRES_AND_YEARS, __version__, content_hash, str(SEED), tried, *NAMES)[:32]


def _kept(file: Path, table: Path, events: int) -> tuple[Stack, Floats] | None:
    """What an earlier call has written, where both files are there and whole."""
    try:
        odds = np.load(table, allow_pickle=False)
        if odds.shape != (events,) or odds.dtype != np.float64:
            return None
        return Stack.from_bytes(file.read_bytes()), odds
    # numpy raises EOFError for an empty file, and BadZipFile for one that starts like an archive.
    except (OSError, ValueError, EOFError, BadZipFile):
        return None


def stack_prior(
    events: pl.DataFrame, catalog: pl.DataFrame, content_hash: str, cache: Path, say: Say
) -> tuple[Stack, Floats]:
    """The stack of a dataset and its log-odds of every event, from the cache folder where it holds them.

    Args:
        events, catalog, content_hash: of the dataset.
        cache: the folder of tokenised prompts, `preprocessing_cache_dir`.
        say: prints one line.

    Returns:
        See `fit_stack`.

    Raises:
        DataError: there are no validation events, or the catalog does not hold an item.
    """
    key = stack_key(content_hash)
    file, table = cache / f"{key}.stack", cache / f"{key}.prior"
    kept = _kept(file, table, events.height)
    if kept is not None:
        say(f"prior: the stacked baseline from the cache {file}")
        return kept
    log = Log.of(events, catalog)
    held_out = ask(log, split_rows(events, VALIDATION), ONLINE)
    say(f"prior: fitting the stacked baseline in {len(SETTINGS)} settings")
    stack, odds, chosen, loss = choose_stack(log, held_out, SEED, SETTINGS)
    say(f"prior: {chosen}, validation log loss {loss:.4f}")
    with atomic_path(file) as temporary:
        temporary.write_bytes(stack.to_bytes())
    with atomic_path(table) as temporary, temporary.open("wb") as stream:
        np.save(stream, odds)
    return stack, odds


def prior_of(
    config: Config, events: Events, catalog: pl.DataFrame, content_hash: str, say: Say
) -> tuple[Stack | None, Floats]:
    """The stack that a configuration's model starts from, if it does, and what is added for it to each event's
    log-odds: zeros without one, float64 [events].

    Raises:
        DataError: only one group of users has training events, so that no prior could be fitted without them.
    """
    if config.prior != "stack":
        return None, np.zeros(height(events))
    events = held(events)
    groups = events.select(pl.col(USER_ID).rle_id() % FOLDS).filter(events[SPLIT] == TRAIN).n_unique()
    if groups < 2:
        raise DataError(
            "prior: stack needs training events of several users, since each one's prior is fitted on the others; "
            "use prior=none"
        )
    return stack_prior(events, catalog, content_hash, config.preprocessing_cache_dir, say)
