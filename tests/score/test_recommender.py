"""The Python interface, on tiny runs whose films have real titles."""

from __future__ import annotations

import doctest
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

import rectune
from rectune.baselines.retrieve import fit
from rectune.config import Config, parse_config
from rectune.data.candidate_sets import history_at
from rectune.errors import ConfigError, DataError
from rectune.score import recommender as module
from rectune.score.recommender import Ranked, Recommender, data_of
from rectune.train.train import train

HISTORY = [("Toy Story (1995)", 5), ("Heat (1995)", 2), ({"item_id": "3"}, 4)]
CANDIDATES = ["Alien (1979)", "The Godfather", "Fargo", 573, "  toy story"]


def silent(_line: str) -> None:
    """Say nothing."""


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path, films: Path) -> dict[str, Config]:
    """A plain pointwise run that shows ratings, and a stream run with labels, like-rates and titles without years."""
    root = tmp_path_factory.mktemp("recommender")
    kinds: dict[str, dict[str, Any]] = {
        "pointwise": {"layout": "pointwise"},
        "stream": {
            "layout": "stream", "cutoff_len": 700, "history_shows": "label", "item_text": "{name}",
            "prior": "item_rate", "item_rate_text": True, "prompt_format": "completion",
        },
    }  # fmt: skip
    common: dict[str, Any] = {
        "model_name_or_path": str(tiny_qwen3), "dataset": str(films), "preprocessing_cache_dir": str(root / "cache"),
        "bf16": False, "report_to": "none", "max_steps": 2, "eval_steps": 2, "save_steps": 2, "learning_rate": 0.05,
    }  # fmt: skip
    own = {name: {"output_dir": str(root / name), "dataset_dir": str(root / f"data-{name}")} for name in kinds}
    return {name: parse_config({**common, **own[name], **kinds[name]}, origin="test") for name in kinds}


@pytest.fixture(scope="module")
def runs(configs: dict[str, Config]) -> dict[str, Path]:
    return {name: train(config, silent, Console(quiet=True)) for name, config in configs.items()}


@pytest.fixture(scope="module")
def pointwise(runs: dict[str, Path]) -> Recommender:
    return Recommender.load(runs["pointwise"], say=silent)


@pytest.fixture(scope="module")
def stream(runs: dict[str, Path]) -> Recommender:
    return Recommender.load(str(runs["stream"]), say=silent)


def log_odds_of(recommender: Recommender, text: str) -> float:
    """The answer of a whole prompt as a string, by the model's own forward pass and all its logits."""
    tokenizer, words = recommender.run.loaded.tokenizer, recommender.run.prompts.verbalizer
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    with torch.inference_mode():
        logits = recommender.run.model(input_ids=ids).logits[0, -1].double()
    return float(logits[words.positive_id] - logits[words.negative_id])


def test_the_docstrings_example_runs(runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "demo").symlink_to(runs["pointwise"])
    monkeypatch.chdir(tmp_path)
    (example,) = [
        found
        for found in doctest.DocTestFinder(recurse=False).find(Recommender, "Recommender", module=module)
        if found.examples
    ]
    told: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    failed, tried = runner.run(example, out=told.append)
    assert (failed, tried) == (0, 10), "".join(told)


def test_the_package_offers_it_without_importing_it() -> None:
    assert rectune.Recommender is Recommender
    with pytest.raises(AttributeError, match="no attribute 'Recomender'"):
        rectune.Recomender  # noqa: B018


def test_scores_are_those_of_the_whole_prompts_in_the_pointwise_layout(pointwise: Recommender) -> None:
    history = pointwise.ask(HISTORY, []).request.history
    titles = ["Alien (1979)", "Godfather, The (1972)", "Fargo (1996)", "Body Snatchers (1993)", "Toy Story (1995)"]
    expected = [log_odds_of(pointwise, pointwise.run.prompts.text(history, title)) for title in titles]
    assert np.allclose(pointwise.score(HISTORY, CANDIDATES), 1 / (1 + np.exp(-np.array(expected))), atol=1e-5)
    assert np.ptp(expected) > 1e-3


def test_scores_are_those_of_the_whole_prompts_with_the_prior_in_the_stream_layout(stream: Recommender) -> None:
    rates = stream.run.settings.item_rates

    def said(name: str, item: str) -> str:
        return f"{name} ({100 * rates[item][0]:.0f}% of {rates[item][1]}):"

    lines = [said("Toy Story", "1") + " Yes\n", said("Heat", "273") + " No\n", said("Four Rooms", "3") + " Yes\n"]
    header = stream.run.prompts.texts.stream_header
    asked = {"183": "Alien", "127": "Godfather, The", "100": "Fargo", "573": "Body Snatchers", "1": "Toy Story"}
    expected = []
    for item, name in asked.items():
        rate = rates[item][0]
        prompt = f"{header}\n{''.join(lines)}{said(name, item)}"
        expected.append(log_odds_of(stream, prompt) + np.log(rate / (1 - rate)))
    assert np.allclose(stream.score(HISTORY, CANDIDATES), 1 / (1 + np.exp(-np.array(expected))), atol=1e-5)


def test_a_history_of_labels_is_that_of_ratings_on_their_side(stream: Recommender) -> None:
    labels = [("Toy Story (1995)", True), ("Heat (1995)", False), (3, "like")]
    assert stream.score(labels, CANDIDATES) == stream.score(HISTORY, CANDIDATES)


@pytest.mark.parametrize("name", ["pointwise", "stream"])
def test_a_ranking_is_the_scores_in_order(request: pytest.FixtureRequest, name: str) -> None:
    recommender: Recommender = request.getfixturevalue(name)
    scores = recommender.score(HISTORY, CANDIDATES)
    ranking = recommender.rank(HISTORY, CANDIDATES)
    assert [item.score for item in ranking] == sorted(scores, reverse=True)
    ids = ["183", "127", "100", "573", "1"]
    assert {item.item_id: item.score for item in ranking} == dict(zip(ids, scores, strict=True))
    first = ranking[0]
    assert first == Ranked(
        recommender.titles.title(str(first.item_id)), first.item_id, first.score, first.log_odds, None
    )
    assert recommender.rank(HISTORY, CANDIDATES, k=2) == ranking[:2]
    assert first.score == pytest.approx(1 / (1 + np.exp(-first.log_odds)))


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(len(CANDIDATES))), size=st.integers(1, len(CANDIDATES)))
def test_a_score_does_not_depend_on_the_other_candidates(stream: Recommender, order: list[int], size: int) -> None:
    whole = stream.score(HISTORY, CANDIDATES)
    part = stream.score(HISTORY, [CANDIDATES[at] for at in order[:size]])
    assert np.allclose(part, [whole[at] for at in order[:size]], atol=1e-5)


def test_an_item_named_twice_is_scored_twice_and_ranked_once(pointwise: Recommender) -> None:
    twice = ["Alien (1979)", 183, "Fargo (1996)"]
    scores = pointwise.score(HISTORY, twice)
    assert len(scores) == 3 and scores[0] == pytest.approx(scores[1], abs=1e-6)
    assert sorted(item.title for item in pointwise.rank(HISTORY, twice)) == ["Alien (1979)", "Fargo (1996)"]


def test_no_candidates_give_no_scores_and_no_history_is_a_cold_user(pointwise: Recommender) -> None:
    assert pointwise.score(HISTORY, []) == [] and pointwise.rank(HISTORY, []) == []
    cold = pointwise.score([], ["Alien (1979)"])
    expected = log_odds_of(pointwise, pointwise.run.prompts.text([], "Alien (1979)"))
    assert cold == pytest.approx([1 / (1 + np.exp(-expected))], abs=1e-5)


def test_several_questions_are_answered_as_one_by_one(pointwise: Recommender) -> None:
    asked = [pointwise.ask(HISTORY, CANDIDATES), pointwise.ask([], [183, 1]), pointwise.ask(HISTORY[:1], [])]
    rankings = pointwise.answer(asked, k=3)
    assert [len(ranking) for ranking in rankings] == [3, 2, 0]
    one_by_one = [pointwise.rank(HISTORY, CANDIDATES, 3), pointwise.rank([], [183, 1]), []]
    for ranking, alone in zip(rankings, one_by_one, strict=True):
        assert [item.item_id for item in ranking] == [item.item_id for item in alone]
        assert np.allclose([item.log_odds for item in ranking], [item.log_odds for item in alone], atol=1e-4)


def test_an_unknown_title_is_an_error_unless_text_is_asked_for(runs: dict[str, Path]) -> None:
    said: list[str] = []
    recommender = Recommender.load(runs["pointwise"], say=said.append)
    with pytest.raises(DataError, match=r"candidates, item 1: no item is called 'Alein'; did you mean 'Alien"):
        recommender.score(HISTORY, ["Alein"])
    (found,) = recommender.rank(HISTORY, ["Dune (2021)"], unknown="text")
    assert (found.title, found.item_id) == ("Dune (2021)", None)
    assert said[-1] == (
        "candidates, item 1: 'Dune (2021)' is not in the catalog; the model is asked about it as 'Dune (2021)'"
    )
    history = recommender.ask(HISTORY, []).request.history
    expected = log_odds_of(recommender, recommender.run.prompts.text(history, "Dune (2021)"))
    assert found.log_odds == pytest.approx(expected, abs=1e-4)


def test_a_rating_outside_the_datasets_scale_is_an_error(pointwise: Recommender) -> None:
    with pytest.raises(DataError, match=r"rating is 10, but this dataset's go from 0\.5 to 5"):
        pointwise.score([("Heat (1995)", 10)], ["Alien (1979)"])


@pytest.mark.parametrize("k", [0, -1, True, 1.5, "2"])
def test_k_is_a_whole_number_of_one_or_more(pointwise: Recommender, k: Any) -> None:
    for ask in (lambda: pointwise.rank(HISTORY, CANDIDATES, k), lambda: pointwise.recommend("1", k)):
        with pytest.raises(ConfigError, match=r"k: got .*, allowed: a whole number of 1 or more"):
            ask()


# --- what is loaded ---


@pytest.mark.parametrize("name", ["pointwise", "stream"])
def test_a_configuration_asks_the_untuned_model(
    request: pytest.FixtureRequest, configs: dict[str, Config], name: str, tmp_path: Path
) -> None:
    tuned: Recommender = request.getfixturevalue(name)
    said: list[str] = []
    base = Recommender.load(configs[name], say=said.append)
    assert f"model: {configs[name].model_name_or_path}, untuned; give a run folder for a tuned one" in said
    with tuned.run.model.disable_adapter():
        untuned = tuned.score(HISTORY, CANDIDATES)
    found = base.score(HISTORY, CANDIDATES)
    assert np.allclose(found, untuned, atol=1e-5)
    assert not np.allclose(found, tuned.score(HISTORY, CANDIDATES), atol=1e-3)
    file = tmp_path / "mine.yaml"
    file.write_text(configs[name].to_yaml(), encoding="utf-8")
    overrides = ["per_device_eval_batch_size=1", "rating_threshold=4.0"]
    assert np.allclose(Recommender.load(file, overrides, say=silent).score(HISTORY, CANDIDATES), found, atol=1e-5)
    again = Recommender.load(configs[name], ["per_device_eval_batch_size=1"], say=silent)
    assert again.run.config.per_device_eval_batch_size == 1


def test_what_is_no_run_and_no_configuration_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no shipped configuration; there are .*demo_cpu.*; or give a run folder"):
        Recommender.load(tmp_path / "nothing", say=silent)


def test_without_its_dataset_a_plain_run_takes_titles_as_they_are(runs: dict[str, Path], tmp_path: Path) -> None:
    said: list[str] = []
    recommender = Recommender.load(runs["pointwise"], [f"dataset_dir={tmp_path / 'gone'}"], say=said.append)
    assert said[-1] == (
        f"data: {tmp_path / 'gone'} is not there, so titles are taken as they are and there is nothing to recommend; "
        f"prepare it with `rectune prepare {runs['pointwise']}`, or name its folder with dataset_dir=FOLDER"
    )
    history = [("Toy Story (1995)", 5), ("Heat (1995)", 2), ("Four Rooms (1995)", 4)]
    whole = Recommender.load(runs["pointwise"], say=silent)
    titles = ["Alien (1979)", "Fargo (1996)"]
    assert recommender.score(history, titles) == whole.score(history, titles)
    assert recommender.rank([("X", 9)], ["Y"])[0].item_id is None
    with pytest.raises(DataError, match="the run's dataset is not there, so there are no users"):
        recommender.recommend("1")
    assert not (tmp_path / "gone").exists()


def test_a_run_with_item_rates_needs_its_dataset(runs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="this run knows items by their ids; prepare it with `rectune prepare"):
        Recommender.load(runs["stream"], [f"dataset_dir={tmp_path / 'gone'}"], say=silent)


def test_another_dataset_than_the_trained_one_is_said(pointwise: Recommender) -> None:
    said: list[str] = []
    other = replace(pointwise.run, settings=replace(pointwise.run.settings, data_hash="another"))
    assert data_of(other, said.append) is not None
    assert said == ["data: this dataset is not the one that the adapter was trained on"]


# --- two stages ---


def seen(recommender: Recommender, user: str) -> pl.DataFrame:
    assert recommender.data is not None
    return recommender.data.events.filter(pl.col("user_id") == user)


@pytest.mark.parametrize("name", ["pointwise", "stream"])
@pytest.mark.parametrize("retriever", ["mf", "item_knn", "popularity"])
def test_recommended_are_the_retrievers_unseen_items_ranked_by_the_model(
    request: pytest.FixtureRequest, name: str, retriever: str
) -> None:
    recommender: Recommender = request.getfixturevalue(name)
    assert recommender.data is not None
    past = seen(recommender, "7")
    found = recommender.recommend("7", k=3, pool=4, retriever=retriever)
    catalog = recommender.data.catalog["item_id"]
    top = fit(recommender.data.events, retriever, catalog).top("7", 4, past["item_id"].to_list())
    assert len(top.items) == 4 and not set(top.items) & set(past["item_id"])
    entries = [({"item_id": item}, rating) for item, rating in past.select("item_id", "rating").iter_rows()]
    ranking = recommender.rank(entries, [{"item_id": item} for item in top.items], k=3)
    assert [item.item_id for item in found] == [item.item_id for item in ranking]
    assert np.allclose([item.score for item in found], [item.score for item in ranking], atol=1e-5)
    assert [item.retriever_rank for item in found] == [top.items.index(str(item.item_id)) + 1 for item in found]
    assert recommender.recommend(7, k=3, pool=4, retriever=retriever) == found  # kept keys and values change nothing


def test_what_is_known_at_a_split_is_strictly_earlier(pointwise: Recommender) -> None:
    assert pointwise.data is not None
    events = pointwise.data.events
    for split in ("validation", "test"):
        known = history_at(events, split)
        own = pointwise.events_of("7", as_of=split)
        assert own.equals(known.filter(pl.col("user_id") == "7"))
        # 11 events after warm-up: the last is the test event, the one before it validation.
        assert own.height == (24 if split == "validation" else 25)
        found = pointwise.recommend("7", k=5, pool=5, as_of=split)
        top = fit(known, "mf", pointwise.data.catalog["item_id"]).top("7", 5, own["item_id"].to_list())
        assert {item.item_id for item in found} == set(top.items)
    # Of 30 films the user has rated 26, one of them in the test split: that one can be recommended at the split.
    ids = {item.item_id for item in pointwise.recommend("7", k=5, pool=100, as_of="test", retriever="popularity")}
    held_out = seen(pointwise, "7")["item_id"][-1]
    assert held_out in ids and len(ids) == 5
    assert len(pointwise.recommend("7", k=10, pool=100)) == 4


def test_a_user_without_likes_gets_popular_items_and_is_told(runs: dict[str, Path]) -> None:
    said: list[str] = []
    recommender = Recommender.load(runs["pointwise"], say=said.append)
    assert recommender.data is not None
    label = pl.when(pl.col("user_id") == "7").then(0).otherwise(pl.col("label")).cast(pl.UInt8).alias("label")
    recommender.data = replace(recommender.data, table=recommender.data.events.with_columns(label))
    recommender.recommend("7", k=2)
    assert said[-1] == "retriever: mf knows nothing of user 7; popularity stands in"


def test_an_unknown_user_is_one_line_that_names_known_ones(pointwise: Recommender) -> None:
    with pytest.raises(DataError) as caught:
        pointwise.recommend("nobody")
    assert str(caught.value) == (
        "user: the dataset has no user 'nobody'; it has 12, such as 1, 2, 3; for a person who is not in it, give what "
        "they did to `rectune rank` (Recommender.rank)"
    )


def test_the_pool_grows_with_what_is_asked_for(pointwise: Recommender, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rectune.score.recommender.POOL", 2)
    found = pointwise.recommend("1", 3)
    assert len(found) == 3
    assert {item.retriever for item in found} == {"mf"}


def test_a_named_user_pays_for_new_events_only(stream: Recommender) -> None:
    stream.scorer.trunks.clear()
    first = stream.score(HISTORY[:2], CANDIDATES, user="ann")
    assert len(stream.scorer.trunks) == 1
    later = stream.score(HISTORY, CANDIDATES, user="ann")
    assert len(stream.scorer.trunks) == 1
    assert later == pytest.approx(stream.score(HISTORY, CANDIDATES), abs=1e-5) and first != later


def test_options_that_cannot_work_are_one_line(pointwise: Recommender) -> None:
    for values, told in (
        ({"k": 5, "pool": 4}, "pool: got 4, allowed: 5 or more, since the k=5 best are taken from it"),
        ({"pool": 0}, "pool: got 0, allowed: a whole number of 1 or more"),
        ({"retriever": "bm25"}, "retriever: got 'bm25', allowed: popularity, item_knn, mf"),
        ({"as_of": "train"}, "as_of: got 'train', allowed: now, validation, test"),
    ):
        with pytest.raises(ConfigError) as caught:
            pointwise.recommend("1", **values)
        assert str(caught.value) == told
