"""The stage that scores pairs by parts: dealt by user, each part whole or not at all, whoever does it."""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rectune.bulk.divide import deal_all, pair_files, parts_for, pieces_of
from rectune.bulk.manifest import MANIFEST, Key, close_output, finished_part, open_output
from rectune.bulk.worker import ARITHMETIC, Asked, part_scorer
from rectune.data.folder import EVENTS, load_meta, scan_events
from rectune.data.prepare import prepare
from rectune.data.work import Work
from rectune.files import hash_file, write_once
from rectune.lock import run_lock
from rectune.model.lora import ADAPTER_FILE
from rectune.score.open_run import run_settings
from rectune.score.pairs import CHUNK, Counts, check_as_of
from rectune.score.settings import FILE_NAME
from rectune.spread import Say, Spread, Told, Workers
from rectune.version import __version__

_PLACES = ("output_dir", "dataset_dir", "preprocessing_cache_dir")
"""Keys that say where files lie, and nothing of what is in them."""


def score_in_parts(
    run: Path, overrides: list[str], source: Path, output: Path, as_of: str, workers: Workers, say: Say,
    console: Console,
) -> Path:  # fmt: skip
    """Score a Parquet file of pairs, or a folder of such, into a folder of Parquet files.

    A part holds all pairs of its users, who are dealt to parts by a hash of their id. It is scored as `score_pairs`
    scores a file, and so to the same bits whichever process does it; how many parts there are depends on the data
    alone. Between calls with another division scores differ as `CandidateScorer` says.

    Args:
        run: the run folder.
        overrides: `key=value` strings.
        source: the pairs.
        output: the folder for the scores: `part-N.parquet` with the columns of the pairs, log_odds and score, each
            beside what was told of it, and `manifest.json`, which is `finished` when all are there.
        as_of: of `score.pairs.AS_OF`.
        workers: starts what does the parts.
        say: prints one line.
        console: shows progress.

    Returns:
        `output`.

    Raises:
        ConfigError: an option cannot be, or the folder holds something else.
        DataError: the pairs are unusable; the line names file and row.
        ModelError: the run is damaged, or parts were scored in another precision.
    """
    check_as_of(as_of)
    # Other processes may stand in another folder.
    run, source, output = (path.absolute() for path in (run, source, output))
    config, settings = run_settings(run, overrides)
    files = pair_files(source)
    dataset = prepare(config, say=say).absolute()
    scan_events(dataset)  # checks them against their hash
    data_hash = str(load_meta(dataset)["content_hash"])
    if data_hash != settings.data_hash:
        say("data: this dataset is not the one that the adapter was trained on")
    pieces = pieces_of("pairs", files) + pieces_of("events", [dataset / EVENTS])
    parts = parts_for(pieces)
    key: Key = {
        "version": __version__,
        "adapter": hash_file(run / ADAPTER_FILE),
        FILE_NAME: hash_file(run / FILE_NAME),
        "config": {name: value for name, value in config.model_dump(mode="json").items() if name not in _PLACES},
        "data": data_hash,
        "pairs": [hash_file(file) for file in files],
        "as_of": as_of,
        "parts": parts,
        "chunk": CHUNK,
    }
    place = output.with_name(f".{output.name}.parts")
    with run_lock(place.with_name(place.name + ".lock"), say, "--output"):
        open_output(output, key)
        found = {part: told for part in range(parts) if (told := finished_part(output, part)) is not None}
        left = [part for part in range(parts) if part not in found]
        if found:
            say(
                f"parts: {len(found):,} of {parts:,} were scored by an earlier call"
                + ("" if left else "; none is left")
            )
        else:
            say(f"parts: {parts:,}, dealt by user; stopped at any moment, the same command goes on")
        if left:
            work = Work(place, key)
            for told in found.values():  # of a call whose work folder is gone
                with suppress(FileExistsError):
                    write_once(place / ARITHMETIC, str(told["arithmetic"]))
            with workers() as spread:
                deal_all(work, pieces, parts, dataset, spread, say)
                asked = Asked(run, overrides, dataset, place, pieces, output, as_of)
                _score_all(asked, left, found, parts, spread, say, console)
        counts, seconds = Counts(), 0.0
        for told in found.values():
            counts, seconds = counts.plus(Counts(**told["counts"])), seconds + float(told["seconds"])
        for line in counts.lines(as_of):
            say(line)
        close_output(output, {"counts": counts._asdict(), "arithmetic": next(iter(found.values()))["arithmetic"]})
        Work.beside(place).close()
    say(f"written: {output} ({counts.pairs:,} rows in {parts:,} files; {MANIFEST} tells of them)")
    return output


def _score_all(
    asked: Asked, left: list[int], found: dict[int, Told], parts: int, spread: Spread, say: Say,
    console: Console,
) -> None:  # fmt: skip
    """Score the parts that are left; what is told of them goes into `found`."""
    columns = (TextColumn("scoring parts"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    began, pairs, before = time.monotonic(), 0, len(found)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("scoring", total=parts, completed=len(found))
        try:
            for part, told in spread(partial(part_scorer, asked=asked), left, model=True):
                found[part] = told
                pairs += int(told["counts"]["pairs"])
                bar.update(task, completed=len(found))
                if not console.is_terminal:
                    spent = time.monotonic() - began
                    rest = timedelta(seconds=round(spent / (len(found) - before) * (parts - len(found))))
                    say(
                        f"scored: {len(found):,} of {parts:,} parts, {pairs / spent:,.1f} pairs a second, about "
                        f"{rest} left"
                    )
        except KeyboardInterrupt:
            # A worker may have finished one that nobody has told of yet.
            done = sum(finished_part(asked.output, part) is not None for part in range(parts))
            say(f"stopped with {done:,} of {parts:,} parts scored; the same command goes on from there")
            raise
