"""The stage that fits every baseline, chooses its setting on validation, and scores validation and test with it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from rectune.baselines.blended import NETWORK, STACK, fit_served
from rectune.baselines.kept_network import network_key
from rectune.baselines.models import BASELINES, Baseline, of_served
from rectune.baselines.prior import stack_key
from rectune.baselines.questions import FROZEN, ONLINE, Floats, Log, Questions, ask, split_rows
from rectune.data.columns import ROW_ID, SPLIT, TEST, VALIDATION
from rectune.errors import DataError
from rectune.files import atomic_path, hash_file, hash_text, write_json
from rectune.measure.classification import auc, log_loss
from rectune.measure.scaling import fit_platt
from rectune.version import __version__

TABLE, NOTES = "baselines.parquet", "baselines.json"
BASELINE, PROTOCOL, LOG_ODDS = "baseline", "protocol", "log_odds"
SCHEMA = {BASELINE: pl.String, SPLIT: pl.String, PROTOCOL: pl.String, ROW_ID: pl.UInt32, LOG_ODDS: pl.Float64}
SEED = 0
"""Fixed, not taken from a run's configuration: runs with other seeds must be compared with the same models."""
_FORMAT = "1"
_SETS = tuple((split, protocol) for split in (VALIDATION, TEST) for protocol in (ONLINE, FROZEN))

Say = Callable[[str], None]


@dataclass(frozen=True)
class Fitted:
    """What the stage found.

    Attributes:
        table: baseline, split, protocol, row_id, log_odds: every baseline's answer to every question.
        notes: baseline → sees, setting, tried (setting, loss, auc on validation, online), seconds.
    """

    table: pl.DataFrame
    notes: dict[str, dict[str, Any]]

    def log_odds(self, name: str, split: str, protocol: str, row_ids: pl.Series) -> Floats:
        """A baseline's log-odds of these events, in their order.

        Raises:
            DataError: it has no answer for one of them.
        """
        mine = self.table.filter((pl.col(BASELINE) == name) & (pl.col(SPLIT) == split) & (pl.col(PROTOCOL) == protocol))
        found = pl.DataFrame({ROW_ID: row_ids}).join(mine, on=ROW_ID, how="left", maintain_order="left")[LOG_ODDS]
        if found.null_count():
            raise DataError(f"{TABLE}: no {protocol} answer of {name!r} for {found.null_count()} {split} events")
        return found.to_numpy()


def check_classes(labels: Floats) -> None:
    """Nothing can be tuned on validation events that say all the same.

    Raises:
        DataError: they do.
    """
    if labels.min() == labels.max():
        what = "likes" if labels[0] else "dislikes"
        raise DataError(
            f"{VALIDATION}: all {len(labels)} events are {what}, so no baseline can be tuned; prepare with more users, "
            "a larger validation_ratio or another rating_threshold"
        )


def _calibrated(scores: Sequence[Floats], labels: Floats) -> tuple[list[Floats], float]:
    """Scores of any scale as log-odds, by a line fitted on the first of them; and its log loss there.

    Where the validation events all have one label, no line can be fitted and the scores stay as they are.
    """
    slope, offset = fit_platt(labels, scores[0]) if 0 < labels.mean() < 1 else (1.0, 0.0)
    found = [slope * each + offset for each in scores]
    return found, log_loss(labels, found[0])


def _fit_one(
    baseline: Baseline, log: Log, asked: Sequence[Questions], seed: int, advance: Callable[[], None]
) -> tuple[list[Floats], dict[str, Any]]:
    """The answers of a baseline in its best setting to all sets of questions, the first being validation online."""
    began, held_out = time.perf_counter(), asked[0]
    labels = log.label[held_out.rows]
    best: tuple[float, list[Floats], Mapping[str, Any]] | None = None
    tried = []
    for setting in baseline.settings:
        found, loss = _calibrated(baseline.score(log, held_out, asked, setting, seed), labels)
        tried.append({"setting": dict(setting), "loss": loss, "auc": auc(labels, found[0])})
        if best is None or loss < best[0]:
            best = loss, found, setting
        advance()
    if best is None:
        raise ValueError(f"{baseline.name}: no setting to try")
    notes = {
        "sees": baseline.sees, "setting": dict(best[2]), "tried": tried, "seconds": time.perf_counter() - began,
    }  # fmt: skip
    return best[1], notes


def _stored(folder: Path, key: str) -> Fitted | None:
    """What an earlier call found, where it was on the same data and is whole."""
    try:
        told = json.loads((folder / NOTES).read_text(encoding="utf-8"))
        if told["key"] != key or told["sha256"] != hash_file(folder / TABLE):
            return None
        return Fitted(pl.read_parquet(folder / TABLE), told["baselines"])
    except (OSError, ValueError, KeyError, TypeError, pl.exceptions.PolarsError):
        return None


def fit_baselines(
    folder: Path,
    events: pl.DataFrame,
    catalog: pl.DataFrame,
    content_hash: str,
    cache: Path,
    say: Say,
    console: Console,
    quick: bool = False,
    baselines: Sequence[Baseline] = BASELINES,
) -> Fitted:
    """Fit the baselines on a dataset, or read what an earlier call has written.

    Writes `baselines.parquet` and `baselines.json` into the dataset folder.

    Args:
        folder: the dataset folder.
        events, catalog, content_hash: of the dataset.
        cache: where stack and network are kept, `preprocessing_cache_dir`.
        say: prints one line.
        console: shows progress.
        quick: try one setting of each, and leave out the network; the stack is as a prior has it.
        baselines: which ones; stack and network are added.

    Raises:
        DataError: a split is empty, all labels of validation agree, or the catalog does not hold an item.
    """
    chosen = [each._replace(settings=each.settings[:1]) if quick else each for each in baselines]
    tried = json.dumps([[each.name, each.sees, [dict(setting) for setting in each.settings]] for each in chosen])
    served = [STACK] if quick else [STACK, NETWORK]
    keys = [stack_key(content_hash), *([] if quick else [network_key(content_hash)])]
    key = hash_text(_FORMAT, __version__, content_hash, str(SEED), tried, *keys)
    stored = _stored(folder, key)
    if stored is not None:
        say(f"baselines: {len(stored.notes)} from {folder / TABLE}")
        return stored
    log = Log.of(events, catalog)
    asked = [ask(log, split_rows(events, split), protocol) for split, protocol in _SETS]
    check_classes(log.label[asked[0].rows])
    ready = fit_served(served, events, catalog, content_hash, cache, say)
    chosen += [of_served(name, each) for name, each in ready.items()]
    total = sum(len(each.settings) for each in chosen)
    say(f"baselines: fitting {len(chosen)} in {total} settings, each chosen by its log loss on validation, online")
    columns = (
        TextColumn("baselines"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    parts, notes = [], {}
    began = time.perf_counter()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("baselines", total=total, note="")
        for baseline in chosen:
            bar.update(task, note=baseline.name)
            found, notes[baseline.name] = _fit_one(baseline, log, asked, SEED, lambda: bar.advance(task))
            if not console.is_terminal:
                say(f"baselines: {baseline.name}, {notes[baseline.name]['seconds']:.1f} s")
            for (split, protocol), questions, odds in zip(_SETS, asked, found, strict=True):
                rows = events[ROW_ID].gather(questions.rows)
                parts.append(
                    pl.DataFrame({ROW_ID: rows, LOG_ODDS: odds}).select(
                        pl.lit(baseline.name).alias(BASELINE), pl.lit(split).alias(SPLIT),
                        pl.lit(protocol).alias(PROTOCOL), ROW_ID, LOG_ODDS,
                    )
                )  # fmt: skip
    table = pl.concat(parts).cast(SCHEMA)  # type: ignore[arg-type]
    with atomic_path(folder / TABLE) as temporary:
        table.write_parquet(temporary)
    write_json(folder / NOTES, {"key": key, "sha256": hash_file(folder / TABLE), "baselines": notes})
    say(f"baselines: fitted in {time.perf_counter() - began:.0f} s; written: {folder / TABLE}")
    return Fitted(table, notes)
