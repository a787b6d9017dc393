"""Each baseline's score against what it is made of; none of them changes with the label of an event at or after it."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
from synthetic import ITEMS, Row, flip, log_of, tastes

from rectune.baselines.blended import KINDS, STACK
from rectune.baselines.counts import log_odds
from rectune.baselines.factors import fit_factors, fold_in
from rectune.baselines.models import BASELINES, HISTORY, ROLLING, TRAINED, Baseline, of_served
from rectune.baselines.neighbours import fit_neighbours, taste_by_neighbours
from rectune.baselines.questions import FROZEN, ONLINE, Floats, Ints, Log, Questions, ask
from rectune.baselines.stack import Settings, fit_stack
from rectune.measure.classification import auc

# Warm-up, train, validation and test of a, and of b; a's 20 is b's 20, and b's 30 holds two events.
BY_HAND: list[Row] = [
    ("a", "0", 10, 1),
    ("a", "0", 20, 0),
    ("a", "1", 30, 1),
    ("a", "0", 40, 1),
    ("b", "0", 20, 1),
    ("b", "1", 25, 0),
    ("b", "0", 30, 0),
    ("b", "1", 30, 1),
]
NAMED = {baseline.name: baseline for baseline in BASELINES}
STATIC = ("item like-rate", "user like-rate", "item + user like-rate")


@pytest.fixture(scope="module")
def log() -> Log:
    return log_of(tastes(users=80), 40, 5)


def split_of(log: Log) -> tuple[Ints, Ints]:
    """Rows of validation and test: of each user's events behind training the first six and the rest."""
    behind = np.flatnonzero(~log.known)
    early = np.arange(len(behind)) - np.searchsorted(log.user[behind], log.user[behind]) < 6
    return behind[early], behind[~early]


def scores(baseline: Baseline, log: Log, asked: Sequence[Questions], setting: int = 0, seed: int = 0) -> list[Floats]:
    held_out = ask(log, split_of(log)[0], ONLINE)
    return baseline.score(log, held_out, asked, baseline.settings[setting], seed)


def test_every_baseline_has_a_name_of_its_own_says_what_it_sees_and_can_be_written_down() -> None:
    every = BASELINES
    assert len({each.name for each in every} | set(KINDS)) == len(every) + len(KINDS)
    for each in every:
        assert any(words in each.sees for words in (TRAINED, HISTORY, ROLLING, "the user's training events"))
        tried = [dict(setting) for setting in each.settings]
        assert tried and json.loads(json.dumps(tried)) == tried
        assert len({json.dumps(setting, sort_keys=True) for setting in tried}) == len(tried)


def test_counted_baselines_are_as_worked_out_by_hand() -> None:
    log = log_of(BY_HAND, ITEMS)
    asked = Questions(np.array([3, 6]), np.array([3, 6]))
    held_out = ask(log, np.array([2]), ONLINE)
    found = {
        each.name: each.score(log, held_out, [asked], each.settings[0], 0)[0]
        for each in BASELINES
        if each.name.split(",")[0] in ("item like-rate", "user like-rate", "item + user like-rate", "moving average")
    }
    # Known are 2 likes of 4: item 0 has 2 of 3, a and b 1 of 2. At 40 there were 4 likes of 7 events and item 0 had
    # 2 of 4; at 30 there were 2 of 4, and 2 of 3. In their histories a had 2 of 3 and b 1 of 2.
    item, user = log_odds(np.array([4.5 / 8] * 2)), log_odds(np.array([3.5 / 7] * 2))
    rolling = log_odds(np.array([(2 + 5 * 5 / 9) / 9, (2 + 5 * 3 / 6) / 8]))
    rate = np.array([(2 + 2.5) / 8, (1 + 2.5) / 7])
    expected = {
        "item like-rate": item,
        "user like-rate": user,
        "item + user like-rate": item + user,
        "item like-rate, rolling": rolling,
        "user like-rate, rolling": log_odds(rate),
        "item + user like-rate, rolling": rolling + log_odds(rate),
        "moving average": log_odds(np.array([(2 + 2 * rate[0]) / 5, (1 + 2 * rate[1]) / 4])),
    }
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-12, err_msg=name)


def test_factorisation_and_neighbours_are_fitted_on_known_events(log: Log) -> None:
    asked = ask(log, split_of(log)[1], ONLINE)
    setting = {"rank": 3, "penalty": 2.0}
    found = NAMED["matrix factorisation"].score(log, asked, [asked], setting, 1)[0]
    np.testing.assert_array_equal(found, fold_in(fit_factors(log, log.known, 3, 2.0, seed=1), log, asked).score)
    setting = {"shrink": 20.0, "caution": 2.0, "weight": 3.0}
    found = NAMED["item-kNN"].score(log, asked, [asked], setting, 1)[0]
    near, length = fit_neighbours(log, log.known, 20.0), asked.stops - log.first[asked.rows]
    mean = log.label[log.known].mean()
    likes = np.array(
        [log.label[log.first[row] : stop].sum() for row, stop in zip(asked.rows, asked.stops, strict=True)]
    )
    rates = near.bias[log.item[asked.rows]] + (likes + 5 * mean) / (length + 5)
    np.testing.assert_allclose(found, rates + 3.0 * taste_by_neighbours(near, log, asked, 2.0))


def test_a_moving_average_is_over_as_many_events_as_its_setting_says(log: Log) -> None:
    asked, mean = ask(log, split_of(log)[1], ONLINE), log.label[log.known].mean()
    for place, setting in enumerate(NAMED["moving average"].settings):
        expected = []
        for row, stop in zip(asked.rows, asked.stops, strict=True):
            labels = log.label[log.first[row] : stop]
            rate, last = (labels.sum() + 5 * mean) / (len(labels) + 5), labels[-setting["length"] :]
            expected.append((last.sum() + 2 * rate) / (len(last) + 2))
        found = scores(NAMED["moving average"], log, [asked], place)[0]
        np.testing.assert_allclose(found, log_odds(np.array(expected)))


@pytest.mark.parametrize("name", ["moving average", "item-kNN", "matrix factorisation"])
def test_every_setting_of_a_baseline_is_another_model(name: str, log: Log) -> None:
    asked, settings = [ask(log, split_of(log)[1], ONLINE)], NAMED[name].settings
    found = {scores(NAMED[name], log, asked, place)[0].tobytes() for place in range(len(settings))}
    assert len(found) == len(settings) > 1


@pytest.mark.parametrize("baseline", BASELINES, ids=lambda each: each.name)
def test_answers_are_finite_numbers_in_the_order_of_the_questions(baseline: Baseline, log: Log) -> None:
    validation, test = split_of(log)
    asked = [ask(log, validation, ONLINE), ask(log, test, ONLINE), ask(log, test, FROZEN), ask(log, test[::-1], ONLINE)]
    found = scores(baseline, log, asked, -1)
    assert [each.shape for each in found] == [each.rows.shape for each in asked]
    assert all(each.dtype == np.float64 and np.isfinite(each).all() for each in found)
    np.testing.assert_allclose(found[3], found[1][::-1], atol=1e-12)
    # Everyone has something to say about made-up users of two tastes and of their own generosity.
    assert (auc(log.label[test], found[1]) or 0) > 0.55


@pytest.mark.parametrize("baseline", BASELINES, ids=lambda each: each.name)
def test_no_answer_changes_with_a_test_label_at_or_after_the_moment_of_asking(baseline: Baseline, log: Log) -> None:
    test = split_of(log)[1]
    moment = int(np.sort(log.timestamp[test])[len(test) // 2])
    changed = flip(log, test[log.timestamp[test] >= moment])
    for protocol in (ONLINE, FROZEN):
        before, after = (scores(baseline, each, [ask(each, test, protocol)])[0] for each in (log, changed))
        begin = np.array([log.timestamp[test[log.user[test] == log.user[row]]].min() for row in test])
        kept = (log.timestamp[test] if protocol == ONLINE else begin) <= moment
        assert 50 < kept.sum() < len(test)
        within = 1e-12 if baseline.name == "item-kNN" else 0.0  # sums over the whole log move last digits
        np.testing.assert_allclose(after[kept], before[kept], rtol=0, atol=within)
        # Frozen, a user's own test labels change nothing at any time, and other users' only what is rolling.
        seen = baseline.name not in STATIC and (protocol == ONLINE or baseline.sees == ROLLING)
        assert (np.abs(after[~kept] - before[~kept]) > 1e-9).any() == seen


def test_a_baseline_that_counts_the_event_itself_is_caught_by_the_same_comparison(log: Log) -> None:
    test = split_of(log)[1]
    moment = int(np.sort(log.timestamp[test])[len(test) // 2])
    leaky = Baseline(
        "leaky", ROLLING, [{}],
        lambda log, _held_out, asked, _setting, _seed: [
            NAMED["user like-rate, rolling"].score(log, each, [Questions(each.rows, each.rows + 1)], {}, 0)[0]
            for each in asked
        ],
    )  # fmt: skip
    changed = flip(log, test[log.timestamp[test] >= moment])
    before, after = (scores(leaky, each, [ask(each, test, ONLINE)])[0] for each in (log, changed))
    kept = log.timestamp[test] == moment
    assert kept.any() and (after[kept] != before[kept]).all()


@pytest.mark.parametrize("name", ["matrix factorisation", "LightGBM, five rates", "LightGBM"])
def test_the_same_seed_gives_the_same_scores(name: str, log: Log) -> None:
    asked = [ask(log, split_of(log)[1], ONLINE)]
    one, again, other = (scores(NAMED[name], log, asked, seed=seed)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def test_the_stack_among_the_baselines_scores_as_it_does_alone(log: Log) -> None:
    validation, test = split_of(log)
    held_out = ask(log, validation, ONLINE)
    stack, odds = fit_stack(log, held_out, Settings(rank=2, leaves=7))
    baseline = of_served(STACK, stack)
    assert baseline.name == STACK and list(baseline.settings) == [{}]
    found = baseline.score(log, held_out, [held_out, ask(log, test, ONLINE)], {}, 0)
    np.testing.assert_array_equal(found[0], odds[validation])
    np.testing.assert_array_equal(found[1], odds[test])
