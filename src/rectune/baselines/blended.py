"""The baselines that may join a tuned model's answer: those that are saved with it and score any history."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl

from rectune.baselines.kept_network import kept_network
from rectune.baselines.prior import stack_prior
from rectune.baselines.sequential import SequentialNetwork
from rectune.baselines.served import Served
from rectune.baselines.stack import Stack
from rectune.data.portions import Events, held

STACK, NETWORK = "stack", "network"
"""Their names, in configurations, reports and files."""
KINDS: dict[str, type[Stack] | type[SequentialNetwork]] = {STACK: Stack, NETWORK: SequentialNetwork}


def fit_served(
    names: Sequence[str],
    events: Events,
    catalog: pl.DataFrame,
    content_hash: str,
    cache: Path,
    say: Callable[[str], None],
) -> dict[str, Served]:
    """Baselines of a dataset by their names, from the cache folder where it holds them.

    Raises:
        DataError: there are no validation events, or the catalog does not hold an item.
        KeyError: a name is none of KINDS.
    """
    found: dict[str, Served] = {}
    for name in names:
        if name == STACK:
            found[name] = stack_prior(held(events), catalog, content_hash, cache, say)[0]
        elif name == NETWORK:
            found[name] = kept_network(held(events), catalog, content_hash, cache, say)
        else:
            raise KeyError(name)
    return found
