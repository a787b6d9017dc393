"""The JSON files of a dataset: Alpaca records, raw test rows and LLaMA-Factory's registry.

The program itself reads the Parquet files; these are for people and for other trainers. Their words come from
`rectune.wording`, the one builder of prompts.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from rectune import wording
from rectune.config import Config
from rectune.data import columns as c
from rectune.data.folder import EVAL_JSON, TEST_RAW, TRAIN_JSON, history_slices

_BATCH = 4096
# Escapes only what JSON must have escaped, so that titles stay readable.
_encode = json.JSONEncoder(ensure_ascii=False).encode


JSON_FILES = {TRAIN_JSON: c.TRAIN, EVAL_JSON: c.VALIDATION, TEST_RAW: c.TEST}
"""The split of each file."""
SEPARATORS = {TRAIN_JSON: ",\n", EVAL_JSON: ",\n", TEST_RAW: "\n"}
"""What stands between two records."""


class ItemWords(NamedTuple):
    """What the items of a catalog are called, by their ids.

    Attributes:
        texts: in prompts.
        titles: their titles.
    """

    texts: dict[str, str]
    titles: dict[str, str]

    @classmethod
    def of(cls, catalog: pl.DataFrame, config: Config) -> ItemWords:
        """Those of a configuration's prompts."""
        titles = dict(catalog.select(c.ITEM_ID, c.TITLE).iter_rows())
        return cls(wording.item_texts(catalog, config.item_text), titles)


class Records:
    """Renders events as JSON, one line each.

    The tables stay in numpy; Python only joins the words of one record at a time, so that memory does not grow
    with the number of records.
    """

    def __init__(self, events: pl.DataFrame, words: ItemWords, config: Config) -> None:
        self.config = config
        self.events = events
        self.texts = wording.texts_for(config)
        self.starts, self.stops = history_slices(events, config.history_len)
        self.words = config.label_words
        # What a line of the history says depends on item, rating and label only: number these combinations.
        shown = [c.ITEM_ID, c.RATING, c.LABEL]
        kinds = events.select(shown).unique(maintain_order=True).with_row_index("kind")
        codes = events.select(shown).join(kinds, on=shown, how="left", maintain_order="left", nulls_equal=True)
        self.kinds: np.ndarray = codes["kind"].to_numpy()
        self.items: list[str] = kinds[c.ITEM_ID].to_list()
        self.ratings: list[float | None] = kinds[c.RATING].to_list()
        self.labels: list[int] = kinds[c.LABEL].to_list()
        self.item_texts = [words.texts[item] for item in self.items]
        self.titles = [words.titles[item] for item in self.items]
        self.lines: list[dict[int, str]] = [{} for _ in range(config.history_len)]

    def _history_lines(self, kinds: list[int]) -> list[str]:
        lines = []
        for place, kind in enumerate(kinds):
            known = self.lines[place]
            line = known.get(kind)
            if line is None:
                word = self.words[self.labels[kind]]
                line = wording.history_line(
                    place + 1, self.item_texts[kind], self.ratings[kind], word, self.config.history_shows
                )
                known[kind] = line
            lines.append(line)
        return lines

    def _history_labels(self, history: list[int]) -> dict[str, list[str]]:
        """What became of each event, where its rating does not tell."""
        if self.config.label_from == "rating":
            return {}
        return {"history_labels": [self.words[self.labels[past]] for past in history]}

    def rows_of(self, split: str) -> np.ndarray:
        """The row indices of a split, in the order of the events."""
        return (self.events[c.SPLIT] == split).arg_true().to_numpy()

    def of_file(self, name: str) -> Iterator[str]:
        """The records of one of `JSON_FILES`."""
        rows = self.rows_of(JSON_FILES[name])
        return self.raw(rows) if name == TEST_RAW else self.alpaca(rows)

    def alpaca(self, rows: np.ndarray) -> Iterator[str]:
        """One Alpaca record per row: instruction, input, output, system, history."""
        instruction, system = _encode(self.texts.instruction), _encode(self.texts.system)
        words = tuple(_encode(word) for word in self.words)
        for row in rows.tolist():
            kind = int(self.kinds[row])
            lines = self._history_lines(self.kinds[self.starts[row] : self.stops[row]].tolist())
            text = _encode(wording.user_input(self.texts, lines, self.item_texts[kind]))
            output = words[self.labels[kind]]
            yield (
                f'{{"instruction": {instruction}, "input": {text}, "output": {output}, '
                f'"system": {system}, "history": []}}'
            )

    def raw(self, rows: np.ndarray) -> Iterator[str]:
        """One raw record per row: who, the history as titles, ratings and item ids, the candidate, the label."""
        wanted = self.events[rows].select(c.USER_ID, c.TIMESTAMP, c.ROW_ID)
        for row, (user, timestamp, row_id) in zip(rows.tolist(), wanted.iter_rows(), strict=True):
            kind = int(self.kinds[row])
            history: list[int] = self.kinds[self.starts[row] : self.stops[row]].tolist()
            record: dict[str, Any] = {
                "user_id": user,
                "history_titles": [self.titles[past] for past in history],
                "history_ratings": [self.ratings[past] for past in history],
                "history_item_ids": [self.items[past] for past in history],
                **self._history_labels(history),
                "candidate_title": self.titles[kind],
                "candidate_item_id": self.items[kind],
                "label": self.words[self.labels[kind]],
                "row_id": row_id,
                "timestamp": timestamp,
            }
            if self.config.item_text != "title":
                # What the prompt says of an item, where that is not its title.
                record["history_texts"] = [self.item_texts[past] for past in history]
                record["candidate_text"] = self.item_texts[kind]
            yield _encode(record)


def write_json_list(path: Path, records: Iterator[str]) -> None:
    """Write records as a JSON list with one record on each line."""
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write("[")
        separator = "\n"
        for batch in _batches(records):
            stream.write(separator + ",\n".join(batch))
            separator = ",\n"
        stream.write("\n]\n")


def write_json_lines(path: Path, records: Iterator[str]) -> None:
    """Write records as JSON lines."""
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        for batch in _batches(records):
            stream.write("\n".join(batch) + "\n")


def write_fragment(path: Path, records: Iterator[str], separator: str) -> None:
    """Write records with a separator between two, and nothing around them, for `join_fragments`."""
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        before = ""
        for batch in _batches(records):
            stream.write(before + separator.join(batch))
            before = separator


def join_fragments(path: Path, fragments: Iterable[Path], name: str) -> None:
    """Put the fragments of a file together, as `write_json_list` or `write_json_lines` would have written it."""
    lines = name == TEST_RAW
    with path.open("wb") as stream:
        stream.write(b"" if lines else b"[")
        before = "" if lines else "\n"
        for fragment in fragments:
            if fragment.stat().st_size:
                stream.write(before.encode())
                with fragment.open("rb") as part:
                    shutil.copyfileobj(part, stream, 1 << 20)
                before = SEPARATORS[name]
        stream.write(before.encode() if lines else b"\n]\n")


def _batches(records: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for record in records:
        batch.append(record)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def dataset_info(name: str, left_out: Sequence[str] = ()) -> dict[str, Any]:
    """LLaMA-Factory's registry (its data/README.md) for the two Alpaca files, or those of them that are there."""
    mapping = {
        "prompt": "instruction",
        "query": "input",
        "response": "output",
        "system": "system",
        "history": "history",
    }
    return {
        f"{name}_{part}": {"file_name": file, "formatting": "alpaca", "columns": mapping}
        for part, file in (("train", TRAIN_JSON), ("eval", EVAL_JSON))
        if file not in left_out
    }
