"""The panel: the same few validation events, looked at in every evaluation, to see predictions move."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import TrainerCallback

from rectune.data.columns import HISTORY_END, ITEM_ID, POSITION, USER_ID
from rectune.files import append_line, write_text
from rectune.measure.classification import probability
from rectune.prompt.dataset import Dataset

FILE_NAME = "panel.jsonl"
_SHOWN_HISTORY = 3


def choose_panel(labels: npt.NDArray[Any], count: int, seed: int) -> npt.NDArray[np.int64]:
    """Indices of a few answers, half of them positive where both classes have enough, drawn with the seed.

    Args:
        labels: [answers] of 0 and 1.
        count: how many at most.
        seed: of the draw.

    Returns:
        int64 [at most count], the positive ones first, each class in order.

    >>> choose_panel(np.array([1, 0, 0, 0]), 3, seed=0)[0]
    np.int64(0)
    """
    draw = np.random.default_rng(seed)
    positive, negative = np.flatnonzero(labels == 1), np.flatnonzero(labels != 1)
    likes = min(len(positive), max(count - count // 2, count - len(negative)))
    others = min(len(negative), count - likes)
    chosen = [draw.choice(of, size, replace=False) for of, size in ((positive, likes), (negative, others))]
    return np.concatenate([np.sort(part) for part in chosen]).astype(np.int64)


def panel_events(data: Dataset, rows: npt.NDArray[Any]) -> list[dict[str, Any]]:
    """User, candidate, label and the last titles of the history of each event.

    Args:
        data: the dataset.
        rows: rows of its events.
    """
    names = dict(zip(data.catalog[ITEM_ID].to_list(), data.catalog["title"].to_list(), strict=True))
    found = []
    for row in rows.tolist():
        event = data.at(np.array([row]), data.columns).row(0, named=True)
        first = row - int(event[POSITION])
        earlier = data.at(np.arange(first, first + int(event[HISTORY_END])), [ITEM_ID]).to_series()
        titles = [names.get(item, "") for item in earlier]
        found.append(
            {
                "row": row,
                "user_id": str(event[USER_ID]),
                "candidate_title": names.get(event[ITEM_ID], ""),
                "history_titles": titles[-_SHOWN_HISTORY:],
                "label": int(event["label"]),
            }
        )
    return found


def panel_text(events: Sequence[Mapping[str, Any]], scores: Sequence[float], before: Sequence[float] | None) -> str:
    """The panel as a block of Markdown code, with the scores of the evaluation before where there was one.

    A Markdown table would do, but TensorBoard breaks the numbers of its narrow columns.
    """
    rows = [("user", "liked", "before", "P(yes)", "asked about", "after seeing")]
    for index, event in enumerate(events):
        earlier = f"{before[index]:.3f}" if before is not None else "-"
        titles = (str(event["candidate_title"]), "; ".join(event["history_titles"]))
        asked, seen = (" ".join(text.replace("`", "'").split()) for text in titles)
        liked = "yes" if event["label"] else "no"
        rows.append((str(event["user_id"]), liked, earlier, f"{scores[index]:.3f}", asked, seen))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(["```", *lines, "```"])


class Panel(TrainerCallback):
    """Keeps `logs/panel.jsonl`, one line an event and evaluation, and shows it.

    The events are among those that the evaluation has just scored, so it costs no forward pass.

    Args:
        folder: the run's `logs/`.
        data: the dataset.
        validation: holds the prompts and, after an evaluation, their log-odds.
        count: how many events.
        seed: of the draw.
        shift: what class weights add to the log-odds; taken off, as for the metrics.
        say: prints one line.
        write_text: takes name, Markdown text and step (TensorBoard), or None.
        names: of the two labels.
    """

    def __init__(
        self,
        folder: Path,
        data: Dataset,
        validation: Any,
        count: int,
        seed: int,
        shift: float,
        say: Callable[[str], None],
        write_text: Callable[[str, str, int], None] | None = None,
        names: Sequence[str] = ("not liked", "liked"),
    ) -> None:
        self.file = folder / FILE_NAME
        self.validation = validation
        self.chosen = choose_panel(validation.trees.labels, count, seed)
        self.events = panel_events(data, validation.trees.rows[self.chosen].astype(np.int64))
        self.shift = shift
        self.say = say
        self.write_text = write_text
        self.names = names
        self.before: list[float] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Keep only the lines of the steps that the run goes on from."""
        if self.file.is_file():
            lines = self.file.read_text(encoding="utf-8").splitlines()
            write_text(self.file, "".join(line + "\n" for line in lines if _step(line) <= state.global_step))

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write and show what the evaluation gave these events."""
        if self.validation.log_odds is None:
            return
        scores = [float(score) for score in probability(self.validation.log_odds[self.chosen] - self.shift)]
        lines = [
            json.dumps({"step": state.global_step, **event, "score": score}, ensure_ascii=False)
            for event, score in zip(self.events, scores, strict=True)
        ]
        append_line(self.file, "\n".join(lines))
        parts = []
        for label, name in ((1, self.names[1]), (0, self.names[0])):
            own = [score for score, event in zip(scores, self.events, strict=True) if event["label"] == label]
            if own:
                parts.append(f"{name} {' '.join(f'{score:.2f}' for score in own)}")
        self.say(f"panel, P(yes): {'  |  '.join(parts)}")
        if self.write_text is not None:
            self.write_text("panel", panel_text(self.events, scores, self.before), state.global_step)
        self.before = scores


def _step(line: str) -> float:
    """The step of a line; a line that was cut off belongs to no step that counts."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
