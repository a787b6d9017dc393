import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rectune.data.titles import Titles, folded, split_year
from rectune.errors import DataError

FILMS = {
    "1": "Toy Story (1995)",
    "2": "Matrix, The (1999)",
    "3": "Heat (1995)",
    "4": "Heat (1986)",
    "5": "Body Snatchers (1993)",
    "6": "Body Snatchers (1993)",
    "7": "Cité des enfants perdus, La (City of Lost Children, The) (1995)",
    "8": "Associé, L' (1996)",
    "9": "Seven (Se7en) (1995)",
    "10": "Babylon 5",
    "11": "Magnificent Seven, The (1954)",
    "12": "3 (2010)",
    "13": "heat (1995)",
    "14": "Corrina, Corrina (1994)",
}


def catalog(films: dict[str, str]) -> pl.DataFrame:
    return pl.DataFrame({"item_id": list(films), "title": list(films.values())})


@pytest.fixture(scope="module")
def titles() -> Titles:
    return Titles(catalog(FILMS))


def refused(titles: Titles, text: str) -> str:
    with pytest.raises(DataError) as caught:
        titles.find(text, "candidates")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "item"),
    [
        ("Toy Story (1995)", "1"),
        ("  toy   STORY (1995)\n", "1"),
        ("toy story", "1"),
        ("1", "1"),
        ("The Matrix", "2"),
        ("the matrix (1999)", "2"),
        ("Matrix, the", "2"),
        ("Heat (1995)", "3"),
        ("HEAT (1986)", "4"),
        ("La Cite des enfants perdus (City of Lost Children, The)", "7"),
        ("L'associe", "8"),
        ("L’Associé (1996)", "8"),
        ("Babylon 5 (1994)", "10"),
        ("heat (1995)", "13"),
        ("Corrina, Corrina", "14"),
    ],
)
def test_an_item_is_found_as_people_write_it(titles: Titles, text: str, item: str) -> None:
    assert titles.find(text, "candidates") == item


def test_a_missing_title_comes_with_the_nearest_ones(titles: Titles) -> None:
    assert refused(titles, "Toy Stori") == (
        "candidates: no item is called 'Toy Stori'; did you mean 'Toy Story (1995)' (1)? give a title as it stands in "
        "the catalog, or an item id"
    )
    # The words stand inside longer names, the shortest first.
    assert "did you mean 'Seven (Se7en) (1995)' (9) or 'Magnificent Seven, The (1954)' (11)?" in refused(
        titles, "seven"
    )
    assert refused(titles, "qqqq") == (
        "candidates: no item is called 'qqqq'; give a title as it stands in the catalog, or an item id"
    )


def test_another_year_is_another_film(titles: Titles) -> None:
    assert "did you mean 'Toy Story (1995)' (1)?" in refused(titles, "Toy Story (1996)")


def test_a_name_of_several_items_is_refused_with_their_ids(titles: Titles) -> None:
    assert refused(titles, "Heat") == (
        "candidates: 'Heat' could be 'Heat (1995)' (3), 'Heat (1986)' (4) or 'heat (1995)' (13); give the title in "
        "full with its year, or the item id as id:3"
    )
    told = refused(titles, "Body Snatchers (1993)")
    assert "could be 'Body Snatchers (1993)' (5) or 'Body Snatchers (1993)' (6);" in told


def test_a_number_that_is_an_id_and_a_title_is_refused(titles: Titles) -> None:
    told = refused(titles, "3")
    assert "'3' could be 'Heat (1995)' (3) or '3 (2010)' (12)" in told and told.endswith("or the item id as id:3")
    assert titles.find("id:3", "candidates") == "3"
    assert "no item is called 'id:999'" in refused(titles, "id:999")


@pytest.mark.parametrize("text", ["", "  ", "\t\n"])
def test_an_empty_title_is_refused(titles: Titles, text: str) -> None:
    assert refused(titles, text).startswith("candidates: got an empty title;")


def test_many_items_of_one_name_are_counted() -> None:
    many = Titles(catalog({str(at): f"Hamlet ({1900 + at})" for at in range(7)}))
    assert "'Hamlet (1900)' (0), " in refused(many, "hamlet") and " and 3 more; give" in refused(many, "hamlet")


def test_an_empty_catalog_holds_nothing() -> None:
    empty = Titles(pl.DataFrame(schema={"item_id": pl.String, "title": pl.String}))
    assert len(empty) == 0 and "1" not in empty and empty.matches("Heat") == []
    assert refused(empty, "Heat").startswith("candidates: no item is called 'Heat'; give")


def test_a_title_that_is_missing_in_the_catalog_is_found_by_its_id_alone() -> None:
    some = Titles(pl.DataFrame({"item_id": ["1", "2"], "title": [None, "Heat"]}))
    assert some.find("1", "x") == "1" and some.title("1") == "" and some.matches("") == []


def test_years_are_those_in_brackets_at_the_end() -> None:
    assert split_year("2001: A Space Odyssey (1968) ") == ("2001: A Space Odyssey", 1968)
    assert split_year("Fawlty Towers (1975-1979)") == ("Fawlty Towers", 1975)
    assert split_year("Blade Runner 2049") == ("Blade Runner 2049", None)


TEXTS = st.text(min_size=1, max_size=12) | st.builds(
    lambda name, article, year: f"{name}{article}{year}",
    st.sampled_from(["Heat", "heat", "Cité", "Babylon 5", "1", "2", "Up", "(500) Days"]),
    st.sampled_from(["", ", The", ", La", ", L'"]),
    st.sampled_from(["", " (1995)", " (1986)", " (V)"]),
)


@given(st.lists(TEXTS, max_size=12))
def test_every_title_finds_its_own_item_or_names_it_among_several(names: list[str]) -> None:
    titles = Titles(catalog({f"id {at}": name for at, name in enumerate(names)}))
    for at, name in enumerate(names):
        same = [f"id {other}" for other, title in enumerate(names) if title == name]
        assert titles.matches(name) == same
        if not name.strip():
            continue
        if len(same) == 1:
            assert titles.find(name, "x") == f"id {at}"
        else:
            with pytest.raises(DataError, match="could be"):
                titles.find(name, "x")


@given(st.lists(TEXTS, max_size=12), st.data())
def test_case_and_white_space_never_hide_an_item(names: list[str], data: st.DataObject) -> None:
    titles = Titles(catalog({f"id {at}": name for at, name in enumerate(names)}))
    for at, name in enumerate(names):
        changed = data.draw(st.sampled_from([f"  {name}\t", folded(name), name.replace(" ", "  ")]))
        found = titles.matches(changed)
        exact = [f"id {other}" for other, title in enumerate(names) if title == changed]
        assert not folded(name) or (found == exact if exact else f"id {at}" in found)
