from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rectune.data.label import add_label
from rectune.data.sources.movielens import read_movielens, source_files
from rectune.data.split import timeline
from rectune.errors import DataError

Write = Callable[..., Path]


def write_100k(folder: Path) -> Path:
    folder.mkdir()
    flags = ["0"] * 19

    def film(number: int, title: str, *genres: int) -> str:
        own = ["1" if place in genres else "0" for place in range(len(flags))]
        return "|".join([str(number), title, "01-Jan-1995", "", "http://x/", *own])

    films = [film(1, "Amélie (2001)", 5, 14), film(267, "unknown", 0), film(3, "Shine (1994) (V)")]
    (folder / "u.item").write_bytes("\n".join(films).encode("latin-1") + b"\n")
    (folder / "u.data").write_text("7\t1\t5\t881250949\n7\t267\t2\t881250950\n")
    return folder


def test_csv_titles_are_unquoted_and_stripped_and_genres_joined(write_set: Write) -> None:
    catalog = read_movielens(write_set()).catalog
    assert catalog.rows() == [
        ("1", "Usual Suspects, The (1995)", "Crime, Mystery, Thriller", 1995),
        ("2", "Babylon 5", "Sci-Fi", None),
        ("3", "Hyena Road (2015)", "", 2015),
        ("4", 'Say "Hello" (2001)', "Comedy", 2001),
        ("5", "Heat (1995)", "Action, Crime", 1995),
    ]


def test_ratings_keep_the_order_of_the_file(write_set: Write) -> None:
    ratings = read_movielens(write_set()).interactions
    assert ratings.row(0) == ("10", "1", 4.0, 1000000100)
    assert ratings.row(6) == ("2", "5", 3.0, 1000000900)


@pytest.mark.parametrize("prefix", ["", "ml-latest-small/"])
def test_a_zip_gives_what_its_folder_gives(write_set: Write, zipped: Callable[..., Path], prefix: str) -> None:
    folder = write_set()
    archive = zipped(folder, prefix)
    left, right = read_movielens(folder), read_movielens(archive)
    assert left.nouns == right.nouns
    for name in ("interactions", "catalog", "rejects"):
        assert getattr(left, name).equals(getattr(right, name))
    assert source_files(archive) == [archive]


def test_a_folder_that_holds_the_sets_folder_is_read(write_set: Write, tmp_path: Path) -> None:
    write_set(name="outer/ml-latest-small")
    assert read_movielens(tmp_path / "outer").interactions.height == 14


def test_a_folder_of_several_sets_is_an_error_that_names_them(write_set: Write, tmp_path: Path) -> None:
    write_set(name="outer/a")
    write_set(name="outer/b")
    with pytest.raises(DataError, match=r"several MovieLens sets \(a, b\)"):
        read_movielens(tmp_path / "outer")


def test_ml_100k_is_read_from_its_tabs_pipes_and_flags(tmp_path: Path) -> None:
    read = read_movielens(write_100k(tmp_path / "ml-100k"))
    assert read.catalog.rows() == [
        ("1", "Amélie (2001)", "Comedy, Romance", 2001),
        ("267", "unknown", "", None),
        ("3", "Shine (1994) (V)", "", 1994),
    ]
    assert read.interactions.rows() == [("7", "1", 5.0, 881250949), ("7", "267", 2.0, 881250950)]


def test_ml_1m_is_read_from_its_double_colons(tmp_path: Path) -> None:
    (tmp_path / "movies.dat").write_bytes("1::Café au lait (1994)::Comedy|Drama\n".encode("latin-1"))
    (tmp_path / "ratings.dat").write_text("6040::1::3::956703932\n6040::1::4::956703999\n")
    read = read_movielens(tmp_path)
    assert read.catalog.rows() == [("1", "Café au lait (1994)", "Comedy, Drama", 1994)]
    assert read.interactions.rows() == [("6040", "1", 3.0, 956703932), ("6040", "1", 4.0, 956703999)]


def test_a_missing_file_is_named(write_set: Write) -> None:
    folder = write_set()
    (folder / "movies.csv").unlink()
    with pytest.raises(DataError, match=r"movies\.csv is missing beside ratings\.csv"):
        read_movielens(folder)


def test_a_folder_without_movielens_says_what_was_expected_and_found(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"expected ratings\.csv with movies\.csv .* found notes\.txt"):
        read_movielens(tmp_path)


def test_a_file_that_is_no_zip_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "ratings.csv"
    file.write_text("userId\n")
    with pytest.raises(DataError, match="neither a folder nor a whole zip"):
        read_movielens(file)


def test_a_damaged_zip_is_an_error(write_set: Write, zipped: Callable[..., Path]) -> None:
    archive = zipped(write_set())
    data = bytearray(archive.read_bytes())
    data[60:90] = bytes(30)
    archive.write_bytes(data)
    with pytest.raises(DataError, match="fetch it again"):
        read_movielens(archive)


def test_ml_latest_small_gives_the_seeds_counts(latest_small: Path) -> None:
    read = read_movielens(latest_small)
    assert (read.interactions.height, read.catalog.height, read.rejects.height) == (100836, 9742, 0)
    result = timeline(add_label(read.interactions, 4.0), history_len=15, test_ratio=0.10, validation_ratio=0.05)
    counts = dict(result.events.group_by("split").len().iter_rows())
    assert counts == {"train": 78271, "validation": 4450, "test": 8965, "warmup": 610 * 15}
