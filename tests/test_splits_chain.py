"""Every split, from preparation to the report, on the tiny model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from rich.console import Console

from rectune.config import Config
from rectune.report.evaluate import evaluate
from rectune.train.train import train

QUIET = Console(quiet=True)


@pytest.mark.parametrize("split", ["global_time", "leave_one_out"])
@pytest.mark.parametrize("layout", ["stream", "pointwise"])
def test_a_run_on_another_split_ends_in_a_report(tiny_config: Callable[..., Config], split: str, layout: str) -> None:
    config = tiny_config(
        split=split, layout=layout, prior="stack", history_shows="label", prompt_format="completion", cutoff_len=300,
        max_steps=2, eval_steps=2, save_steps=2,
    )  # fmt: skip
    run = train(config, lambda _line: None, QUIET)
    report = evaluate(run, [], "test", "logits", True, lambda _line: None, QUIET).report
    assert "stack" in report["models"] and report["frozen"]["models"]["stack"]["metrics"]["auc"] is not None
    assert (report["frozen"]["models"]["tuned"]["metrics"]["uauc"] is None) == (split == "leave_one_out")
    assert {"global_time": "one moment for all users", "leave_one_out": "each user's last event"}[split] in report[
        "how_made"
    ]["data"]
