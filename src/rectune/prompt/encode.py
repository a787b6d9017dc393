"""The stage from a dataset folder to token trees, with a cache keyed by the content of all it depends on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from rectune import __version__
from rectune.config import Config
from rectune.data.columns import ITEM_ID, LABEL, RATING, SPLIT
from rectune.data.folder import history_slices
from rectune.errors import DataError
from rectune.files import atomic_path, hash_file, hash_text, write_text
from rectune.prompt.pieces import Pieces
from rectune.prompt.pointwise import Event, PointwisePrompts
from rectune.prompt.tree import Trees
from rectune.wording import item_texts, texts_for

_FORMAT = "1"
PROMPT_KEYS = (
    "layout", "prompt_format", "prompt_domain", "system_prompt", "instruction", "history_header", "candidate_header",
    "question", "history_shows", "item_text", "positive_label", "negative_label", "cutoff_len", "history_len",
)  # fmt: skip
_CHECKED = 64

Say = Callable[[str], None]


def sample_rows(events: pl.DataFrame, split: str, limit: int | None, seed: int) -> npt.NDArray[np.int64]:
    """Rows of one split, at most `limit`, drawn once with the seed, in the order of the table.

    Rows are drawn one by one, not user by user: events of many users say more about all users than as many events
    of a few, and intervals over users come out half as wide.
    """
    rows = events.select((pl.col(SPLIT) == split).arg_true()).to_series().to_numpy().astype(np.int64)
    if limit is None or len(rows) <= limit:
        return rows
    return np.sort(np.random.default_rng(seed).permutation(rows)[:limit])


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
    """Histories and candidates of a dataset's events, as the prompt builder takes them."""

    def __init__(self, events: pl.DataFrame, catalog: pl.DataFrame, config: Config) -> None:
        self.titles = Titles.of(events, catalog, config.item_text).by_event
        self.ratings: list[float | None] = events[RATING].to_list()
        self.labels: list[int] = events[LABEL].to_list()
        self.starts, self.stops = history_slices(events, config.history_len)

    def event(self, index: int) -> Event:
        """One event as it is shown in a later history."""
        return Event(self.titles[index], self.ratings[index], self.labels[index])

    def history(self, index: int) -> list[Event]:
        """The strictly earlier events shown for the event at this row index, oldest first."""
        return [self.event(at) for at in range(self.starts[index], self.stops[index])]


def encode_rows(
    prompts: PointwisePrompts, histories: EventHistories, events: pl.DataFrame, rows: npt.NDArray[np.int64]
) -> Trees:
    """Trees of these events, one each, in their order.

    Raises:
        DataError: a prompt does not fit `cutoff_len` even without history, or there are no events.
        ModelError: the tokenizer joins text across items (checked on a sample).
    """
    if len(rows) == 0:
        raise DataError("no events to encode: this split is empty; prepare with more users or a lower history_len")
    shown = sorted({at for row in rows for at in range(histories.starts[row], histories.stops[row])})
    cached = {at: histories.event(at) for at in shown}
    longest = int((histories.stops - histories.starts)[rows].max())
    prompts.warm(list(dict.fromkeys(cached.values())), list({histories.titles[row] for row in rows}), longest)
    for row in rows[np.linspace(0, len(rows) - 1, min(_CHECKED, len(rows))).astype(int)]:
        prompts.check_pieces(histories.history(int(row)), histories.titles[row])
    chunks: list[npt.NDArray[np.int32]] = []
    dropped = np.zeros(len(rows), dtype=np.int32)
    for index, row in enumerate(rows.tolist()):
        history = [cached[at] for at in range(histories.starts[row], histories.stops[row])]
        prompt = prompts.build(history, histories.titles[row])
        chunks.append(np.array(prompt.tokens, dtype=np.int32))
        dropped[index] = prompt.dropped
    lengths = np.array([len(chunk) for chunk in chunks], dtype=np.int64)
    return Trees(
        tokens=np.concatenate(chunks),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        answer_at=(lengths - 1).astype(np.int32),
        answer_offsets=np.arange(len(rows) + 1, dtype=np.int64),
        labels=events[LABEL].to_numpy()[rows].astype(np.int32),
        rows=rows.astype(np.int32),
        dropped=dropped,
    )


def cache_key(config: Config, content_hash: str, pieces: Pieces, rows: npt.NDArray[np.int64]) -> str:
    """What the trees depend on, hashed: data, rows, tokenizer, template, prompt keys and texts, the file's format."""
    values = {key: getattr(config, key) for key in PROMPT_KEYS} | {"texts": asdict(texts_for(config))}
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
    prompts: PointwisePrompts,
    rows: npt.NDArray[np.int64],
    say: Say,
) -> Trees:
    """The trees of these events, from the cache where it holds them.

    Args:
        config: prompt keys, `history_len`, `cutoff_len` and the cache folder are read.
        events: all events of the dataset, sorted by user and position.
        catalog: its items.
        content_hash: hash of both, from the dataset's `meta.json`.
        prompts: the prompt builder of this configuration.
        rows: int64 [n]; indices into `events`.
        say: prints one line.
    """
    key = cache_key(config, content_hash, prompts.pieces, rows)
    path = config.preprocessing_cache_dir / f"{key}.safetensors"
    if path.exists():
        trees = _load(path)
        if trees is not None:
            say(f"tokens: {len(trees):,} prompts from the cache {path}")
            return trees
        say(f"tokens: the cache file {path} is damaged; it is made again")
    trees = encode_rows(prompts, EventHistories(events, catalog, config), events, rows)
    _save(trees, path)
    if trees.dropped.any():
        say(
            f"tokens: {int((trees.dropped > 0).sum()):,} of {len(trees):,} prompts lost their oldest events to fit "
            f"cutoff_len={config.cutoff_len}"
        )
    return trees


def clear_cache(config: Config, say: Say) -> None:
    """Remove the tokenised prompts of every run that shares this cache folder, and nothing else that lies there."""
    ours = re.compile(r"[0-9a-f]{32}\.(safetensors|sha256)")
    files = [path for path in config.preprocessing_cache_dir.glob("*") if ours.fullmatch(path.name)]
    for path in files:
        path.unlink()
    say(f"tokens: cleared {len(files)} files from {config.preprocessing_cache_dir}")
