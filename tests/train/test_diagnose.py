"""Each rule at its threshold, on histories made by hand; that findings depend on nothing but the history."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rectune.train.checkup import Checkup
from rectune.train.curves import Curves, Facts, noise
from rectune.train.diagnose import diagnose
from rectune.train.not_finite import BROKEN

FACTS = Facts(
    training_events=10_000,
    validation_events=1000,
    training_rate=0.5,
    validation_rate=0.5,
    validation_users=100,
    steps=100,
    warmup_steps=5,
    epochs=2.0,
    by_steps=False,
    learning_rate=1e-4,
    max_grad_norm=1.0,
    metric="auc",
)
GOOD: dict[str, Any] = {
    "eval_loss": 0.6,
    "eval_loss_se": 0.015,
    "eval_loss_expected": 0.6,
    "eval_auc": 0.72,
    "eval_positive_rate": 0.5,
    "eval_predicted_positive_rate": 0.5,
    "eval_score_mean": 0.5,
    "eval_log_odds_sd": 0.9,
    "eval_log_odds_moved": 1.0,
    "eval_n": 1000,
}
Log = dict[str, Any]


def lines(losses: list[float], norms: list[float] | None = None) -> list[Log]:
    """Training lines at the steps that share 100 evenly."""
    every, norms = 100 // len(losses), norms or [1.0] * len(losses)
    return [
        {"step": every * at, "epoch": every * at / 50, "loss": loss, "grad_norm": norm}
        for at, (loss, norm) in enumerate(zip(losses, norms, strict=True), start=1)
    ]


def history(losses: list[float], *evaluations: Log, norms: list[float] | None = None, ended: bool = True) -> list[Log]:
    """Lines with evaluations spread evenly among them, each `GOOD` but for what is given, and the end."""
    logs = lines(losses, norms)
    for at, evaluation in enumerate(evaluations, start=1):
        step = 100 * at // len(evaluations)
        logs.append({"step": step, "epoch": step / 50, **GOOD, **evaluation})
    logs.sort(key=lambda log: (log["step"], "eval_loss" in log))
    return [*logs, {"step": 100, "epoch": 2.0, "train_runtime": 1.0}] if ended else logs


def codes(logs: list[Log], **facts: Any) -> set[str]:
    return {finding.code for finding in diagnose(logs, dataclasses.replace(FACTS, **facts))}


FALL = list(np.linspace(0.70, 0.60, 20))


def test_a_healthy_history_has_no_finding() -> None:
    assert codes(history(FALL, {"eval_loss": 0.66}, {"eval_loss": 0.61}, {"eval_loss": 0.605}, {})) == set()
    assert diagnose([], FACTS) == []


def test_noise_takes_a_trend_and_single_jumps_out() -> None:
    draw = np.random.default_rng(0).normal(0, 0.1, 400)
    assert noise(draw) == pytest.approx(0.1, rel=0.15)
    assert noise(draw + np.linspace(0, 20, 400)) == pytest.approx(noise(draw), rel=0.1)
    draw[100] += 50
    assert noise(draw) == pytest.approx(0.1, rel=0.15)
    assert np.isnan(noise(np.array([1.0, 2.0])))


@pytest.mark.parametrize(("rise", "found"), [(0.029, False), (0.031, True)])
def test_overfitting_is_a_rise_of_two_standard_errors_with_a_falling_training_loss(rise: float, found: bool) -> None:
    worse = {"eval_loss": 0.6 + rise}
    losses = list(np.linspace(0.7, 0.4, 20))
    assert ("overfitting" in codes(history(losses, {}, {}, worse, worse))) is found
    # One bad evaluation in the middle of a run is not yet a rise.
    assert "overfitting" not in codes(history(losses, {}, worse, {}, {}))
    # Nothing is learnt by heart where the training loss does not fall, or is no lower than the validation loss.
    assert "overfitting" not in codes(history(losses[::-1], {}, {}, worse, worse))
    assert "overfitting" not in codes(history([loss + 0.4 for loss in losses], {}, {}, worse, worse))
    # Weighted losses cannot be held against a plain one.
    assert ("overfitting" in codes(history([x + 0.4 for x in losses], {}, {}, worse, worse), plain_loss=False)) is found
    # Nor where the order of the scores has become better by two standard errors.
    surer = {**worse, "eval_auc": 0.76}
    assert "overfitting" not in codes(history(losses, {}, {}, surer, surer))


def test_the_advice_on_overfitting_is_to_stop_where_the_loss_was_best() -> None:
    worse = {"eval_loss": 0.7}
    logs = history(list(np.linspace(0.7, 0.4, 20)), {}, worse, worse, worse)
    (finding,) = [each for each in diagnose(logs, FACTS) if each.code == "overfitting"]
    assert "num_train_epochs=0.5 (now 2)" in finding.advice and finding.step == 75
    (finding,) = [e for e in diagnose(logs, dataclasses.replace(FACTS, by_steps=True)) if e.code == "overfitting"]
    assert "max_steps=25 (now 100)" in finding.advice


@pytest.mark.parametrize(
    ("log", "found"),
    [
        ({"eval_predicted_positive_rate": 0.02, "eval_score_mean": 0.3}, True),
        ({"eval_predicted_positive_rate": 0.03, "eval_score_mean": 0.3}, False),
        ({"eval_predicted_positive_rate": 0.99, "eval_score_mean": 0.7}, True),
        # The mean is right, but the scores do not rank: 0.53 is within two of 0.018.
        ({"eval_predicted_positive_rate": 0.0, "eval_auc": 0.53}, True),
        ({"eval_predicted_positive_rate": 0.0, "eval_auc": 0.55}, False),
        # A fifth is liked: a calibrated model says No to all, and ranks.
        ({"eval_predicted_positive_rate": 0.0, "eval_positive_rate": 0.2, "eval_score_mean": 0.2}, False),
        ({"eval_predicted_positive_rate": 0.0, "eval_positive_rate": 0.09, "eval_score_mean": 0.5}, False),
        ({"eval_predicted_positive_rate": 0.0, "eval_score_mean": 0.3, "eval_n": 38}, False),
    ],
    ids=str,
)
def test_collapse_is_one_answer_that_a_calibrated_model_would_not_give(log: Log, found: bool) -> None:
    assert ("collapse" in codes(history(FALL, {}, log, log, log))) is found
    assert "collapse" not in codes(history(FALL, log, {}, log, {}))  # never twice in a row, and not at the end


@pytest.mark.parametrize(("rate", "found"), [(0.19, True), (0.21, False), (0.79, False), (0.81, True)])
def test_imbalance_is_less_than_a_fifth_and_a_warning_where_answers_are_counted(rate: float, found: bool) -> None:
    logs = history(FALL, {}, {})
    assert ("class_imbalance" in codes(logs, training_rate=rate)) is found
    assert ("class_imbalance" in codes(logs, validation_rate=rate)) is found
    if found:
        by_metric = {
            metric: diagnose(logs, dataclasses.replace(FACTS, training_rate=rate, metric=metric))[0].severity
            for metric in ("auc", "f1")
        }
        assert by_metric == {"auc": "info", "f1": "warning"}


def test_gradients_explode_when_they_are_ten_times_their_median_three_times() -> None:
    calm = [1.0, 2.0, 1.0, 0.5] * 5
    for spikes, found in (([7, 11, 15], True), ([7, 11], False)):
        norms = [11.0 if at in spikes else norm for at, norm in enumerate(calm)]
        assert ("exploding_gradients" in codes(history(FALL, {}, {}, norms=norms))) is found
    # Next to nothing, as after learning by heart: a hundred times as much is still less than at the beginning.
    heart = [1.0] * 5 + [1e-4] * 9 + [0.9, 1e-4] * 3
    assert "exploding_gradients" not in codes(history(FALL, {}, {}, norms=heart))
    # A skipped step of float16 has no norm.
    skipped = [float("inf") if at in (7, 11, 15) else norm for at, norm in enumerate(calm)]
    assert "exploding_gradients" not in codes(history(FALL, {}, {}, norms=skipped))


def test_a_loss_at_zero_on_new_events_is_told_from_one_on_events_seen_again() -> None:
    assert "loss_at_zero" in codes(history(FALL, {}, {"eval_loss": 0.019}))
    assert "loss_at_zero" not in codes(history(FALL, {}, {"eval_loss": 0.021}))
    masked = [0.7] * 7 + [0.0] * 13
    assert "loss_at_zero" in codes(history(masked, {}, {}))  # the first pass ends with line 10
    seen_again = [0.7] * 10 + [0.0] * 10
    assert "loss_at_zero" not in codes(history(seen_again, {}, {}))


@pytest.mark.parametrize(
    ("moved", "at_quarter", "at_half"),
    [(0.0, True, True), (0.009, False, True), (0.011, False, False)],
)
def test_no_effect_is_no_movement_at_all_or_next_to_none_after_half(
    moved: float, at_quarter: bool, at_half: bool
) -> None:
    log = {"eval_log_odds_moved": moved}
    logs = history(FALL, log, log, log, log, ended=False)
    quarter = [entry for entry in logs if entry["step"] <= 25]
    half = [entry for entry in logs if entry["step"] <= 50]
    assert ("no_effect" in codes(quarter)) is at_quarter
    assert ("no_effect" in codes(half)) is at_half


def test_a_run_of_a_few_steps_is_not_judged() -> None:
    # As `--dry-run` makes it: two steps, the first of them at a rate of 0.
    short = [
        *({"step": at, "epoch": 0.1, "loss": 0.7, "grad_norm": 1.0} for at in (1, 2)),
        {"step": 2, "epoch": 0.1, **GOOD, "eval_loss": 0.70, "eval_auc": 0.5, "eval_log_odds_moved": 0.0},
        {"step": 2, "epoch": 0.1, "train_runtime": 1.0},
    ]
    assert codes(short, steps=2, warmup_steps=0) == set()


def test_a_rate_is_too_high_when_the_loss_ends_above_its_start_or_above_a_constant() -> None:
    assert "learning_rate_too_high" in codes(history([0.7, *[0.8] * 19], {}, {}))
    assert "learning_rate_too_high" not in codes(history([0.7, *[0.76] * 19], {}, {}))
    # Up during warm-up and down again.
    assert "learning_rate_too_high" not in codes(history([0.7, 1.4, 1.4, *[0.65] * 17], {}, {}))
    # Wild from the first line on: 0.9 is more than a quarter above ln 2 in both.
    worse = {"eval_loss": 0.9, "eval_log_odds_moved": 1.1}
    assert "learning_rate_too_high" in codes(history([0.95] * 20, worse, worse))
    assert "learning_rate_too_high" not in codes(history([0.95] * 20, {**worse, "eval_log_odds_moved": 0.9}, worse, {}))
    assert "learning_rate_too_high" not in codes(history([0.5] * 20, worse, worse))  # that is overfitting's
    deaf = {"eval_log_odds_sd": 0.009}
    assert "learning_rate_too_high" in codes(history(FALL, {}, deaf))
    assert "learning_rate_too_high" not in codes(history(FALL, {}, {"eval_log_odds_sd": 0.011}))


def test_a_rate_is_too_low_when_neither_scores_nor_loss_have_moved() -> None:
    still, flat = {"eval_log_odds_moved": 0.09}, [0.70, 0.72] * 10
    assert "learning_rate_too_low" in codes(history(flat, still, still))
    assert "learning_rate_too_low" not in codes(history(flat, {"eval_log_odds_moved": 0.11}, {}))
    assert "learning_rate_too_low" not in codes(history(list(np.linspace(0.9, 0.6, 20)), still, still))
    # Not before a third of the run.
    whole = history(flat * 2, still, still, still, still, ended=False)
    assert "learning_rate_too_low" not in codes([log for log in whole if log["step"] <= 25])
    assert "learning_rate_too_low" in codes([log for log in whole if log["step"] <= 50])


def test_underfitting_is_held_against_the_prior_or_the_share_of_positives() -> None:
    # The entropy of one half is 0.693, and 99 % of it 0.686; an AUC of 0.53 is no better than 0.5 with 1,000 events.
    nothing = {"eval_loss": 0.687, "eval_auc": 0.53}
    assert "underfitting" in codes(history(FALL, nothing, nothing))
    assert "underfitting" not in codes(history(FALL, nothing, {**nothing, "eval_loss": 0.685}))
    assert "underfitting" not in codes(history(FALL, nothing, {**nothing, "eval_auc": 0.55}))
    assert "underfitting" not in codes(history(FALL, nothing, nothing, ended=False))
    assert "underfitting" not in codes(history(FALL, {**nothing, "eval_n": 40}, {**nothing, "eval_n": 40}))
    # A prior of 0.6 and 0.72 is what the good run has, so it has added nothing.
    assert "underfitting" in codes(history(FALL, {}, {}), prior_loss=0.6, prior_auc=0.72)
    assert "underfitting" not in codes(history(FALL, {}, {}), prior_loss=0.62, prior_auc=0.72)


def test_still_falling_asks_both_losses() -> None:
    steep = list(np.linspace(0.7, 0.4, 20))
    down = [{"eval_loss": loss} for loss in (0.68, 0.64, 0.60, 0.56)]
    logs = history(steep, *down)
    assert [(each.code, each.severity) for each in diagnose(logs, FACTS)] == [("still_falling", "info")]
    # Half of the run brought less than a standard error.
    assert "still_falling" not in codes(history(steep, *down[:2], {"eval_loss": 0.63}, {"eval_loss": 0.63}))
    assert "still_falling" not in codes(history([0.7] * 10 + [0.5] * 10, *down))


def test_overconfidence_is_a_loss_far_above_the_expected_one_while_the_scores_rank() -> None:
    log = {"eval_loss": 0.8, "eval_loss_expected": 0.4}
    assert "overconfidence" in codes(history(FALL, {}, log, log))
    assert "overconfidence" not in codes(history(FALL, log, {}, {}))
    assert "overconfidence" not in codes(history(FALL, {}, {**log, "eval_auc": 0.53}, {**log, "eval_auc": 0.53}))
    assert "overconfidence" not in codes(history(FALL, {}, {}, {**log, "eval_loss": 0.59}))  # less than half above
    assert "overconfidence" not in codes(history(FALL, {}, {}, {**log, "eval_loss_se": 0.14}))


def test_evaluations_of_a_run_that_an_earlier_version_began_may_lack_the_expected_loss() -> None:
    logs = history(FALL, {}, {"eval_loss": 0.8}, {"eval_loss": 0.8, "eval_loss_expected": 0.4}, ended=False)
    del next(log for log in logs if log.get("eval_loss") == 0.8)["eval_loss_expected"]
    assert "overconfidence" not in codes(logs)


@pytest.mark.parametrize(
    ("n", "aucs", "found"),
    [
        (150, (0.66, 0.64), True),  # an error of 0.044
        (200, (0.66, 0.64), False),  # of 0.038
        (150, (0.66, 0.56), False),  # 0.10 apart: more than two of 0.044
        (150, (0.55, 0.66), False),  # the last is the best, and the first is told from it
        (150, (0.60, 0.66), True),
    ],
)
def test_an_evaluation_is_small_when_its_error_hides_the_differences(
    n: int, aucs: tuple[float, float], found: bool
) -> None:
    evaluations = [{"eval_n": n, "eval_auc": auc, "eval_loss": 0.66} for auc in aucs]
    assert ("small_evaluation" in codes(history(FALL, *evaluations))) is found


def test_validation_events_of_one_class_are_said() -> None:
    logs = history(FALL, {"eval_positive_rate": 1.0}, {"eval_positive_rate": 1.0})
    for log in logs:
        log.pop("eval_auc", None)
    assert "small_evaluation" in codes(logs, validation_rate=1.0)


def test_a_break_is_a_stop() -> None:
    broken = {
        "step": 60, "epoch": 1.2, BROKEN: "loss", "value": "nan", "weight": None, "trained": None, "micro_batch": 2,
        "micro_batches": 8, "rows": "3 answers of user 7", "peak": 1e-3, "precision": "float16",
    }  # fmt: skip
    (finding,) = diagnose([*history(FALL, {}, {}, ended=False)[:10], broken], FACTS)
    assert (finding.code, finding.severity, finding.step) == (BROKEN, "stop", 60)
    assert finding.message.startswith("the training loss became nan in micro-batch 2 of 8: 3 answers of user")
    assert finding.advice == "bf16=true or fp16=false"


EVALUATION = st.fixed_dictionaries(
    {
        "eval_loss": st.floats(0.0, 3.0),
        "eval_loss_expected": st.floats(0.0, 0.7),
        "eval_auc": st.floats(0.0, 1.0),
        "eval_predicted_positive_rate": st.floats(0.0, 1.0),
        "eval_score_mean": st.floats(0.0, 1.0),
        "eval_log_odds_sd": st.floats(0.0, 3.0),
        "eval_log_odds_moved": st.floats(0.0, 3.0),
        "eval_n": st.integers(2, 2000),
    }
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0.0, 5.0), min_size=10, max_size=10),
    st.lists(st.floats(0.0, 100.0), min_size=10, max_size=10),
    st.lists(EVALUATION, min_size=1, max_size=5),
)
def test_a_longer_history_begins_with_the_findings_of_a_shorter_one(
    losses: list[float], norms: list[float], evaluations: list[Log]
) -> None:
    logs = history(losses, *evaluations, norms=norms)
    before: list[Any] = []
    for end in range(len(logs) + 1):
        now = diagnose(logs[:end], FACTS)
        assert now[: len(before)] == before
        assert all(finding.step <= logs[end - 1]["step"] for finding in now)
        before = now
    assert len({finding.code for finding in before}) == len(before)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.floats(0.005, 0.05), st.floats(0.02, 0.12))
def test_noisy_healthy_runs_are_not_warned_of(seed: int, scatter: float, gain: float) -> None:
    draw = np.random.default_rng(seed)
    fall = np.exp(-np.arange(25) / 6)
    losses = 0.69 - gain * (1 - fall) + draw.normal(0, scatter, 25)
    evaluations = [
        {
            "eval_loss": 0.69 - gain * (1 - fall[at]) + draw.normal(0, 0.004),
            "eval_loss_expected": 0.69 - gain * (1 - fall[at]),
            "eval_auc": 0.5 + 2 * gain * (1 - fall[at]) + 0.02 + draw.normal(0, 0.004),
        }
        for at in (5, 11, 17, 24)
    ]
    logs = history(losses.tolist(), *evaluations, norms=np.exp(draw.normal(0, 0.6, 25)).tolist())
    found = {finding.code for finding in diagnose(logs, FACTS) if finding.severity != "info"}
    assert found <= {"underfitting"} and ("underfitting" not in found or gain < 0.04)


def test_curves_leave_out_what_is_no_line() -> None:
    curves = Curves.of(history(FALL, {}, {}))
    assert (len(curves.losses), len(curves.evaluations), curves.step, curves.finished) == (20, 2, 100, True)


def test_a_rule_that_fails_is_said_in_a_line_and_does_not_end_the_training(tmp_path: Path) -> None:
    said: list[str] = []
    broken = history(FALL, {}, {})
    del next(log for log in broken if "eval_loss" in log)["eval_positive_rate"]
    checkup = Checkup(tmp_path, FACTS, said.append, lambda: False)
    checkup.look(broken)
    assert said == ["diagnosis: left out, since it failed (KeyError: 'eval_positive_rate'); the training goes on"]
    checkup.look(history(FALL, {}, {}))
    assert (tmp_path / "diagnosis.json").read_text().strip() == "[]" and len(said) == 1
