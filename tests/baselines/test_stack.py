"""The stack: features of a fold fitted without it, requests scored as events are, files that come back whole."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import ITEMS, Row, and_known, flip, leaks, log_of, small_rows, tastes

from rectune.baselines import stack as s
from rectune.baselines.factors import fit_factors, fold_in
from rectune.baselines.history_features import history_features
from rectune.baselines.neighbours import fit_neighbours, taste_by_neighbours
from rectune.baselines.questions import FROZEN, ONLINE, Floats, Log, Questions, ask
from rectune.baselines.saved import from_file, to_file
from rectune.baselines.served import Met
from rectune.baselines.stack import FOLDS, NAMES, Parts, Settings, Stack, features, fit_parts, fit_stack
from rectune.measure.classification import auc

SMALL = Settings(rank=4, penalty=2.0, shrink=20.0, leaves=7)
ROUNDING = 1e-12
"""A user's own mean in item-kNN is a difference of sums over the whole log: other users move its last digits."""
SAME_USERS_PARTS = [NAMES.index(name) for name in ("item_log_odds", "item_count", "item_year")]


def log_of_tastes(**sizes: Any) -> Log:
    return log_of(tastes(**sizes), 42, 5)


@pytest.fixture(scope="module")
def log() -> Log:
    return log_of_tastes()


def held_out(log: Log) -> Questions:
    """The first six of each user's events behind training, as validation."""
    behind = np.flatnonzero(~log.known)
    begin = np.searchsorted(log.user[behind], log.user[behind])
    return ask(log, behind[np.arange(len(behind)) - begin < 6], ONLINE)


@pytest.fixture(scope="module")
def fitted(log: Log) -> tuple[Stack, Floats]:
    return fit_stack(log, held_out(log), SMALL)


def test_features_are_those_of_the_parts(log: Log) -> None:
    parts = fit_parts(log, log.known, SMALL, 0)
    asked = ask(log, np.flatnonzero(~log.known), ONLINE)
    found = dict(zip(NAMES, features(parts, log, asked).T, strict=True))
    item = log.item[asked.rows]
    history = history_features(log, asked, log.label[log.known].mean())
    np.testing.assert_array_equal(np.column_stack([found[name] for name in NAMES[: history.shape[1]]]), history)
    large, small = fit_factors(log, log.known, 4, 2.0), fit_factors(log, log.known, 8, 6.0)
    folded, near = fold_in(large, log, asked), fit_neighbours(log, log.known, 20.0)
    np.testing.assert_array_equal(found["mf_score"], folded.score)
    np.testing.assert_array_equal(found["mf_user_bias"], folded.user_bias)
    np.testing.assert_array_equal(found["mf_taste"], folded.taste)
    np.testing.assert_array_equal(found["mf_small_score"], fold_in(small, log, asked).score)
    np.testing.assert_array_equal(found["knn_taste"], taste_by_neighbours(near, log, asked, 1.0))
    np.testing.assert_array_equal(found["knn_taste_cautious"], taste_by_neighbours(near, log, asked, 5.0))
    np.testing.assert_array_equal(found["item_year"], log.year[item])
    mean = log.label[log.known].mean()
    for place in range(0, len(item), 17):
        mine = log.label[log.known & (log.item == item[place])]
        assert found["item_count"][place] == len(mine)
        rate = (mine.sum() + 5 * mean) / (len(mine) + 5)
        assert found["item_log_odds"][place] == pytest.approx(np.log(rate / (1 - rate)))


@given(rows=small_rows())
@settings(max_examples=12, deadline=None)
def test_no_feature_changes_with_a_label_that_its_question_may_not_see(rows: list[Row]) -> None:
    log = log_of(rows, ITEMS)
    known = np.random.default_rng(0).random(len(log.user)) < 0.5
    parts = fit_parts(log, known | (np.arange(len(known)) == 0), replace(SMALL, rank=2), 0)
    if parts.mean in (0.0, 1.0):
        return

    def seen(log: Log, asked: Questions) -> Floats:
        return features(parts, log, asked)

    for protocol in (ONLINE, FROZEN):
        assert leaks(seen, log, np.arange(len(log.user)), protocol, within=ROUNDING) == []


def test_parts_of_known_events_see_no_held_out_label_and_parts_of_all_events_are_caught() -> None:
    log = log_of(tastes(users=6, items=ITEMS, each=5, seed=2), ITEMS)
    rows, tiny = np.flatnonzero(~log.known), replace(SMALL, rank=2)

    def of_known(log: Log, asked: Questions) -> Floats:
        return features(fit_parts(log, log.known, tiny, 0), log, asked)

    def of_all(log: Log, asked: Questions) -> Floats:
        return features(fit_parts(log, np.ones(len(log.user), dtype=bool), tiny, 0), log, asked)

    for protocol in (ONLINE, FROZEN):
        assert leaks(of_known, log, rows, protocol, and_known, ROUNDING) == []
        assert {(row, row) for row in rows} <= set(leaks(of_all, log, rows, protocol, and_known, ROUNDING))


def boosts(log: Log, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Floats, Floats]]:
    """Features and labels that trees are fitted on: those of the stack, then those that score each fold."""
    given: list[tuple[Floats, Floats]] = []
    real = s.boost

    def watched(features: Floats, labels: Floats, *rest: Any, **named: Any) -> Any:
        given.append((features, labels))
        return real(features, labels, *rest, **named)

    with monkeypatch.context() as patch:
        patch.setattr(s, "boost", watched)
        fit_stack(log, held_out(log), SMALL)
    return given


def seen_in_training(log: Log, monkeypatch: pytest.MonkeyPatch) -> Floats:
    """The features that the trees are fitted on, NaN for events that are not asked about in training."""
    found = np.full((len(log.user), len(NAMES)), np.nan)
    found[log.asked] = boosts(log, monkeypatch)[0][0]
    return found


def test_the_trees_that_score_a_fold_are_fitted_on_the_training_events_of_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = log_of_tastes(users=15)
    (seen, labels), *folds = boosts(log, monkeypatch)
    np.testing.assert_array_equal(labels, log.label[log.asked])
    assert len(folds) == FOLDS
    for one, (of_others, their_labels) in enumerate(folds):
        others = log.user[log.asked] % FOLDS != one
        np.testing.assert_array_equal(of_others, seen[others])
        np.testing.assert_array_equal(their_labels, labels[others])


def test_a_users_later_training_label_leaves_what_is_seen_at_their_earlier_events(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = log_of_tastes(users=15)
    user = 7
    mine = np.flatnonzero(log.asked & (log.user == user))
    late = int(mine[-1])
    before, after = seen_in_training(log, monkeypatch), seen_in_training(flip(log, [late]), monkeypatch)
    earlier = mine[log.timestamp[mine] <= log.timestamp[late]]
    assert len(earlier) > 5
    # The event itself included: bit by bit, with rates, factors and neighbours of the other folds.
    np.testing.assert_array_equal(after[earlier], before[earlier])
    # The others of the fold are not touched either; kNN's sums run over the whole log, so their last digits are.
    fold = log.asked & (log.user % FOLDS == user % FOLDS) & (log.user != user)
    np.testing.assert_array_equal(after[fold][:, SAME_USERS_PARTS], before[fold][:, SAME_USERS_PARTS])
    np.testing.assert_allclose(after[fold], before[fold], atol=ROUNDING)
    # In the other folds the item's rate is another one.
    others = log.asked & (log.user % FOLDS != user % FOLDS) & (log.item == log.item[late])
    rate = NAMES.index("item_log_odds")
    assert others.any() and (after[others, rate] != before[others, rate]).all()


def test_parts_that_hold_the_users_own_training_labels_are_caught_by_the_same_check() -> None:
    log = log_of_tastes(users=15)
    mine = np.flatnonzero(log.asked & (log.user == 7))
    late = int(mine[-1])
    asked = ask(log, mine[log.timestamp[mine] <= log.timestamp[late]], ONLINE)
    in_sample = [features(fit_parts(each, each.known, SMALL, 0), each, asked) for each in (log, flip(log, [late]))]
    assert (in_sample[0] != in_sample[1]).any(axis=1).all()


def test_what_is_seen_in_training_is_counted_in_the_other_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    log = log_of_tastes(users=15)
    found = seen_in_training(log, monkeypatch)
    for row in np.flatnonzero(log.asked)[::11]:
        others = log.known & (log.user % FOLDS != log.user[row] % FOLDS)
        mine, mean = log.label[others & (log.item == log.item[row])], log.label[others].mean()
        rate = (mine.sum() + 5 * mean) / (len(mine) + 5)
        assert found[row, NAMES.index("item_count")] == len(mine)
        assert found[row, NAMES.index("item_log_odds")] == pytest.approx(np.log(rate / (1 - rate)))
        assert found[row, NAMES.index("history_length")] == log.stop[row] - log.first[row]


def test_test_labels_change_no_prior_that_is_asked_for_before_them(log: Log, fitted: tuple[Stack, Floats]) -> None:
    watched = held_out(log)
    # Each user's last moment.
    last = np.array([log.timestamp[log.user == user].max() for user in range(log.users)])
    latest = np.flatnonzero(log.timestamp == last[log.user])
    assert len(latest) >= log.users and not (log.known[latest].any() or np.isin(latest, watched.rows).any())
    found = fit_stack(flip(log, latest), watched, SMALL)[1]
    # Not even those of the events themselves; kNN's sums run over the whole log, which moves last digits only.
    np.testing.assert_allclose(found, fitted[1], atol=1e-9)


def test_the_log_odds_of_events_that_are_not_known_are_the_stacks_own(log: Log, fitted: tuple[Stack, Floats]) -> None:
    stack, odds = fitted
    rows = np.flatnonzero(~log.known)
    np.testing.assert_array_equal(stack.score(log, ask(log, rows, ONLINE)), odds[rows])
    assert odds.dtype == np.float64 and odds.shape == log.user.shape and np.isfinite(odds).all()
    # Known events come from trees fitted without their users.
    known = np.flatnonzero(log.known)
    assert not np.array_equal(stack.score(log, ask(log, known, ONLINE)), odds[known])


def test_a_stack_learns_what_is_to_be_learned_and_is_no_better_on_what_it_was_fitted_on(
    log: Log, fitted: tuple[Stack, Floats]
) -> None:
    odds = fitted[1]
    train, behind = (auc(log.label[rows], odds[rows]) or 0 for rows in (log.asked, ~log.known))
    rate = auc(
        log.label[~log.known], features(fitted[0].parts, log, ask(log, np.flatnonzero(~log.known), ONLINE))[:, 7]
    )
    assert behind > 0.7 > (rate or 1) and train < behind + 0.03


def test_the_same_seed_gives_the_same_stack(log: Log, fitted: tuple[Stack, Floats]) -> None:
    stack, odds = fit_stack(log, held_out(log), SMALL)
    assert stack.to_bytes() == fitted[0].to_bytes()
    np.testing.assert_array_equal(odds, fitted[1])
    other = fit_stack(log, held_out(log), SMALL, seed=1)[1]
    assert not np.array_equal(other, odds)


@pytest.mark.parametrize("users", [1, 2, 7])
def test_few_users_who_leave_folds_empty_are_fitted_too(users: int) -> None:
    log = log_of_tastes(users=users)
    stack, odds = fit_stack(log, held_out(log), SMALL)
    assert np.isfinite(odds).all() and stack.score(log, held_out(log)).shape == (len(held_out(log)),)


def test_no_training_event_is_an_error(log: Log) -> None:
    with pytest.raises(ValueError, match="log: no training event"):
        fit_stack(replace(log, asked=np.zeros_like(log.asked)), held_out(log), SMALL)


def history_of(log: Log, row: int, stop: int) -> list[Met]:
    return [Met(log.items[log.item[event]], int(log.label[event])) for event in range(log.first[row], stop)]


def test_the_answer_to_a_request_is_the_score_of_the_same_question(log: Log, fitted: tuple[Stack, Floats]) -> None:
    stack = fitted[0]
    rows = np.flatnonzero(~log.known)[::9]
    for protocol in (ONLINE, FROZEN):
        asked = ask(log, rows, protocol)
        expected = stack.score(log, asked)
        for row, stop, odds in zip(asked.rows, asked.stops, expected, strict=True):
            found = stack.answer(history_of(log, row, stop), [log.items[log.item[row]]])
            assert found == pytest.approx([odds], abs=1e-9)


def test_each_candidate_of_a_request_is_scored_by_itself(log: Log, fitted: tuple[Stack, Floats]) -> None:
    stack, history = fitted[0], history_of(log, 20, 15)
    together = stack.answer(history, log.items)
    assert together.shape == (42,) and len(np.unique(together)) > 10
    one_by_one = [float(stack.answer(history, [item])[0]) for item in log.items]
    np.testing.assert_allclose(together, one_by_one, atol=1e-9)
    np.testing.assert_array_equal(stack.answer(history, log.items[::-1]), together[::-1])


def test_unknown_items_and_empty_histories_and_no_candidates_give_numbers(fitted: tuple[Stack, Floats]) -> None:
    stack = fitted[0]
    odd = stack.answer([Met("no such item", 1), Met(None, 0), Met("3", 1)], ["no such item", None, "3", "41"])
    assert np.isfinite(odd).all()
    # Item 41 is in the catalog without any event; both others are nothing but unknown.
    assert odd[0] == odd[1]
    assert np.isfinite(stack.answer([], ["3", None])).all()
    assert stack.answer([Met("3", 1)], []).shape == (0,) and stack.answer([], []).shape == (0,)
    # A label counts, whatever the item.
    liked, disliked = (stack.answer([Met(None, label)] * 20, ["3"])[0] for label in (1, 0))
    assert liked > disliked


def test_a_stack_that_was_written_and_read_scores_bit_by_bit_alike(log: Log, fitted: tuple[Stack, Floats]) -> None:
    stack = fitted[0]
    content = stack.to_bytes()
    again = Stack.from_bytes(content)
    asked = ask(log, np.arange(len(log.user)), ONLINE)
    np.testing.assert_array_equal(again.score(log, asked), stack.score(log, asked))
    history = [Met("1", 1), Met(None, 0), Met("2", 1)]
    np.testing.assert_array_equal(again.answer(history, log.items), stack.answer(history, log.items))
    assert again.to_bytes() == content
    named = replace(stack, items=['é "quoted" \\ \n 映画', *stack.items[1:]])
    assert Stack.from_bytes(named.to_bytes()).items == named.items


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_file_with_a_cut_or_a_changed_byte_is_no_stack(fitted: tuple[Stack, Floats], data: st.DataObject) -> None:
    content = fitted[0].to_bytes()
    at = data.draw(st.integers(0, len(content) - 1))
    with pytest.raises(ValueError, match=r"\S"):
        Stack.from_bytes(content[:at])
    # In the texts in front of the tensors, where the trees are, and anywhere.
    for place in (at, at % 5000):
        changed = bytearray(content)
        changed[place] ^= 1 << data.draw(st.integers(0, 7))
        try:
            read = Stack.from_bytes(bytes(changed))
        except ValueError:
            continue
        # What is left are spaces between the parts of the JSON in front.
        assert read.to_bytes() == content


@pytest.mark.parametrize("content", [b"", b"{}", b"\x00" * 64, b"not a stack, but long enough to be one" * 9])
def test_other_content_is_no_stack(content: bytes) -> None:
    with pytest.raises(ValueError, match="it holds no fitted baseline"):
        Stack.from_bytes(content)


def rewritten(content: bytes, without: str | None = None, **told: str) -> bytes:
    tensors, texts = from_file(content)
    return to_file({name: tensor for name, tensor in tensors.items() if name != without}, {**texts, **told})


def test_a_file_with_other_features_or_without_a_part_is_refused(fitted: tuple[Stack, Floats]) -> None:
    content = fitted[0].to_bytes()
    assert rewritten(content) == content
    for bad in (
        rewritten(content, names='["a"]'),
        rewritten(content, names="{"),
        rewritten(content, without="mf_bias"),
    ):
        with pytest.raises(ValueError, match=r"features are not those|Expecting|no stack \('mf_bias'\)"):
            Stack.from_bytes(bad)


def test_parts_hold_nothing_of_an_item_that_no_event_is_about(fitted: tuple[Stack, Floats]) -> None:
    parts: Parts = fitted[0].parts
    assert parts.count[40:].tolist() == [0, 0, 0]
    np.testing.assert_allclose(parts.rate[40:], parts.mean)
