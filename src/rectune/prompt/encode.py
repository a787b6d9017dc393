"""The stage from a dataset folder to token trees, with a cache keyed by the content of all it depends on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from rectune.baselines.item_rates import item_rates, rate_text, uses_rates
from rectune.baselines.prior import prior_of
from rectune.config import Config
from rectune.data.columns import (
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
from rectune.data.folder import asked_at, history_slices
from rectune.errors import DataError
from rectune.files import atomic_path, hash_file, hash_text, write_text
from rectune.prompt.augment import NOTHING, Augment
from rectune.prompt.events import Event
from rectune.prompt.layouts import Prompts
from rectune.prompt.pieces import Pieces
from rectune.prompt.pointwise import PointwisePrompts
from rectune.prompt.stream import StreamPrompts
from rectune.prompt.tree import Trees
from rectune.prompt.windows import Timelines, lay_windows
from rectune.version import __version__
from rectune.wording import item_texts, texts_for

_FORMAT = "2"
PROMPT_KEYS = (
    "layout", "prompt_format", "prompt_domain", "system_prompt", "instruction", "history_header", "candidate_header",
    "question", "history_shows", "item_text", "positive_label", "negative_label", "cutoff_len", "history_len",
    "stream_header", "stream_cue", "window_overlap", "item_rate_text", "prior", "item_rate_from",
    "item_rate_strength", "task", "labels",
)  # fmt: skip
_CHECKED = 64

Say = Callable[[str], None]


def sample_rows(
    events: pl.DataFrame,
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
    rows = events.select(wanted.arg_true()).to_series().to_numpy().astype(np.int64)
    if limit is None or len(rows) <= limit:
        return rows
    draw = np.random.default_rng(seed)
    if not whole_users:
        return np.sort(draw.permutation(rows)[:limit])
    # A sampled negative goes with its purchase.
    place = rows - events[POSITION].gather(rows).to_numpy().astype(np.int64) + asked_at(events)[rows]
    rows = rows[np.argsort(place, kind="stable")]
    users = events[USER_ID].gather(rows).rle_id().to_numpy()
    rank = draw.permutation(int(users[-1]) + 1)
    return np.sort(rows[np.argsort(rank[users], kind="stable")[:limit]])


def split_sample(config: Config, events: pl.DataFrame, split: str) -> npt.NDArray[np.int64]:
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
        latest = int(events.filter(pl.col(SPLIT) == TRAIN)[TIMESTAMP].to_numpy().max())
        raise DataError(
            f"train_since: got {since}, but the latest training event is of {latest}; choose an earlier time"
        )
    return rows


@dataclass(frozen=True)
class Titles:
    """Item texts as a column aligned with the events."""

    by_event: list[str]

    @classmethod
    def of(cls, events: pl.DataFrame, catalog: pl.DataFrame, item_text: str) -> Titles:
        """The text of each event's item.

        Raises:
            DataError: an event's item is not in the catalog.
        """
        texts = item_texts(catalog, item_text)
        found = [texts.get(item) for item in events[ITEM_ID].to_list()]
        missing = [item for item, text in zip(events[ITEM_ID].to_list(), found, strict=True) if text is None]
        if missing:
            raise DataError(
                f"catalog.parquet: {len(missing)} events are about items it does not hold, such as {missing[0]!r}; "
                "run `rectune prepare CONFIG --force`"
            )
        return cls([text for text in found if text is not None])


class EventHistories:
    """Histories and candidates of a dataset's events, as the prompt builder takes them.

    Attributes:
        titles: text of each event's item, with its like-rate where the configuration writes it.
        items: the same without the like-rate.
        ratings, labels: of each event.
        starts, stops: int64 [events]; where each event's longest history lies. The pointwise layout shows
            `history_len` events, a stream as many as fit.
        prior: float64 [events]; what is added to the log-odds.
    """

    def __init__(
        self,
        events: pl.DataFrame,
        catalog: pl.DataFrame,
        config: Config,
        prior: npt.NDArray[np.float64] | None = None,
    ) -> None:
        self.titles = self.items = Titles.of(events, catalog, config.item_text).by_event
        self.ratings: list[float | None] = events[RATING].to_list()
        self.labels: list[int] = events[LABEL].to_list()
        longest = config.history_len if config.layout == "pointwise" else events.height
        self.starts, self.stops = history_slices(events, longest)
        self.prior = np.zeros(events.height) if prior is None else prior
        if uses_rates(config):
            rates = item_rates(events, config.item_rate_from, config.item_rate_strength)
            if config.prior == "item_rate":
                self.prior = rates.log_odds
            if config.item_rate_text:
                known = zip(self.titles, rates.rate.tolist(), rates.count.tolist(), strict=True)
                self.titles = [title + rate_text(rate, count) for title, rate, count in known]

    def event(self, index: int) -> Event:
        """One event as it is shown in a later history."""
        return Event(self.titles[index], self.ratings[index], self.labels[index])

    def history(self, index: int) -> list[Event]:
        """The strictly earlier events shown for the event at this row index, oldest first."""
        return [self.event(at) for at in range(self.starts[index], self.stops[index])]


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
) -> Trees:
    """Trees of the stream layout over these events: windows of their users' timelines.

    Args:
        prompts: the builder.
        histories: texts, ratings, labels and priors of all events.
        events: all events, sorted by user and position.
        rows: int64 [n]; the events that are asked about, ascending.
        overlap: share of a window that a user's later windows repeat as history.
        augment: what training changes: events of one moment in random order, events hidden from later ones.

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
        order = np.lexsort((np.random.default_rng(augment.seed).random(len(place)), moment))
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
        prompts.suffix_room(),
        augment.hidden(len(place)),
    )


def encode_pointwise(
    prompts: PointwisePrompts, histories: EventHistories, rows: npt.NDArray[np.int64], augment: Augment = NOTHING
) -> Trees:
    """Trees of the pointwise layout for these events, one each, in their order, their histories as augmented.

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
    shown = augment.histories(histories.starts[rows], histories.stops[rows])
    for index, row in enumerate(rows.tolist()):
        history = [cached[at] for at in shown[index].tolist()]
        prompt = prompts.build(history, histories.titles[row])
        chunks.append(np.array(prompt.tokens, dtype=np.int32))
        shown_from[index] += prompt.dropped
    return Trees.of_prompts(chunks, np.array(histories.labels)[rows], rows, shown_from, histories.prior[rows])


def cache_key(
    config: Config, content_hash: str, pieces: Pieces, rows: npt.NDArray[np.int64], augment: Augment = NOTHING
) -> str:
    """What the trees depend on, hashed: data, rows, tokenizer, template, prompt keys and texts, the file's format."""
    values = {key: getattr(config, key) for key in PROMPT_KEYS} | {"texts": asdict(texts_for(config))}
    values |= augment.key()
    return hash_text(
        _FORMAT,
        __version__,
        content_hash,
        pieces.fingerprint(),
        json.dumps(values, sort_keys=True),
        rows.tobytes().hex(),
    )[:32]


def _save(trees: Trees, path: Path) -> None:
    from safetensors.numpy import save_file

    with atomic_path(path) as temporary:
        save_file({field.name: np.ascontiguousarray(getattr(trees, field.name)) for field in fields(trees)}, temporary)
    write_text(path.with_suffix(".sha256"), hash_file(path) + "\n")


def _load(path: Path) -> Trees | None:
    """The cached trees, or None when the file or its hash is damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        if path.with_suffix(".sha256").read_text(encoding="utf-8").strip() != hash_file(path):
            return None
        return Trees(**load_file(path))
    except (OSError, SafetensorError, TypeError, UnicodeDecodeError):
        return None


def encode(
    config: Config,
    events: pl.DataFrame,
    catalog: pl.DataFrame,
    content_hash: str,
    prompts: Prompts,
    rows: npt.NDArray[np.int64],
    say: Say,
    training: bool = False,
) -> Trees:
    """The trees of these events, from the cache where it holds them.

    Args:
        config: prompt keys, `history_len`, `cutoff_len` and the cache folder are read.
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
    key = cache_key(config, content_hash, prompts.pieces, rows, augment)
    path = config.preprocessing_cache_dir / f"{key}.safetensors"
    if path.exists():
        trees = _load(path)
        if trees is not None:
            say(f"tokens: {len(trees):,} sequences from the cache {path}")
            return trees
        say(f"tokens: the cache file {path} is damaged; it is made again")
    _, prior = prior_of(config, events, catalog, content_hash, say)
    histories = EventHistories(events, catalog, config, prior)
    if isinstance(prompts, StreamPrompts):
        trees = encode_stream(prompts, histories, events, rows, config.window_overlap, augment)
    else:
        trees = encode_pointwise(prompts, histories, rows, augment)
        cut = sum(prompts.fitted(text) != text for text in (histories.titles[row] for row in rows.tolist()))
        if cut:
            say(
                f"tokens: {cut:,} of {len(trees):,} texts lost their middle to fit cutoff_len={config.cutoff_len}; "
                "rubric and answer are whole"
            )
        shortened = int((trees.shown_from > histories.starts[rows]).sum())
        if shortened:
            say(
                f"tokens: {shortened:,} of {len(trees):,} prompts lost their oldest events to fit "
                f"cutoff_len={config.cutoff_len}"
            )
    _save(trees, path)
    return trees


def clear_cache(config: Config, say: Say) -> None:
    """Remove the tokenised prompts of every run that shares this cache folder, and nothing else that lies there."""
    ours = re.compile(r"[0-9a-f]{32}\.(safetensors|sha256|stack|prior)")
    files = [path for path in config.preprocessing_cache_dir.glob("*") if ours.fullmatch(path.name)]
    for path in files:
        path.unlink()
    say(f"tokens: cleared {len(files)} files from {config.preprocessing_cache_dir}")
