"""A look at the disagreements: what tuning put right, what it spoilt, and what both models get wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rectune.errors import DataError
from rectune.report.infer import read_records
from rectune.score.score import OWN

_FILES = ("base_predictions.jsonl", "lora_predictions.jsonl")
_PROMPT_SHOWN = 300
_HISTORY_SHOWN = 5
_PARTS = {
    (False, True): "IMPROVEMENTS: untuned wrong, tuned right",
    (True, False): "REGRESSIONS: untuned right, tuned wrong",
    (False, False): "BOTH WRONG",
}

Record = dict[str, Any]


def _threshold(folder: Path) -> float:
    file = folder / "comparison_report.json"
    if not file.is_file():
        return 0.5
    try:
        return float(json.loads(file.read_text(encoding="utf-8"))["threshold"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: damaged ({error}); run the comparison again") from error


def _is_right(row: Record, threshold: float, where: str) -> bool:
    """Whether a prediction names the true label, in the form of `compare` or of `score --input`."""
    label = row.get("label", row.get("output"))
    if label is None or "score" not in row:
        raise DataError(f"{where}: no label or score to judge by; give a folder that compare or infer_lora.py wrote")
    if "prediction" in row:
        return bool(row["prediction"] == label)
    return bool((row["score"] >= threshold) == (label == 1))


def _pairs(folder: Path) -> list[tuple[Record, Record]]:
    """Each record with the untuned and the tuned model's prediction.

    Raises:
        DataError: a file is missing or damaged, or the two are not of the same records.
    """
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{folder}: no {missing[0]}; run compare_base_vs_lora.py, or infer_lora.py with --compare_base")
    base, tuned = (read_records(folder / name) for name in _FILES)
    answers = ("score", "log_odds", OWN, "prediction", "generated")

    def asked(row: Record) -> Record:
        return {key: value for key, value in row.items() if key not in answers}

    if [asked(row) for row in base] != [asked(row) for row in tuned]:
        raise DataError(f"{folder}: base_predictions.jsonl and lora_predictions.jsonl are not of the same records")
    return list(zip(base, tuned, strict=True))


def example_lines(base: Record, tuned: Record) -> list[str]:
    """One record for a person: user, history and candidate, or the start of the prompt of a training record."""
    lines = []
    if "candidate_title" in base:
        titles = base.get("history_titles") or []
        more = f", and {len(titles) - _HISTORY_SHOWN} earlier ones" if len(titles) > _HISTORY_SHOWN else ""
        lines.append(f"  user:      {base.get('user_id', '-')}")
        lines.append(f"  candidate: {base['candidate_title']}")
        lines.append(f"  history:   {', '.join(reversed(titles[-_HISTORY_SHOWN:])) or 'none'}{more}")
    else:
        prompt = " ".join(str(base.get("input", "")).split())
        lines.append(f"  prompt:    {prompt[:_PROMPT_SHOWN]}{'…' if len(prompt) > _PROMPT_SHOWN else ''}")
    lines.append(f"  label:     {base.get('label', base.get('output'))}")
    lines.append(f"  P(yes):    untuned {base['score']:.3f}, tuned {tuned['score']:.3f}")
    return lines


def analyze(folder: Path, examples: int, say: Callable[[str], None]) -> dict[str, int]:
    """Show examples of each kind of disagreement, those whose score moved or is off most first.

    Args:
        folder: what `compare`, or `score --input --compare-base`, wrote.
        examples: how many of each kind.
        say: prints one line.

    Returns:
        How many records there are of each kind.

    Raises:
        DataError: see `read_records`, and predictions of different records.
    """
    threshold = _threshold(folder)
    found: dict[tuple[bool, bool], list[tuple[Record, Record]]] = {}
    for number, (base, tuned) in enumerate(_pairs(folder), start=1):
        where = f"{folder}, record {number}"
        kind = (_is_right(base, threshold, where), _is_right(tuned, threshold, where))
        found.setdefault(kind, []).append((base, tuned))
    total = sum(map(len, found.values()))
    for kind, title in _PARTS.items():
        rows = found.get(kind, [])
        say(f"\n{title}: {len(rows):,} of {total:,}")

        def off(pair: tuple[Record, Record], both_wrong: bool = not any(kind)) -> float:
            base, tuned = float(pair[0]["score"]), float(pair[1]["score"])
            return abs(tuned - threshold) if both_wrong else abs(tuned - base)

        for number, pair in enumerate(sorted(rows, key=off, reverse=True)[:examples], start=1):
            say(f"[{number}]")
            for line in example_lines(*pair):
                say(line)
    counts = {title.split(":")[0].lower(): len(found.get(kind, [])) for kind, title in _PARTS.items()}
    counts["both right"] = len(found.get((True, True), []))
    say("\n" + ", ".join(f"{number:,} {name}" for name, number in counts.items()))
    return counts
