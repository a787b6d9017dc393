"""Inputs of the fuzz campaign: random tables in every form, and random changes of a file's bytes."""

from __future__ import annotations

import io
import random
from typing import Any

import polars as pl

TOKENS = [
    b'"', b'""', b",", b";", b"\t", b"|", b"::", b"\n", b"\r\n", b"\r", b"\x00", b"\xef\xbb\xbf", b"\xff\xfe",
    b"\xfe\xff",
    b"\x1f\x8b", b"PAR1", b"\xc3", b"\xc3\x28", "é".encode(), "é".encode("latin-1"), "\u2028".encode(), "𝄞".encode(),
    b"\xed\xa0\x80", b"nan", b"inf", b"-1", b"0", b"1e309", b"9" * 25, b"-" + b"9" * 400, b"4,5", b"1.234,5", b"null",
    b"true", b"{", b"}", b"[", b"]", b"[[[[", b'{"a":', b"\\ud800", b"2024-02-30", b"31/12/2024", b"12/31/2024",
    b"01.02.2024 10:00", b"2024-05-31T08:30:00+02:00", b"20240531", b"1717144200000000000", b"train", b"dev", b"yes",
    b"no", b"item_id", b"user_id", b"rating", b"timestamp", b"title", b" ", b"   ", b"#", b":", b"&a", b"*a", b"!!",
    b"%",
]  # fmt: skip
NAMES = ["user_id", "item_id", "rating", "timestamp", "title", "genres", "split", "liked", "price", "customer", "sku"]
CELLS = [
    "u1", "u2", "7", "007", "i1", "i2", "4", "4.5", "4,5", "5", "1", "0", "yes", "no", "train", "dev", "test", "", " ",
    "1600000001", "1600000002", "1600000003000", "2024-05-31", "2024-05-31 08:30", "01.02.2024", "05/06/2024", "Mug",
    "Bowl, large", 'He said "no"', "a|b", "café", "\ufffd", "x" * 300, "\u2028", "-3", "nan",
]  # fmt: skip


class LostError(Exception):
    """A row is neither used nor rejected."""


def silent(_line: str) -> None:
    """Say nothing."""


def mutated(draw: random.Random, data: bytes) -> bytes:
    """A few random changes: bytes flipped, cut, repeated and swapped, tokens put in, the end cut off."""
    found = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 3, 5, 9))):
        at, size = draw.randrange(len(found) + 1), draw.choice((1, 1, 2, 5, 20, 100))
        kind = draw.randrange(7)
        if kind == 0 and at < len(found):
            found[at] = draw.randrange(256)
        elif kind == 1:
            del found[at : at + size]
        elif kind == 2:
            found[at:at] = found[at : at + size] * draw.randrange(1, 4)
        elif kind in (3, 4):
            found[at:at] = draw.choice(TOKENS)
        elif kind == 5:
            found[at : at + size] = draw.choice(TOKENS)
        else:
            del found[at:]
    return bytes(found)


def generated(draw: random.Random) -> list[list[str]]:
    """A table of random cells under random names."""
    names = draw.sample(NAMES, draw.randrange(2, 8)) if draw.random() < 0.3 else NAMES[: draw.randrange(3, 9)]
    typical = {"user_id": CELLS[:3], "item_id": CELLS[3:6], "rating": CELLS[6:12], "timestamp": CELLS[19:22]}
    rows = []
    for _ in range(draw.randrange(12)):
        rows.append([draw.choice(typical.get(name, CELLS) if draw.random() < 0.9 else CELLS) for name in names])
    return [names, *rows]


def as_text(draw: random.Random, rows: list[list[str]]) -> bytes:
    """Rows as a delimited file in some separator, quoting, line end and encoding."""
    sign, end = draw.choice(",,;\t|"), draw.choice(("\n", "\n", "\r\n", "\r"))
    quoted = draw.random() < 0.6

    def cell(text: str) -> str:
        return '"' + text.replace('"', '""') + '"' if quoted and (sign in text or '"' in text) else text

    text = end.join(sign.join(map(cell, row)) for row in rows) + draw.choice((end, ""))
    encoding = draw.choice(("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "cp1252", "latin-1", "utf-16-le"))
    return text.encode(encoding, "replace")


def as_lines(draw: random.Random, rows: list[list[str]]) -> bytes:
    """Rows as JSON lines, with values of several types."""
    import json

    def value(text: str) -> Any:
        return draw.choice((text, text, text, len(text), text == "yes", None, [text], {"a": text}, float(len(text))))

    lines = [json.dumps({name: value(cell) for name, cell in zip(rows[0], row, strict=True)}) for row in rows[1:]]
    return ("\n".join(lines) + "\n").encode()


def as_parquet(draw: random.Random, rows: list[list[str]]) -> bytes:
    """Rows as a Parquet file, some columns with types of their own."""
    columns: dict[str, Any] = {}
    for place, name in enumerate(rows[0]):
        cells = [row[place] for row in rows[1:]]
        series = pl.Series(name, cells, dtype=pl.String)
        kind = draw.randrange(6)
        if kind == 1:
            series = series.cast(pl.Float64, strict=False)
        elif kind == 2:
            series = series.str.to_datetime("%Y-%m-%d %H:%M", strict=False)
        elif kind == 3:
            series = pl.Series(name, [[cell] for cell in cells], dtype=pl.List(pl.String))
        elif kind == 4:
            series = pl.Series(name, [cell == "yes" for cell in cells], dtype=pl.Boolean)
        columns[name] = series
    stream = io.BytesIO()
    pl.DataFrame(columns).write_parquet(stream)
    return stream.getvalue()
