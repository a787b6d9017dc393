"""The stage: what it writes, what it reads again, what makes it fit anew, and answers in the order of the rows."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console
from synthetic import catalog_of, events_of, tastes

from rectune.baselines import kept_network, prior, sequential
from rectune.baselines.blended import NETWORK, STACK
from rectune.baselines.fit import NOTES, SCHEMA, TABLE, Fitted, fit_baselines
from rectune.baselines.models import BASELINES, ROLLING, Baseline
from rectune.baselines.questions import FROZEN, ONLINE, Log, ask, split_rows
from rectune.baselines.sequential import NetworkSettings
from rectune.baselines.stack import Settings
from rectune.errors import DataError
from rectune.measure.classification import auc, log_loss
from rectune.measure.scaling import fit_platt

CATALOG = catalog_of(20)
NAMED = {baseline.name: baseline for baseline in BASELINES}
AVERAGE, ITEM = NAMED["moving average"], NAMED["item like-rate"]
Call = Callable[..., Fitted]


@pytest.fixture(scope="module")
def events() -> pl.DataFrame:
    rows = tastes(users=40, items=20, each=18)
    # As in a file that is in no order, so that numbers of rows do not rise with users and time.
    mixed = [rows[place] for place in np.random.default_rng(0).permutation(len(rows))]
    return events_of(mixed, 4, validation_ratio=0.2, test_ratio=0.2)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """One small stack and one small network."""
    monkeypatch.setattr(prior, "SETTINGS", (Settings(rank=2, leaves=2),))
    monkeypatch.setattr(kept_network, "SETTINGS", (NetworkSettings(width=4, window=5),))
    monkeypatch.setattr(sequential, "_MOST_ROUNDS", 1)
    monkeypatch.setattr(sequential, "_ROUND_STEPS", 1)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def fit(events: pl.DataFrame, tmp_path: Path, said: list[str]) -> Call:
    def call(content_hash: str = "data", **values: Any) -> Fitted:
        given = {"baselines": (ITEM, AVERAGE), "events": events, "folder": tmp_path / "dataset", **values}
        console = Console(file=io.StringIO())
        return fit_baselines(
            given.pop("folder"), given.pop("events"), CATALOG, content_hash, tmp_path / "cache", said.append, console,
            **given,
        )  # fmt: skip

    (tmp_path / "dataset").mkdir()
    return call


def fits(said: list[str]) -> int:
    return len([line for line in said if line.startswith("baselines: fitting")])


def test_every_baseline_answers_every_question_of_both_splits_and_protocols(
    fit: Call, events: pl.DataFrame, tmp_path: Path, said: list[str]
) -> None:
    fitted = fit()
    names = ["item like-rate", "moving average", STACK, NETWORK]
    assert list(fitted.notes) == names and fitted.table.schema == pl.Schema(SCHEMA)
    counted = fitted.table.group_by("baseline", "split", "protocol").agg(pl.col("row_id").sort())
    assert counted.height == 4 * 2 * 2
    for name, split, protocol, rows in counted.iter_rows():
        assert name in names and protocol in (ONLINE, FROZEN)
        assert rows == events.filter(pl.col("split") == split)["row_id"].sort().to_list()
    assert fitted.table["log_odds"].is_finite().all()
    assert pl.read_parquet(tmp_path / "dataset" / TABLE).equals(fitted.table)
    assert json.loads((tmp_path / "dataset" / NOTES).read_text())["baselines"] == fitted.notes
    assert said[0] == "prior: fitting the stacked baseline in 1 settings"
    assert said[2] == "network: training the sequential network in 1 settings"
    assert said[4] == (
        "baselines: fitting 4 in 7 settings, each chosen by its log loss on validation, online"
    )  # 1 + 4 + 1 + 1
    assert [line.split(",")[0] for line in said[5:9]] == [f"baselines: {name}" for name in names]
    assert said[9].endswith(f"written: {tmp_path / 'dataset' / TABLE}")


def test_the_setting_with_the_smallest_validation_loss_answers_and_its_answers_are_log_odds(
    fit: Call, events: pl.DataFrame
) -> None:
    fitted = fit()
    notes = fitted.notes["moving average"]
    log = Log.of(events, CATALOG)
    asked = [
        ask(log, split_rows(events, split), protocol)
        for split in ("validation", "test")
        for protocol in (ONLINE, FROZEN)
    ]
    labels, tried = log.label[asked[0].rows], []
    for setting in AVERAGE.settings:
        raw = AVERAGE.score(log, asked[0], asked, setting, 0)
        slope, offset = fit_platt(labels, raw[0])
        answers = [slope * each + offset for each in raw]
        tried.append((log_loss(labels, answers[0]), auc(labels, answers[0]), answers))
    assert [(each["loss"], each["auc"]) for each in notes["tried"]] == [each[:2] for each in tried]
    assert [each["setting"] for each in notes["tried"]] == [dict(each) for each in AVERAGE.settings]
    best = int(np.argmin([each[0] for each in tried]))
    assert notes["setting"] == AVERAGE.settings[best] and notes["sees"] == AVERAGE.sees and notes["seconds"] > 0
    sets = [(split, protocol) for split in ("validation", "test") for protocol in (ONLINE, FROZEN)]
    for (split, protocol), questions, expected in zip(sets, asked, tried[best][2], strict=True):
        rows = events["row_id"].gather(questions.rows)
        np.testing.assert_array_equal(fitted.log_odds("moving average", split, protocol, rows), expected)


def test_answers_come_in_the_order_of_the_rows_asked_for(fit: Call, events: pl.DataFrame) -> None:
    fitted = fit()
    rows = events.filter(pl.col("split") == "test")["row_id"]
    online, frozen = (fitted.log_odds(STACK, "test", protocol, rows) for protocol in (ONLINE, FROZEN))
    assert not np.array_equal(online, frozen)
    order = np.random.default_rng(0).permutation(len(rows))
    np.testing.assert_array_equal(fitted.log_odds(STACK, "test", ONLINE, rows.gather(order)), online[order])
    twice = fitted.log_odds(STACK, "test", ONLINE, pl.concat([rows[:3], rows[:3]]))
    np.testing.assert_array_equal(twice, np.tile(online[:3], 2))
    assert fitted.log_odds(STACK, "test", ONLINE, rows[:0]).shape == (0,)


def test_an_answer_that_is_not_there_is_named(fit: Call, events: pl.DataFrame) -> None:
    fitted = fit()
    rows = events["row_id"]
    train = int((~events["split"].is_in(["test"])).sum())
    with pytest.raises(
        DataError, match=f"baselines.parquet: no online answer of 'moving average' for {train} test events"
    ):
        fitted.log_odds("moving average", "test", ONLINE, rows)
    with pytest.raises(DataError, match="no frozen answer of 'no such model' for 1 validation events"):
        fitted.log_odds("no such model", "validation", FROZEN, rows[:1])


def test_the_second_call_reads_the_files_and_says_so(fit: Call, said: list[str], tmp_path: Path) -> None:
    first = fit()
    said.clear()
    shutil.rmtree(tmp_path / "cache")
    second = fit()
    # Not even stack and network are needed for it.
    assert said == [f"baselines: 4 from {tmp_path / 'dataset' / TABLE}"] and not (tmp_path / "cache").exists()
    assert second.table.equals(first.table) and second.notes == first.notes


def test_another_dataset_another_choice_another_stack_and_another_network_are_fitted_anew(
    fit: Call, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fit()
    fit("other data")
    fit("other data", baselines=(ITEM,))
    fit("other data", baselines=(ITEM._replace(sees=ROLLING),))
    monkeypatch.setattr(prior, "SETTINGS", (Settings(rank=3, leaves=2),))
    fit("other data", baselines=(ITEM._replace(sees=ROLLING),))
    monkeypatch.setattr(kept_network, "SETTINGS", (NetworkSettings(width=6, window=5),))
    fit("other data", baselines=(ITEM._replace(sees=ROLLING),))
    assert fits(said) == 6
    fit("other data", baselines=(ITEM._replace(sees=ROLLING),))
    assert fits(said) == 6


@pytest.mark.parametrize("name", [TABLE, NOTES])
def test_a_damaged_file_is_fitted_anew(fit: Call, said: list[str], tmp_path: Path, name: str) -> None:
    first = fit()
    file = tmp_path / "dataset" / name
    whole = file.read_bytes()
    damages = [b"", whole[: len(whole) // 2], b"[]", b"{}"]
    if name == TABLE:
        damages.append(whole[:500] + bytes([whole[500] ^ 1]) + whole[501:])
    for number, damage in enumerate(damages):
        file.write_bytes(damage)
        assert fit().table.equals(first.table)
        assert fits(said) == number + 2
    file.unlink()
    fit()
    assert fits(said) == len(damages) + 2


def test_quick_tries_one_setting_of_each(fit: Call, said: list[str]) -> None:
    fitted = fit(quick=True)
    assert list(fitted.notes) == ["item like-rate", "moving average", STACK]
    assert [len(notes["tried"]) for notes in fitted.notes.values()] == [1, 1, 1]
    assert fitted.notes["moving average"]["setting"] == AVERAGE.settings[0]
    # One is not taken for the other.
    fit(quick=False)
    assert fits(said) == 2


def test_all_of_them_fit_quickly_and_the_same_data_give_the_same_answers(fit: Call, tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    one, again = (fit(quick=True, baselines=BASELINES, folder=tmp_path / name) for name in ("dataset", "again"))
    assert list(one.notes) == [*(each.name for each in BASELINES), STACK]
    assert one.table.equals(again.table)
    losses = {name: notes["tried"][0]["loss"] for name, notes in one.notes.items()}
    # Nobody does worse on validation than saying the share of likes, which the line fitted there can always do.
    assert max(losses.values()) <= np.log(2)


def test_a_baseline_without_settings_is_an_error(fit: Call) -> None:
    with pytest.raises(ValueError, match="empty: no setting to try"):
        fit(baselines=(Baseline("empty", "nothing", [], ITEM.score),))


def test_splits_that_cannot_be_tuned_on_are_named(fit: Call, events: pl.DataFrame) -> None:
    without = events.with_columns(pl.col("split").replace("test", "validation"))
    with pytest.raises(DataError, match="test: the split is empty"):
        fit(events=without)
    behind = pl.col("split") == "validation"
    for label, word in ((1, "likes"), (0, "dislikes")):
        alike = events.with_columns(label=pl.when(behind).then(pl.lit(label, pl.UInt8)).otherwise("label"))
        with pytest.raises(DataError, match=rf"validation: all \d+ events are {word}, so no baseline can be tuned"):
            fit(events=alike)
