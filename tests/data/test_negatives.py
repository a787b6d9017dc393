"""Sampled negatives: how many, never a purchase, which items may be drawn, and what the seed decides."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rectune.data.folder import asked_at, history_slices, own_events
from rectune.data.negatives import Drawn, add_negatives, say_negatives
from rectune.data.split import timeline
from rectune.errors import DataError
from rectune.measure.slices import cut_by_known_events
from rectune.report.slices import slices_of

RANK = {"warmup": 0, "train": 1, "validation": 2, "test": 3}


def purchases(rows: list[tuple[str, str, int]], splits: list[str] | None = None) -> pl.DataFrame:
    frame = pl.DataFrame(rows, schema={"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}, orient="row")
    more = [pl.lit(None, dtype=pl.Float64).alias("rating"), pl.lit(1, dtype=pl.UInt8).alias("label")]
    return frame.with_columns(*more, *([pl.Series("split", splits)] if splits is not None else []))


def catalog(genres: dict[str, str]) -> pl.DataFrame:
    items = list(genres)
    return pl.DataFrame(
        {"item_id": items, "title": [f"Item {item}" for item in items], "genres": list(genres.values())}
    )


def drawn(bought: pl.DataFrame, items: pl.DataFrame, count: int = 1, how: Any = "uniform", seed: int = 0) -> Drawn:
    split = "column" if "split" in bought.columns else "timeline"
    line = timeline(bought, split=split, history_len=1, test_ratio=0.2, validation_ratio=0.2)
    return add_negatives(line.events, bought, items, count, how, seed)


logs = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from([str(item) for item in range(7)]), st.integers(0, 6)),
    min_size=1,
    max_size=40,
).filter(lambda rows: max(Counter(user for user, _, _ in rows).values()) > 1)
categories = st.fixed_dictionaries({str(item): st.sampled_from(["", "x", "y", "x, y"]) for item in range(9)})


@settings(max_examples=30)
@given(logs, categories, st.integers(1, 4), st.sampled_from(["uniform", "popularity", "hard"]), st.integers(0, 3))
def test_each_purchase_has_as_many_negatives_as_there_can_be_and_none_that_its_user_bought(
    rows: list[tuple[str, str, int]], genres: dict[str, str], count: int, how: str, seed: int
) -> None:
    bought, items = purchases(rows), catalog({**genres, "8": "x"})
    own = timeline(bought, history_len=1, test_ratio=0.2, validation_ratio=0.2).events
    of_user: dict[str, set[str]] = {}
    for user, item, _ in rows:
        of_user.setdefault(user, set()).add(item)
    sold_in: dict[str, int] = {}
    for item, split in own.select("item_id", "split").iter_rows():
        sold_in[item] = min(sold_in.get(item, 9), RANK[split])
    # Items are on sale from the first purchase by anyone, also by a user who was left out.
    since = {item: min(at for _, of, at in rows if of == item) for _, item, _ in rows}
    asked = [row for row in own.iter_rows(named=True) if row["split"] != "warmup"]
    free_for = [
        {item for item, rank in sold_in.items() if rank <= RANK[row["split"]] and since[item] <= row["timestamp"]}
        - of_user[row["user_id"]]
        for row in asked
    ]
    training = [free for row, free in zip(asked, free_for, strict=True) if row["split"] == "train"]
    if training and not any(training):
        with pytest.raises(DataError, match="none can be drawn for any"):
            drawn(bought, items, count, how, seed)
        return
    found = drawn(bought, items, count, how, seed)
    assert own_events(found.events).drop("drawn_for").equals(own)
    negatives = found.events.filter(pl.col("drawn_for").is_not_null())
    of_purchase: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in negatives.iter_rows(named=True):
        of_purchase.setdefault((row["user_id"], row["drawn_for"]), []).append(row)
    short = bare = 0
    for row, free in zip(asked, free_for, strict=True):
        mine = of_purchase.pop((row["user_id"], row["position"]), [])
        names = [negative["item_id"] for negative in mine]
        assert len(set(names)) == len(names) == min(count, len(free)) and set(names) <= free
        short += len(names) < count
        bare += not names
        for negative in mine:
            assert (negative["label"], negative["rating"]) == (0, None)
            assert all(negative[key] == row[key] for key in ("timestamp", "split", "history_end"))
    assert not of_purchase and (found.short, found.bare) == (short, bare)
    assert (found.purchases, found.negatives) == (len(asked), negatives.height)
    # A user's negatives stand behind the user's own events, so that a history can hold none.
    assert found.events["row_id"].n_unique() == found.events.height
    starts, stops = history_slices(found.events, 3)
    sampled = found.events["drawn_for"].is_not_null().to_numpy()
    for start, stop in zip(starts, stops, strict=True):
        assert not sampled[start:stop].any()


@settings(max_examples=10)
@given(logs, st.integers(1, 3), st.sampled_from(["uniform", "popularity", "hard"]))
def test_the_same_seed_draws_the_same(rows: list[tuple[str, str, int]], count: int, how: str) -> None:
    items = catalog({str(item): "xy"[item % 2] for item in range(9)})
    # Somebody else's purchases, from the beginning on, leave something to draw.
    rows = [*rows, ("e", "7", 0), ("e", "8", 0), ("e", "7", 1)]
    one, other = (drawn(purchases(rows), items, count, how, seed=5) for _ in range(2))
    assert one.events.equals(other.events) and one[1:] == other[1:]


def many(users: int = 40, items: int = 50, each: int = 12) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Purchases in which low items are far more popular; items of ten in a category."""
    draw = np.random.default_rng(1)
    chance = 1 / np.arange(1, items + 1)
    rows = [
        (f"u{user}", f"i{item}", at)
        for user in range(users)
        for at, item in enumerate(draw.choice(items, each, p=chance / chance.sum()))
    ]
    return purchases(rows), catalog({f"i{item}": f"c{item // 10}" for item in range(items)})


def test_another_seed_draws_others() -> None:
    bought, items = many()
    one, other = (drawn(bought, items, 2, "uniform", seed) for seed in (1, 2))
    same = one.events["item_id"] == other.events["item_id"]
    sampled = one.events["drawn_for"].is_not_null()
    assert same.filter(~sampled).all() and same.filter(sampled).mean() < 0.2


def shares(found: Drawn) -> dict[str, float]:
    names = found.events.filter(pl.col("drawn_for").is_not_null())["item_id"].to_list()
    return {item: number / len(names) for item, number in Counter(names).items()}


def test_uniform_draws_every_free_item_alike_and_popularity_goes_by_training_purchases() -> None:
    # Nobody's purchases are in the way: user z bought z alone, and items sell 6 : 3 : 1 in training.
    bought = [("a", "p", 1)] * 6 + [("a", "q", 1)] * 3 + [("a", "r", 1)] + [("a", "only in test", 1)] * 20
    asked = [("z", "z", at + 1) for at in range(3000)]
    splits = ["train"] * 10 + ["test"] * 20 + ["train"] * 2000 + ["test"] * 1000
    frame = purchases(bought + asked, splits)
    items = catalog(dict.fromkeys(["p", "q", "r", "z", "only in test", "never sold"], "x"))
    found = drawn(frame, items, 1, "popularity").events.filter(pl.col("user_id") == "z", pl.col("label") == 0)
    popular = {
        split: Counter(found.filter(pl.col("split") == split)["item_id"].to_list()) for split in ("train", "test")
    }
    assert popular["train"].keys() == {"p", "q", "r"}
    assert [popular["train"][item] / 2000 for item in "pqr"] == pytest.approx([0.6, 0.3, 0.1], abs=0.04)
    # What only the test sells weighs 1 there.
    names = ["p", "q", "r", "only in test"]
    assert [popular["test"][item] / 1000 for item in names] == pytest.approx([6 / 11, 3 / 11, 1 / 11, 1 / 11], abs=0.05)
    found = drawn(frame, items).events.filter(pl.col("user_id") == "z", pl.col("label") == 0)
    of_split = {
        split: Counter(found.filter(pl.col("split") == split)["item_id"].to_list()) for split in ("train", "test")
    }
    assert {item: number / 2000 for item, number in of_split["train"].items()} == pytest.approx(
        dict.fromkeys("pqr", 1 / 3), abs=0.04
    )
    assert {item: number / 1000 for item, number in of_split["test"].items()} == pytest.approx(
        dict.fromkeys(["p", "q", "r", "only in test"], 1 / 4), abs=0.05
    )


@pytest.mark.parametrize("how", ["uniform", "popularity", "hard"])
def test_an_item_is_drawn_from_its_first_purchase_by_anyone_on_and_not_before(how: Any) -> None:
    # Each item is launched by a purchase of the warm-up, and bought in training much later: only the launch counts.
    launches = {f"i{number}": 100 * number for number in range(1, 6)}
    rows = [("w", item, at) for item, at in launches.items()] + [("v", item, 9000) for item in launches]
    rows += [("z", "z", at) for at in range(600)]
    splits = ["warmup"] * 5 + ["train"] * 605
    found = drawn(purchases(rows, splits), catalog(dict.fromkeys([*launches, "z"], "x")), 5, how)
    of_z = found.events.filter(pl.col("user_id") == "z", pl.col("label") == 0)
    drawn_at: dict[int, set[str]] = {}
    for item, at in of_z.select("item_id", "timestamp").iter_rows():
        drawn_at.setdefault(at, set()).add(item)
    assert min(drawn_at) == 100
    assert all(names == {item for item, since in launches.items() if since <= at} for at, names in drawn_at.items())
    # Of z's 600 the first 100 have none, the next 400 not all five; v's five have z alone.
    assert (found.short, found.bare) == (505, 100)
    lines: list[str] = []
    say_negatives(found, 5, how, lines.append)
    assert f"{found.short:,} purchases have fewer, {found.bare:,} of them none" in lines[1]


def test_no_negative_for_any_training_purchase_is_an_error() -> None:
    # The one user of the training split bought all there was by then; the test alone has something to draw.
    rows = [("a", "p", 1), ("a", "q", 2), ("b", "r", 3), ("a", "p", 4)]
    bought, items = purchases(rows, ["train", "train", "test", "test"]), catalog(dict.fromkeys("pqr", ""))
    with pytest.raises(DataError, match=r"none can be drawn for any of the 2 training purchases.*add users") as caught:
        drawn(bought, items)
    assert "\n" not in str(caught.value)


def test_slices_count_purchases_of_an_item_and_no_negatives() -> None:
    # Each of the 40 training purchases of p has q for a negative, which is bought there once.
    rows = [("a", "p", at) for at in range(1, 41)] + [("b", "q", 1), ("b", "q", 2)]
    found = drawn(purchases(rows, ["train"] * 41 + ["test"]), catalog(dict.fromkeys("pq", "")), 1)
    data: Any = SimpleNamespace(events=found.events, catalog=catalog(dict.fromkeys("pq", "")))
    known = slices_of(data, np.arange(found.events.height))
    expected = {"p": 40, "q": 1}
    by_item = cut_by_known_events(np.array([expected[item] for item in found.events["item_id"]]))
    by_user = cut_by_known_events(np.array([40 if user == "a" else 1 for user in found.events["user_id"]]))
    for name, cut in (("training events of the item", by_item), ("training events of the user", by_user)):
        assert known[name].order == cut.order and list(known[name].rows) == list(cut.rows)


def test_a_second_negative_is_drawn_from_what_the_first_has_left() -> None:
    rows = [("z", "z", at + 1) for at in range(2000)] + [("a", item, 1) for item in "pqr"]
    found = drawn(purchases(rows, ["train"] * len(rows)), catalog(dict.fromkeys("pqrz", "")), 2).events
    pairs = found.filter(pl.col("user_id") == "z", pl.col("label") == 0).group_by("drawn_for").agg("item_id")
    counts = Counter(tuple(pair) for pair in pairs["item_id"].to_list())
    assert len(counts) == 6
    assert [number / 2000 for number in counts.values()] == pytest.approx([1 / 6] * 6, abs=0.03)


def test_hard_draws_from_the_rarest_category_and_says_how_many_came_from_elsewhere() -> None:
    rows = [("a", "sushi", 1), ("b", "ramen", 1), ("c", "pho", 1), ("d", "soup", 1), ("d", "cake", 2), ("e", "tea", 1)]
    genres = {
        "sushi": "Japanese",
        "ramen": "Asian, Japanese",
        "pho": "Asian",
        "soup": "Asian",
        "cake": "",
        "tea": "Tea",
    }
    lines: list[str] = []
    found = drawn(purchases(rows, ["train"] * 6), catalog(genres), 1, "hard")
    say_negatives(found, 1, "hard", lines.append)
    sampled = found.events.filter(pl.col("label") == 0).select("user_id", "drawn_for", "item_id")
    of = {f"{user}{position}": item for user, position, item in sampled.iter_rows()}
    # Of Japanese (2 items) and Asian (3) the rarer is tried first, with what the user bought left out.
    assert of["a0"] == "ramen" and of["b0"] == "sushi" and of["c0"] in ("ramen", "soup")
    assert of["d0"] in ("ramen", "pho")
    assert of["d1"] not in ("soup", "cake") and of["e0"] != "tea"
    assert found.elsewhere == 2 and any("2 are of another category" in line for line in lines)


def test_hard_needs_categories_and_popularity_a_training_purchase() -> None:
    rows = [("a", "p", 1), ("b", "q", 2)]
    with pytest.raises(DataError, match=r"negative_sampling: hard .* no item has one"):
        drawn(purchases(rows, ["train", "train"]), catalog({"p": "", "q": ""}), 1, "hard")
    with pytest.raises(DataError, match="negative_sampling: popularity, but no purchase is in training"):
        drawn(purchases(rows, ["test", "test"]), catalog({"p": "", "q": ""}), 1, "popularity")


def test_what_was_bought_outside_the_events_kept_is_no_negative_either() -> None:
    rows = [("a", "old", 1), ("a", "new", 2), ("a", "newer", 3), ("b", "old", 1), ("b", "thing", 2), ("b", "last", 3)]
    bought = purchases(rows)
    line = timeline(bought, history_len=1, test_ratio=0.1, validation_ratio=0.1, max_per_user=2)
    found = add_negatives(line.events, bought, catalog(dict.fromkeys(["old", "new", "newer", "thing", "last"], "")), 9,
                          "uniform", 0)  # fmt: skip
    of_a = found.events.filter(pl.col("user_id") == "a", pl.col("label") == 0)["item_id"].to_list()
    assert sorted(of_a) == ["last", "thing"]


def test_a_purchase_of_what_was_bought_before_is_counted_and_said() -> None:
    rows = [("a", "p", 1), ("a", "p", 2), ("a", "p", 2), ("a", "q", 3), ("b", "r", 1)]
    found = drawn(purchases(rows, ["train"] * 5), catalog(dict.fromkeys("pqr", "")))
    lines: list[str] = []
    say_negatives(found, 1, "uniform", lines.append)
    assert found.again == 2 and "2 of the purchases asked about (40.0%)" in lines[-1]


def test_a_negative_is_asked_where_its_purchase_is() -> None:
    rows = [("a", item, at) for at, item in enumerate("pqrs")] + [("b", "t", 0)]
    events = drawn(purchases(rows, ["train"] * 5), catalog(dict.fromkeys("pqrst", ""))).events
    assert events["position"].to_list() == [*range(8), *range(2)]
    assert asked_at(events).tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 0]
    starts, stops = history_slices(events, 2)
    assert list(zip(starts, stops, strict=True))[4:8] == [(0, 0), (0, 1), (0, 2), (1, 3)]


@pytest.mark.parametrize("how", ["uniform", "popularity", "hard"])
def test_what_is_offered_in_one_market_is_drawn_for_its_own_purchases_only(how: Any) -> None:
    # In the north 3 and 1 of two items are bought beside the asker's, in the south 1 and 4, all of one category.
    rows = [("n", "n1", 0)] * 3 + [("n", "n2", 0)] + [("s", "s1", 0)] + [("s", "s2", 0)] * 4
    rows += [("north", "n3", at) for at in range(1000)] + [("south", "s3", at) for at in range(1000)]
    items = catalog(dict.fromkeys(["s1", "n1", "n2", "s2", "n3", "s3"], "x"))
    items = items.with_columns(pl.col("item_id").str.slice(0, 1).alias("city"))
    bought = purchases(rows, ["train"] * len(rows))
    line = timeline(bought, split="column", history_len=1, test_ratio=0.2, validation_ratio=0.2)
    events = add_negatives(line.events, bought, items, 1, how, 0, market="city").events
    drawn_for = {
        user: Counter(events.filter(pl.col("user_id") == user, pl.col("label") == 0)["item_id"].to_list())
        for user in ("north", "south")
    }
    shares = {"n1": 0.75, "s1": 0.2} if how == "popularity" else {"n1": 0.5, "s1": 0.5}
    assert drawn_for["north"].keys() == {"n1", "n2"} and drawn_for["south"].keys() == {"s1", "s2"}
    assert drawn_for["north"]["n1"] / 1000 == pytest.approx(shares["n1"], abs=0.05)
    assert drawn_for["south"]["s1"] / 1000 == pytest.approx(shares["s1"], abs=0.05)
