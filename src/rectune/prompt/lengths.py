"""`inspect`: how long the prompts or the windows of streams are, and how they pack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console

from rectune.config import Config
from rectune.data.columns import USER_ID
from rectune.prompt.dataset import Dataset
from rectune.prompt.histories import EventHistories
from rectune.prompt.packs import pack
from rectune.prompt.stream import StreamPrompts
from rectune.prompt.tree import Trees
from rectune.wording import history_line, stream_suffix, texts_for, user_input

RULE = "─" * 76
NO_CUT = 1 << 20
"""A cutoff beyond every prompt: lengths are measured before anything is left out."""
_BINS = 16
_WIDTH = 40

Lengths = npt.NDArray[np.int64]


def character_lengths(config: Config, data: Dataset, rows: npt.NDArray[np.int64]) -> Lengths:
    """Characters of each prompt's texts, without any tokenizer."""
    histories, texts = EventHistories(data.events, data.catalog, config), texts_for(config)
    words = (config.negative_label, config.positive_label)
    fixed = len(texts.system) + len(texts.instruction)
    lengths = []
    for row in rows.tolist():
        lines = [
            history_line(at, event.title, event.rating, words[event.label], config.history_shows)
            for at, event in enumerate(histories.history(row), start=1)
        ]
        lengths.append(fixed + len(user_input(texts, lines, histories.titles[row])))
    return np.array(lengths, dtype=np.int64)


def line_characters(config: Config, data: Dataset, rows: npt.NDArray[np.int64]) -> Lengths:
    """Characters of each event's line in a stream, with what stands behind its cue, without any tokenizer."""
    histories, words = EventHistories(data.events, data.catalog, config), (config.negative_label, config.positive_label)
    lengths = []
    for event in map(histories.event, rows.tolist()):
        suffix = stream_suffix(event.rating, words[event.label], config.history_shows)
        lengths.append(len(event.title + config.stream_cue + suffix))
    return np.array(lengths, dtype=np.int64)


def histogram(lengths: Lengths, width: int = _WIDTH, bins: int = _BINS) -> list[str]:
    """Bars of how many lengths fall where, for a terminal.

    >>> for line in histogram(np.array([1, 1, 2]), width=4, bins=2): print(line)
          1-1         2 ████
          2-2         1 ██
    """
    low, high = int(lengths.min()), int(lengths.max())
    edges = np.unique(np.linspace(low, high + 1, min(bins, high - low + 1) + 1).round().astype(int))
    counts = np.histogram(lengths, bins=edges)[0]
    scale = width / max(int(counts.max()), 1)
    return [
        f"{start:>7}-{stop - 1:<5}{count:>6} {'█' * round(count * scale)}".rstrip()
        for start, stop, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]


def summary(lengths: Lengths, percentiles: Sequence[float]) -> dict[str, float]:
    """Least, most, mean and percentiles (linear interpolation) of lengths."""
    found = {"min": float(lengths.min()), "max": float(lengths.max()), "mean": float(lengths.mean())}
    return found | {f"p{share:g}": float(np.percentile(lengths, share)) for share in percentiles}


def truncation_verdict(lengths: Lengths, cutoff: int, texts: bool = False) -> str:
    """How many prompts are too long, what to make of it, and which cutoff would do.

    The suggestion is the 99.5th percentile rounded up to a multiple of 64, or the longest where that is no more
    than a quarter longer: memory goes with the longest prompt of a batch, while cut prompts lose old events only, or
    texts that are to be classified their middle.
    """
    lose = "lose the middle of their text" if texts else "lose their oldest events"
    over = int((lengths > cutoff).sum())
    share = over / len(lengths)
    longest = int(lengths.max())
    high = float(np.percentile(lengths, 99.5))
    suggested = -64 * (-(longest if longest <= 1.25 * high else int(np.ceil(high))) // 64)
    if over == 0:
        verdict = f"no prompt is longer than cutoff_len={cutoff}"
    elif share < 0.01:
        verdict = f"{over:,} prompts ({share:.2%}) {lose} at cutoff_len={cutoff}: acceptable"
    elif share < 0.05:
        verdict = f"{over:,} prompts ({share:.1%}) {lose} at cutoff_len={cutoff}: think of raising it"
    else:
        verdict = f"{over:,} prompts ({share:.1%}) {lose} at cutoff_len={cutoff}: raise it" + (
            "" if texts else ", or lower history_len so that all prompts show alike"
        )
    return f"{verdict}; suggested cutoff_len: {suggested}"


def _packing(held: Lengths, config: Config, noun: str, about: str) -> tuple[dict[str, Any], str]:
    """Packs of these lengths as training would make them: figures, and a line for a person."""
    capacity = config.cutoff_len
    packs = pack(held, capacity, config.seed)
    inside = sum(map(len, packs))
    fill = float(held.sum() / (len(packs) * capacity))
    figures = {"packs": len(packs), noun: inside, "lost": len(held) - inside, "fill": fill}
    return figures, (
        f"packing{about}: {inside:,} {noun} in {len(packs):,} packs of {capacity} tokens, {fill:.1%} full, "
        f"{inside / len(packs):.2f} {noun} a pack, {len(held) - inside} lost"
    )


def _print_statistics(lengths: Lengths, found: dict[str, Any], heading: str, say: Callable[[str], None]) -> None:
    say(f"{RULE}\n{heading}\n{RULE}")
    for name, value in found.items():
        if isinstance(value, float):
            say(f"  {name:>6}: {value:,.2f}")
    say("")
    for line in histogram(lengths):
        say(line)


def _printer(console: Console) -> Callable[[str], None]:
    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False)

    return say


def report_lengths(
    lengths: Lengths,
    unit: str,
    percentiles: Sequence[float],
    config: Config,
    packed: bool,
    console: Console,
) -> dict[str, Any]:
    """Print statistics, histogram, verdict and packing of the pointwise layout; return them for JSON.

    Args:
        lengths: int64 [prompts]; answer included.
        unit: tokens or characters.
        percentiles: which to report.
        config: `cutoff_len` and the seed are read.
        packed: whether to try packing (tokens only).
        console: where to print.
    """
    found: dict[str, Any] = {"prompts": len(lengths), "unit": unit, **summary(lengths, percentiles)}
    say = _printer(console)
    _print_statistics(lengths, found, f"LENGTHS of {len(lengths):,} training prompts, answer included, in {unit}", say)
    if unit == "tokens":
        found["verdict"] = truncation_verdict(lengths, config.cutoff_len, config.task == "classify")
        found["truncated"] = int((lengths > config.cutoff_len).sum())
        say(f"\n{found['verdict']}")
        if packed:
            about = " (cut lengths estimated)" if found["truncated"] else ""
            held = np.minimum(lengths, config.cutoff_len)
            found["packing"], line = _packing(held, config, "prompts", about)
            say(line)
    return found


def report_lines(lengths: Lengths, percentiles: Sequence[float], console: Console) -> dict[str, Any]:
    """Print and return the lengths of a stream's lines in characters: windows are cut by tokens, lines are not."""
    found: dict[str, Any] = {"labels": len(lengths), "unit": "characters", **summary(lengths, percentiles)}
    heading = f"LENGTHS of {len(lengths):,} training events' lines in a stream, one a label, in characters"
    _print_statistics(lengths, found, heading, _printer(console))
    return found


def window_figures(data: Dataset, prompts: StreamPrompts, histories: EventHistories, trees: Trees) -> dict[str, Any]:
    """What windows hold: labels, branches, and how many tokens they repeat.

    Repeated are the tokens of a user's second and later windows that stand before their first answer: the history
    that an earlier window has shown or asked about.
    """
    labels = np.diff(trees.answer_offsets)
    opening = trees.answer_offsets[:-1]
    rows = trees.rows[opening]
    users = data.events[USER_ID].gather(rows).rle_id().to_numpy()
    later = np.diff(users, prepend=-1) == 0
    repeated = 0
    for tree in np.flatnonzero(later).tolist():
        asked = prompts.pieces.text(prompts.line(histories.titles[rows[tree]]))
        depth = int(trees.depths(tree)[trees.answer_at[opening[tree]]])
        repeated += depth + 1 - len(asked) - len(prompts.head)
    branches = len(trees.branch_at)
    return {
        "users": int(users[-1]) + 1,
        "labels": len(trees.labels),
        "tokens": len(trees.tokens),
        "tokens_per_label": len(trees.tokens) / len(trees.labels),
        "labels_per_window": {"min": int(labels.min()), "max": int(labels.max()), "mean": float(labels.mean())},
        "trunk_answers": len(trees.labels) - branches,
        "branch_answers": branches,
        "repeated_share": repeated / len(trees.tokens),
        "history_events_mean": float((histories.stops[trees.rows] - trees.shown_from).mean()),
    }


def report_windows(
    trees: Trees,
    figures: dict[str, Any],
    percentiles: Sequence[float],
    config: Config,
    packed: bool,
    console: Console,
) -> dict[str, Any]:
    """Print statistics, histogram, contents and packing of the stream layout's windows; return them for JSON.

    Args:
        trees: the windows.
        figures: what `window_figures` found in them.
        percentiles, config, packed, console: as `report_lengths` takes them.
    """
    statistics = summary(trees.lengths, percentiles)
    found: dict[str, Any] = {"windows": len(trees), "unit": "tokens", **statistics, **figures}
    say = _printer(console)
    _print_statistics(trees.lengths, statistics, f"LENGTHS of {len(trees):,} training windows, in tokens", say)
    held = figures["labels_per_window"]
    say(
        f"\nwindows: the timelines of {figures['users']:,} users in pieces of at most cutoff_len={config.cutoff_len} "
        "tokens; no event is left out, and each training event is asked about once"
    )
    say(
        f"labels: {figures['labels']:,}, {figures['tokens_per_label']:.1f} tokens a label; {held['min']} to "
        f"{held['max']} a window, mean {held['mean']:.1f}; {figures['trunk_answers']:,} on trunks, "
        f"{figures['branch_answers']:,} on branches"
    )
    say(
        f"history: {figures['history_events_mean']:.1f} events before an answer on average; "
        f"{figures['repeated_share']:.1%} of the tokens repeat what an earlier window of the user held"
    )
    if packed:
        found["packing"], line = _packing(trees.lengths, config, "windows", "")
        say(line)
    return found
