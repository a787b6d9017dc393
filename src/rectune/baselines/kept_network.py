"""The sequential network of a dataset: trained once in its best setting, and kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl

from rectune.baselines.questions import GENRES_AND_YEARS, ONLINE, Log, Questions, ask, split_rows
from rectune.baselines.sequential import FORMAT, NetworkSettings, SequentialNetwork, fit_network
from rectune.data.columns import VALIDATION
from rectune.files import atomic_path, hash_text
from rectune.measure.classification import log_loss
from rectune.version import __version__

SEED = 0
"""Fixed, not taken from a run's configuration, so that runs with other seeds are compared with the same network."""
SETTINGS: Sequence[NetworkSettings] = (NetworkSettings(), NetworkSettings(width=32, window=400))
"""What is tried on validation, online."""
Say = Callable[[str], None]


def choose_network(
    log: Log, held_out: Questions, seed: int, settings: Sequence[NetworkSettings] = SETTINGS
) -> tuple[SequentialNetwork, float]:
    """The network in its best setting by log loss on validation, and that loss.

    Raises:
        ValueError: there is no setting, no training event or no validation event.
    """
    best: tuple[SequentialNetwork, float] | None = None
    for setting in settings:
        network = fit_network(log, held_out, setting, seed)
        loss = log_loss(log.label[held_out.rows], network.score(log, held_out))
        if best is None or loss < best[1]:
            best = network, loss
    if best is None:
        raise ValueError("settings: none to try")
    return best


def network_key(content_hash: str) -> str:
    """Names the network of a dataset among others: what it was trained on, in which settings, by which version."""
    return hash_text(FORMAT, GENRES_AND_YEARS, __version__, content_hash, str(SEED), *map(repr, SETTINGS))[:32]


def kept_network(
    events: pl.DataFrame, catalog: pl.DataFrame, content_hash: str, cache: Path, say: Say
) -> SequentialNetwork:
    """The network of a dataset, from the cache folder where it holds it.

    Args:
        events, catalog, content_hash: of the dataset.
        cache: the folder of tokenised prompts, `preprocessing_cache_dir`.
        say: prints one line.

    Raises:
        DataError: there are no validation events, or the catalog does not hold an item.
    """
    file = cache / f"{network_key(content_hash)}.network"
    try:
        network = SequentialNetwork.from_bytes(file.read_bytes())
        say(f"network: from the cache {file}")
        return network
    except (OSError, ValueError):
        pass  # missing or damaged: trained again
    log = Log.of(events, catalog)
    held_out = ask(log, split_rows(events, VALIDATION), ONLINE)
    say(f"network: training the sequential network in {len(SETTINGS)} settings")
    network, loss = choose_network(log, held_out, SEED, SETTINGS)
    say(f"network: {network.settings}, validation log loss {loss:.4f}")
    with atomic_path(file) as temporary:
        temporary.write_bytes(network.to_bytes())
    return network
