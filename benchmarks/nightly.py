"""The nightly case: does going on from yesterday's adapter beat starting over for the same time?

SmolLM2-135M and ML-100K out of the package index, with the offline demo's settings (streams, the film's like-rate
among other users as prior). Time is cut once for all users:

  day 0     events before T: trained on, from nothing
  day 1     events from T to the validation moment: new
  later     the events after the validation events: what every adapter is asked about

  continue       day 0's adapter goes on, on day 1's events alone (adapter_name_or_path, train_since)
  at a third     the same at a third of the learning rate
  on both days   day 0's adapter goes on, on a draw from all events of both days, for as many steps
  start over     a new adapter, on the same draw, for as many steps
  unchanged      day 0's adapter as it is
  all again      a new adapter, for as many events as both trainings of `continue` together

All are asked with the item rates of the whole of both days, so that only the adapters differ.

  python benchmarks/nightly.py --folder F --json nightly.json
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console

from rectune.baselines.item_rates import item_rates
from rectune.config import Config, load_config
from rectune.data.columns import GENRES, ITEM_ID, LABEL, RATING, SPLIT, TEST, TIMESTAMP, TITLE, TRAIN, USER_ID
from rectune.files import write_json
from rectune.measure.bootstrap import paired_bootstrap
from rectune.measure.classification import classification_metrics
from rectune.prompt.dataset import Dataset, open_dataset
from rectune.prompt.encode import split_sample
from rectune.score.open_run import open_run
from rectune.score.score import TUNED, score_rows
from rectune.shipped import find_config
from rectune.train.start import HISTORY, is_finished
from rectune.train.train import train

QUIET = Console(quiet=True)
METRICS = ("auc", "uauc", "loss", "accuracy")
CONTINUE, GENTLE, BOTH = "continue", "at a third", "on both days"
OVER, UNCHANGED, AGAIN, PRIOR = "start over", "unchanged", "all again", "item rate alone"


def write_folder(data: Dataset, before: int, folder: Path) -> None:
    """A MovieLens folder of the events before a moment."""
    folder.mkdir(parents=True, exist_ok=True)
    old = data.events.filter(pl.col(TIMESTAMP) < before)
    columns = {USER_ID: "userId", ITEM_ID: "movieId", RATING: "rating", TIMESTAMP: "timestamp"}
    old.select(list(columns)).rename(columns).write_csv(folder / "ratings.csv")
    genres = pl.col(GENRES).str.replace_all(", ", "|", literal=True)
    films = data.catalog.select(pl.col(ITEM_ID).alias("movieId"), pl.col(TITLE).alias("title"), genres)
    films.write_csv(folder / "movies.csv")


def trained(config: Config) -> dict[str, Any]:
    """Train where that is not done yet; how long it took, and what it said of events and steps."""
    run, note = config.output_dir, config.output_dir / "nightly.json"
    if not (is_finished(run) and note.is_file()):
        print(f"--- training {run.name}")
        start = time.perf_counter()
        train(config, print, Console(width=120), overwrite=True)
        write_json(note, {"seconds": round(time.perf_counter() - start, 1)})
    steps = [log["step"] for log in json.loads((run / HISTORY).read_text(encoding="utf-8"))]
    return {"run": run.name, "steps": max(steps), **json.loads(note.read_text(encoding="utf-8"))}


def scores(run: Path, data: Dataset, config: Config) -> np.ndarray[Any, Any]:
    """Calibrated log-odds of the later events, by a run's adapter with both days' item rates."""
    split = ("dataset", "dataset_dir", "split", "test_ratio", "validation_ratio", "max_test_samples")
    opened = open_run(run, [f"{key}={getattr(config, key)}" for key in split], print)
    rows = split_sample(config, data.events, TEST)
    table = score_rows(opened, data, rows, (TUNED,), "logits", print, QUIET)[TUNED]
    return table["log_odds"].to_numpy()


def main() -> None:
    """Train, score, compare, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="where data and runs go; finished runs are kept")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--old", type=int, default=8000, help="events that day 0 trains on")
    parser.add_argument("--new", type=int, default=3000, help="events that day 1 trains on")
    parser.add_argument("--later", type=int, default=4000, help="later events to be asked about")
    parser.add_argument("--seed", type=int, default=42, help="of all trainings")
    parser.add_argument("--without", choices=[GENTLE, BOTH, AGAIN], nargs="+", default=[], help="leave a contender out")
    given = parser.parse_args()
    common = [
        "split=global_time", "test_ratio=0.15", "validation_ratio=0.05", f"max_test_samples={given.later}",
        "report_to=none", "eval_steps=100000", "save_steps=100000", f"seed={given.seed}",
        f"preprocessing_cache_dir={given.folder / 'cache'}",
    ]  # fmt: skip

    def config(name: str, *more: str) -> Config:
        runs = [f"output_dir={given.folder / f'{name}-{given.seed}'}", f"dataset_dir={given.folder / 'both'}"]
        return load_config(find_config(Path("demo_cpu")), [*common, *runs, *more])

    both = config("both")
    data = open_dataset(both, print)
    moments = data.events.filter(pl.col(SPLIT) == TRAIN)[TIMESTAMP].to_numpy()
    cut = int(np.quantile(moments, 0.75, method="higher"))
    write_folder(data, cut, given.folder / "day0-ml")
    first = config(
        "day0", f"dataset={given.folder / 'day0-ml'}", f"dataset_dir={given.folder / 'day0'}", "test_ratio=0.02",
        f"max_train_samples={given.old}",
    )  # fmt: skip
    told = {UNCHANGED: trained(first)}
    going_on = f"adapter_name_or_path={first.output_dir}"
    new = [going_on, f"train_since={cut}", f"max_train_samples={given.new}"]
    told[CONTINUE] = trained(config("continue", *new))
    everything, steps = f"max_train_samples={given.old + given.new}", f"max_steps={told[CONTINUE]['steps']}"
    told[OVER] = trained(config("over", everything, steps))
    if BOTH not in given.without:
        told[BOTH] = trained(config("both-days", going_on, everything, steps))
    if GENTLE not in given.without:
        told[GENTLE] = trained(config("gentle", *new, f"learning_rate={both.learning_rate / 3}"))
    if AGAIN not in given.without:
        told[AGAIN] = trained(config("again", everything))

    rows = split_sample(both, data.events, TEST)
    asked = data.events[rows]
    labels, users = asked[LABEL].to_numpy().astype(np.int64), asked[USER_ID].to_list()
    found = {name: scores(given.folder / each["run"], data, both) for name, each in told.items()}
    found[PRIOR] = item_rates(data.events, both.item_rate_from, both.item_rate_strength).log_odds[rows]
    result: dict[str, Any] = {"cut": cut, "events": len(labels), "users": len(set(users)), "models": {}, "pairs": {}}
    for name, odds in found.items():
        values = classification_metrics(labels, odds, users)
        result["models"][name] = {**{key: values[key] for key in METRICS}, **told.get(name, {})}
        shown = "  ".join(f"{key} {values[key]:.4f}" for key in METRICS)
        print(f"{name:<16} {shown}  {told.get(name, {}).get('seconds', '')}")
    for one in [name for name in (CONTINUE, GENTLE, BOTH) if name in found]:
        for other in [name for name in (OVER, UNCHANGED, AGAIN, PRIOR) if name in found]:
            pairs = paired_bootstrap(labels, found[one], found[other], users, METRICS)
            result["pairs"][f"{one} - {other}"] = {key: vars(pair) for key, pair in pairs.items()}
            shown = "  ".join(f"{key} {p.difference:+.4f} [{p.low:+.4f}, {p.high:+.4f}]" for key, p in pairs.items())
            print(f"{f'{one} - {other}':<32} {shown}")
    if given.json:
        write_json(given.json, result)


if __name__ == "__main__":
    main()
