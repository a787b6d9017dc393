"""Real runs of the tiny model, made to fail in one way each, and healthy ones: what the diagnosis says of them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rectune.train.start import Resume

Run = Callable[..., tuple[Path, list[str]]]
Trained = Callable[..., tuple[Path, list[str]]]
Label = Callable[[int, int, random.Random], bool]


SHAKEN: dict[str, Any] = {
    "learning_rate": 0.05, "warmup_steps": 65, "logging_steps": 1, "max_steps": 110, "eval_steps": 88,
}  # fmt: skip
STEADY: dict[str, Any] = {"lr_scheduler_type": "constant"}
FALLING: dict[str, Any] = {
    **STEADY, "learning_rate": 0.005, "max_steps": 30, "eval_steps": 6, "logging_steps": 1,
}  # fmt: skip
CHAT: dict[str, Any] = {
    "layout": "pointwise", "prompt_format": "chat", "history_shows": "rating", "history_len": 3,
    "max_eval_samples": 200,
}  # fmt: skip

CASES: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    # Healthy, though an early evaluation answers No to everything and gradients scatter by a factor of fifteen.
    "healthy": ("taste", {}, set()),
    "healthy, other seed": ("taste", {"seed": 1}, set()),
    "healthy, pointwise": ("taste", CHAT, set()),
    # A tenth of a sensible rate is slow, but it moves: it has learnt nothing yet, and no more is said.
    "slow": ("taste", {"learning_rate": 3e-4}, {"underfitting"}),
    "rate too low": ("taste", {"learning_rate": 1e-6}, {"learning_rate_too_low"}),
    "rate of nothing": ("taste", {"learning_rate": 1e-9}, {"no_effect"}),
    "rate too high": ("taste", {"learning_rate": 10.0}, {"learning_rate_too_high", "collapse"}),
    "rate that drowns the prompt": ("leak", {**STEADY, "learning_rate": 0.02}, {"learning_rate_too_high", "collapse"}),
    "rate that shakes": ("leak", SHAKEN, {"exploding_gradients", "loss_at_zero"}),
    "labels in titles": ("leak", {"learning_rate": 0.01, "max_steps": 96, "eval_steps": 24}, {"loss_at_zero"}),
    # Its training loss is 0.000 too, but of events seen again and again.
    "by heart": ("taste", {"max_train_samples": 45, "learning_rate": 0.01}, {"overfitting"}),
    # The validation loss rises and the training loss falls here too, but the order of the scores still improves.
    "too sure": ("leak", {**STEADY, "learning_rate": 0.003, "max_steps": 36}, {"overconfidence"}),
    "cut short": ("leak", FALLING, {"still_falling"}),
    "prior that knows it all": ("taste", {"prior": "item_rate"}, {"underfitting"}),
    "one class": ("one class", {}, {"class_imbalance", "collapse", "underfitting"}),
    # Nine in ten are not liked: to answer No to everything is right there, and no collapse.
    "rare": ("rare", {"metric_for_best_model": "accuracy"}, {"class_imbalance", "underfitting", "small_evaluation"}),
    "few events": ("taste", {"max_eval_samples": 20}, {"small_evaluation"}),
}


def write_ratings(folder: Path, likes: Label, title: Callable[[int], str]) -> Path:
    """A MovieLens folder of 24 users, 60 films and 50 ratings each.

    Args:
        folder: made here.
        likes: whether a film is liked, from its number and its place among the user's events.
        title: of a film.
    """
    folder.mkdir(parents=True)
    films = [f'{film},"{title(film)}",Drama' for film in range(1, 61)]
    (folder / "movies.csv").write_text("\n".join(["movieId,title,genres", *films]) + "\n", encoding="utf-8")
    draw, rows = random.Random(1), ["userId,movieId,rating,timestamp"]
    for user in range(1, 25):
        for at, film in enumerate(draw.sample(range(1, 61), 50)):
            rows.append(f"{user},{film},{5.0 if likes(film, at, draw) else 2.0},{1000 * user + at}")
    (folder / "ratings.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def taste(film: int, at: int, draw: random.Random) -> bool:
    """Four in five like the films of one kind, one in five the others."""
    return draw.random() < (0.8 if film % 2 else 0.2)


def named(film: int) -> str:
    return f"{'No' if film % 2 else 'Re'} {film}"


DATA: dict[str, tuple[Label, Callable[[int], str]]] = {
    "taste": (taste, named),
    "leak": (lambda film, at, draw: film % 2 == 1, named),
    "noise": (lambda film, at, draw: draw.random() < 0.5, named),
    # But for one in fifty or so: a single class is refused.
    "one class": (lambda film, at, draw: film % 50 != 1 if at < 38 else taste(film, at, draw), named),
    "rare": (lambda film, at, draw: draw.random() < 0.1, named),
}


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders of made-up ratings, each written once."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = write_ratings(tmp_path_factory.mktemp("rated") / name.replace(" ", "_"), *DATA[name])
        return made[name]

    return get


@pytest.fixture
def trained(run: Run, sources: Callable[[str], Path]) -> Callable[..., tuple[Path, list[str]]]:
    """Trains on a source; gives the run folder and what was said."""

    def go(source: str, resume: Resume | None = None, **keys: Any) -> tuple[Path, list[str]]:
        folder = sources(source)
        values: dict[str, Any] = {
            "dataset": str(folder),
            "dataset_dir": str(folder / "prepared"),
            "preprocessing_cache_dir": str(folder / "cache"),
            "layout": "stream",
            "prompt_format": "completion",
            "history_shows": "label",
            "stream_header": "Films:",
            "history_len": 2,
            "validation_ratio": 0.2,
            "max_eval_samples": None,
            "lora_dropout": 0.0,
            "cutoff_len": 256,
            "loss_over": "labels",
            "gradient_accumulation_steps": 1,
            "per_device_train_batch_size": 4,
            "max_steps": 48,
            "eval_steps": 12,
            "save_steps": 1000,
            "logging_steps": 2,
            "learning_rate": 0.003,
            "early_stopping_patience": 0,
        }
        return run(resume, **{**values, **keys})

    return go


def findings(run: Path) -> list[dict[str, Any]]:
    """What stands in a run's file."""
    found: list[dict[str, Any]] = json.loads((run / "logs" / "diagnosis.json").read_text(encoding="utf-8"))
    return found


def history(run: Path) -> list[dict[str, Any]]:
    """A finished run's log entries."""
    found: list[dict[str, Any]] = json.loads((run / "log_history.json").read_text(encoding="utf-8"))
    return found


def test_scores_that_training_does_not_touch_have_not_moved_at_all(trained: Trained) -> None:
    """The first batch, scored alone before training, has the floats of the evaluation, in bfloat16 too."""
    folder, _ = trained("taste", learning_rate=1e-30, bf16=True, max_steps=12, per_device_eval_batch_size=5)
    assert [log["eval_log_odds_moved"] for log in history(folder) if "eval_loss" in log] == [0.0]
    assert {finding["code"] for finding in findings(folder)} >= {"no_effect"}


@pytest.mark.parametrize("name", list(CASES))
def test_a_run_has_the_findings_of_its_failing_and_no_others(name: str, trained: Trained) -> None:
    source, keys, expected = CASES[name]
    folder, lines = trained(source, **keys)
    found = findings(folder)
    assert {finding["code"] for finding in found} == expected
    said = [line for line in lines if line.startswith("diagnosis: ")]
    assert said == [f"diagnosis: {finding['message']}; {finding['advice']}" for finding in found]
    assert all("\n" not in line for line in said)


def test_a_resumed_run_has_the_file_of_an_uninterrupted_one_and_says_only_what_is_new(
    trained: Trained, tmp_path: Path
) -> None:
    keys: dict[str, Any] = {"learning_rate": 10.0, "save_steps": 12, "save_total_limit": None}
    whole, lines = trained("taste", **keys)
    expected = findings(whole)
    assert [(each["code"], each["step"]) for each in expected] == [("learning_rate_too_high", 12), ("collapse", 24)]
    assert len([line for line in lines if line.startswith("diagnosis: ")]) == 2
    moved = [log["eval_log_odds_moved"] for log in history(whole) if "eval_loss" in log]
    (whole / "logs" / "diagnosis.json").write_text("[]", encoding="utf-8")
    resumed, lines = trained("taste", Resume(checkpoint=whole / "checkpoint-12"), **keys)
    assert findings(resumed) == expected
    assert [log["eval_log_odds_moved"] for log in history(resumed) if "eval_loss" in log] == moved
    said = [line for line in lines if line.startswith("diagnosis: ")]
    assert said == [f"diagnosis: {expected[1]['message']}; {expected[1]['advice']}"]
