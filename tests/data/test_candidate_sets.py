import json
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from rectune.data import candidate_sets as c
from rectune.data.folder import EVENTS_SCHEMA
from rectune.errors import ConfigError, DataError

CATALOG = pl.DataFrame({"item_id": [f"i{number}" for number in range(60)]})


def timelines(users: dict[str, list[tuple[str, int, int, str]]]) -> pl.DataFrame:
    """Events out of (item, moment, label, split), in order of time."""
    rows = []
    for user, events in users.items():
        moments = [moment for _, moment, _, _ in events]
        for position, (item, moment, label, split) in enumerate(events):
            end = moments.index(moment)
            rows.append((user, item, 4.0, moment, label, split, position, end, len(rows)))
    return pl.DataFrame(rows, schema=EVENTS_SCHEMA, orient="row")


# u2's first test event shares its moment with a train event; u3 has no test event; u1 meets i5 twice in test.
HAND = timelines(
    {
        "u1": [
            ("i0", 1, 1, "warmup"), ("i1", 2, 0, "train"), ("i2", 3, 1, "validation"), ("i5", 4, 0, "test"),
            ("i6", 5, 0, "test"), ("i5", 6, 1, "test"),
        ],
        "u2": [("i0", 1, 1, "warmup"), ("i3", 2, 1, "train"), ("i4", 2, 1, "test"), ("i7", 3, 0, "test")],
        "u3": [("i8", 1, 1, "warmup"), ("i9", 2, 1, "train")],
    }
)  # fmt: skip


def silent(_line: str) -> None:
    """Say nothing."""


def frozen(folder: Path, events: pl.DataFrame = HAND, say=silent, **options) -> pl.DataFrame:
    values = {"content_hash": "h1", "split": "test", "n": 10, **options}
    return c.candidate_sets(folder, events, CATALOG, values.pop("content_hash"), values.pop("split"), say, **values)


def rows(frame: pl.DataFrame, *columns: str) -> list[tuple]:
    return frame.select(*columns).rows()


def test_the_history_at_a_split_is_strictly_earlier_than_its_first_event():
    # u2's i3 is a train event of the moment of its first test event.
    test = rows(c.history_at(HAND, "test"), "user_id", "item_id")
    assert test == [("u1", "i0"), ("u1", "i1"), ("u1", "i2"), ("u2", "i0"), ("u3", "i8"), ("u3", "i9")]
    validation = rows(c.history_at(HAND, "validation"), "user_id", "item_id")
    assert validation == [("u1", "i0"), ("u1", "i1"), ("u2", "i0"), ("u2", "i3"), ("u3", "i8"), ("u3", "i9")]
    assert c.events_until(HAND, "test").height == 7


def test_later_items_are_there_once_and_relevant_where_liked_at_any_time():
    assert c.later_items(HAND, "test").rows() == [
        ("u1", "i5", True), ("u1", "i6", False), ("u2", "i4", True), ("u2", "i7", False),
    ]  # fmt: skip


def test_a_set_holds_all_later_items_and_unseen_negatives(tmp_path):
    found = frozen(tmp_path)
    assert found.schema == pl.Schema(c.SCHEMA)
    assert found["user_id"].unique(maintain_order=True).to_list() == ["u1", "u2"]
    for user, later in (("u1", [("i5", True), ("i6", False)]), ("u2", [("i4", True), ("i7", False)])):
        of_user = found.filter(pl.col("user_id") == user)
        assert rows(of_user.filter(~pl.col("negative")), "item_id", "relevant") == later
        drawn = of_user.filter("negative")
        assert drawn.height == drawn["item_id"].n_unique() == 10 and not drawn["relevant"].any()
        assert not set(drawn["item_id"]) & set(HAND.filter(pl.col("user_id") == user)["item_id"])
        assert set(drawn["item_id"]) <= set(CATALOG["item_id"])
        # All negatives stand behind the later items.
        assert of_user["negative"].is_sorted()


def test_a_catalog_with_few_unseen_items_gives_them_all():
    found = c.draw(HAND, CATALOG.head(8), "test", n=100)
    unseen = found.filter(pl.col("negative") & (pl.col("user_id") == "u2"))["item_id"]
    assert sorted(unseen) == ["i1", "i2", "i5", "i6"]
    assert c.draw(HAND, CATALOG.head(1), "test", n=100).filter("negative").is_empty()


@settings(max_examples=60, deadline=None)
@given(
    st.sets(st.integers(0, 59), max_size=60),
    st.integers(0, 70),
    st.text(max_size=6),
    st.integers(0, 2**40),
)
def test_a_draw_is_unseen_without_repeats_and_as_long_as_it_can_be(seen, n, user, seed):
    items = CATALOG["item_id"].to_list()
    names = {items[number] for number in seen}
    drawn = c.draw_negatives(user, items, names, n, seed)
    assert len(drawn) == len(set(drawn)) == min(n, 60 - len(names))
    assert not set(drawn) & names
    assert drawn == c.draw_negatives(user, items, names, n, seed)


def test_negatives_are_drawn_uniformly_from_the_unseen_items():
    items = [f"i{number}" for number in range(30)]
    seen = {"i0", "i7", "i8", "i29"}
    counts = dict.fromkeys(items, 0)
    for user in range(3000):
        for item in c.draw_negatives(f"u{user}", items, seen, 5, 0):
            counts[item] += 1
    unseen = [counts[item] for item in items if item not in seen]
    assert sum(unseen) == 15000
    # Negatives of one user repel each other, so that the statistic is, if anything, smaller than under independence.
    assert chisquare(unseen).pvalue > 0.01


def test_a_users_draw_does_not_depend_on_the_other_users(tmp_path):
    alone = frozen(tmp_path / "a", HAND.filter(pl.col("user_id") == "u2"))
    together = frozen(tmp_path / "b").filter(pl.col("user_id") == "u2")
    assert alone.equals(together)


def test_a_set_is_drawn_once_and_read_ever_after(tmp_path):
    said: list[str] = []
    first = frozen(tmp_path, say=said.append)
    table, about = c.files_of(tmp_path, "test")
    before = table.read_bytes(), about.read_bytes(), table.stat().st_mtime_ns
    assert frozen(tmp_path, say=said.append).equals(first)
    assert (table.read_bytes(), about.read_bytes(), table.stat().st_mtime_ns) == before
    assert said == [
        f"candidate sets: drawn: 2 users, 4 later items, 20 negatives, seed 0; frozen in {table}",
        f"candidate sets: {table}, 2 users, 4 later items, 20 negatives; frozen, used as they are",
    ]
    assert json.loads(about.read_text(encoding="utf-8")) == {
        "rule": c.RULE, "split": "test", "negatives": 10, "seed": 0, "content_hash": "h1", "users": 2, "rows": 24,
        "sha256": c.hash_file(table),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"content_hash": "h2"}, "the data has changed from 'h1' to 'h2'"),
        ({"n": 5}, "negatives has changed from 10 to 5"),
        ({"seed": 1}, "seed has changed from 0 to 1"),
    ],
)
def test_another_setting_or_other_data_draws_again_and_says_why(tmp_path, options, why):
    first, said = frozen(tmp_path), []
    again = frozen(tmp_path, say=said.append, **options)
    assert said[0].startswith(f"candidate sets: drawn again, because {why}: 2 users")
    assert again.equals(first) == ("content_hash" in options)
    assert frozen(tmp_path, **options).equals(again)


def test_what_a_kill_leaves_half_done_is_drawn_again_the_same(tmp_path):
    first, said = frozen(tmp_path), []
    _, about = c.files_of(tmp_path, "test")
    about.unlink()
    assert frozen(tmp_path, say=said.append).equals(first)
    assert "because candidates_test.json, which says how they were drawn, is missing" in said[0]
    about.write_text("{", encoding="utf-8")
    assert frozen(tmp_path, say=said.append).equals(first)
    assert "because candidates_test.json is damaged" in said[1]


def test_a_damaged_table_is_refused_and_never_drawn_again_in_silence(tmp_path):
    first = frozen(tmp_path)
    table, _ = c.files_of(tmp_path, "test")
    first.with_columns(relevant=True).write_parquet(table)
    with pytest.raises(DataError, match=r"candidates_test\.parquet: damaged .* remove it to have the same sets drawn"):
        frozen(tmp_path)
    table.unlink()
    assert frozen(tmp_path).equals(first)


def test_splits_do_not_share_their_files(tmp_path):
    test, validation = frozen(tmp_path), frozen(tmp_path, split="validation")
    assert validation["user_id"].unique().to_list() == ["u1"]
    assert rows(validation.filter(~pl.col("negative")), "item_id", "relevant") == [("i2", True)]
    assert frozen(tmp_path).equals(test)
    # What a user has an event of in any split is no negative, so that a test item is none of validation either.
    assert not set(validation.filter("negative")["item_id"]) & {"i0", "i1", "i2", "i5", "i6"}


def test_what_cannot_be_drawn_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"^--split: got 'train', allowed: test, validation$"):
        frozen(tmp_path, split="train")
    with pytest.raises(DataError, match="no user has an event in the test split"):
        frozen(tmp_path, HAND.filter(pl.col("user_id") == "u3"))
    assert not list(tmp_path.iterdir())


def test_the_draw_is_the_one_that_was_frozen_when_this_was_written():
    # A change of this rule would make figures incomparable with those published before.
    items = CATALOG["item_id"].to_list()
    assert c.draw_negatives("u1", items, {"i0"}, 5, 0) == ["i16", "i30", "i42", "i36", "i53"]
