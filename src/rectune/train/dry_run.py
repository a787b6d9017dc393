"""A rehearsal of a training: two steps on the longest rows, an evaluation, a save, a reload, in a folder that goes."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console

from rectune.config import Config
from rectune.errors import ModelError

Say = Callable[[str], None]

STEPS = 2
_EVENTS = 128
"""Validation events that are scored, at most."""
_GIB = 1 << 30


def memory_watcher(device: Any) -> Any:
    """Notes the seconds of each step and the peak of memory from the first to the last."""
    from transformers import TrainerCallback

    from rectune.model.memory import peak_bytes, reset_peak

    class Watcher(TrainerCallback):
        """Attributes: seconds, of each optimiser step; peak, in bytes, None where nobody can say."""

        def __init__(self) -> None:
            self.seconds: list[float] = []
            self.peak: int | None = None
            self.began = 0.0

        def on_train_begin(self, *arguments: Any, **named: Any) -> None:
            self.told = reset_peak(device)

        def on_step_begin(self, *arguments: Any, **named: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *arguments: Any, **named: Any) -> None:
            self.seconds.append(time.perf_counter() - self.began)

        def on_train_end(self, *arguments: Any, **named: Any) -> None:
            self.peak = peak_bytes(device) if self.told else None

    return Watcher()


def dry_run(config: Config, say: Say, console: Console, ignore_plan: bool = False) -> None:
    """Go through a whole training in small, and say what it took; nothing is left behind but tokenised events.

    Args:
        config: all keys; the run's own folder is not touched.
        say: prints one line.
        console: shows progress.
        ignore_plan: go on where the plan says that the run does not fit.

    Raises:
        RectuneError: whatever would have stopped the run.
        ModelError: the reloaded adapter does not give the scores that it had when it was saved.
    """
    from rectune.model.device import choose_device
    from rectune.score.open_run import open_run
    from rectune.score.score import OWN, TUNED, UNTUNED, open_data, score_rows, split_rows
    from rectune.train.plan import planned_total
    from rectune.train.publish import VALIDATION_PREDICTIONS
    from rectune.train.train import train

    with tempfile.TemporaryDirectory(prefix="rectune-dry-run-") as temporary:
        run = Path(temporary) / "run"
        small = config.with_overrides(
            output_dir=run,
            max_steps=STEPS,
            warmup_steps=0,
            warmup_ratio=0.0,
            eval_strategy="steps",
            eval_steps=STEPS,
            save_steps=STEPS,
            logging_steps=1,
            max_eval_samples=min(config.max_eval_samples or _EVENTS, _EVENTS),
            gen_eval_samples=0,
            report_to="none",
            blend=[],
            sweep={},
        )
        watcher = memory_watcher(choose_device()[0])
        lines: list[str] = []

        def heard(line: str) -> None:
            lines.append(line)
            say(line)

        train(small, heard, console, watchers=[watcher], ignore_plan=ignore_plan, rehearsal=True)
        gc.collect()
        say("dry run: saved; loading it again")
        opened = open_run(run, [], say)
        data = open_data(opened, say)
        rows = split_rows(opened, data, "validation")
        scored = score_rows(opened, data, rows, (TUNED, UNTUNED), "logits", say, console)
        kept = pl.read_parquet(run / VALIDATION_PREDICTIONS)
        apart = float(np.abs(kept["log_odds"].to_numpy() - scored[TUNED][OWN].to_numpy()).max())
        _say_prompt(opened, data, rows, scored, say)
        if apart > 0:
            raise ModelError(
                f"dry run: the reloaded adapter's scores differ from those when it was saved, by up to {apart:.2g} in "
                "log-odds; please report this with the configuration"
            )
    say(f"dry run: {len(rows)} scores after the reload equal those before the save, row by row")
    peak = "unknown here" if watcher.peak is None else f"{watcher.peak / _GIB:.2f} GiB"
    about = planned_total(lines)
    say(f"dry run: peak {peak} measured{'' if about is None else f', {about} GiB planned'}, on the longest rows")
    say(f"dry run: {', '.join(f'{seconds:.1f}' for seconds in watcher.seconds)} s for the steps (the first warms up)")
    say("dry run: all well, and nothing was kept")


def _say_prompt(opened: Any, data: Any, rows: Any, scored: dict[str, pl.DataFrame], say: Say) -> None:
    """The sanity prompt: the end of one that the model was asked, and both answers."""
    from rectune.prompt.encode import encode
    from rectune.score.score import OWN, TUNED, UNTUNED

    trees = encode(opened.config, data.events, data.catalog, data.content_hash, opened.prompts, rows, say)
    text = opened.loaded.tokenizer.decode(trees.plain().tree_tokens(0))
    before, after = (
        1 / (1 + np.exp(-float(scored[which][column][0]))) for which, column in ((UNTUNED, "log_odds"), (TUNED, OWN))
    )
    say(f"dry run: a prompt, its last 400 characters:\n{text[-400:]}")
    say(f"dry run: P(yes) {before:.3f} untuned, {after:.3f} after {STEPS} steps; the event's label is {_label(scored)}")


def _label(scored: dict[str, pl.DataFrame]) -> str:
    from rectune.score.score import TUNED

    return "yes" if int(scored[TUNED]["label"][0]) else "no"
