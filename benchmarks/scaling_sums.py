"""What 10^6 to 10^11 interactions take, worked out from what two cores measured; all but the last table extrapolates.

    python benchmarks/scaling_sums.py
    python benchmarks/scaling_sums.py --card "RTX 4090" --share 0.3 --card-hour 0.5
    python benchmarks/scaling_sums.py --write docs/scaling.md      # the tables of that page

Measured figures are read from `large_data.json`, `train_speed.json` and `rank_speed.json` beside this script. Speeds of
cards are their makers' peak times a share of it that is an assumption. Prices are assumptions too. No card was used.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3_shapes import SHAPES, qwen3_config

from rectune.config import Config, parse_config
from rectune.model.flops import CARDS
from rectune.model.shape import ModelShape

HERE = Path(__file__).resolve().parent
SIZES = tuple(10**power for power in range(6, 12))
MODELS = ("qwen3-0.6b", "qwen3-8b")
CANDIDATES = 100


def measured(name: str) -> Any:
    """A file of figures beside this script."""
    return json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Costs:
    """What one event, label or pair costs.

    Attributes:
        prepare, encode: core seconds an event, and a label.
        labels: labels of training an event.
        prepared, shards, scratch: bytes on disk an event, a label and, while preparing, an event.
        tokens: of a label.
        window: tokens of a training window, mean.
        events: of a user, mean.
    """

    prepare: float
    encode: float
    labels: float
    prepared: float
    shards: float
    scratch: float
    tokens: float
    window: float
    events: float

    @classmethod
    def of_files(cls) -> Costs:
        """As measured on 32 million ratings."""
        large = measured("large_data")
        prepare, encode = large["prepare"], large["encode"]
        rows, train = prepare["rows"], encode["train"]
        gib = 2.0**30
        return cls(
            prepare=prepare["cpu_seconds"] / rows,
            encode=encode["cpu_seconds"] / train["labels"],
            labels=train["labels"] / rows,
            prepared=prepare["dataset_gib"] * gib / rows,
            shards=encode["most_disk_gib"] * gib / train["labels"],
            scratch=prepare["most_disk_gib"] * gib / rows,
            tokens=train["tokens"] / train["labels"],
            window=train["tokens"] / train["sequences"],
            events=rows / 200_948,
        )


def shape_of(model: str) -> ModelShape:
    """A published shape of Qwen3, or SmolLM2-135M's."""
    if model in SHAPES:
        return ModelShape.of(qwen3_config(model))
    from transformers import LlamaConfig

    return ModelShape.of(
        LlamaConfig(
            vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
            num_key_value_heads=3, tie_word_embeddings=True,
        )
    )  # fmt: skip


def adapter(layers: str) -> Config:
    """LoRA of rank 16 on all linear layers."""
    return parse_config({"lora_layers": layers, "lora_rank": 16, "lora_target": "all"}, "sums")


def label_flops(shape: ModelShape, layers: str, tokens: float, window: float) -> float:
    """Operations of training on a label of the stream layout; a token sees half its window, mean."""
    return shape.training_flops(adapter(layers), tokens, tokens * window / 2, 0)


def forward_flops(shape: ModelShape, tokens: float, seen: float) -> float:
    """Operations of tokens passing forward, each of which attends to `seen` others."""
    return tokens * (2 * shape.linear_parameters + 4 * shape.query * shape.blocks * seen)


def request_flops(shape: ModelShape, trunk: float, candidate: float, count: int, kept: bool) -> float:
    """Operations of ranking some candidates after one history, which is computed once, or was kept."""
    after = forward_flops(shape, count * candidate, trunk + candidate / 2)
    return after if kept else after + forward_flops(shape, trunk, trunk / 2)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows as Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float) -> str:
    """Three digits with a thousands comma, or fewer where it is small."""
    if value >= 100:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.3g}"


def money(dollars: float) -> str:
    """Dollars, from a cent upwards."""
    return "under $0.01" if dollars < 0.01 else f"${number(dollars)}"


def time(seconds: float) -> str:
    """Seconds as a person says them."""
    for size, unit in ((86400 * 365, "years"), (86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{number(seconds / size)} {unit}"
    return f"{number(seconds)} s"


def size(count: float) -> str:
    """Bytes as a person says them."""
    for power, unit in ((50, "PiB"), (40, "TiB"), (30, "GiB")):
        if count >= 2**power:
            return f"{number(count / 2**power)} {unit}"
    return f"{number(count / 2**20)} MiB"


def power(count: int) -> str:
    """10⁹ in place of 1000000000."""
    return "10" + str(len(str(count)) - 1).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


def preparing(costs: Costs, core_hour: float, cores: int) -> str:
    """Preparing and tokenising."""
    rows = []
    for events in SIZES:
        labels = events * costs.labels
        work = events * costs.prepare + labels * costs.encode
        rows.append(
            [
                power(events), time(events * costs.prepare), time(labels * costs.encode), time(work / cores),
                money(work / 3600 * core_hour), size(events * costs.prepared), size(labels * costs.shards),
                size(events * costs.scratch),
            ]
        )  # fmt: skip
    head = ["interactions", "prepare, one core", "tokenise, one core", f"both, {cores} cores", "cost", "dataset"]
    return table([*head, "shards", "while preparing"], rows)


def training(costs: Costs, speed: float, card_hour: float) -> str:
    """One pass over all labels."""
    shapes = {model: shape_of(model) for model in MODELS}
    rows = []
    for events in SIZES:
        row = [power(events), number(events * costs.labels * costs.tokens / 1e9)]
        for shape in shapes.values():
            seconds = events * costs.labels * label_flops(shape, "all", costs.tokens, costs.window) / speed
            row += [time(seconds), time(seconds / 8), money(seconds / 3600 * card_hour)]
        rows.append(row)
    head = [f"{model}, {what}" for model in MODELS for what in ("one card", "8 cards", "cost")]
    return table(["interactions", "10⁹ tokens", *head], rows)


def scoring(costs: Costs, speed: float, card_hour: float, trunk: float, candidate: float) -> str:
    """Every user's candidates once a night."""
    shapes = {model: shape_of(model) for model in MODELS}
    rows = []
    for events in SIZES:
        users = events / costs.events
        row = [power(events), f"{users:,.0f}"]
        for shape in shapes.values():
            seconds = users * request_flops(shape, trunk, candidate, CANDIDATES, kept=False) / speed
            row += [time(seconds), number(max(1.0, seconds / (8 * 3600))), money(seconds / 3600 * card_hour)]
        rows.append(row)
    head = [f"{model}, {what}" for model in MODELS for what in ("one card", "cards for 8 h", "cost a night")]
    return table(["interactions", "users", *head], rows)


def serving(speed: float, card_hour: float, trunk: float, candidate: float, requests: float) -> str:
    """Requests a second, each one user and some candidates."""
    rows = []
    for model in MODELS:
        shape = shape_of(model)
        for count in (10, CANDIDATES):
            row = [model, str(count)]
            for kept in (False, True):
                cards = requests * request_flops(shape, trunk, candidate, count, kept) / speed
                row += [number(cards), money(cards * card_hour)]
            cache = 4.0 * shape.key * shape.blocks * trunk  # keys and values, two bytes each
            rows.append([*row, size(cache)])
    head = ["model", "candidates", "cards", "an hour", "cards, histories kept", "an hour", "a kept history"]
    return table(head, rows)


def checked() -> str:
    """The same sums for what was measured: which share of the machine's products they come to."""
    speed = measured("train_speed")
    peak = speed["peak"]["tflops"] * 1e12
    shape = shape_of("smollm2-135m")
    rows = []
    for line in speed["rows"]:
        if line["contender"] == "rectune stream":
            pairs = line["pairs"] / line["tokens"]
            flops = label_flops(shape, "upper_half", line["tokens_per_label"], 2 * pairs)
            rows.append(["training, labels a second", f"{line['labels_per_s']:.1f}", flops])
    for line in measured("rank_speed")["rows"]:
        if line["contender"] == "ours" and line["candidates"] == CANDIDATES:
            flops = request_flops(shape, line["P"], line["c"], CANDIDATES, kept=False) / CANDIDATES
            rows.append(["ranking, pairs a second", f"{line['pairs_per_s']:.1f}", flops])
    return table(
        ["on two cores, SmolLM2-135M", "measured", "operations each", "share of the products' speed"],
        [[what, rate, f"{flops / 1e9:.2f} GFLOP", f"{float(rate) * flops / peak:.0%}"] for what, rate, flops in rows],
    )


def tables(args: argparse.Namespace) -> dict[str, str]:
    """All tables by name."""
    costs = Costs.of_files()
    speed = dict(CARDS)[args.card] * args.share
    ranked = next(line for line in measured("rank_speed")["rows"] if line["candidates"] == CANDIDATES)
    trunk, candidate = ranked["P"], ranked["c"]
    return {
        "Prepare and tokenise": preparing(costs, args.core_hour, args.cores),
        "Train, one pass over all labels": training(costs, speed, args.card_hour),
        f"Score {CANDIDATES} candidates of every user": scoring(costs, speed, args.card_hour, trunk, candidate),
        f"Serve {args.requests:,} requests a second": serving(speed, args.card_hour, trunk, candidate, args.requests),
        "The same sums beside what was measured": checked(),
    }


def filled(page: str, found: dict[str, str]) -> str:
    """A page with each table between `<!-- its name -->` and `<!-- end -->`."""

    def table_of(match: re.Match[str]) -> str:
        return f"<!-- {match[1]} -->\n{found[match[1]]}\n<!-- end -->"

    return re.sub(r"<!-- (.+?) -->\n.*?<!-- end -->", table_of, page, flags=re.DOTALL)


def arguments() -> argparse.ArgumentParser:
    """Assumptions, to be replaced by one's own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--card", default="H100", choices=[name for name, _ in CARDS], help="peak by its data sheet")
    parser.add_argument("--share", type=float, default=0.35, help="of that peak which is reached; an assumption")
    parser.add_argument("--card-hour", type=float, default=2.5, help="price of a card's hour; an assumption")
    parser.add_argument("--core-hour", type=float, default=0.04, help="price of a core's hour; an assumption")
    parser.add_argument("--cores", type=int, default=32, help="cores that prepare side by side")
    parser.add_argument("--requests", type=int, default=10_000, help="requests a second to serve")
    parser.add_argument("--write", type=Path, help="a page that holds the tables between comments with their names")
    return parser


def main() -> None:
    """Print the tables, or write them into a page."""
    args = arguments().parse_args()
    found = tables(args)
    if args.write is None:
        for heading, text in found.items():
            print(f"**{heading}**\n\n{text}\n")
    else:
        args.write.write_text(filled(args.write.read_text(encoding="utf-8"), found), encoding="utf-8")


if __name__ == "__main__":
    main()
