"""The study on disk, without any training: what is drawn next, and what a killed sweep leaves behind."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from rectune.config import Config, parse_config
from rectune.errors import ConfigError
from rectune.files import write_json
from rectune.train.publish import VALIDATION_PREDICTIONS
from rectune.train.sweep import _check_going, _run
from rectune.train.sweep_result import best_config, summary, tidy, trial_folder
from rectune.train.sweep_study import FILE, SweepStudy, best_row
from rectune.train.sweep_trial import RESULT, Result

SPACE = {
    "learning_rate": {"low": 1e-5, "high": 1e-2, "log": True},
    "lora_rank": {"low": 4, "high": 64, "step": 4},
    "lora_target": ["all", ["q_proj", "v_proj"]],
    "packing": [True, False],
}


def config(tmp_path: Path, **values: Any) -> Config:
    return parse_config({"output_dir": str(tmp_path / "run"), "sweep": SPACE, **values}, origin="test")


def opened(folder: Path, asked: Config, metric: str = "auc", data: str = "hash") -> SweepStudy:
    folder.mkdir(parents=True, exist_ok=True)
    return SweepStudy(folder, asked, metric, data)


def value_of(values: dict[str, Any]) -> float:
    """A made-up validation metric with its best at a rate of 1e-3 and a low rank."""
    return 1 - 0.1 * math.log10(values["learning_rate"] / 1e-3) ** 2 - values["lora_rank"] / 640


def test_the_first_trial_has_the_own_settings_and_all_stay_inside_the_space(tmp_path: Path) -> None:
    asked = config(tmp_path)
    study = opened(tmp_path / "s", asked)
    for number in range(8):
        trial = study.next_trial()
        row = study.row(trial)
        assert row.number == number and list(row.values) == list(SPACE) and row.outcome == "running"
        assert number or row.values == {key: getattr(asked, key) for key in SPACE}
        assert all(row.values[key] in part for key, part in study.space.items())
        assert isinstance(row.values["lora_rank"], int) and isinstance(row.values["packing"], bool)
        study.finish(trial, Result("complete", value_of(row.values), 10), 1.0)
    assert len({str(row.values) for row in study.rows()}) == 8


def test_a_study_that_is_opened_anew_for_every_trial_draws_what_one_sitting_draws(tmp_path: Path) -> None:
    asked = config(tmp_path)
    whole = opened(tmp_path / "whole", asked)
    for _ in range(7):
        trial = whole.next_trial()
        whole.finish(trial, Result("complete", value_of(whole.row(trial).values), 10), 1.0)
    for _ in range(7):
        killed = opened(tmp_path / "parts", asked)
        asked_for = killed.next_trial()
        killed.report(asked_for, 1, 0.5, 3.0)  # and here it is killed
        again = opened(tmp_path / "parts", asked)
        trial = again.next_trial()
        assert again.row(trial) == killed.row(asked_for)
        again.report(trial, 1, 0.5, 4.0)  # the resumed trial repeats its evaluation
        again.finish(trial, Result("complete", value_of(again.row(trial).values), 10), 5.0)
    parts = opened(tmp_path / "parts", asked)
    assert [row.values for row in parts.rows()] == [row.values for row in whole.rows()]
    assert [row.evaluations for row in parts.rows()] == [{1: 0.5}] * 7
    assert best_row(parts.rows(), "auc").number == best_row(whole.rows(), "auc").number  # type: ignore[union-attr]
    other = opened(tmp_path / "other", asked.with_overrides(seed=1))
    for _ in range(2):
        trial = other.next_trial()
        other.finish(trial, Result("failed"), 1.0)
    assert other.rows()[1].values != whole.rows()[1].values


def test_a_trial_killed_before_it_had_all_its_parameters_gets_the_rest(tmp_path: Path) -> None:
    study = opened(tmp_path / "s", config(tmp_path))
    study.finish(study.next_trial(), Result("complete", 0.5, 1), 1.0)
    study.study.ask({"packing": study._distributions()["packing"]})
    (drawn,) = [row.values for row in opened(tmp_path / "s", config(tmp_path)).rows()[1:]]
    assert list(drawn) == ["packing"]
    again = opened(tmp_path / "s", config(tmp_path))
    values = again.row(again.next_trial()).values
    assert list(values) == list(SPACE) and values["packing"] == drawn["packing"]


def test_a_trial_that_had_ended_when_the_sweep_was_killed_is_not_run_again(tmp_path: Path) -> None:
    study = opened(tmp_path / "s", config(tmp_path))
    trial = study.next_trial()
    run = trial_folder(study.folder, 0)
    run.mkdir(parents=True)
    left = Result("complete", 0.7, 20)
    write_json(run / RESULT, asdict(left))
    assert _run(study, trial, None, 0.0, 0.0, lambda: False) == left  # type: ignore[arg-type]


def test_settings_that_do_not_go_together_are_refused_without_a_process(tmp_path: Path) -> None:
    asked = config(tmp_path, sweep={"layout": ["stream", "pointwise"], "prompt_format": ["chat", "instruction"]})
    study = opened(tmp_path / "s", asked)
    study.finish(study.next_trial(), Result("complete", 0.5, 1), 1.0)
    study.study.enqueue_trial({"layout": "stream", "prompt_format": "instruction"})
    result = _run(study, study.next_trial(), None, 0.0, 0.0, lambda: False)  # type: ignore[arg-type]
    assert result is not None and result.outcome == "refused"
    assert "prompt_format: got 'instruction' beside layout: stream" in result.reason


def test_what_was_begun_with_other_settings_data_or_metric_is_refused_and_neutral_keys_are_not(tmp_path: Path) -> None:
    asked = config(tmp_path)
    opened(tmp_path / "s", asked)
    opened(tmp_path / "s", asked.with_overrides(output_dir=tmp_path / "x", gen_eval_samples=2, save_total_limit=9))
    for changed, said in (
        ({"asked": asked.with_overrides(weight_decay=0.1)}, "weight_decay=0.0"),
        ({"asked": asked.with_overrides(sweep={**SPACE, "packing": [False, True]})}, "sweep="),
        ({"metric": "loss"}, "--metric auc"),
        ({"data": "another"}, "other data"),
    ):
        with pytest.raises(ConfigError, match=r"holds a sweep with .*whose trials cannot be compared") as caught:
            opened(tmp_path / "s", **{"asked": asked, **changed})
        assert said in str(caught.value)


def test_a_folder_may_have_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "what? a #1 100% name"
    opened(folder, config(tmp_path))
    assert (folder / FILE).is_file()


def test_where_less_is_better_the_lowest_wins_and_the_highest_is_pruned(tmp_path: Path) -> None:
    study = opened(tmp_path / "s", config(tmp_path), metric="loss")
    for value in (0.5, 0.6, 0.55, 0.58):
        trial = study.next_trial()
        for number in (1, 2):
            study.report(trial, number, value + 0.1 / number, 1.0)
            assert study.reason_to_prune(trial) == ""
        study.finish(trial, Result("complete", value, 10), 1.0)
    best = best_row(study.rows(), "loss")
    assert best is not None and best.value == 0.5
    for value, pruned in ((0.9, True), (0.3, False)):
        trial = study.next_trial()
        study.report(trial, 1, value, 1.0)
        assert study.reason_to_prune(trial) == ""  # not by its first evaluation
        study.report(trial, 2, value, 1.0)
        assert bool(study.reason_to_prune(trial)) is pruned
        study.finish(trial, Result("pruned", value, 4, "x"), 1.0)


def test_the_best_keeps_its_folder_when_a_better_one_comes_it_loses_its_weights(tmp_path: Path) -> None:
    study = opened(tmp_path / "s", config(tmp_path))

    def trained(value: float) -> None:
        trial = study.next_trial()
        run = trial_folder(study.folder, trial.number)
        (run / "checkpoint-4").mkdir(parents=True)
        (run / "logs").mkdir()
        for name in ("adapter_model.safetensors", "checkpoint-4/optimizer.pt", "logs/log.csv", "config.yaml"):
            (run / name).write_text("x", encoding="utf-8")
        study.finish(trial, Result("complete", value, 4), 1.0)
        tidy(study.folder, study.rows(), best_row(study.rows(), "auc"))

    def kept(number: int) -> list[str]:
        run = trial_folder(study.folder, number)
        return sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())

    whole, story = ["adapter_model.safetensors", "checkpoint-4/optimizer.pt"], ["config.yaml", "logs/log.csv"]
    trained(0.6)
    trained(0.5)
    assert (kept(0), kept(1)) == (whole + story, story)
    trained(0.7)
    assert (kept(0), kept(2)) == (story, whole + story)


def test_the_verdict_takes_off_what_class_weights_have_added(tmp_path: Path) -> None:
    asked = config(tmp_path, sweep={"class_weights": ["none", [1.0, 20.0]]})
    study = opened(tmp_path / "s", asked, metric="f1")
    users = [f"u{number}" for number in range(20) for _ in range(4)]
    labels = [1, 0, 1, 0] * 20
    plain = [2.0, -1.0, 1.0, -2.0] * 20  # every answer is right, in both trials
    for shift in (0.0, math.log(20.0)):
        trial = study.next_trial()
        run = trial_folder(study.folder, trial.number)
        run.mkdir(parents=True)
        odds = [value + shift for value in plain]
        table = pl.DataFrame({"user_id": users, "label": labels, "log_odds": odds})
        table.write_parquet(run / VALIDATION_PREDICTIONS)
        result = Result("complete", 1.0 + shift / 1000, 4, loss_shift=shift)  # the weighted one is the best
        write_json(run / RESULT, asdict(result))
        study.finish(trial, result, 1.0)
    found = summary(study)
    assert found["best"]["trial"] == 1
    assert found["best"]["standard_error"] == 0.0  # raw log-odds would call all but one answer in four a yes
    assert found["against_own"]["difference"] == 0.0 and found["not_told_apart"] == [0]


def test_three_failures_end_a_sweep_only_where_nothing_has_worked(tmp_path: Path) -> None:
    study = opened(tmp_path / "s", config(tmp_path))
    for _ in range(2):
        study.finish(study.next_trial(), Result("refused", reason="too big"), 1.0)
        _check_going(study.rows())
    worked = opened(tmp_path / "t", config(tmp_path))
    worked.finish(worked.next_trial(), Result("complete", 0.5, 1), 1.0)
    for _ in range(4):
        worked.finish(worked.next_trial(), Result("failed", reason="crash"), 1.0)
    _check_going(worked.rows())
    study.finish(study.next_trial(), Result("failed", reason="at last"), 1.0)
    with pytest.raises(ConfigError, match="all of the first 3 trials have failed, the last one because: at last"):
        _check_going(study.rows())


def test_the_best_configuration_trains_beside_the_run_that_was_swept(tmp_path: Path) -> None:
    asked = config(tmp_path, gradient_accumulation_steps=8, save_total_limit=3, eval_steps=100)
    best = best_config(asked, {"gradient_accumulation_steps": 16, "lora_target": ["q_proj"]})
    assert best.output_dir == tmp_path / "run-best" and best.save_total_limit == 3 and best.sweep == {}
    assert (best.gradient_accumulation_steps, best.eval_steps, best.lora_target) == (16, 50, ["q_proj"])
