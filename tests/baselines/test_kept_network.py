"""The network of a dataset: the setting with the smallest loss, kept, trained again where the file is damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from synthetic import catalog_of, kept_events

from rectune.baselines import kept_network as k
from rectune.baselines import sequential
from rectune.baselines.blended import KINDS, fit_served
from rectune.baselines.kept_network import choose_network, kept_network, network_key
from rectune.baselines.questions import ONLINE, Log, ask, split_rows
from rectune.baselines.sequential import NetworkSettings, SequentialNetwork, fit_network
from rectune.errors import DataError
from rectune.measure.classification import log_loss

TRIED = (NetworkSettings(width=2, window=1), NetworkSettings(width=8, window=20))
CATALOG = catalog_of(20)
Asked = Callable[[str], SequentialNetwork]


@pytest.fixture(scope="module")
def events() -> pl.DataFrame:
    return kept_events()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def asked(events: pl.DataFrame, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Asks for the network of a dataset with this content hash."""
    monkeypatch.setattr(k, "SETTINGS", TRIED)
    monkeypatch.setattr(sequential, "_MOST_ROUNDS", 2)
    monkeypatch.setattr(sequential, "_ROUND_STEPS", 5)
    return lambda content_hash: kept_network(events, CATALOG, content_hash, tmp_path, said.append)


def test_the_setting_with_the_smallest_validation_loss_is_chosen(
    events: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sequential, "_MOST_ROUNDS", 2)
    log = Log.of(events, CATALOG)
    held_out = ask(log, split_rows(events, "validation"), ONLINE)
    losses = [
        log_loss(log.label[held_out.rows], fit_network(log, held_out, each).score(log, held_out)) for each in TRIED
    ]
    for order in (TRIED, TRIED[::-1]):
        network, loss = choose_network(log, held_out, 0, order)
        assert network.settings == TRIED[int(np.argmin(losses))] and loss == min(losses)
    with pytest.raises(ValueError, match="settings: none to try"):
        choose_network(log, held_out, 0, ())


def test_the_second_call_reads_what_the_first_has_written_and_says_so(
    asked: Asked, said: list[str], tmp_path: Path
) -> None:
    network = asked("data")
    assert said[0] == "network: training the sequential network in 2 settings"
    assert said[1].startswith("network: NetworkSettings(width=") and "validation log loss 0." in said[1]
    said.clear()
    assert asked("data").to_bytes() == network.to_bytes()
    assert said == [f"network: from the cache {tmp_path / network_key('data')}.network"]


def test_other_data_other_settings_and_a_damaged_file_are_trained_anew(
    asked: Asked, said: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(k, "SETTINGS", TRIED[:1])
    whole = asked("data").to_bytes()
    asked("other data")
    file = tmp_path / f"{network_key('data')}.network"
    for damage in (b"", whole[:-3], whole[:-1] + bytes([whole[-1] ^ 1])):
        file.write_bytes(damage)
        assert asked("data").to_bytes() == whole == file.read_bytes()
    monkeypatch.setattr(k, "SETTINGS", TRIED[1:])
    asked("data")
    assert len([line for line in said if "training" in line]) == 6


def test_a_dataset_without_validation_is_named(events: pl.DataFrame, tmp_path: Path) -> None:
    without = events.with_columns(pl.col("split").replace("validation", "test"))
    with pytest.raises(DataError, match="validation: the split is empty"):
        kept_network(without, CATALOG, "data", tmp_path, print)


def test_served_baselines_come_by_their_names_and_are_what_their_files_are_read_as(
    asked: Asked, events: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = fit_served(["network", "stack"], events, CATALOG, "data", tmp_path, lambda line: None)
    assert list(found) == ["network", "stack"]
    log = Log.of(events, CATALOG)
    held_out = ask(log, split_rows(events, "validation"), ONLINE)
    for name, served in found.items():
        again = KINDS[name].from_bytes(served.to_bytes())
        assert type(again) is type(served)
        np.testing.assert_array_equal(again.score(log, held_out), served.score(log, held_out))
    assert fit_served([], events, CATALOG, "data", tmp_path, print) == {}
    with pytest.raises(KeyError, match="no such baseline"):
        fit_served(["no such baseline"], events, CATALOG, "data", tmp_path, print)
