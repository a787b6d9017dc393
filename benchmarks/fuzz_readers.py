"""Damaged and generated inputs into every reader and into the configuration: no traceback, no hang, no row lost.

    python benchmarks/fuzz_readers.py --inputs 100000 --seed 0

An input is right when it is read, with every row used or rejected, or refused by one of rectune's own errors with a
text of one line (a configuration: one line a problem). Each input is made from its number alone, so that
`--only KIND:7` makes it again. What went wrong is written under --failures, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import gzip
import io
import random
import signal
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
from fuzz_inputs import NAMES, LostError, as_lines, as_parquet, as_text, generated, mutated, silent
from fuzz_sources import fuzz_amazon, fuzz_delivery_hero

from rectune.config import Config, load_config, parse_config, parse_override
from rectune.data.sources.formats import read_source
from rectune.data.sources.records import read_records
from rectune.errors import RectuneError
from rectune.shipped import FOLDER

SECONDS = 10
"""For one input, on a busy machine; most take some ten milliseconds."""


class TooLongError(Exception):
    """An input took longer than SECONDS."""


def options(draw: random.Random) -> dict[str, Any]:
    """Keys that say how a table is read, as often right as not."""
    found: dict[str, Any] = {"max_rejects": draw.choice(("100%", "100%", "100%", "50%", 1))}
    found["label_from"] = draw.choice(("rating", "rating", "purchases", "purchases", "purchases", "column"))
    if draw.random() < 0.1:
        found["split"] = "column"
    for key in ("user_column", "item_column", "time_column", "rating_column", "title_column", "category_column"):
        if draw.random() < 0.04:
            found[key] = draw.choice(NAMES)
    if draw.random() < 0.1:
        found["attribute_columns"] = draw.sample(NAMES, draw.randrange(1, 4))
    return found


def rows_of_text(path: Path) -> int | None:
    """How many records a delimited file has, and that every line of it with text is in exactly one of them.

    Raises:
        LostError: a line is in none, or in two.
    """
    from rectune.data.sources.records import head_of, separator_of
    from rectune.data.sources.text_file import encoding_of, opened_text

    encoding = encoding_of(path)
    with opened_text(path, encoding) as stream:
        separator = separator_of(head_of(stream))
    assert separator is not None
    with opened_text(path, encoding) as stream:
        lines = stream.read().split("\n")
    with opened_text(path, encoding) as stream:
        _, *frames = read_records(stream, separator)
    taken: Counter[int] = Counter()
    first = None
    records = 0
    for frame in frames:
        assert isinstance(frame, pl.DataFrame)
        for line, text in frame.select("line", "text").iter_rows():
            first = line if first is None else first
            records += 1
            taken.update(range(line, line + text.count("\n") + 1))
    if first is not None:
        missing = [at for at, line in enumerate(lines, 1) if at >= first and line.strip() and not taken[at]]
        if missing or max(taken.values()) > 1:
            raise LostError(f"lines {missing[:5]} are in no record, or one is in two")
    return records


def check_table(path: Path, values: dict[str, Any]) -> None:
    """Read a table and count its rows."""
    used = read_source(parse_config({"dataset": str(path), **values}, "fuzz"), silent)
    lost = used.rejects.filter(pl.col("file") == path.name)
    data = path.read_bytes()
    plain = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
    if plain.startswith(b"PAR1"):
        rows = pq.read_metadata(io.BytesIO(plain)).num_rows  # a column that nobody reads may be damaged
    else:
        whole = path.with_name("plain")
        whole.write_bytes(plain)
        try:
            rows = rows_of_lines(whole) if ".jsonl" in path.name or plain.lstrip().startswith(b"{") else None
            rows = rows_of_text(whole) if rows is None else rows
        finally:
            whole.unlink()
    if used.interactions.height + lost.height != rows:
        raise LostError(f"{rows} rows, {used.interactions.height} used and {lost.height} rejected")
    if not set(used.interactions["item_id"].unique()) <= set(used.catalog["item_id"]):
        raise LostError("an event is about an item that the catalog does not hold")


def rows_of_lines(path: Path) -> int:
    """How many lines with text a file of JSON lines has."""
    from rectune.data.sources.text_file import encoding_of, opened_text

    with opened_text(path, encoding_of(path)) as stream:
        return sum(bool(line.strip()) for line in stream.read().split("\n"))


def fuzz_table(draw: random.Random, folder: Path) -> None:
    """A table in some form, changed or not, read with some keys."""
    rows = generated(draw)
    make, name = draw.choice(((as_text, "log.csv"), (as_text, "log.txt"), (as_text, "log.csv"), (as_lines, "log.jsonl"),
                              (as_parquet, "log.parquet")))  # fmt: skip
    data = make(draw, rows)
    if draw.random() < 0.7:
        data = mutated(draw, data)
    if draw.random() < 0.1:
        data, name = gzip.compress(data, 1, mtime=0), name + ".gz"
        data = mutated(draw, data) if draw.random() < 0.3 else data
    path = folder / name
    path.write_bytes(data)
    values = options(draw)
    if draw.random() < 0.2:
        items = folder / "items.csv"
        other = as_text(draw, [["item_id", "title", "genres", "price"], *(row[:4] for row in generated(draw)[1:])])
        items.write_bytes(mutated(draw, other) if draw.random() < 0.5 else other)
        values["items"] = str(items)
    check_table(path, values)


PAIRS = [(user, film) for user in (1, 2, 3) for film in (1, 2)]
RATINGS = {
    "ratings.csv": ["userId,movieId,rating,timestamp", *(f"{u},{m},{u % 5 + 0.5},{10**9 + u * m}" for u, m in PAIRS)],
    "ratings.dat": [f"{u}::{m}::{u}::{10**9 + u * m}" for u, m in PAIRS],
    "u.data": [f"{u}\t{m}\t{u}\t{10**9 + u * m}" for u, m in PAIRS],
}
FLAGS = "|".join("0100000000000000000")
MOVIES = {
    "ratings.csv": (
        "movies.csv", ["movieId,title,genres", '1,"Usual Suspects, The (1995)",Crime|Drama', "2,Heat (1995),Crime"],
    ),
    "ratings.dat": ("movies.dat", ["1::Léon (1994)::Crime|Drama", "2::Heat (1995)::Crime"]),
    "u.data": ("u.item", [f"{film}|Film {film} (1995)|01-Jan-1995||http://x|{FLAGS}" for film in (1, 2)]),
}  # fmt: skip


def fuzz_movielens(draw: random.Random, folder: Path) -> None:
    """A MovieLens set of one of its three forms, in a folder or a zip, one of its files changed."""
    ratings = draw.choice(list(RATINGS))
    movies, films = MOVIES[ratings]
    encoding = draw.choice(("utf-8", "latin-1"))
    files = {ratings: "\n".join(RATINGS[ratings]).encode(), movies: "\n".join(films).encode(encoding)}
    name = draw.choice(list(files))
    files[name] = mutated(draw, files[name] + b"\n")
    if draw.random() < 0.2:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for each, data in files.items():
                archive.writestr(draw.choice(("", "ml/")) + each, data)
        path = folder / "ml.zip"
        path.write_bytes(mutated(draw, stream.getvalue()) if draw.random() < 0.5 else stream.getvalue())
    else:
        path = folder
        for each, data in files.items():
            (folder / each).write_bytes(data)
    found = read_source(parse_config({"dataset": str(path), "source_format": "movielens"}, "fuzz"), silent)
    if path == folder:
        for each, used, header in ((ratings, found.interactions, ratings == "ratings.csv"),
                                   (movies, found.catalog, movies == "movies.csv")):  # fmt: skip
            text = files[each].decode("latin-1").split("\n")
            lines = sum(bool(line.strip(" \t\r\x0b\x0c\x85\xa0\x1c\x1d\x1e\x1f")) for line in text) - header
            lost = found.rejects.filter(pl.col("file") == each).height
            if used.height + lost != lines:
                raise LostError(f"{each}: {lines} rows, {used.height} used and {lost} rejected")


VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 15, 10**30, 0.1, -0.5, 1e309, "", " ", "no", "auto", "stream", "x" * 500, "4%", "1e-4",
    [], ["q_proj"], [1, "a"], {}, {"a": 1}, "\x00", "\ud800", "ml-100k", "../..", "é", "{title", b"x",
]  # fmt: skip


def fuzz_config(draw: random.Random, folder: Path) -> None:
    """A configuration of random keys and values, or a shipped one's file, changed."""
    if draw.random() < 0.5:
        keys = [*Config.model_fields, "unknown", "", "Seed", "learning-rate", 7]
        parse_config({draw.choice(keys): draw.choice(VALUES) for _ in range(draw.randrange(1, 8))}, "fuzz")
        return
    shipped = draw.choice(sorted(FOLDER.glob("*.yaml")))
    file = folder / "config.yaml"
    file.write_bytes(mutated(draw, shipped.read_bytes()))
    load_config(file, [draw.choice(("seed=1", "seed", "x=[", "lora_rank=8"))] if draw.random() < 0.3 else None)


def fuzz_override(draw: random.Random, folder: Path) -> None:
    """`key=value` texts."""
    key = draw.choice([*Config.model_fields, "", "-", "--seed", "é"])
    value = mutated(draw, draw.choice((b"1", b"[1, 2]", b"{a: 1}", b"'x'", b"null", b"no"))).decode("utf-8", "replace")
    name, found = parse_override(key + draw.choice(("=", "=", "", "==")) + value)
    parse_config({name: found}, "fuzz")


KINDS: dict[str, tuple[Callable[[random.Random, Path], None], float]] = {
    "table": (fuzz_table, 0.4),
    "movielens": (fuzz_movielens, 0.15),
    "delivery_hero": (fuzz_delivery_hero, 0.1),
    "amazon": (fuzz_amazon, 0.1),
    "config": (fuzz_config, 0.15),
    "override": (fuzz_override, 0.1),
}
"""What is fuzzed, and its share of the inputs."""


def one(kind: str, number: int, seed: int, root: Path) -> tuple[str, str]:
    """Feed one input in.

    Returns:
        what came of it (read, refused, TRACEBACK, HANG, LOST), and what was said.
    """
    draw = random.Random(f"{seed}:{kind}:{number}")
    folder = root / kind
    folder.mkdir(exist_ok=True)
    for file in folder.iterdir():
        file.unlink()
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        KINDS[kind][0](draw, folder)
        return "read", ""
    except RectuneError as error:
        text = str(error)
        plain = "\n" not in text if kind not in ("config", "override") else True
        return ("refused", "") if plain and text.strip() and "Traceback" not in text else ("TRACEBACK", text)
    except TooLongError:
        return "HANG", traceback.format_exc()
    except LostError as error:
        return "LOST", str(error)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return "TRACEBACK", traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def stop(_number: int, _frame: Any) -> None:
    """End an input that takes too long."""
    raise TooLongError


def main() -> int:
    """Run the campaign and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="KIND:NUMBER, one input again; or KIND")
    parser.add_argument("--failures", type=Path, default=Path("fuzz_failures.txt"))
    parser.add_argument("--most", type=int, default=50, help="stop after so many failures")
    arguments = parser.parse_args()
    signal.signal(signal.SIGALRM, stop)
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    spent: Counter[str] = Counter()
    failed = 0
    with tempfile.TemporaryDirectory() as name, contextlib.suppress(KeyboardInterrupt):
        root = Path(name)
        if arguments.only and ":" in arguments.only:
            kind, number = arguments.only.split(":")
            print(*one(kind, int(number), arguments.seed, root))
            return 0
        for kind, (_, share) in KINDS.items():
            if arguments.only not in (None, kind):
                continue
            for number in range(round(arguments.inputs * share)):
                # A hang inside a library ends the process with the stack, which names the input's kind.
                faulthandler.dump_traceback_later(6 * SECONDS, exit=True)
                began = time.perf_counter()
                came, said = one(kind, number, arguments.seed, root)
                spent[kind] += round(1e6 * (time.perf_counter() - began))
                counts[kind][came] += 1
                if came not in ("read", "refused"):
                    failed += 1
                    with arguments.failures.open("a", encoding="utf-8", errors="replace") as stream:
                        stream.write(f"--- {kind}:{number} {came}\n{said}\n")
                    if failed >= arguments.most:
                        break
        faulthandler.cancel_dump_traceback_later()
    print("| reader | inputs | read | refused in one line | traceback | hang | row lost | ms an input |")
    print("|---|---|---|---|---|---|---|---|")
    for kind, count in counts.items():
        total = sum(count.values())
        cells = [f"{count[key]:,}" for key in ("read", "refused", "TRACEBACK", "HANG", "LOST")]
        print(f"| {kind} | {total:,} | {' | '.join(cells)} | {spent[kind] / 1000 / max(total, 1):.1f} |")
    print(f"{sum(map(Counter.total, counts.values())):,} inputs, {failed} failures")
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
