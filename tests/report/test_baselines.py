"""The simple models of a dataset by themselves, fitted, measured and written."""

from __future__ import annotations

import io
import json
from collections.abc import Callable

import polars as pl
import pytest
from rich.console import Console

from rectune.config import Config
from rectune.measure.classification import auc, user_auc
from rectune.report.baselines import measure_baselines


@pytest.mark.parametrize("split", ["test", "validation"])
def test_every_baseline_is_measured_on_the_split_under_both_protocols(
    tiny_config: Callable[..., Config], split: str
) -> None:
    config, lines = tiny_config(), []
    console = Console(record=True, width=120, file=io.StringIO())
    report = measure_baselines(config, split, lines.append, console)
    folder = config.dataset_folder()
    assert json.loads((folder / f"metrics_baselines_{split}.json").read_text(encoding="utf-8")) == report
    events = pl.read_parquet(folder / "events.parquet").filter(pl.col("split") == split)
    table = pl.read_parquet(folder / "baselines.parquet").filter(pl.col("split") == split)
    assert report["rows"] == events.height and set(report["models"]) == set(table["baseline"])
    assert set(report["baselines"]) == set(report["models"]) == set(report["frozen"]["models"])
    for protocol, part in (("online", report), ("frozen", report["frozen"])):
        mine = table.filter((pl.col("baseline") == "item-kNN") & (pl.col("protocol") == protocol))
        joined = events.join(mine, on="row_id", how="left", maintain_order="left")
        labels, odds = joined["label"].to_numpy().astype(int), joined["log_odds"].to_numpy()
        found = part["models"]["item-kNN"]["metrics"]
        assert found["auc"] == pytest.approx(auc(labels, odds))
        assert found["uauc"] == user_auc(joined["user_id"].to_list(), labels, odds)[0]
    assert any(line.startswith("best AUC, online: ") for line in lines)
    assert "matrix factorisation" in console.export_text()


def test_a_second_call_reads_what_the_first_has_fitted(tiny_config: Callable[..., Config]) -> None:
    lines: list[str] = []
    first = measure_baselines(tiny_config(), "test", lines.append, Console(quiet=True))
    assert not any("baselines: 12 from" in line for line in lines)
    second = measure_baselines(tiny_config(), "test", lines.append, Console(quiet=True))
    assert any("baselines: 12 from" in line for line in lines) and second == first
