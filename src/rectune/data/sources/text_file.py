"""A text file as lines: unpacked, decoded, its line ends made alike."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO, cast

from rectune.errors import DataError

_CHUNK = 1 << 20
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks; UTF-32's before UTF-16's, which they begin with."""
_NAMES = {"utf-8-sig": "UTF-8 with a byte order mark", "utf-16": "UTF-16", "utf-32": "UTF-32", "cp1252": "Windows-1252",
          "latin-1": "Latin-1", "utf-16-le": "UTF-16 without a byte order mark",
          "utf-16-be": "UTF-16 without a byte order mark"}  # fmt: skip
_NOT_IN_CP1252 = bytes((0x81, 0x8D, 0x8F, 0x90, 0x9D))
_GZIP = b"\x1f\x8b"


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file, or what is in it where it is a gzip file; damage found while it is read becomes a DataError."""
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == _GZIP
            raw.seek(0)
            if packed:
                with gzip.open(raw) as stream:
                    yield cast(BinaryIO, stream)
            else:
                yield raw
    except (OSError, EOFError, zlib.error) as error:
        why = " ".join(str(error).split())
        raise DataError(f"{path}: cannot be read ({why}); fetch or write it again") from error


def encoding_of(path: Path) -> str:
    """How a text file is written: by its byte order mark; else UTF-16 where every other byte is zero; else UTF-8 where
    all of it is, or where more of it is than is not; else Windows-1252, or Latin-1 where that has no such sign."""
    with opened(path) as stream:
        head = stream.read(_CHUNK)
        for mark, name in _MARKS:
            if head.startswith(mark):
                return name
        for start, name in ((1, "utf-16-le"), (0, "utf-16-be")):
            half = head[start::2]
            if len(half) > 1 and half.count(0) > 0.4 * len(half) and head[1 - start :: 2].count(0) * 10 < len(half):
                return name
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        signs = broken = 0
        foreign = False
        while head:
            text = decoder.decode(head)
            if not text.isascii():
                wrong = text.count("\ufffd")
                broken += wrong
                signs += sum(ord(sign) > 127 for sign in text) - wrong
            foreign = foreign or any(byte in head for byte in _NOT_IN_CP1252)
            head = stream.read(_CHUNK)
    if broken <= signs:
        return "utf-8"
    return "latin-1" if foreign else "cp1252"


def said(encoding: str) -> str:
    """What a person should know of an encoding; empty for plain UTF-8.

    >>> said("cp1252"), said("utf-8")
    ('read as Windows-1252', '')
    """
    return f"read as {_NAMES[encoding]}" if encoding in _NAMES else ""


@contextmanager
def opened_text(path: Path, encoding: str) -> Iterator[TextIO]:
    """The text of a file, every line end made "\\n"; what does not fit the encoding becomes U+FFFD."""
    with opened(path) as stream, io.TextIOWrapper(stream, encoding=encoding, errors="replace") as text:
        yield text
