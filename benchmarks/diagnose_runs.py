"""Runs made to fail in known ways, and healthy ones, on SmolLM2-135M and MovieLens-100K: what the diagnosis says.

Each run is the demo's configuration with few events and the keys named below.

  python benchmarks/diagnose_runs.py
  python benchmarks/diagnose_runs.py healthy rate_too_high --output F
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console

from rectune.config import Config, load_config
from rectune.data.columns import GENRES, ITEM_ID, RATING, TIMESTAMP, TITLE, USER_ID
from rectune.errors import ModelError
from rectune.prompt.dataset import open_dataset
from rectune.train.train import train

FEW: dict[str, Any] = {
    "max_train_samples": 1200,
    "max_eval_samples": 300,
    "eval_steps": 10,
    "save_steps": 1000,
    "logging_steps": 2,
    "report_to": "none",
}


def one_class(config: Config, folder: Path) -> Path:
    """MovieLens-100K in which every rating but the last fifth of each user's is five stars, or one star in fifty.

    A single class is refused by `rectune train`; the figures of 2026-11-25 are of one class throughout.
    """
    data = open_dataset(config, print)
    place = pl.int_range(pl.len()).over(USER_ID) / pl.len().over(USER_ID)
    ratings = data.events.with_columns(
        pl.when(place < 0.8)
        .then(pl.when(pl.int_range(pl.len()) % 50 == 0).then(1.0).otherwise(5.0))
        .otherwise(pl.col(RATING))
        .alias(RATING)
    )
    folder.mkdir(parents=True, exist_ok=True)
    names = {USER_ID: "userId", ITEM_ID: "movieId", RATING: "rating", TIMESTAMP: "timestamp"}
    ratings.select(names).rename(names).write_csv(folder / "ratings.csv")
    films = data.catalog.select(
        pl.col(ITEM_ID).alias("movieId"), pl.col(TITLE).alias("title"), pl.col(GENRES).fill_null("").alias("genres")
    )
    films.write_csv(folder / "movies.csv")
    return folder


def leaking(config: Config, folder: Path) -> Path:
    """MovieLens-100K with a copy of each film per verdict, its title saying which."""
    data = open_dataset(config, print)
    liked = pl.when(pl.col(RATING) >= config.rating_threshold).then(pl.lit("1")).otherwise(pl.lit("0"))
    ratings = data.events.with_columns((pl.col(ITEM_ID) + liked).alias(ITEM_ID))
    folder.mkdir(parents=True, exist_ok=True)
    names = {USER_ID: "userId", ITEM_ID: "movieId", RATING: "rating", TIMESTAMP: "timestamp"}
    ratings.select(names).rename(names).write_csv(folder / "ratings.csv")
    films = [
        data.catalog.select(
            (pl.col(ITEM_ID) + verdict).alias("movieId"),
            (pl.lit(word) + pl.col(TITLE)).alias("title"),
            pl.col(GENRES).fill_null("").alias("genres"),
        )
        for verdict, word in (("1", "Great: "), ("0", "Dull: "))
    ]
    pl.concat(films).write_csv(folder / "movies.csv")
    return folder


@dataclass(frozen=True)
class Case:
    """One run: why it fails, the keys that make it, and its data where they are not MovieLens-100K's own."""

    why: str
    keys: dict[str, Any] = field(default_factory=dict)
    data: Callable[[Config, Path], Path] | None = None


TOO_FEW = {"max_train_samples": 800, "max_eval_samples": 200, "cutoff_len": 256}
CASES = {
    "healthy": Case("nothing is wrong"),
    "healthy_no_prior": Case("nothing is wrong", {"prior": "none", "loss_over": "vocabulary"}),
    "too_few": Case("800 events in windows of 256, 200 to evaluate", TOO_FEW),
    "rate_too_high": Case("learning_rate a hundred times too high", {"learning_rate": 0.05, "warmup_ratio": 0.2}),
    "rate_too_low": Case("learning_rate a thousand times too low", {"learning_rate": 5e-7}),
    "no_effect": Case("learning_rate of nearly nothing", {"learning_rate": 1e-12}),
    "overfitting": Case(
        "200 events seen 12 times",
        {"max_train_samples": 200, "num_train_epochs": 12, "learning_rate": 2e-3, "prior": "none"},
    ),
    "one_class": Case(
        "training events of one class but for one in 50, of both in validation", {"prior": "none"}, one_class
    ),
    "leak": Case("the titles tell the label", {"prior": "none"}, leaking),
    "small_evaluation": Case("30 validation events", {"max_eval_samples": 30}),
    "imbalance": Case("a rating of 3 counts as liked, so that more than four of five are", {"rating_threshold": 3.0}),
}


def findings(run: Path) -> list[dict[str, Any]]:
    """What the diagnosis left in a run."""
    found: list[dict[str, Any]] = json.loads((run / "logs" / "diagnosis.json").read_text(encoding="utf-8"))
    return found


def main() -> None:
    """Train every case and print one line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}; all when none is named")
    parser.add_argument("--output", type=Path, default=Path("output/diagnose_runs"), help="folder of the runs")
    args = parser.parse_args()
    base = load_config(Path("configs/demo_cpu.yaml")).with_overrides(
        **FEW,
        dataset_dir=str(args.output / "data"),
        preprocessing_cache_dir=str(args.output / "cache"),
    )
    lines = []
    for name in args.cases or CASES:
        case, run = CASES[name], args.output / name
        shutil.rmtree(run, ignore_errors=True)
        config = base.with_overrides(**case.keys, output_dir=str(run))
        if case.data is not None:
            folder = case.data(base, args.output / f"{name}_source")
            config = config.with_overrides(dataset=str(folder), dataset_dir=str(args.output / f"{name}_data"))
        start = time.perf_counter()
        try:
            train(config, print, Console())
        except ModelError as error:
            print(error)
        said = ", ".join(f"{each['code']} ({each['severity']}, step {each['step']})" for each in findings(run))
        lines.append(f"| {name} | {case.why} | {said or 'silent'} | {time.perf_counter() - start:.0f} s |")
    print("\n| run | made by | diagnosis | time |\n|---|---|---|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
