"""What a sweep shows: lines without a terminal, a table with one, and words that do not claim more than there is."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from rectune.train.sweep_result import verdict_lines
from rectune.train.sweep_study import Row, best_row, better
from rectune.train.sweep_view import SweepView, settings_text, trials_table


def row(number: int, value: float | None, outcome: str = "complete", **values: Any) -> Row:
    evaluations = {} if value is None else {1: value - 0.1, 2: value}
    return Row(number, values or {"learning_rate": 3.14159e-4}, outcome, value, 20, "", 12.3, evaluations)


def test_the_best_is_the_highest_auc_or_the_lowest_loss_of_the_complete_trials_and_the_earliest_wins_a_tie() -> None:
    rows = [row(0, 0.6), row(1, 0.7), row(2, 0.7), row(3, 0.9, "pruned"), row(4, None, "failed"), row(5, 0.5)]
    assert [getattr(best_row(rows, metric), "number", None) for metric in ("auc", "loss", "ece")] == [1, 5, 5]
    assert best_row([row(0, 0.9, "pruned")], "auc") is None
    assert better(0.2, 0.3, "brier") and not better(0.2, 0.3, "uauc") and not better(0.3, 0.3, "auc")


def test_settings_are_short() -> None:
    values = {"learning_rate": 3.14159e-4, "lora_rank": 16, "lora_target": ["q_proj"], "packing": True}
    assert settings_text(values) == "learning_rate 0.0003142, lora_rank 16, lora_target ['q_proj'], packing True"


def shown(console: Console) -> list[str]:
    """What a view says of one trial, in lines."""
    lines: list[str] = []
    running = row(1, None, "running")
    with SweepView(console, lines.append, ["learning_rate"], "auc", 4) as view:
        view.begun([row(0, 0.7), running], running, False)
        view.moved(5, 20)
        view.evaluated([row(0, 0.7), running], running, 10, 20, 0.65)
        view.ended([row(0, 0.7), row(1, 0.75)], row(1, 0.75))
    return lines


def test_without_a_terminal_every_event_is_a_line() -> None:
    assert shown(Console(file=io.StringIO())) == [
        "trial 1 begins (2 of 4): learning_rate 0.0003142",
        "trial 1: step 10/20, auc 0.6500",
        "trial 1 complete, auc 0.7500, 12 s; best so far trial 1, 0.7500",
    ]


def test_with_a_terminal_there_is_a_table_with_the_best_marked_and_a_bar() -> None:
    screen = io.StringIO()
    assert shown(Console(file=screen, force_terminal=True, width=100, color_system=None)) == []
    last = screen.getvalue().split("trial ")[-1]
    assert "1 *" in last and "0 own" in last and "0.7500" in last and "trials" in last and "2/4" in last


def test_a_list_of_names_in_a_table_is_no_markup() -> None:
    screen = io.StringIO()
    table = trials_table([row(1, 0.7, lora_target=["q_proj"], note="[/bold] [red]")], ["lora_target", "note"], "auc", 1)
    Console(file=screen, width=100).print(table)
    assert "['q_proj']" in screen.getvalue() and "[/bold] [red]" in screen.getvalue()


def found(**changes: Any) -> dict[str, Any]:
    best = {"trial": 3, "value": 0.75, "standard_error": 0.0123, "step": 20, "settings": {}}
    against = {"difference": 0.01, "low": -0.002, "high": 0.02, "p_value": 0.1}
    base = {
        "metric": "auc", "best": best, "users": 40, "against_own": against, "not_told_apart": [0, 2],
        "importances": {}, "importances_note": "not told: 3 complete trials are too few, 10 are needed",
    }  # fmt: skip
    return {**base, **changes}


def test_a_gain_within_the_noise_is_called_that() -> None:
    lines = verdict_lines(found())
    assert lines[0].startswith("best: trial 3, auc 0.7500 ± 0.0123 (standard error, 40 users")
    assert "differs from them by +0.0100 [-0.0020, +0.0200] on the same events, which may be chance" in lines[1]
    assert lines[2] == "these events do not tell the best (95 %) from trials 0, 2"
    assert lines[-1] == "what mattered: not told: 3 complete trials are too few, 10 are needed"


@pytest.mark.parametrize("low_high", [(0.002, 0.02), (-0.02, -0.002)])
def test_a_gain_beyond_it_is_called_that(low_high: tuple[float, float]) -> None:
    against = {"difference": 0.01, "low": low_high[0], "high": low_high[1], "p_value": 0.002}
    lines = verdict_lines(found(against_own=against, not_told_apart=[], importances={"lora_rank": 0.25}))
    assert lines[1].endswith("on the same events, which is more than chance")
    assert not any(line.startswith("these events") for line in lines)
    assert lines[-1] == "what mattered (share of the variance, fANOVA): lora_rank 25 %"


def test_own_settings_that_win_and_a_sweep_without_a_winner_are_said() -> None:
    own = {"trial": 0, "value": 0.75, "standard_error": None, "step": 20, "settings": {}}
    assert verdict_lines(found(best=own, against_own=None))[:2] == [
        "best: trial 0, auc 0.7500",
        "own settings: no trial is better than the configuration as it is",
    ]
    assert verdict_lines(found(best=None)) == ["best: none, since no trial is complete"]
