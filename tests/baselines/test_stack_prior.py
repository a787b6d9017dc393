"""The stack as a prior: the setting with the smallest loss, kept in the cache, fitted again where that is damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from synthetic import catalog_of, kept_events

from rectune.baselines import prior as p
from rectune.baselines.prior import choose_stack, prior_of, stack_key, stack_prior
from rectune.baselines.questions import ONLINE, Floats, Log, ask, split_rows
from rectune.baselines.stack import Settings, Stack, fit_stack
from rectune.config import parse_config
from rectune.errors import DataError
from rectune.measure.classification import log_loss

TRIED = (Settings(rank=2, shrink=1e9, leaves=2), Settings(rank=2, penalty=2.0, shrink=20.0, leaves=7))
CATALOG = catalog_of(20)
Asked = Callable[[str], tuple[Stack, Floats]]


@pytest.fixture(scope="module")
def events() -> pl.DataFrame:
    return kept_events()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def asked(events: pl.DataFrame, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Asks for the prior of a dataset with this content hash."""
    monkeypatch.setattr(p, "SETTINGS", TRIED)
    return lambda content_hash: stack_prior(events, CATALOG, content_hash, tmp_path, said.append)


def test_the_setting_with_the_smallest_validation_loss_is_chosen(events: pl.DataFrame) -> None:
    log = Log.of(events, CATALOG)
    held_out = ask(log, split_rows(events, "validation"), ONLINE)
    losses = [log_loss(log.label[held_out.rows], fit_stack(log, held_out, each)[1][held_out.rows]) for each in TRIED]
    best = int(np.argmin(losses))
    for order in (TRIED, TRIED[::-1]):
        stack, odds, setting, loss = choose_stack(log, held_out, 0, order)
        assert setting == TRIED[best] and loss == losses[best]
        np.testing.assert_array_equal(stack.score(log, held_out), odds[held_out.rows])
    with pytest.raises(ValueError, match="settings: none to try"):
        choose_stack(log, held_out, 0, ())


def test_the_second_call_reads_what_the_first_has_written_and_says_so(
    asked: Asked, said: list[str], tmp_path: Path, events: pl.DataFrame
) -> None:
    stack, odds = asked("data")
    assert said[0] == "prior: fitting the stacked baseline in 2 settings"
    assert said[1].startswith(f"prior: {TRIED[0]}, validation log loss 0.4")
    assert odds.shape == (events.height,)
    said.clear()
    again, same = asked("data")
    assert said == [f"prior: the stacked baseline from the cache {tmp_path / stack_key('data')}.stack"]
    np.testing.assert_array_equal(same, odds)
    assert again.to_bytes() == stack.to_bytes()


def test_other_data_and_other_settings_are_fitted_anew(
    asked: Asked, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(p, "SETTINGS", TRIED[1:])
    asked("data")
    asked("other data")
    monkeypatch.setattr(p, "SETTINGS", TRIED[:1])
    asked("data")
    assert [line for line in said if "fitting" in line] == ["prior: fitting the stacked baseline in 1 settings"] * 3


@pytest.mark.parametrize("ending", ["stack", "prior"])
def test_a_damaged_file_is_fitted_anew(
    asked: Asked, said: list[str], tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(p, "SETTINGS", TRIED[:1])
    stack, odds = asked("data")
    file = tmp_path / f"{stack_key('data')}.{ending}"
    whole = file.read_bytes()
    changed = whole[:3000] + bytes([whole[3000] ^ 1]) + whole[3001:]
    damages = [b"", whole[:100], whole[:-1], b"PK\x03\x04", b"hello", *([changed] if ending == "stack" else [])]
    for damage in damages:
        file.write_bytes(damage)
        said.clear()
        again, same = asked("data")
        assert said[0] == "prior: fitting the stacked baseline in 1 settings", damage[:10]
        np.testing.assert_array_equal(same, odds)
        assert file.read_bytes() == whole and again.to_bytes() == stack.to_bytes()
    file.unlink()
    said.clear()
    asked("data")
    assert "fitting" in said[0]


@pytest.mark.parametrize("odds", [np.zeros(3), np.float64(1.0), np.zeros((2, 2))], ids=["short", "one number", "table"])
def test_log_odds_of_other_events_are_not_taken(
    asked: Asked, said: list[str], tmp_path: Path, odds: Floats, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(p, "SETTINGS", TRIED[:1])
    expected = asked("data")[1]
    with (tmp_path / f"{stack_key('data')}.prior").open("wb") as stream:
        np.save(stream, odds)
    np.testing.assert_array_equal(asked("data")[1], expected)
    assert len([line for line in said if "fitting" in line]) == 2


def test_without_validation_events_it_is_said(asked: Asked, events: pl.DataFrame, tmp_path: Path) -> None:
    without = events.with_columns(pl.col("split").replace("validation", "test"))
    with pytest.raises(DataError, match="validation: the split is empty"):
        stack_prior(without, CATALOG, "data", tmp_path, print)


def test_only_a_model_that_starts_from_the_stack_gets_it(
    asked: Asked, said: list[str], events: pl.DataFrame, tmp_path: Path
) -> None:
    settings = {"model_name_or_path": "m", "dataset": "d", "preprocessing_cache_dir": str(tmp_path)}
    for prior in ("none", "item_rate"):
        without = parse_config({**settings, "prior": prior}, origin="test")
        stack, odds = prior_of(without, events, CATALOG, "data", said.append)
        assert stack is None and odds.tolist() == [0.0] * events.height and not said
    kept, expected = asked("data")
    with_it = parse_config({**settings, "prior": "stack"}, origin="test")
    stack, odds = prior_of(with_it, events, CATALOG, "data", said.append)
    assert stack is not None and stack.to_bytes() == kept.to_bytes()
    np.testing.assert_array_equal(odds, expected)


def test_a_prior_needs_several_users(events: pl.DataFrame) -> None:
    config = parse_config({"prior": "stack"}, origin="test")
    one = events.filter(pl.col("user_id") == events["user_id"][0])
    with pytest.raises(DataError, match="prior: stack needs training events of several users"):
        prior_of(config, one, CATALOG, "hash", print)
    stack, odds = prior_of(config.with_overrides(prior="none"), one, CATALOG, "hash", print)
    assert stack is None and odds.tolist() == [0.0] * one.height
