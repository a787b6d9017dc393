"""Runs that add something to the model's answer: over HTTP they say what the command `score` says of the same."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import polars as pl
import pytest
from served import Here, silent

from rectune.baselines.served import Met
from rectune.cli import main
from rectune.errors import ConfigError
from rectune.prompt.tree import Trees
from rectune.score.recommender import Recommender
from rectune.score.scorer import score_trees
from rectune.serve.limits import Limits
from rectune.serve.service import load_serving

KINDS: dict[str, dict[str, Any]] = {
    "stream": {"prior": "none", "item_rate_text": False, "blend": ["stack", "network"]},
    "pointwise": {
        "layout": "pointwise", "prompt_format": "chat", "history_len": 5, "cutoff_len": 1024, "history_shows": "rating",
        "prior": "stack", "item_rate_text": False, "blend": ["network"],
    },
}  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def kind(request: Any, make_run: Callable[..., Path]) -> Path:
    return make_run(f"of-{request.param}", seed=9, **KINDS[request.param])


@pytest.fixture(scope="module")
def served(serve_here: Callable[..., Here], kind: Path) -> Here:
    return serve_here(kind)


def post(here: Here, path: str, body: dict[str, Any]) -> Any:
    answer = httpx.post(f"{here.url}{path}", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def command(*arguments: Any) -> None:
    with pytest.raises(SystemExit) as done:
        main(["score", *map(str, arguments)])
    assert not done.value.code


def test_events_of_the_test_split_are_scored_as_the_command_scores_them(
    kind: Path, served: Here, tmp_path: Path
) -> None:
    """There histories and baselines come from the table of all events, here from what a request brings."""
    command(kind, "--output", tmp_path / "test.parquet")
    told = pl.read_parquet(tmp_path / "test.parquet")
    data = served.service.serving.recommender.data
    assert data is not None
    events = data.events.select("row_id", "timestamp", "item_id", "user_id", "label", "rating")
    asked = told.join(events.select("row_id", "timestamp"), on="row_id", maintain_order="left")
    pairs = []
    for user, item, time in asked.select("user_id", "item_id", "timestamp").iter_rows():
        past = events.filter((pl.col("user_id") == user) & (pl.col("timestamp") < time)).sort("timestamp")
        columns = past.select("item_id", "rating", "label", "timestamp")
        history = [
            {"item_id": known, "rating": rating, "label": bool(label), "timestamp": at}
            for known, rating, label, at in columns.iter_rows()
        ]
        pairs.append({"history": history[::-1], "candidate": {"item_id": item}})
    found = [each["log_odds"] for each in post(served, "/v1/score", {"pairs": pairs})["data"]]
    assert len(found) >= 12 and np.ptp(found) > 0.1
    np.testing.assert_allclose(found, told["log_odds"].to_numpy(), atol=1e-3)


def test_users_of_the_dataset_are_ranked_as_the_command_scores_their_pairs(
    kind: Path, served: Here, tmp_path: Path
) -> None:
    recommended = post(served, "/v1/recommend", {"user_id": "7", "k": 4, "pool": 4})["results"]
    items = [each["item_id"] for each in recommended]
    with (tmp_path / "pairs.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["user_id", "item_id"], *(["7", item] for item in items), ["3", "100"]])
    command(kind, "--pairs", tmp_path / "pairs.csv", "--output", tmp_path / "scored.parquet")
    told = pl.read_parquet(tmp_path / "scored.parquet")
    expected = dict(zip(told["item_id"].to_list(), told["score"].to_list(), strict=True))
    assert [each["score"] for each in recommended] == sorted((each["score"] for each in recommended), reverse=True)
    np.testing.assert_allclose([each["score"] for each in recommended], [expected[item] for item in items], atol=1e-5)
    ranked = post(served, "/v1/rerank", {"user_id": "7", "candidates": items[::-1]})["results"]
    assert [items[::-1][each["index"]] for each in ranked] == items
    np.testing.assert_allclose(
        [each["relevance_score"] for each in ranked], [each["score"] for each in recommended], atol=1e-5
    )
    pairs = [{"user_id": 3, "candidate": 100}, {"user_id": "7", "candidate": items[0]}]
    mixed = post(served, "/v1/score", {"pairs": pairs})["data"]
    np.testing.assert_allclose([each["score"] for each in mixed], [expected["100"], expected[items[0]]], atol=1e-5)


def test_what_is_added_is_in_the_answer(kind: Path, served: Here) -> None:
    alone = Recommender.load(kind, say=silent)
    history = [({"item_id": 1}, 5), ({"item_id": 273}, 1), ({"item_id": 100}, 5)]
    asked = alone.ask(history, [183, 127, 3, 1, "id:273"])
    query = "id:1 = 5\nid:273: 1\nid:100: 5"
    body = {"query": query, "candidates": [183, 127, 3, 1, "id:273"]}
    found = [each["log_odds"] for each in post(served, "/v1/score", body)["data"]]
    met = [Met(event.item_id, event.label, event.rating) for event in asked.request.history]
    items = ["183", "127", "3", "1", "273"]
    said = {name: each.answer(met, items) for name, each in alone.run.settings.served.items()}
    assert all(np.abs(odds).max() > 0.01 for odds in said.values())
    # The model's own, from plain prompts; then what the settings say is added to it.
    prompts = [alone.run.prompts.build(asked.request.history, each.text).tokens for each in asked.request.candidates]
    nothing = np.zeros(len(prompts), dtype=np.int32)
    trees = Trees.of_prompts(prompts, nothing, nothing, nothing)
    expected = score_trees(alone.run.model, trees, alone.run.prompts.verbalizer, 8, alone.run.loaded.attention)
    if alone.run.config.prior == "stack":
        expected = expected + said["stack"]
    blend = alone.run.settings.blend
    if blend:
        expected = blend["model"] * expected + sum(blend[name] * said[name] for name in blend if name in said) - 0.25
    assert found == pytest.approx(expected.tolist(), abs=1e-4)


def test_a_baseline_needs_what_it_looks_at_and_takes_what_it_does_not_know(kind: Path, served: Here) -> None:
    answer = httpx.post(f"{served.url}/v1/score", json={"query": "Heat", "candidates": ["Alien"]})
    assert answer.status_code == 422 and answer.json()["message"].startswith("history, event 1: 'Heat (1995)' has n")
    body = {"query": "A film of next year: 5\nHeat: 1", "candidates": ["Another", "Alien"], "unknown": "text"}
    found = [each["log_odds"] for each in post(served, "/v1/score", body)["data"]]
    alone = Recommender.load(kind, say=silent)
    history = [("A film of next year", 5), ("Heat", 1)]
    expected = alone.scorer.score([alone.ask(history, ["Another", "Alien"], "text").request])[0]
    assert found == pytest.approx(expected.tolist(), abs=1e-4)


def test_a_run_that_classifies_texts_is_not_served(make_run: Callable[..., Path], run: Path, tmp_path: Path) -> None:
    import yaml

    folder = tmp_path / "texts"
    folder.mkdir()
    texts = {"task": "classify", "labels": {"Rules": "R", "Other": "O"}, "rubric": "Rules?", "text_column": "text"}
    drop = ("prior", "item_rate_text", "layout", "history_shows", "history_len", "item_text", "label_from", "split")
    kept = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    kept = {key: value for key, value in kept.items() if key not in drop} | texts
    (folder / "config.yaml").write_text(yaml.safe_dump(kept), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"rank, recommend and serve: is for users and items.*`rectune score RUN"):
        load_serving(folder, [], "error", Limits(), silent)
