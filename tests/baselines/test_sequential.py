"""The network: what it sees against loops, what it says against plain numpy; planted leaks are caught."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import ITEMS, Row, and_known, before_training, events_of, flip, leaks, log_of, small_rows, tastes

from rectune.baselines import sequential as s
from rectune.baselines import sequential_input
from rectune.baselines.history_features import user_rate
from rectune.baselines.questions import FROZEN, ONLINE, Floats, Log, Questions, ask, split_rows
from rectune.baselines.sequential import NetworkSettings, SequentialNetwork, fit_network
from rectune.baselines.sequential_input import Batch, Blocks, RatingScale, counts_of
from rectune.baselines.served import Met
from rectune.measure.classification import auc, user_auc

SMALL = NetworkSettings(width=8, window=20, decay=0.1)


def batches(blocks: Blocks, at_once: int = 2) -> list[Batch]:
    groups = np.arange(len(blocks.slots))
    return [blocks.batch(groups[begin : begin + at_once]) for begin in range(0, len(groups), at_once)]


def seen(log: Log, asked: Questions, window: int = 20) -> Floats:
    """All that the network sees of each question, [n, inputs]; events not seen are zeros, whatever was read of them."""
    width, found = len(log.item), np.full((len(asked), 1 + counts_of(log, asked).shape[1] + 4 * len(log.item)), np.nan)
    for batch in batches(Blocks.of(log, asked, window, RatingScale.of(log))):
        for group, question in zip(*np.nonzero(batch.place >= 0), strict=True):
            here = batch.seen[group, question]
            events = np.zeros((width, 4))
            history = np.column_stack([batch.event[group] + 1, batch.marks[group], batch.ago[group, question]])[here]
            # The newest last, so that the same history looks the same wherever its group begins.
            events[width - here.sum() :] = history
            place = batch.place[group, question]
            found[place] = [batch.item[group, question], *batch.counts[group, question], *events.ravel()]
    assert not np.isnan(found).any()
    return found


def test_what_is_seen_is_as_worked_out_by_hand() -> None:
    rows = [("a", "2", 10, 1), ("a", "0", 30, 0), ("a", "1", 30, 1), ("a", "3", 42, 1), ("b", "4", 5, 0)]
    log = log_of(rows, ITEMS)
    # The three known events of a: 5, 1 and 5 stars; one like of half and its mean has a rate of (1 + 2.5) / 6.
    batch = Blocks.of(log, Questions(np.array([3, 1]), log.stop[[3, 1]]), 2, RatingScale.of(log)).batch(np.array([0]))
    assert batch.item.tolist() == [[0, 3]] and batch.place.tolist() == [[1, 0]]
    assert batch.event.tolist() == [[2, 0, 1]]
    assert batch.marks.tolist() == [[[1, 1], [-1, -1], [1, 1]]]
    # Item 0 has the event before it, item 3 the two most recent ones.
    assert batch.seen.tolist() == [[[True, False, False], [False, True, True]]]
    assert batch.ago[0, 0, 0] == 0
    np.testing.assert_allclose(batch.ago[0, 1, 1:], [np.log(2) / 2, 0], rtol=1e-6)
    assert batch.label.tolist() == [[0, 1]] and batch.rating.tolist() == [[-1, 1]]
    length, _, _, rate = batch.counts[0, 0, :4]
    np.testing.assert_allclose([length, rate], [np.log(2) / 4, np.log(3.5 / 2.5)], rtol=1e-6)


@given(rows=small_rows(), data=st.data())
@settings(max_examples=60, deadline=None)
def test_every_question_sees_the_most_recent_events_of_its_history(rows: list[Row], data: st.DataObject) -> None:
    log, window = log_of(rows, ITEMS), data.draw(st.integers(1, 8))
    every = np.arange(len(log.user))
    chosen = np.array(data.draw(st.lists(st.sampled_from(list(every)), min_size=1, max_size=12)), dtype=np.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequential_input, "TOGETHER", data.draw(st.integers(1, 4)))
        # Any questions, in any order and more than once; histories that end earlier than they might.
        for asked in (ask(log, every, FROZEN), Questions(chosen, log.stop[chosen])):
            events = seen(log, asked, window)[:, -4 * len(log.item) :].reshape(len(asked), len(log.item), 4)
            for history, row, stop in zip(events, asked.rows, asked.stops, strict=True):
                expected = range(max(log.first[row], stop - window), stop)
                shown = history[len(log.item) - len(expected) :]
                assert not history[: len(log.item) - len(expected)].any()
                assert shown[:, 0].tolist() == (log.item[list(expected)] + 1).tolist()
                assert shown[:, 1].tolist() == (2 * log.label[list(expected)] - 1).tolist()
                np.testing.assert_allclose(shown[:, 3], np.log(stop - np.array(expected)) / 2, rtol=1e-6)


@given(rows=small_rows())
@settings(max_examples=30, deadline=None)
def test_nothing_that_is_seen_changes_with_a_label_that_its_question_may_not_see(rows: list[Row]) -> None:
    # Training events too: their own label, those tied with it and later ones are asked about, not seen.
    log = before_training(log_of(rows, ITEMS))
    rows_asked = np.flatnonzero(~log.known)
    for protocol in (ONLINE, FROZEN):
        # The scale of the ratings comes from the known events.
        assert leaks(seen, log, rows_asked, protocol, and_known) == []


def test_a_history_that_holds_the_event_or_a_tied_one_is_caught() -> None:
    rows = [("a", "0", 1, 1), ("a", "1", 2, 0), ("a", "2", 3, 1), ("a", "3", 3, 0), ("a", "4", 4, 1)]
    log = before_training(log_of(rows, ITEMS))
    asked = np.arange(1, 5)

    def with_itself(log: Log, asked: Questions) -> Floats:
        return seen(log, Questions(asked.rows, asked.rows + 1))

    def with_ties(log: Log, asked: Questions) -> Floats:
        return seen(log, Questions(asked.rows, asked.rows))

    # The last event has no moment after it at which its history could end.
    caught = leaks(with_itself, log, asked[:-1], ONLINE, and_known)
    assert {(row, row) for row in asked[:-1]} <= set(caught) and (3, 2) in caught
    assert leaks(with_ties, log, asked, ONLINE, and_known) == [(3, 2)]


def plain_answers(
    weights: dict[str, torch.Tensor], attributes: Floats, log: Log, row: int, stop: int, window: int
) -> Floats:
    """The log-odds and the rating of one question, head by head and event by event."""
    w = {name: weight.double().numpy() for name, weight in weights.items()}

    def linear(name: str, x: Floats) -> Floats:
        return w[name] @ x + w[f"{name}_bias"]

    def vector(item: int) -> Floats:
        return w["item"][item] + attributes[item] @ w["attributes"]

    rating, events = RatingScale.of(log).apply(log.rating), range(max(log.first[row], stop - window), stop)
    asked = vector(log.item[row])
    counts = counts_of(log, Questions(np.array([row]), np.array([stop])))[0].astype(np.float64)
    half = len(asked) // 2
    gathered = np.zeros(len(asked))
    for head in range(2):
        part = slice(head * half, (head + 1) * half)
        above, below = np.zeros(half), np.exp(w["nothing"][head])
        for event in events:
            other = vector(log.item[event])
            likeness = linear("query", asked)[part] @ linear("key", other)[part] / half**0.5
            likeness += w["ago"][head] * np.log(stop - event) / 2
            mark = linear("mark", np.array([2 * log.label[event] - 1, rating[event]]))
            value = linear("value", other) + mark + linear("scale", other) * mark
            above, below = above + np.exp(likeness) * value[part], below + np.exp(likeness)
        gathered[part] = above / below
    inner = linear("hidden", np.concatenate([asked, gathered, gathered * asked, counts]))
    return linear("out", inner / (1 + np.exp(-inner))) + linear("count", counts) + w["bias"][log.item[row]]


def made_up(log: Log, seed: int = 0, width: int = 8) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Weights of no training, all of them large enough to matter."""
    draw = torch.Generator().manual_seed(seed)
    attributes = s._attributes(log.genres, log.year)
    start = s._start(log, 7, width, draw)
    return {
        name: torch.empty_like(weight).normal_(0, 0.5, generator=draw) for name, weight in start.items()
    }, attributes


def test_answers_are_those_of_plain_numpy_head_by_head_and_event_by_event() -> None:
    log = log_of(tastes(users=4, items=ITEMS, each=5, seed=3), ITEMS)
    weights, attributes = made_up(log)
    for protocol in (ONLINE, FROZEN):
        asked = ask(log, np.arange(len(log.user)), protocol)
        for window in (2, 20):
            blocks = Blocks.of(log, asked, window, RatingScale.of(log))
            for batch in batches(blocks):
                answers = s._answers(weights, attributes, batch).numpy()
                for group, question in zip(*np.nonzero(batch.place >= 0), strict=True):
                    place = batch.place[group, question]
                    row, stop = int(asked.rows[place]), int(asked.stops[place])
                    expected = plain_answers(weights, attributes.double().numpy(), log, row, stop, window)
                    np.testing.assert_allclose(answers[group, question], expected, atol=1e-4)


def test_the_loss_is_log_loss_and_half_again_the_squared_error_of_the_ratings_there_are() -> None:
    log = log_of([("a", "0", 1, 1), ("a", "1", 2, 0), ("a", "2", 3, 1), ("a", "3", 4, 0)], ITEMS)
    log = replace(log, rating=np.array([5.0, np.nan, 5.0, 1.0]))
    scale = RatingScale.of(replace(log, known=np.ones(4, dtype=bool)))
    batch = Blocks.of(log, ask(log, np.arange(1, 4), ONLINE), 5, scale).batch(np.array([0]))
    answers = torch.tensor([[[0.0, 9.0], [0.0, 0.5], [0.0, 0.0]]])
    # The first has no rating, the others are 0.5 and 1 off.
    expected = np.log(2) + s._RATING_LOSS * (0.5**2 + 1) / 2
    assert float(s._loss(answers, batch)) == pytest.approx(expected)
    unrated = batch._replace(rating=np.full((1, 3), np.nan, dtype=np.float32))
    assert float(s._loss(answers, unrated)) == pytest.approx(np.log(2))


def test_a_score_does_not_depend_on_what_else_is_asked_nor_on_the_order() -> None:
    log = log_of(tastes(users=9, items=20, each=15), 20)
    weights, attributes = made_up(log)
    asked = ask(log, np.arange(len(log.user)), ONLINE)
    scores = s._score(weights, attributes, Blocks.of(log, asked, 6, RatingScale.of(log)))
    some = np.random.default_rng(0).permutation(len(asked))[:40]
    chosen = Questions(asked.rows[some], asked.stops[some])
    fewer = s._score(weights, attributes, Blocks.of(log, chosen, 6, RatingScale.of(log)))
    np.testing.assert_allclose(fewer, scores[some], atol=1e-5)
    empty = np.empty(0, dtype=np.int64)
    assert s._score(weights, attributes, Blocks.of(log, Questions(empty, empty), 6, RatingScale.of(log))).shape == (0,)


@given(rows=small_rows())
@settings(max_examples=10, deadline=None)
def test_no_score_changes_with_a_label_that_its_question_may_not_see(rows: list[Row]) -> None:
    log = before_training(log_of(rows, ITEMS))
    weights, attributes = made_up(log)

    def scores(log: Log, asked: Questions) -> Floats:
        return s._score(weights, attributes, Blocks.of(log, asked, 20, RatingScale.of(log)))

    for protocol in (ONLINE, FROZEN):
        assert leaks(scores, log, np.flatnonzero(~log.known), protocol, and_known, 1e-5) == []


ROWS = tastes(users=30, items=20, each=15)


def held_out(split: str, protocol: str = ONLINE) -> Questions:
    return ask(log_of(ROWS, 20), split_rows(events_of(ROWS), split), protocol)


def test_a_fit_sees_no_label_of_test_and_the_same_seed_gives_the_same_scores() -> None:
    log = log_of(ROWS, 20)
    validation, frozen = held_out("validation"), held_out("test", FROZEN)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    network = fit_network(log, validation, SMALL)
    scores = [network.score(log, each) for each in (frozen, validation)]
    assert torch.equal(torch.get_rng_state(), state)
    assert [len(each) for each in scores] == [len(frozen), len(validation)]
    assert all(each.dtype == np.float64 for each in scores)
    for changed in (log, flip(log, frozen.rows)):
        again = fit_network(changed, validation, SMALL)
        assert again.to_bytes() == network.to_bytes()
        # Frozen histories hold no test event.
        assert again.score(changed, frozen).tolist() == scores[0].tolist()
    assert fit_network(log, validation, SMALL, 1).score(log, frozen).tolist() != scores[0].tolist()


def test_labels_that_are_neither_known_nor_earlier_do_not_reach_training(monkeypatch: pytest.MonkeyPatch) -> None:
    log = log_of(ROWS, 20)
    trained = []
    monkeypatch.setattr(s, "_train", lambda train, *rest: trained.append(train) or s._start(log, 7, 8, rest_draw()))

    def rest_draw() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    for each in (log, flip(log, np.flatnonzero(~log.known))):
        fit_network(each, held_out("validation"), SMALL)
    before, after = (batches(train) for train in trained)
    assert sorted(trained[0].asked.rows.tolist()) == np.flatnonzero(log.asked).tolist()
    for one, other in zip(before, after, strict=True):
        for name in ("item", "counts", "event", "seen", "ago", "place", "label", "rating"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_unknown_items_empty_histories_and_missing_ratings_are_scored() -> None:
    log = log_of(ROWS, 20)
    items = log.item.copy()
    items[::7] = len(log.items)
    strange = replace(log, item=items, rating=np.full(len(items), np.nan))
    first = np.unique(log.first)
    asked = Questions(np.concatenate([first, first + 3]), np.concatenate([first, first]))
    found = fit_network(strange, held_out("validation"), SMALL).score(strange, asked)
    assert np.isfinite(found).all()
    # Without a history nothing but the item tells two questions apart.
    for item in np.unique(items[asked.rows]):
        mine = found[items[asked.rows] == item]
        np.testing.assert_allclose(mine, mine[0], atol=1e-5)


def test_a_taste_that_no_like_rate_can_see_is_learned() -> None:
    draw = np.random.default_rng(0)
    rows = []
    for user in range(150):
        for at, item in enumerate(draw.permutation(50)[:36]):
            # Users like either the even or the odd items, save for one event in ten.
            rows.append((str(user), str(item), 100 * at, int((item % 2 == user % 2) != (draw.random() < 0.1))))
    log, events = log_of(rows, 50), events_of(rows)
    validation = ask(log, split_rows(events, "validation"), ONLINE)
    test = ask(log, split_rows(events, "test"), FROZEN)
    labels, users = log.label[test.rows], log.user[test.rows]
    found = fit_network(log, validation, NetworkSettings(width=32)).score(log, test)
    # The best that can be reached is 0.9.
    assert (auc(labels, found) or 0) > 0.85 and (user_auc(users, labels, found)[0] or 0) > 0.85
    assert (auc(labels, user_rate(log, test, 0.5)) or 1) < 0.6


@pytest.fixture(scope="module")
def network() -> SequentialNetwork:
    return fit_network(log_of(ROWS, 20), held_out("validation"), SMALL)


def test_a_request_is_scored_as_the_event_of_the_dataset_is(network: SequentialNetwork) -> None:
    log, asked = log_of(ROWS, 20), held_out("test", FROZEN)
    expected = network.score(log, asked)
    for user in np.unique(log.user[asked.rows])[:5]:
        mine = np.flatnonzero(log.user[asked.rows] == user)
        past = range(log.first[asked.rows[mine[0]]], asked.stops[mine[0]])
        history = [Met(log.items[log.item[row]], int(log.label[row]), float(log.rating[row])) for row in past]
        candidates = [log.items[log.item[row]] for row in asked.rows[mine]]
        np.testing.assert_allclose(network.answer(history, candidates), expected[mine], atol=1e-5)
        # A rating that is not told is one that is not known, and unknown items may stand anywhere.
        unrated = [Met(each.item, each.label) for each in history]
        assert not np.allclose(network.answer(unrated, candidates), expected[mine], atol=1e-5)
        assert np.isfinite(network.answer([Met(None, 1), Met("of no catalog", 0)], [None, "nor this"])).all()
    assert network.answer([], []).shape == (0,)


def test_a_network_comes_back_from_its_file_and_a_damaged_one_is_refused(network: SequentialNetwork) -> None:
    log, asked = log_of(ROWS, 20), held_out("test")
    content = network.to_bytes()
    again = SequentialNetwork.from_bytes(content)
    assert again.to_bytes() == content and again.settings == SMALL and again.scale == network.scale
    assert again.score(log, asked).tolist() == network.score(log, asked).tolist()
    place = len(content) - 5
    with pytest.raises(ValueError, match="it is damaged"):
        SequentialNetwork.from_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    for cut in (b"", content[:100], content[:-1]):
        with pytest.raises(ValueError, match="it holds no fitted baseline"):
            SequentialNetwork.from_bytes(cut)


def test_no_training_event_and_no_question_held_out_are_errors() -> None:
    log = log_of(ROWS, 20)
    empty = np.empty(0, dtype=np.int64)
    with pytest.raises(ValueError, match="log: no training event"):
        fit_network(replace(log, asked=np.zeros(len(log.user), dtype=bool)), held_out("test"), SMALL)
    with pytest.raises(ValueError, match="held_out: no question"):
        fit_network(log, Questions(empty, empty), SMALL)
