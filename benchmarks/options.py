"""Adapters and losses side by side: the offline demo's settings with one key changed, a row each.

SmolLM2-135M and ML-100K out of the package index. Every row trains on the same events in the same order and is measured
on the same validation events, drawn user by user; a paired bootstrap over users compares it with the plain adapter.
What another seed would change is not in these intervals.

  python benchmarks/options.py --folder F --json options.json
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console

from rectune.config import load_config
from rectune.files import write_json
from rectune.measure.bootstrap import paired_bootstrap
from rectune.measure.classification import classification_metrics
from rectune.shipped import find_config
from rectune.train.publish import VALIDATION_PREDICTIONS
from rectune.train.start import is_finished
from rectune.train.train import train

PLAIN = "plain"
ROWS: dict[str, list[str]] = {
    PLAIN: [],
    "rsLoRA": ["use_rslora=true"],
    "DoRA": ["use_dora=true"],
    "PiSSA": ["init_lora_weights=pissa"],
    "LoRA+ 16": ["loraplus_lr_ratio=16"],
    "LoRA+ 16, half the rate": ["loraplus_lr_ratio=16", "learning_rate=2.5e-4"],
    "balanced weights": ["class_weights=balanced"],
    "weights 1 : 3": ["class_weights=[1, 3]"],
    "focal, gamma 2": ["focal_gamma=2"],
    "smoothing 0.1": ["label_smoothing=0.1"],
}
METRICS = ("auc", "uauc", "loss")
"""The loss is that of calibrated scores; temperature and offset are fitted on the same events."""


def measured(name: str, overrides: list[str]) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Train one row where that is not done yet; its validation scores, calibrated, and what it took."""
    config = load_config(find_config(Path("demo_cpu")), overrides)
    run, note = config.output_dir, config.output_dir / "options.json"
    if not (is_finished(run) and note.is_file()):
        print(f"--- {name}")
        start = time.perf_counter()
        train(config, print, Console(width=120), overwrite=True)
        write_json(note, {"seconds": round(time.perf_counter() - start, 1)})
    settings = json.loads((run / "rectune.json").read_text(encoding="utf-8"))
    table = pl.read_parquet(run / VALIDATION_PREDICTIONS)
    table = table.with_columns(pl.col("log_odds") / settings["temperature"] + settings["offset"])
    kept = {key: settings[key] for key in ("temperature", "offset")}
    return table, {**kept, **json.loads(note.read_text(encoding="utf-8"))}


def main() -> None:
    """Train each row, compare, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="where data and runs go; finished runs are kept")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--events", type=int, default=4000, help="training events of each row")
    parser.add_argument("--validation", type=int, default=1000, help="validation events")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), help="which rows")
    given = parser.parse_args()
    common = [
        f"dataset_dir={given.folder / 'data'}", f"preprocessing_cache_dir={given.folder / 'cache'}",
        f"max_train_samples={given.events}", f"max_eval_samples={given.validation}", "eval_steps=100000",
        "save_steps=100000", "report_to=none",
    ]  # fmt: skip
    result: dict[str, Any] = {}
    first: pl.DataFrame | None = None
    for at, name in enumerate(given.rows):
        table, told = measured(name, [*common, f"output_dir={given.folder / f'run-{at}'}", *ROWS[name]])
        labels, users = table["label"].to_numpy(), table["user_id"].to_list()
        values = classification_metrics(labels, table["log_odds"].to_numpy(), users)
        result[name] = {**{key: values[key] for key in METRICS}, **told}
        line = f"{name:<24} " + "  ".join(f"{key} {values[key]:.4f}" for key in METRICS)
        if first is None:
            first = table
        else:
            odds = [each["log_odds"].to_numpy() for each in (table, first)]
            for key, pair in paired_bootstrap(labels, *odds, users, METRICS).items():
                result[name][f"{key}_difference"] = [pair.difference, pair.low, pair.high]
                line += f"  {key} {pair.difference:+.4f} [{pair.low:+.4f}, {pair.high:+.4f}]"
        print(line, flush=True)
        if given.json:
            write_json(given.json, result)


if __name__ == "__main__":
    main()
