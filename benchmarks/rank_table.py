"""The tables of rank_speed.py: how many times as fast, beside what token arithmetic allows."""

from __future__ import annotations

from typing import Any

Job = dict[str, Any]

CONTENDERS = {
    "generate": "Hugging Face generate, 8 new tokens, batches of whole prompts",
    "forward": "transformers' forward, batches of whole prompts, logits of every position",
    "forward-last": "the same with logits of the last position only",
    "llama": "llama.cpp, the history once, one sequence a candidate in a shared cache",
    "ours": "rectune's CandidateScorer",
}
WHOLE = ("generate", "forward", "forward-last")
"""Contenders that compute every prompt whole, for which the bound of token arithmetic is."""
SEEDS = "the seeds' way"


def load_of(row: Job) -> str:
    """A load as `64 x 100`."""
    return f"{row['users']} x {row['candidates']:,}"


def ratios(rows: list[Job]) -> list[Job]:
    """How many times a contender's pairs per second rectune makes, beside what token arithmetic allows."""
    own = {(row["history"], row["users"], row["candidates"]): row for row in rows if row["contender"] == "ours"}
    found = []
    for row in rows:
        ours = own.get((row["history"], row["users"], row["candidates"]))
        if ours is not None and row is not ours:
            ratio = ours["pairs_per_s"] / row["pairs_per_s"]
            bound = ours["bound"] if row["contender"] in WHOLE else None
            found.append(
                {key: row[key] for key in ("contender", "history", "users", "candidates", "pairs_timed")}
                | {"ratio": ratio, "bound": bound, "share_of_bound": None if bound is None else ratio / bound}
            )
    return found


def show(report: Job, console: Any) -> None:
    """Print the report for people."""
    from rich.table import Table

    made = report["made"]
    table = Table("history", "load", "P", "c", "contender", title="Re-ranking: users x candidates")
    headings = ("pairs/s", "ms/request", "timed on", "ours is", "bound", "of it", "GiB")
    for heading in headings:
        table.add_column(heading, justify="right")
    by_load = {(row["contender"], row["history"], row["users"], row["candidates"]): row for row in report["ratios"]}
    places = {name: at for at, name in enumerate([*CONTENDERS, SEEDS])}
    order = sorted(
        report["rows"],
        key=lambda row: (
            row["contender"] == SEEDS,
            row["history"],
            row["users"],
            row["candidates"],
            places[row["contender"]],
        ),
    )
    last = None
    for row in order:
        key = (row["contender"], row["history"], row["users"], row["candidates"])
        if last is not None and key[1:] != last[1:]:
            table.add_section()
        last, ratio = key, by_load.get(key)
        slow = "" if row["ms_per_request"] is None else f"{row['ms_per_request']:,.1f}"
        part = (
            "all" if row["pairs_timed"] == row["pairs_asked"] else f"{row['pairs_timed']:,} of {row['pairs_asked']:,}"
        )
        compared = ["", "", ""]
        if ratio is not None:
            compared[0] = f"{ratio['ratio']:.1f} x"
            if ratio["bound"] is not None:
                compared[1:] = [f"{ratio['bound']:.1f}", f"{ratio['share_of_bound']:.0%}"]
        memory = row["peak_gib"].get("gpu", row["peak_gib"]["process"])
        table.add_row(
            f"{row['history']}", load_of(row), f"{row['P']:.0f}", f"{row['c']:.1f}", row["contender"],
            f"{row['pairs_per_s']:,.1f}", slow, part, *compared, f"{memory:.2f}",
        )  # fmt: skip
    console.print(table)
    console.print(
        "P: tokens of the trunk, c: mean tokens of a candidate, bound: N(P+c)/(P+Nc) of the load, GiB: the process's "
        "peak so far (GPU: of this load)\n"
        + "\n".join(f"{name}: {text}" for name, text in CONTENDERS.items())
        + f"\n{SEEDS}: generate on one chat prompt per candidate; ours beside it in the stream layout",
        soft_wrap=True, highlight=False,
    )  # fmt: skip
    for row in report["under_load"]:
        console.print(
            f"{row['rate']:g} requests/s of {row['candidates']} candidates, history {row['history']}: p50 "
            f"{row['p50_ms']:.0f} ms, p99 {row['p99_ms']:.0f} ms, {row['served_per_s']:.1f} served/s, "
            f"{row['batch_mean']:.1f} at once",
            highlight=False,
        )
    for what in ("left_out", "failed"):
        for name, why in report[what].items():
            console.print(f"{name}, {what.replace('_', ' ')}: {why}", soft_wrap=True, highlight=False, markup=False)
    settings = {(row["contender"], row["history"]): row["settings"] for row in report["rows"] if row["settings"]}
    for (name, history), chosen in settings.items():
        text = ", ".join(f"{key}={value}" for key, value in chosen.items())
        console.print(f"{name}, history {history}: {text}", soft_wrap=True, highlight=False)
    console.print(
        f"model: {report['model']}; dataset: {report['dataset']}\nmachine: {made['machine']}; {made['threads']} "
        "threads for every contender\nversions: "
        + ", ".join(f"{name} {number}" for name, number in made["versions"].items())
        + f"\ndate: {made['date']}\ncommand: {made['command']}",
        soft_wrap=True, highlight=False,
    )  # fmt: skip
