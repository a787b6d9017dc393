"""`rectune recommend`, as a table and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from rich.console import Console

from rectune.cli import main
from rectune.config import parse_config
from rectune.data.folder import load_events
from rectune.score.recommender import Recommender
from rectune.train.train import train


def silent(_line: str) -> None:
    """Say nothing."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path, movielens: Path) -> Path:
    root = tmp_path_factory.mktemp("recommend")
    config = parse_config(
        {
            "model_name_or_path": str(tiny_qwen3), "dataset": str(movielens), "dataset_dir": str(root / "data"),
            "output_dir": str(root / "run"), "preprocessing_cache_dir": str(root / "cache"), "bf16": False,
            "layout": "stream", "cutoff_len": 600, "report_to": "none", "max_steps": 2, "eval_steps": 2,
            "save_steps": 2, "learning_rate": 0.05, "prompt_format": "completion",
        },
        origin="test",
    )  # fmt: skip
    return train(config, silent, Console(quiet=True))


def command(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, list[str], list[str]]:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    found = capsys.readouterr()
    return int(caught.value.code or 0), found.out.splitlines(), found.err.splitlines()


def test_a_users_last_events_stand_above_what_is_recommended(capsys: pytest.CaptureFixture[str], tiny: Path) -> None:
    code, out, _ = command(capsys, "recommend", tiny, "--user", "5", "-k", "3", "--retriever", "item_knn")
    assert code == 0
    past = load_events(tiny.parent / "data").filter(pl.col("user_id") == "5")
    at = next(number for number, line in enumerate(out) if line.startswith("user 5"))
    assert out[at] == f"user 5: 26 events, {past['label'].sum()} liked; the last are"
    recommender = Recommender.load(tiny, say=silent)
    for line, event in zip(out[at + 1 : at + 6], past.tail(5).iter_rows(named=True), strict=True):
        word = "Yes" if event["label"] else "No"
        assert line.split() == [f"{event['rating']:g}", word, *recommender.titles.title(event["item_id"]).split()]
    assert out[at + 6] == ""
    expected = recommender.recommend("5", 3, retriever="item_knn")
    assert out[at + 7].split() == ["#", "title", "P(Yes)", "item_knn", "rank", "item"]
    for place, item in enumerate(expected, start=1):
        row = [str(place), *item.title.split(), f"{item.score:.3f}", str(item.retriever_rank), str(item.item_id)]
        assert out[at + 7 + place].split() == row
    # 30 films, 26 of them seen: the pool of 100 comes down to 4.
    assert out[-1].startswith("time: ") and "take 4 of 4 unseen items and rank them by the model" in out[-1]


def test_json_is_one_line_with_ranks_and_seconds(capsys: pytest.CaptureFixture[str], tiny: Path) -> None:
    code, out, err = command(
        capsys, "recommend", tiny, "--user", "5", "-k", "2", "--pool", "3", "--as-of", "test", "--json"
    )
    assert code == 0 and len(out) == 1 and any(line.startswith("device: ") for line in err)
    found = json.loads(out[0])
    assert list(found) == ["user_id", "retriever", "pool", "as_of", "events", "seconds", "recommended"]
    assert (found["user_id"], found["retriever"], found["pool"], found["as_of"]) == ("5", "mf", 3, "test")
    assert set(found["seconds"]) == {"load", "fit", "recommend"} and min(found["seconds"].values()) >= 0
    expected = Recommender.load(tiny, say=silent).recommend("5", 2, 3, "test")
    assert [(row["rank"], row["item_id"], row["retriever_rank"]) for row in found["recommended"]] == [
        (place, item.item_id, item.retriever_rank) for place, item in enumerate(expected, start=1)
    ]
    assert [row["score"] for row in found["recommended"]] == pytest.approx([item.score for item in expected], abs=1e-5)
    shown, lines, _ = command(capsys, "recommend", tiny, "--user", "5", "--as-of", "test")
    assert shown == 0 and any(line.startswith(f"user 5: {found['events']} events before test, ") for line in lines)


def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str], tiny: Path) -> None:
    for arguments, told, code in (
        (("--user", "x"), "error: user: the dataset has no user 'x'; it has 12, such as 1, 2, 3; for a person", 3),
        (("--user", "5", "--pool", "4"), "error: pool: got 4, allowed: 10 or more", 2),
    ):
        found, _, err = command(capsys, "recommend", tiny, *arguments)
        assert found == code and next(line for line in err if line.startswith("error")).startswith(told)
    code, _, err = command(capsys, "recommend", tiny, "--user", "5", "--retriever", "bm25")
    assert code == 2 and "'bm25' is not one of" in " ".join(err)
