import math
import warnings

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from implicit.nearest_neighbours import TFIDFRecommender
from scipy.sparse import csr_matrix

from rectune.baselines import retrieve as r
from rectune.errors import ConfigError, DataError

# Two circles of taste: a, b, c like 1, 2, 3; d, e, f like 7, 8, 9; everybody likes 5; x has liked nothing.
LIKES = {"a": "1235", "b": "1235", "c": "125", "d": "7895", "e": "7895", "f": "785", "x": ""}
DISLIKES = {"c": "9", "x": "12"}


def table(likes: dict[str, str], dislikes: dict[str, str] | None = None) -> pl.DataFrame:
    rows = [(user, item, 1) for user, items in likes.items() for item in items]
    rows += [(user, item, 0) for user, items in (dislikes or {}).items() for item in items]
    return pl.DataFrame(rows, schema={"user_id": pl.String, "item_id": pl.String, "label": pl.UInt8}, orient="row")


EVENTS = table(LIKES, DISLIKES)
CATALOG = [str(item) for item in range(10)]


@pytest.fixture(params=r.RETRIEVERS)
def name(request):
    return request.param


def many(users: int = 60, items: int = 40, seed: int = 0) -> pl.DataFrame:
    """Users of two tastes, who like a third of the items of their own half."""
    random = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        half = items // 2 * (user % 2)
        rows += [(f"u{user}", f"i{half + item}", 1) for item in random.permutation(items // 2)[: items // 3]]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "label"], orient="row")


def test_popularity_counts_the_users_who_like_an_item():
    found = r.fit(EVENTS, r.POPULARITY, CATALOG)
    asked = found.scores("a", ["5", "1", "9", "0"])
    assert asked == (["5", "1", "9", "0"], asked.scores, "popularity")
    assert asked.scores.tolist() == [6, 3, 2, 0]
    best = found.top("a", 4)
    # Items that as many users like come in the order of the catalog.
    assert best.items == ["5", "1", "2", "7"] and best.scores.tolist() == [6, 3, 3, 3]


def test_dislikes_and_repeated_likes_count_nothing():
    repeated = pl.concat([EVENTS, EVENTS.filter(pl.col("item_id") == "9")])
    assert r.fit(repeated, r.POPULARITY, CATALOG).scores("a", ["9"]).scores[0] == 2


def test_item_knn_is_the_tf_idf_cosine_worked_out_by_hand():
    likes = table({"a": "12", "b": "123", "c": "3"})
    found = r.fit(likes, r.ITEM_KNN, list("1234"))
    # implicit's idf of a user with n likes of 4 items: log(4) - log(1 + n).
    a, b, c = (math.log(4) - math.log1p(count) for count in (2, 3, 1))
    one, three = np.array([a, b, 0]), np.array([0, b, c])

    def cosine(left, right):
        return float(left @ right / np.linalg.norm(left) / np.linalg.norm(right))

    asked = found.scores("a", ["3", "4"])
    # b has a weight of log(4) - log(4) = 0, so the items 1 and 3 have nothing in common.
    assert b == 0.0 and cosine(one, three) == 0.0 and asked.scores.tolist() == [0.0, 0.0]
    wider = r.fit(likes, r.ITEM_KNN, list("123456"))
    a, b, c = (math.log(6) - math.log1p(count) for count in (2, 3, 1))
    one, two, three = np.array([a, b, 0]), np.array([a, b, 0]), np.array([0, b, c])
    expected = cosine(one, three) + cosine(two, three)
    assert wider.scores("a", ["3"]).scores[0] == pytest.approx(expected, abs=1e-6)


def test_item_knn_scores_are_those_of_implicit():
    events = many()
    users, items = sorted(set(events["user_id"])), sorted(set(events["item_id"]))
    rows = [users.index(user) for user in events["user_id"]]
    columns = [items.index(item) for item in events["item_id"]]
    matrix = csr_matrix((np.ones(events.height, dtype=np.float32), (rows, columns)), shape=(len(users), len(items)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = TFIDFRecommender(K=r.NEIGHBOURS)
        model.fit(matrix, show_progress=False)
    found = r.fit(events, r.ITEM_KNN)
    for row in (0, 1, 30):
        ids, scores = model.recommend(row, matrix[row], N=len(items), filter_already_liked_items=False)
        expected = {items[place]: score for place, score in zip(ids, scores, strict=True) if place >= 0}
        asked = found.scores(users[row], list(expected))
        np.testing.assert_allclose(asked.scores, list(expected.values()), rtol=1e-5)


@pytest.mark.parametrize("name", [r.ITEM_KNN, r.MF])
def test_users_are_given_what_their_own_circle_likes(name):
    events = many()
    found = r.fit(events, name)
    own = {user: set(group) for user, group in events.group_by("user_id").agg("item_id").iter_rows()}
    for user in ("u0", "u1", "u14", "u15"):
        best = found.top(user, 5, own[user])
        assert best.by == name
        half = int(user[1:]) % 2
        assert all(int(item[1:]) // 20 == half for item in best.items)
        assert not own[user] & set(best.items)


def test_the_same_seed_gives_the_same_scores_and_no_warning(name):
    events = many()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second, other = (r.fit(events, name, seed=seed) for seed in (3, 3, 4))
    items = sorted(set(events["item_id"]))
    assert first.scores("u7", items).scores.tolist() == second.scores("u7", items).scores.tolist()
    same = first.scores("u7", items).scores.tolist() == other.scores("u7", items).scores.tolist()
    assert same == (name != r.MF)


def test_the_order_of_the_events_does_not_matter(name):
    events = many()
    items = sorted(set(events["item_id"]))
    shuffled = events.sample(fraction=1.0, shuffle=True, seed=1)
    a, b = (r.fit(table_, name, items).scores("u3", items).scores for table_ in (events, shuffled))
    assert a.tolist() == b.tolist()


@pytest.mark.parametrize("user", ["nobody", "x"])
def test_a_user_unknown_or_without_a_like_gets_popularity_and_the_result_says_so(name, user):
    found = r.fit(EVENTS, name, CATALOG)
    best = found.top(user, 3)
    assert best.by == "popularity" and best.items == ["5", "1", "2"]
    assert found.scores(user, ["5"]).by == "popularity"


def test_factors_that_have_shrunk_to_nothing_are_not_taken_for_an_order():
    # Three users are too few for the regularization: every factor is rounding.
    found = r.fit(table({"a": "12", "b": "23", "c": "2"}), r.MF, list("1234"))
    assert found.top("a", 1) == (["2"], np.array([3.0]), "popularity")


def test_excluded_items_are_left_out_and_unknown_ones_ignored(name):
    found = r.fit(EVENTS, name, CATALOG)
    best = found.top("a", 100, ["5", "1", "no such item"])
    assert sorted(best.items) == sorted(set(CATALOG) - {"5", "1"})
    assert found.top("a", 3, CATALOG).items == []


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(st.sampled_from("abcdef"), st.text("0123456789", min_size=1, max_size=8), min_size=1),
    st.integers(1, 12),
    st.text("0123456789", max_size=10),
    st.sampled_from([r.POPULARITY, r.ITEM_KNN]),
)
def test_the_top_is_the_best_part_of_a_full_sort(likes, k, excluded, name):
    found = r.fit(table(likes), name, CATALOG)
    allowed = [item for item in CATALOG if item not in excluded]
    popular = dict(zip(CATALOG, found.scores("nobody", CATALOG).scores, strict=True))
    scored = dict(zip(allowed, found.scores("a", allowed).scores, strict=True))
    assert all(np.isfinite(score) for score in scored.values())
    expected = sorted(allowed, key=lambda item: (-scored[item], -popular[item], item))[:k]
    best = found.top("a", k, excluded)
    assert best.items == expected and best.scores.tolist() == [scored[item] for item in expected]


def test_what_cannot_be_fitted_or_asked_is_one_line():
    with pytest.raises(ConfigError, match=r"^retriever: got 'knn', allowed: popularity, item_knn, mf$"):
        r.fit(EVENTS, "knn")
    with pytest.raises(DataError, match="no like among 2 events"):
        r.fit(EVENTS.filter(pl.col("user_id") == "x"))
    with pytest.raises(DataError, match="item '5' is liked but not in the catalog"):
        r.fit(EVENTS, items=[item for item in CATALOG if item != "5"])
    with pytest.raises(DataError, match="item '77': not in the catalog that the retriever was fitted on"):
        r.fit(EVENTS, items=CATALOG).scores("a", ["1", "77"])
    with pytest.raises(ValueError, match="k: got 0"):
        r.fit(EVENTS, items=CATALOG).top("a", 0)
