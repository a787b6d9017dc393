"""`inspect`: what becomes of an event on its way to the model, and how long the prompts are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console

from rectune.config import Config
from rectune.data.columns import LABEL, TRAIN
from rectune.errors import DataError
from rectune.prompt.dataset import Dataset
from rectune.prompt.encode import EventHistories, sample_rows
from rectune.prompt.packs import pack
from rectune.prompt.pointwise import PointwisePrompts
from rectune.wording import history_line, texts_for, user_input

RULE = "─" * 76
NO_CUT = 1 << 20
"""A cutoff beyond every prompt: lengths are measured before anything is left out."""
_BINS = 16
_WIDTH = 40

Lengths = npt.NDArray[np.int64]


def show_examples(config: Config, data: Dataset, prompts: PointwisePrompts, count: int, console: Console) -> None:
    """The six steps of the first training examples: record, messages, templated text, tokens, truncation, mask."""
    rows = sample_rows(data.events, TRAIN, None, config.seed)
    histories = EventHistories(data.events, data.catalog, config)
    tokenizer, verbalizer = prompts.pieces.tokenizer, prompts.verbalizer

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    uncut = PointwisePrompts(config.with_overrides(cutoff_len=NO_CUT), prompts.pieces)
    # Spread over the users, since the first rows are all the first user's.
    for number, row in enumerate(rows[np.linspace(0, len(rows) - 1, count).astype(int)].tolist(), start=1):
        history, candidate = histories.history(row), histories.titles[row]
        word = verbalizer.word(int(data.events[LABEL][row]))
        lines = [
            history_line(at, event.title, event.rating, verbalizer.word(event.label), config.history_shows)
            for at, event in enumerate(history, start=1)
        ]
        content = user_input(prompts.texts, lines, candidate)
        record = {
            "instruction": prompts.texts.instruction,
            "input": content,
            "output": word,
            "system": prompts.texts.system,
        }
        say(f"{RULE}\nEXAMPLE {number}\n{RULE}")
        say("[STEP 1] Record\n" + json.dumps(record, indent=2, ensure_ascii=False))
        say("\n[STEP 2] Messages")
        if prompts.frame is not None:
            for message in prompts.messages(content):
                say(f"  {message['role']}: {message['content']}")
            say(f"  assistant: {word}")
        else:
            say(f"  none: prompt_format={config.prompt_format} is plain text")
        say("\n[STEP 3] Text after the template, with the answer")
        end = tokenizer.decode([verbalizer.end_id])
        space = "" if prompts.frame is not None else " "
        classifies = config.prompt_format == "classifier"
        before = uncut.build(history, candidate)
        say(prompts.text(history, candidate) + ("" if classifies else space + word + end))
        answer = [] if classifies else [verbalizer.token(int(data.events[LABEL][row])), verbalizer.end_id]
        ids = [*before.tokens, *answer]
        say(f"\n[STEP 4] Tokens: {len(ids)}\n  first 12: {ids[:12]}\n  last 12:  {ids[-12:]}")
        say(f"\n[STEP 5] Truncation at cutoff_len={config.cutoff_len}")
        try:
            built = prompts.build(history, candidate)
        except DataError as error:
            say(f"  {error}\n")
            continue
        ids = [*built.tokens, *answer]
        if built.dropped:
            say(f"  the {built.dropped} oldest of {len(history)} events are left out, whole: {len(ids)} tokens remain")
        else:
            say(f"  nothing is left out ({len(ids)} <= {config.cutoff_len})")
        say("\n[STEP 6] Where the loss is taken")
        if classifies:
            say(f"  at the last token, by a classification head: the class is {word!r}\n")
            continue
        say(f"  masked: {len(built.tokens)} prompt tokens; trained: 2")
        say(f"  after token {len(built.tokens) - 1} comes {word!r} ({ids[-2]}), after it {end!r} ({ids[-1]})\n")


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


def truncation_verdict(lengths: Lengths, cutoff: int) -> str:
    """How many prompts are too long, what to make of it, and which cutoff would do.

    The suggestion is the 99.5th percentile rounded up to a multiple of 64, or the longest where that is no more
    than a quarter longer: memory goes with the longest prompt of a batch, while cut prompts lose old events only.
    """
    over = int((lengths > cutoff).sum())
    share = over / len(lengths)
    longest = int(lengths.max())
    high = float(np.percentile(lengths, 99.5))
    suggested = -64 * (-(longest if longest <= 1.25 * high else int(np.ceil(high))) // 64)
    if over == 0:
        verdict = f"no prompt is longer than cutoff_len={cutoff}"
    elif share < 0.01:
        verdict = f"{over:,} prompts ({share:.2%}) lose their oldest events at cutoff_len={cutoff}: acceptable"
    elif share < 0.05:
        verdict = f"{over:,} prompts ({share:.1%}) lose their oldest events at cutoff_len={cutoff}: think of raising it"
    else:
        verdict = (
            f"{over:,} prompts ({share:.1%}) lose their oldest events at cutoff_len={cutoff}: raise it, or lower "
            "history_len so that all prompts show alike"
        )
    return f"{verdict}; suggested cutoff_len: {suggested}"


def report_lengths(
    lengths: Lengths,
    unit: str,
    percentiles: Sequence[float],
    config: Config,
    packed: bool,
    console: Console,
) -> dict[str, Any]:
    """Print statistics, histogram, verdict and packing; return them for JSON.

    Args:
        lengths: int64 [prompts]; answer included.
        unit: tokens or characters.
        percentiles: which to report.
        config: `cutoff_len` and the seed are read.
        packed: whether to try packing (tokens only).
        console: where to print.
    """
    found: dict[str, Any] = {"prompts": len(lengths), "unit": unit, **summary(lengths, percentiles)}

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False)

    say(f"{RULE}\nLENGTHS of {len(lengths):,} training prompts, answer included, in {unit}\n{RULE}")
    for name, value in found.items():
        if isinstance(value, float):
            say(f"  {name:>6}: {value:,.2f}")
    say("")
    for line in histogram(lengths):
        say(line)
    if unit == "tokens":
        found["verdict"] = truncation_verdict(lengths, config.cutoff_len)
        found["truncated"] = int((lengths > config.cutoff_len).sum())
        say(f"\n{found['verdict']}")
        if packed:
            capacity, held = config.cutoff_len, np.minimum(lengths, config.cutoff_len)
            packs = pack(held, capacity, config.seed)
            inside = sum(map(len, packs))
            fill = float(held.sum() / (len(packs) * capacity))
            found["packing"] = {"packs": len(packs), "prompts": inside, "lost": len(lengths) - inside, "fill": fill}
            about = " (cut lengths estimated)" if found["truncated"] else ""
            say(
                f"packing{about}: {inside:,} prompts in {len(packs):,} packs of {capacity} tokens, {fill:.1%} full, "
                f"{inside / len(packs):.2f} prompts a pack, {len(lengths) - inside} lost"
            )
    return found
