"""Other runs in a report: on the same events, never taken for baselines, averaged in log-odds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from rectune.errors import ConfigError, DataError
from rectune.report.beside import AVERAGE, add_beside, names_beside, prediction_file, read_beside
from rectune.report.report import best_baseline, write_report

ODDS = {"online": [0.0, 1.0, -2.0, 3.0], "frozen": [0.5, 1.5, -1.0, 2.0]}


def evaluated(run: Path, make, shift: float = 0.0) -> Path:
    """A run folder with the predictions that `evaluate` leaves, of four events."""
    run.mkdir(parents=True)
    for protocol, odds in ODDS.items():
        frame = make(np.array(odds) + shift, [0, 1, 0, 1], ["a", "a", "b", "b"])
        frame.write_parquet(prediction_file(run, "test", protocol))
    return run


@pytest.fixture
def protocols(make):
    return {name: {"tuned": make(np.array(odds), [0, 1, 0, 1], ["a", "a", "b", "b"])} for name, odds in ODDS.items()}


def test_the_average_is_the_mean_of_all_runs_log_odds_under_each_protocol(make, protocols, tmp_path):
    others = [evaluated(tmp_path / "one", make, 3.0), evaluated(tmp_path / "two", make, 6.0)]
    added = add_beside(read_beside(tmp_path / "run", others, "test"), protocols)
    assert added == ["run one", "run two", AVERAGE]
    for name, odds in ODDS.items():
        found = protocols[name]
        assert list(found) == ["tuned", *added]
        np.testing.assert_allclose(found["run two"]["log_odds"].to_numpy(), np.array(odds) + 6.0)
        np.testing.assert_allclose(found[AVERAGE]["log_odds"].to_numpy(), np.array(odds) + 3.0)


def test_nothing_beside_adds_nothing(protocols, tmp_path):
    assert add_beside(read_beside(tmp_path, [], "test"), protocols) == []
    assert list(protocols["online"]) == ["tuned"]


def test_a_run_asked_about_other_events_is_refused(make, protocols, tmp_path):
    beside = read_beside(tmp_path / "run", [evaluated(tmp_path / "one", make)], "test")
    beside["run one"]["frozen"] = beside["run one"]["frozen"].reverse()
    with pytest.raises(DataError, match="run one was asked about other events"):
        add_beside(beside, protocols)


def test_a_run_not_evaluated_on_this_split_is_named_with_the_command_that_does_it(make, tmp_path):
    other = evaluated(tmp_path / "one", make)
    with pytest.raises(ConfigError, match=f"is missing; `rectune evaluate {other} --split validation` makes it"):
        read_beside(tmp_path / "run", [other], "validation")


def test_damaged_predictions_are_one_line(make, tmp_path):
    other = evaluated(tmp_path / "one", make)
    prediction_file(other, "test", "frozen").write_bytes(b"PAR1 nonsense")
    with pytest.raises(DataError, match="damaged"):
        read_beside(tmp_path / "run", [other], "test")


def test_a_run_beside_itself_or_twice_is_refused(tmp_path):
    for others in ([tmp_path / "run"], [tmp_path / "one", tmp_path / "x" / ".." / "one"]):
        with pytest.raises(ConfigError, match="name each other run once"):
            names_beside(tmp_path / "run", others)


def test_other_runs_are_compared_in_words_but_are_no_baselines(models, tmp_path):
    better = models["tuned"].with_columns(pl.col("log_odds") * 1.0 + pl.col("label") * 8.0)
    found = write_report(tmp_path, {**models, "run better": better}, [], {}, bootstrap_draws=50, beside=["run better"])
    assert best_baseline(found) == "item like-rate"
    assert found["beside"] == ["run better"]
    assert any(
        note.startswith("Beside it: The tuned model does not beat run better: it is worse") for note in found["notes"]
    )
