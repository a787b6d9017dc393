"""Write a made-up MovieLens set of any size, in the form of ml-32m: ratings.csv and movies.csv.

    python benchmarks/make_movielens.py FOLDER                                       # the size and shape of ml-32m
    python benchmarks/make_movielens.py FOLDER --users 2000 --items 5000 --ratings 300000

What is like the real set: its counts (200,948 users, 84,432 films and 32,000,204 ratings by default), at least 20
ratings a user with a long tail of busy users, popularity that falls off as a power of the rank, half stars with
the published shares, sessions of many ratings within minutes, some of them in one second, users one after the other
in the file and films in ascending order within a user, titles with years, commas and quotes. What is not: who likes
what is drawn from a low-rank model.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import polars as pl

STARS = np.arange(1, 11) / 2
SHARES = np.array([1.6, 3.1, 1.6, 6.6, 5.1, 19.6, 12.7, 26.6, 8.8, 14.3])
"""Per cent of half-star ratings 0.5 to 5.0, near those of the published sets."""
GENRES = ("Action", "Adventure", "Animation", "Comedy", "Crime", "Documentary", "Drama", "Fantasy", "Horror", "Romance")
_TEXT = (
    "Night River Golden Last Summer Broken Silver House Return Stranger Blue City "
    "Long Heart Winter Secret Lost Red King Garden Shadow Dance Morning Letter "
    "Island Stone Paper Wild Empty Road "
)
WORDS = _TEXT.split()


def activity(users: int, ratings: int, items: int, random: np.random.Generator) -> np.ndarray:
    """Ratings of each user, int64 [users]: at least 20 where there are enough, log-normal beyond."""
    least = min(20, ratings // users)
    tail = random.lognormal(3.6, 1.5, users)
    counts = least + np.floor(tail * (ratings - least * users) / tail.sum()).astype(np.int64)
    counts = np.minimum(counts, items // 2)
    while (missing := ratings - int(counts.sum())) > 0:
        room = np.flatnonzero(counts < items // 2)
        counts[random.choice(room, min(missing, len(room)), replace=False)] += 1
    return counts


def films(items: int, random: np.random.Generator) -> pl.DataFrame:
    """movieId, title and genres of every film; ids have gaps, as the published ones do."""
    ids = np.sort(random.choice(np.arange(1, 4 * items), items, replace=False))
    words = np.array(WORDS)[random.integers(0, len(WORDS), (items, 3))]
    years = random.integers(1920, 2024, items)
    forms = ("{0} {1}", "The {0} {1}", "{1}, The {0}", '{0} "{1}" {2}', "{0} of {2}")
    titles = [
        forms[which].format(*row) + f" {number} ({year})"
        for number, (which, row, year) in enumerate(
            zip(random.integers(0, len(forms), items), words, years, strict=True)
        )
    ]
    kinds = random.integers(0, len(GENRES), (items, 2))
    genres = ["|".join(dict.fromkeys(GENRES[kind] for kind in pair)) for pair in kinds.tolist()]
    return pl.DataFrame({"movieId": ids, "title": titles, "genres": genres})


def ratings_of(
    first: int, counts: np.ndarray, ids: np.ndarray, reach: np.ndarray, tastes: np.ndarray, random: np.random.Generator
) -> pl.DataFrame:
    """The ratings of some users, in the form of ratings.csv.

    Args:
        first: the first user's id.
        counts: int64 [users]; how many ratings each gives.
        ids: int64 [items]; movieId by popularity.
        reach: float64 [items]; cumulated popularity, ending at 1.
        tastes: float32 [items, rank]; what a film is like.
    """
    total = int(counts.sum())
    user = np.repeat(np.arange(len(counts)), counts)
    item = np.searchsorted(reach, random.random(total))
    # A user rates a film once: drawn again until all are different, evenly where popular ones have run out.
    for attempt in range(50):
        order = np.lexsort((item, user))
        twice = np.zeros(total, dtype=bool)
        twice[order[1:]] = (user[order[1:]] == user[order[:-1]]) & (item[order[1:]] == item[order[:-1]])
        if not (again := int(twice.sum())):
            break
        item[twice] = (
            np.searchsorted(reach, random.random(again)) if attempt < 8 else random.integers(0, len(ids), again)
        )
    else:
        keep = ~twice
        user, item, total = user[keep], item[keep], int(keep.sum())
    own = random.normal(size=(len(counts), tastes.shape[1])).astype(np.float32)
    liking = (own[user] * tastes[item]).sum(axis=1) + random.normal(size=len(counts))[user] + random.normal(size=total)
    place = liking.argsort().argsort() / total
    rating = STARS[np.searchsorted(np.cumsum(SHARES) / SHARES.sum(), place, side="right").clip(max=9)]
    # A user comes back for a few sessions; within one, ratings follow every few seconds and some share a second.
    start = random.integers(820_000_000, 1_690_000_000, len(counts))
    session = random.geometric(0.02, total)
    pause = np.where(session == 1, random.integers(86_400, 8_640_000, total), random.integers(0, 12, total))
    moment = np.cumsum(pause)
    begins = np.cumsum(counts)[:-1] if total == counts.sum() else np.flatnonzero(np.diff(user)) + 1
    base = np.repeat(moment[np.concatenate([[0], begins])], np.diff(np.concatenate([[0], begins, [total]])))
    frame = pl.DataFrame(
        {
            "userId": first + user,
            "movieId": ids[item],
            "rating": rating,
            "timestamp": np.minimum(start[user] + moment - base, 1_697_164_147),
        }
    )
    return frame.sort("userId", "movieId")


def main() -> None:
    """Write the set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--users", type=int, default=200_948)
    parser.add_argument("--items", type=int, default=84_432)
    parser.add_argument("--ratings", type=int, default=32_000_204)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    begun = time.perf_counter()
    random = np.random.default_rng(asked.seed)
    asked.folder.mkdir(parents=True, exist_ok=True)
    catalog = films(asked.items, random)
    catalog.write_csv(asked.folder / "movies.csv")
    ids = random.permutation(catalog["movieId"].to_numpy())
    popularity = (np.arange(asked.items) + 20.0) ** -1.1
    reach = np.cumsum(popularity) / popularity.sum()
    reach[-1] = 1.0
    tastes = random.normal(size=(asked.items, 4)).astype(np.float32) * 0.5
    counts = activity(asked.users, asked.ratings, asked.items, random)
    written = 0
    with (asked.folder / "ratings.csv").open("wb") as file:
        for at in range(0, asked.users, 10_000):
            frame = ratings_of(at + 1, counts[at : at + 10_000], ids, reach, tastes, random)
            frame.write_csv(file, include_header=at == 0)
            written += frame.height
    print(f"{asked.folder}: {written:,} ratings of {asked.users:,} users, {time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
