"""`rectune run`: one command from ratings to a report."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from rectune.config import Config, load_config
from rectune.errors import ConfigError

Say = Callable[[str], None]


def _changed_keys(config: Config, run: Path) -> list[str]:
    """Keys in which a run's saved configuration differs from this one."""
    before, now = load_config(run).model_dump(mode="json"), config.model_dump(mode="json")
    return [key for key in now if before[key] != now[key]]


def _trained_already(config: Config, resume: bool, overwrite: bool) -> bool:
    """Whether `output_dir` holds the finished run of this very configuration.

    Raises:
        ConfigError: it holds a finished run of another one.
    """
    from rectune.train.start import is_finished

    run = config.output_dir
    if resume or overwrite or not is_finished(run):
        return False
    changed = _changed_keys(config, run)
    if changed:
        raise ConfigError(
            f"output_dir: {run} holds a finished run with another {', '.join(changed)}; "
            "set output_dir=OTHER, or start over with --overwrite"
        )
    return True


def run_all(config: Config, resume: bool, overwrite: bool, say: Say, console: Console) -> None:
    """Prepare, train, evaluate and report; a stage that is done already is not done again.

    Args:
        config: all keys.
        resume: go on from the latest checkpoint.
        overwrite: remove an earlier run in `output_dir`.
        say: prints one line.
        console: shows progress and the table.
    """
    from rectune.report.evaluate import evaluate
    from rectune.train.start import Resume
    from rectune.train.train import train

    begun = time.perf_counter()

    def head(number: int, title: str) -> None:
        say(f"\n[{number}/3] {title}  ({time.perf_counter() - begun:.0f} s)")

    head(1, "prepare the data")
    from rectune.prompt.dataset import open_dataset

    open_dataset(config, say)
    head(2, "train")
    if _trained_already(config, resume, overwrite):
        say(f"{config.output_dir}: already trained with this configuration; --overwrite trains again")
    else:
        train(config, say, console, Resume(latest=resume), overwrite=overwrite)
    head(3, "evaluate on test, untuned beside tuned")
    found = evaluate(config.output_dir, [], "test", "logits", True, say, console)
    run = config.output_dir
    say(f"\nreport: {found.page}")
    say(f"done in {time.perf_counter() - begun:.0f} s")
    say("\nnext:")
    say(f"  rectune score {run} --demo                      one prompt, base beside tuned")
    say(f"  rectune compare {run}                           which answers changed, row by row")
    say("  rectune run qwen3_movielens_qlora                     Qwen3-0.6B on MovieLens, for a 24 GB card")
