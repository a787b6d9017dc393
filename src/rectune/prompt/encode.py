"""The stage from a dataset folder to token trees, with a cache keyed by the content of all it depends on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from rectune.baselines.item_rates import ItemRates, item_rates, uses_rates
from rectune.baselines.prior import prior_of
from rectune.config import Config
from rectune.data.columns import (
    DRAWN_FOR,
    HISTORY_END,
    ITEM_ID,
    LABEL,
    POSITION,
    RATING,
    SPLIT,
    TEST,
    TIMESTAMP,
    TRAIN,
    USER_ID,
    VALIDATION,
)
from rectune.data.folder import asked_at
from rectune.data.portions import Events, Places, held, load, outcomes, portions_of, rows_where, user_starts
from rectune.data.progress import progress
from rectune.errors import DataError
from rectune.prompt.augment import NOTHING, Augment
from rectune.prompt.cache import Kept, cache_key
from rectune.prompt.events import Event
from rectune.prompt.histories import EventHistories
from rectune.prompt.layouts import Prompts
from rectune.prompt.pointwise import PointwisePrompts
from rectune.prompt.stream import StreamPrompts
from rectune.prompt.tree import Trees
from rectune.prompt.windows import Timelines, lay_windows
from rectune.wording import item_texts

_CHECKED = 64
_PROMPTS = 16
"""By so much fewer events make a shard of prompts than one of streams."""
_COLUMNS = (ITEM_ID, RATING, LABEL, POSITION, HISTORY_END, DRAWN_FOR)

Say = Callable[[str], None]


def sample_rows(
    events: Events,
    split: str,
    limit: int | None,
    seed: int,
    whole_users: bool = False,
    since: int | None = None,
) -> npt.NDArray[np.int64]:
    """Rows of one split, at or after the time `since`, at most `limit`, drawn once with the seed, in table order.

    Rows are drawn one by one where each costs a prompt: events of many users say more about all users than as many
    events of a few, and intervals over users come out half as wide. Where a user's events share one history
    (`whole_users`), users are drawn in random order until the limit is reached; of the last one, the oldest events.
    """
    wanted = pl.col(SPLIT) == split
    if since is not None:
        wanted &= pl.col(TIMESTAMP) >= since
    rows = rows_where(events, wanted)
    if limit is None or len(rows) <= limit:
        return rows
    draw = np.random.default_rng(seed)
    if not whole_users:
        return np.sort(draw.permutation(rows)[:limit])
    known = events.lazy().collect_schema().names()
    part = load(events, rows, [name for name in (USER_ID, POSITION, DRAWN_FOR) if name in known])
    # A sampled negative goes with its purchase.
    place = rows - part[POSITION].to_numpy().astype(np.int64) + asked_at(part)
    order = np.argsort(place, kind="stable")
    rows, users = rows[order], part[USER_ID].gather(order).rle_id().to_numpy()
    rank = draw.permutation(int(users[-1]) + 1)
    return np.sort(rows[np.argsort(rank[users], kind="stable")[:limit]])


def split_sample(config: Config, events: Events, split: str) -> npt.NDArray[np.int64]:
    """The rows of one split that this configuration works on: `max_{train,eval,test}_samples` of them.

    Raises:
        DataError: no training event is as late as `train_since`.
    """
    limit = {
        TRAIN: config.max_train_samples,
        VALIDATION: config.max_eval_samples,
        TEST: config.max_test_samples,
    }[split]
    since = config.train_since if split == TRAIN else None
    rows = sample_rows(events, split, limit, config.seed, config.layout == "stream", since)
    if since is not None and not len(rows):
        times = events.lazy().filter(pl.col(SPLIT) == TRAIN).select(pl.col(TIMESTAMP).max())
        latest = int(times.collect().item())
        raise DataError(
            f"train_since: got {since}, but the latest training event is of {latest}; choose an earlier time"
        )
    return rows


def _check_sample(prompts: Prompts, histories: EventHistories, rows: npt.NDArray[np.int64]) -> None:
    """Compare a sample of prompts with the tokenisation of their whole strings.

    Raises:
        ModelError: they differ.
    """
    for row in rows[np.linspace(0, len(rows) - 1, min(_CHECKED, len(rows))).astype(int)].tolist():
        start = max(int(histories.starts[row]), int(histories.stops[row]) - _CHECKED)
        history = [histories.event(at) for at in range(start, histories.stops[row])]
        prompts.check_pieces(history, histories.titles[row])


def _distinct(values: list[Any]) -> tuple[list[Any], npt.NDArray[np.int64]]:
    """The distinct values in order of appearance, and the index of each value among them."""
    index: dict[Any, int] = {}
    codes = [index.setdefault(value, len(index)) for value in values]
    return list(index), np.array(codes, dtype=np.int64)


def encode_stream(
    prompts: StreamPrompts,
    histories: EventHistories,
    events: pl.DataFrame,
    rows: npt.NDArray[np.int64],
    overlap: float,
    augment: Augment = NOTHING,
    places: npt.NDArray[np.int64] | None = None,
    suffix_room: int = 0,
) -> Trees:
    """Trees of the stream layout over these events: windows of their users' timelines.

    Args:
        prompts: the builder.
        histories: texts, ratings, labels and priors of all events.
        events: all events, sorted by user and position.
        rows: int64 [n]; the events that are asked about, ascending.
        overlap: share of a window that a user's later windows repeat as history.
        augment: what training changes: events of one moment in random order, events hidden from later ones.
        places: int64 [events]; where these events stand among all of the dataset; all of them are here when None.
        suffix_room: tokens of the longest suffix of any event of the dataset.

    Returns:
        Each row is answered once; answers come in the order of their moments, which without shuffling and sampled
        negatives is that of the rows.
    """
    _check_sample(prompts, histories, rows)
    position = events[POSITION].to_numpy().astype(np.int64)
    place = np.arange(len(position))
    first = place - position
    history_end = first + events[HISTORY_END].to_numpy().astype(np.int64)
    order = place
    if augment.moments:
        # Sampled negatives are no part of a moment that anybody met, and stay behind their user's own events.
        moment = np.where(asked_at(events) == position, history_end, place)
        order = np.lexsort((augment.ranks(place if places is None else places), moment))
    titles, line = _distinct(histories.titles)
    outcomes, suffix = _distinct(list(zip(histories.ratings, histories.labels, strict=True)))
    texts = [*map(prompts.line, titles), *(prompts.suffix(Event("", *outcome)) for outcome in outcomes)]
    prompts.pieces.warm(texts)
    items, item = _distinct(histories.items)
    room = np.array([prompts.line_room(text, histories.items is not histories.titles) for text in items])[item]
    chosen = np.zeros(len(place), dtype=bool)
    chosen[rows] = True
    asked = np.flatnonzero(chosen[order])
    return lay_windows(
        Timelines(order, first, history_end, line[order], suffix[order] + len(titles), room[order]),
        asked[np.argsort(history_end[asked], kind="stable")],
        [prompts.pieces.text(text) for text in texts],
        prompts.head,
        events[LABEL].to_numpy(),
        histories.prior,
        prompts.cutoff_len,
        overlap,
        max(suffix_room, prompts.suffix_room()),
        augment.hidden(place if places is None else places),
    )


def encode_pointwise(
    prompts: PointwisePrompts,
    histories: EventHistories,
    rows: npt.NDArray[np.int64],
    augment: Augment = NOTHING,
    draw: np.random.Generator | None = None,
) -> Trees:
    """Trees of the pointwise layout for these events, one each, in their order, their histories as augmented.

    Args:
        draw: random numbers for the augmentation; from their beginning when None.

    Raises:
        DataError: a prompt does not fit `cutoff_len` even without history.
        ModelError: the tokenizer joins text across items (checked on a sample).
    """
    seen = sorted({at for row in rows for at in range(histories.starts[row], histories.stops[row])})
    cached = {at: histories.event(at) for at in seen}
    longest = int((histories.stops - histories.starts)[rows].max())
    prompts.warm(list(dict.fromkeys(cached.values())), list({histories.titles[row] for row in rows}), longest)
    _check_sample(prompts, histories, rows)
    chunks: list[npt.ArrayLike] = []
    shown_from = histories.starts[rows].copy()
    shown = augment.histories(histories.starts[rows], histories.stops[rows], draw)
    for index, row in enumerate(rows.tolist()):
        history = [cached[at] for at in shown[index].tolist()]
        prompt = prompts.build(history, histories.titles[row])
        chunks.append(np.array(prompt.tokens, dtype=np.int32))
        shown_from[index] += prompt.dropped
    return Trees.of_prompts(chunks, np.array(histories.labels)[rows], rows, shown_from, histories.prior[rows])


class _Source(NamedTuple):
    """What portions of the events are encoded from.

    Attributes:
        events: all of them.
        columns: those that are needed.
        texts: of the items.
        rates, prior: of all events, where the configuration has them.
        suffix_room: see `encode_stream`.
    """

    events: Events
    columns: list[str]
    texts: Mapping[str, str]
    rates: ItemRates | None
    prior: npt.NDArray[np.float64] | None
    suffix_room: int

    @classmethod
    def of(
        cls, config: Config, events: Events, catalog: pl.DataFrame, content_hash: str, prompts: Prompts, say: Say
    ) -> _Source:
        prior, rates, suffix_room = None, None, 0
        if config.prior == "stack":
            prior = prior_of(config, held(events), catalog, content_hash, say)[1]
        if uses_rates(config):
            rates = item_rates(events, config.item_rate_from, config.item_rate_strength)
        if isinstance(prompts, StreamPrompts):
            suffixes = [prompts.suffix(Event("", *outcome)) for outcome in outcomes(events)]
            suffix_room = max(len(prompts.pieces.text(suffix)) for suffix in suffixes)
        known = events.lazy().collect_schema().names()
        columns = [name for name in _COLUMNS if name in known]
        return cls(events, columns, item_texts(catalog, config.item_text), rates, prior, suffix_room)

    def histories(self, config: Config, catalog: pl.DataFrame, places: Places) -> tuple[pl.DataFrame, EventHistories]:
        """These events, and their histories."""
        part = load(self.events, places, self.columns)
        rates = None if self.rates is None else self.rates.of(places)
        prior = None if self.prior is None else self.prior[places]
        return part, EventHistories(part, catalog, config, prior, rates, self.texts)


def encode(
    config: Config,
    events: Events,
    catalog: pl.DataFrame,
    content_hash: str,
    prompts: Prompts,
    rows: npt.NDArray[np.int64],
    say: Say,
    training: bool = False,
) -> Trees:
    """The trees of these events, from the cache where it holds them.

    Users are encoded in portions of about `part_rows` events (pointwise: a 16th of that, since a prompt repeats its
    history), each of which becomes a shard of the cache; a call that was cut off goes on behind its last shard.

    Args:
        config: prompt keys, `history_len`, `cutoff_len`, `part_rows` and the cache folder are read.
        events: all events of the dataset, sorted by user and position.
        catalog: its items.
        content_hash: hash of both, from the dataset's `meta.json`.
        prompts: the prompt builder of this configuration.
        rows: int64 [n]; indices into `events`, ascending.
        say: prints one line.
        training: whether to change what is shown as the configuration asks for training only.

    Raises:
        DataError: there are no events, or a prompt does not fit `cutoff_len` even without history.
        ModelError: the tokenizer joins text across items (checked on a sample).
    """
    if len(rows) == 0:
        raise DataError("no events to encode: this split is empty; prepare with more users or a lower history_len")
    augment = Augment.of(config) if training else NOTHING
    most = config.part_rows if isinstance(prompts, StreamPrompts) else max(1, config.part_rows // _PROMPTS)
    portions = portions_of(user_starts(events), rows, most)
    name = cache_key(config, content_hash, prompts.pieces, rows, augment)
    # Shards cut otherwise lie elsewhere: two processes with another `part_rows` would overwrite each other's.
    kept = Kept(config.preprocessing_cache_dir / (f"{name}-{most}" if len(portions) > 1 else name), rows)
    with suppress(ValueError):  # damaged, or just being removed: looked at again under the lock
        if (trees := kept.trees()) is not None:
            say(f"tokens: {len(trees):,} sequences from the cache {kept.folder}")
            return trees
    with kept.alone(say):
        damaged = False
        try:
            if (trees := kept.trees()) is not None:  # made by the one who held the lock
                say(f"tokens: {len(trees):,} sequences from the cache {kept.folder}")
                return trees
        except ValueError as error:
            say(f"tokens: the cache {error}; it is made again")
            damaged = True
        kept.begin(anew=damaged, events_of_a_shard=most, shards=len(portions))
        if kept.old:
            say(
                f"tokens: going on with {kept.old:,} of {len(portions):,} shards, which an earlier call has left in "
                f"{kept.folder}"
            )
        source = _Source.of(config, events, catalog, content_hash, prompts, say)
        return _make(config, catalog, source, prompts, rows, portions, augment, kept, say)


def _make(
    config: Config,
    catalog: pl.DataFrame,
    source: _Source,
    prompts: Prompts,
    rows: Places,
    portions: list[Places],
    augment: Augment,
    kept: Kept,
    say: Say,
) -> Trees:
    """Make the shards that are missing; all trees."""
    state: dict[str, Any] | None = None
    cut = shortened = 0
    try:
        with progress("tokenised", len(rows), "events", say) as advance:
            for shard, places in enumerate(portions):
                asked = rows[np.searchsorted(rows, places[0]) : np.searchsorted(rows, places[-1], side="right")]
                told = kept.told(shard, asked, say)
                if told is None:
                    made, told = _shard(config, catalog, source, prompts, places, asked, augment, state)
                    kept.keep(shard, made, told)
                state, cut, shortened = told["random"], cut + told["cut"], shortened + told["shortened"]
                advance(len(asked))
    except KeyboardInterrupt:
        say(f"tokens: stopped; finished shards lie in {kept.folder}, and the same command goes on behind them")
        raise
    if cut:
        say(
            f"tokens: {cut:,} of {len(rows):,} texts lost their middle to fit cutoff_len={config.cutoff_len}; "
            "rubric and answer are whole"
        )
    if shortened:
        say(
            f"tokens: {shortened:,} of {len(rows):,} prompts lost their oldest events to fit "
            f"cutoff_len={config.cutoff_len}"
        )
    return kept.end(len(portions))


def _shard(
    config: Config,
    catalog: pl.DataFrame,
    source: _Source,
    prompts: Prompts,
    places: Places,
    asked: Places,
    augment: Augment,
    state: dict[str, Any] | None,
) -> tuple[Trees, dict[str, Any]]:
    """The trees of some users, and what is to be told of them.

    Args:
        places: rows of the users' events.
        asked: those of them that are asked about.
        state: of the random numbers where the shard before ended.
    """
    part, histories = source.histories(config, catalog, places)
    rows = np.searchsorted(places, asked)
    told: dict[str, Any] = {"random": None, "cut": 0, "shortened": 0}
    if isinstance(prompts, StreamPrompts):
        trees = encode_stream(
            prompts, histories, part, rows, config.window_overlap, augment, places, source.suffix_room
        )  # fmt: skip
    else:
        draw = augment.draw(state)
        trees = encode_pointwise(prompts, histories, rows, augment, draw)
        told["random"] = draw.bit_generator.state
        told["cut"] = sum(prompts.fitted(text) != text for text in (histories.titles[row] for row in rows.tolist()))
        told["shortened"] = int((trees.shown_from > histories.starts[rows]).sum())
    return replace(
        trees,
        rows=places[trees.rows].astype(np.int32),
        shown_from=places[trees.shown_from].astype(np.int32),
    ), told
