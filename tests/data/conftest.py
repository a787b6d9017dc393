"""A small MovieLens set, worked out by hand, and the real one where it lies beside the repository."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
MOVIES = [
    "movieId,title,genres",
    '1,"Usual Suspects, The (1995) ",Crime|Mystery|Thriller',
    "2,Babylon 5,Sci-Fi",
    "3,Hyena Road (2015),(no genres listed)",
    '4,"Say ""Hello"" (2001)",Comedy',
    "5,Heat (1995),Action|Crime",
]
RATINGS_HEADER = "userId,movieId,rating,timestamp"
# Users 2 and 10 have six events each, user 3 two. User 2's second and third event are one moment.
RATINGS = [
    "10,1,4.0,1000000100",
    "10,2,3.5,1000000200",
    "10,3,5.0,1000000300",
    "10,4,2.0,1000000400",
    "10,5,4.5,1000000500",
    "10,1,1.0,1000000600",
    "2,5,3.0,1000000900",
    "2,1,4.0,1000000100",
    "2,2,2.0,1000000200",
    "2,3,4.0,1000000200",
    "2,4,5.0,1000000400",
    "2,2,4.0,1000000500",
    "3,1,4.0,1000000100",
    "3,2,4.0,1000000200",
]


@pytest.fixture
def write_set(tmp_path: Path) -> Callable[..., Path]:
    """Write ratings.csv and movies.csv into a new folder."""

    def write(
        ratings: list[str] | bytes | None = None,
        movies: list[str] | bytes | None = None,
        *,
        more_ratings: tuple[str, ...] = (),
        more_movies: tuple[str, ...] = (),
        end: str = "\n",
        name: str = "raw",
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True, exist_ok=True)
        rows = [RATINGS_HEADER, *RATINGS, *more_ratings] if ratings is None else ratings
        films = [*MOVIES, *more_movies] if movies is None else movies
        for file, lines in (("ratings.csv", rows), ("movies.csv", films)):
            data = lines if isinstance(lines, bytes) else ("\n".join(lines) + end).encode()
            (folder / file).write_bytes(data)
        return folder

    return write


@pytest.fixture
def zipped() -> Callable[[Path, str], Path]:
    """Zip a folder's files under a prefix."""

    def write(folder: Path, prefix: str = "") -> Path:
        target = folder.with_suffix(".zip")
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(folder.iterdir()):
                archive.write(file, prefix + file.name)
        return target

    return write


@pytest.fixture
def latest_small() -> Path:
    path = REPO.parent / "shared" / "data" / "ml-latest-small.zip"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    return path
