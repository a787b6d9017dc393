"""What a dataset of labelled texts says of itself: classes by split, and whether texts are in two splits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import polars as pl

from rectune.config_classify import STRATIFIED
from rectune.data import columns as c
from rectune.data.stratified import repeated_texts

_SPLITS = (c.TRAIN, c.VALIDATION, c.TEST)


def class_counts(events: pl.DataFrame, classes: Sequence[str]) -> dict[str, dict[str, int]]:
    """Rows of each class by split: split → class → rows."""
    counts = {(split, label): rows for split, label, rows in events.group_by(c.SPLIT, c.LABEL).len().iter_rows()}
    return {
        split: {name: counts.get((split, label), 0) for label, name in enumerate(classes)}
        for split in _SPLITS
    }  # fmt: skip


def text_note(events: pl.DataFrame, split: str) -> str:
    """One sentence: how texts were split, and what became of those that stand in several rows."""
    texts, rows = repeated_texts(events)
    again = (
        f"{texts:,} texts stand in more than one row ({rows:,} rows), each with all its rows in one split"
        if texts
        else "no text stands in two rows"
    )
    how = "at random within each class, with the seed" if split == STRATIFIED else "as the data's own column says"
    return f"Split {how}: no text of validation or test is in train; {again}."


def say_classes(counts: Mapping[str, Mapping[str, int]], note: str, say: Callable[[str], None]) -> None:
    """Say the splits and their classes."""
    rows = {split: sum(counts[split].values()) for split in _SPLITS}
    say(f"split: {' / '.join(f'{rows[split]:,}' for split in _SPLITS)} train / validation / test texts")
    for name in counts[c.TRAIN]:
        shares = " / ".join(f"{counts[split][name] / max(rows[split], 1):.1%}" for split in _SPLITS)
        say(f"  {name}: {shares}")
    say(note)
