"""Score a file of (user, item) pairs: grouped by user, in chunks, resumable, written whole or not at all."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rectune.data.columns import DRAWN_FOR, HISTORY_END, ITEM_ID, LABEL, RATING, SPLIT, TEST, USER_ID, VALIDATION
from rectune.errors import ConfigError, DataError
from rectune.files import atomic_path, hash_file
from rectune.measure.classification import probability
from rectune.prompt.dataset import Dataset
from rectune.score.candidates import CandidateScorer, Request
from rectune.score.items import Items
from rectune.score.open_run import OpenRun
from rectune.score.pair_file import LOG_ODDS, SCORE, Pairs, check_output, write_pairs

CHUNK = 8192
"""Lines of prompts (events of a history, or candidates) that are scored together; what a kill can cost."""
NOW = "now"
AS_OF = {NOW: (), VALIDATION: (VALIDATION, TEST), TEST: (TEST,)}
"""The splits whose events no history shows, nor any event from the first of them on."""

Ints = npt.NDArray[np.int64]
Say = Callable[[str], None]


def asked_of(table: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Each pair once, users one after the other.

    Users stand in the order in which they first occur, and each one's items too.

    Returns:
        asked (user_id, item_id) and its users (user_id, count).
    """
    once = table.select(USER_ID, ITEM_ID).unique(maintain_order=True)
    users = once.group_by(USER_ID, maintain_order=True).agg(count=pl.len().cast(pl.Int64))
    numbered = once.join(users.with_row_index("number"), on=USER_ID, how="left", maintain_order="left")
    return numbered.sort("number", maintain_order=True).select(USER_ID, ITEM_ID), users


def histories(events: pl.DataFrame, users: pl.DataFrame, as_of: str) -> pl.DataFrame:
    """Where in the table of events each user's history lies.

    Args:
        events: whole timelines, sorted by user and position.
        users: user_id.
        as_of: `now` takes all events of a user that the data holds; `validation` and `test` those strictly earlier
            than the user's first event of that split or of a later one, which are all where there is none.

    Returns:
        start, stop (Int64; both 0 for a user without events) and dated (whether there is such a first event), one
        row for each of `users`.
    """
    hidden = pl.col(SPLIT).is_in(list(AS_OF[as_of]))
    own = pl.col(DRAWN_FOR).is_null().sum() if DRAWN_FOR in events.columns else pl.len()
    lines = events.group_by(USER_ID, maintain_order=True).agg(
        rows=pl.len().cast(pl.Int64),
        count=own.cast(pl.Int64),
        before=pl.col(HISTORY_END).filter(hidden).first().cast(pl.Int64),
    )
    start = pl.col("rows").cum_sum() - pl.col("rows")
    lines = lines.select(
        USER_ID, start=start, stop=start + pl.coalesce("before", "count"), dated=pl.col("before").is_not_null()
    )
    found = users.join(lines, on=USER_ID, how="left", maintain_order="left")
    return found.select(pl.col("start", "stop").fill_null(0), pl.col("dated").fill_null(True))


@dataclass(frozen=True)
class Parts:
    """What is asked, cut: a part is some of one user's pairs, and parts of one chunk are scored together.

    Attributes:
        user: int64 [parts]; index of the user.
        start, stop: int64 [parts]; the part's pairs.
        chunk: int64 [parts]; number of the chunk, ascending.
    """

    user: Ints
    start: Ints
    stop: Ints
    chunk: Ints


def cut(counts: Ints, shown: Ints, size: int) -> Parts:
    """Cut users' pairs into parts, and put parts that begin within the same `size` lines into one chunk.

    Args:
        counts: int64 [users]; pairs of each, at least 1.
        shown: int64 [users]; events of each one's history that a prompt can show.
        size: lines of a chunk; a user with more pairs than that is cut, and its history read again.
    """
    pieces = -(-counts // size)
    user = np.repeat(np.arange(len(counts)), pieces)
    first = np.cumsum(counts) - counts
    index = np.arange(len(user)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    start = first[user] + index * size
    stop = np.minimum(start + size, (first + counts)[user])
    lines = shown[user] + stop - start
    return Parts(user, start, stop, (np.cumsum(lines) - lines) // size)


class Counts(NamedTuple):
    """What pairs are of.

    Attributes:
        pairs: how many were given.
        users: of how many users.
        cold: users without any history.
        twice: pairs that are there already.
        undated: users whose whole history is shown, since they have no event from the hidden splits.
        told: pairs whose outcome stands in the history shown.
    """

    pairs: int = 0
    users: int = 0
    cold: int = 0
    twice: int = 0
    undated: int = 0
    told: int = 0

    def plus(self, other: Counts) -> Counts:
        """The counts of both, whose users are others."""
        return Counts(*map(sum, zip(self, other, strict=True)))

    def lines(self, as_of: str) -> Iterator[str]:
        """The counts in words."""
        notes = [f"{self.cold:,} of them without any history"] * (self.cold > 0)
        notes += [f"{self.twice:,} pairs repeated"] * (self.twice > 0)
        notes += [f"{self.undated:,} users have no event from {as_of} on, so all of theirs are shown"] * (
            self.undated > 0
        )
        yield f"pairs: {self.pairs:,} of {self.users:,} users" + "".join(f"; {note}" for note in notes)
        if self.told:
            yield (
                f"pairs: {self.told:,} ask about an item whose outcome stands in the history shown, so their scores "
                "are no forecast" + ("; --as-of test hides the test events" if as_of == NOW else "")
            )


def check_as_of(as_of: str) -> None:
    """Refuse a moment that there is none of.

    Raises:
        ConfigError: it is none of `AS_OF`.
    """
    if as_of not in AS_OF:
        raise ConfigError(f"--as-of: got {as_of!r}, allowed: {', '.join(AS_OF)}")


def check_items(pairs: Pairs, catalog: pl.DataFrame) -> None:
    """Refuse pairs whose item has no text.

    Raises:
        DataError: an item is not in the catalog.
    """
    known = pairs.table[ITEM_ID].is_in(catalog[ITEM_ID].implode())
    if known.all():
        return
    unknown = pairs.table.filter(~known)[ITEM_ID].unique(maintain_order=True)
    first = int((~known).arg_true()[0])
    few = ", ".join(map(repr, unknown.head(3))) + (", ..." if len(unknown) > 3 else "")
    raise DataError(
        f"{pairs.file}: {int((~known).sum()):,} pairs name {len(unknown):,} items that the catalog of "
        f"{catalog.height:,} does not hold: {few}; the first on {pairs.place(first)}; remove these pairs, "
        "or give the dataset that holds the items with dataset_dir=FOLDER"
    )


class PairWork:
    """The pairs of one call, or of a part of one, ready to be scored chunk by chunk.

    Args:
        run: the opened run.
        data: whole timelines, those of the pairs' users at least.
        table: the pairs, all of items of the catalog.
        as_of: of `AS_OF`.

    Attributes:
        asked: each pair once, users one after the other.
        log_odds: float64 [asked]; not a number where a pair is not scored yet.
        counts: what the pairs are of.
    """

    def __init__(self, run: OpenRun, data: Dataset, table: pl.DataFrame, as_of: str) -> None:
        self.run, self.data = run, data
        self.items = Items(run, data.catalog)
        self.candidate = cache(self.items.candidate)  # as many as the catalog has items
        self.asked, users = asked_of(table)
        self.log_odds = np.full(self.asked.height, np.nan)
        found = histories(data.events, users, as_of)
        self.start, self.stop = found["start"].to_numpy(), found["stop"].to_numpy()
        # No prompt shows more events than it has tokens, nor in the pointwise layout more than history_len.
        self.most = run.config.history_len if run.config.layout == "pointwise" else run.config.cutoff_len
        # The baselines look at all of a history.
        self.most = data.events.height if run.settings.baselines else self.most
        self.parts = cut(users["count"].to_numpy(), np.minimum(self.stop - self.start, self.most), CHUNK)
        self.counts = Counts(
            pairs=table.height,
            users=users.height,
            cold=int((self.start == self.stop).sum()),
            twice=table.height - self.asked.height,
            undated=int((~found["dated"]).sum()) if as_of != NOW else 0,
            told=self._told(data.events, users),
        )

    def _told(self, events: pl.DataFrame, users: pl.DataFrame) -> int:
        """How many pairs are events of the history that is shown."""
        places = events.with_row_index("place").select(USER_ID, ITEM_ID, pl.col("place").cast(pl.Int64))
        ends = users.select(USER_ID).with_columns(stop=pl.Series(self.stop))
        shown = places.join(ends, on=USER_ID).filter(pl.col("place") < pl.col("stop"))
        return self.asked.join(shown, on=[USER_ID, ITEM_ID], how="semi").height

    def chunks(self) -> Iterator[tuple[int, int, range]]:
        """First and last pair of each chunk, and its parts."""
        if not len(self.parts.chunk):
            return
        edges = np.flatnonzero(np.diff(self.parts.chunk, prepend=-1)).tolist()
        for first, end in zip(edges, [*edges[1:], len(self.parts.chunk)], strict=True):
            yield int(self.parts.start[first]), int(self.parts.stop[end - 1]), range(first, end)

    def requests(self, parts: range) -> list[Request]:
        """The requests of a chunk, one a part."""
        found = []
        for part in parts:
            user, start, stop = (int(each[part]) for each in (self.parts.user, self.parts.start, self.parts.stop))
            begin, end = int(self.start[user]), int(self.stop[user])
            begin = max(begin, end - self.most)
            events = self.data.events.slice(begin, end - begin).select(ITEM_ID, RATING, LABEL)
            items = self.asked[ITEM_ID].slice(start, stop - start).to_list()
            found.append(
                Request(
                    [self.items.event(item, rating, label) for item, rating, label in events.iter_rows()],
                    list(map(self.candidate, items)),
                )
            )
        return found

    def scored(self, table: pl.DataFrame) -> pl.DataFrame:
        """The pairs, in their order, with log_odds and score."""
        scores = self.asked.with_columns(
            pl.Series(LOG_ODDS, self.log_odds), pl.Series(SCORE, probability(self.log_odds), dtype=pl.Float64)
        )
        return table.join(scores, on=[USER_ID, ITEM_ID], how="left", maintain_order="left")


def _stored(file: Path, height: int) -> npt.NDArray[np.float64] | None:
    """A chunk kept by an earlier call, or None when there is none or it is damaged."""
    try:
        found = pl.read_parquet(file)[LOG_ODDS].to_numpy() if file.is_file() else None
    except (OSError, pl.exceptions.PolarsError):
        return None
    return found if found is not None and len(found) == height else None


def score_chunks(work: PairWork, scorer: CandidateScorer, store: Path, advance: Callable[[int], None]) -> Iterator[int]:
    """Score what an earlier call has not, and keep each finished chunk.

    Args:
        work: what is asked; its log-odds are filled in.
        scorer: scores the candidates.
        store: a folder for chunks of these very pairs, asked so.
        advance: called with the number of pairs scored since the last call.

    Yields:
        How many pairs an earlier call has scored, then how many a chunk has, as soon as it is kept.
    """
    left = []
    for start, stop, parts in work.chunks():
        found = _stored(store / f"pairs-{start:09d}.parquet", stop - start)
        if found is None:
            left.append((start, stop, parts))
        else:
            work.log_odds[start:stop] = found
    yield int(np.isfinite(work.log_odds).sum())
    for start, stop, parts in left:
        work.log_odds[start:stop] = np.concatenate(scorer.score(work.requests(parts), advance))
        with atomic_path(store / f"pairs-{start:09d}.parquet") as temporary:
            pl.DataFrame({LOG_ODDS: work.log_odds[start:stop]}).write_parquet(temporary)
        yield stop - start


def score_pairs(
    run: OpenRun,
    data: Dataset,
    pairs: Pairs,
    output: Path,
    as_of: str,
    say: Say,
    console: Console,
    scorer: CandidateScorer | None = None,
) -> pl.DataFrame:
    """Score every pair and write the file with log_odds and score added, rows in the order of the pairs.

    Each finished chunk is kept under the run folder until the output is written, so that a killed call goes on where
    it was when it is repeated. The chunks depend on the pairs alone, so the result does not depend on the kill.

    Args:
        run: the opened run.
        data: the dataset that the histories come from.
        pairs: from `read_pairs`.
        output: where to write; CSV, Parquet or JSONL by its ending.
        as_of: `now`, `test` or `validation`; see `histories`.
        say: prints one line.
        console: shows progress; without a terminal each chunk is a line.
        scorer: scores the candidates; None makes one.

    Returns:
        What is written: the pairs' columns, log_odds and score, P(like).

    Raises:
        ConfigError: `as_of` or the output cannot be.
        DataError: an item is not in the catalog.
    """
    check_as_of(as_of)
    check_output(pairs, output)
    check_items(pairs, data.catalog)
    work = PairWork(run, data, pairs.table, as_of)
    for line in work.counts.lines(as_of):
        say(line)
    scorer = scorer or CandidateScorer(run, say)
    # In half precision it shows in the scores how many tokens go into a pass.
    key = run.scoring_key(
        data.content_hash,
        "pairs",
        run.settings.correction,
        hash_file(pairs.file),
        as_of,
        str(CHUNK),
        str(scorer.budget.tokens),
    )
    store = run.folder / "scoring" / key
    columns = (TextColumn("scoring pairs"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    total, began = len(work.log_odds), time.monotonic()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("scoring", total=total)
        steps = score_chunks(work, scorer, store, lambda count: bar.advance(task, count))
        done = before = next(steps)
        if done:
            say(f"{done:,} of {total:,} pairs were scored by an earlier call")
        bar.update(task, completed=done)
        try:
            for count in steps:
                done += count
                bar.update(task, completed=done)
                if not console.is_terminal:
                    speed = (done - before) / (time.monotonic() - began)
                    rest = timedelta(seconds=round((total - done) / speed))
                    say(f"scored: {done:,} of {total:,} pairs, {speed:,.1f} a second, about {rest} left")
        except KeyboardInterrupt:
            say(f"stopped with {done:,} of {total:,} pairs scored; the same command goes on from there")
            raise
    table = work.scored(pairs.table)
    write_pairs(table, output)
    shutil.rmtree(store, ignore_errors=True)
    with suppress(OSError):  # another call's chunks may lie beside them
        store.parent.rmdir()
    return table
