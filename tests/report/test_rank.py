"""`rectune rank` from options, files and standard input, as tables and as JSON."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from rectune.cli import main
from rectune.config import parse_config
from rectune.errors import ConfigError, DataError
from rectune.report.rank import as_records, check_options, event_of, ranking_table, read_requests
from rectune.score.recommender import Ranked, Recommender
from rectune.train.train import train

ODD, EVEN, NEW = "Film 3, The (1983)", "Film 4, The (1984)", "Film 9, The (1989)"
REQUEST = {"id": "a", "history": [[ODD, 5.0], [EVEN, 1.0]], "candidates": [NEW, "12", "film 7, the"]}


def silent(_line: str) -> None:
    """Say nothing."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path, movielens: Path) -> Path:
    root = tmp_path_factory.mktemp("rank")
    config = parse_config(
        {
            "model_name_or_path": str(tiny_qwen3), "dataset": str(movielens), "dataset_dir": str(root / "data"),
            "output_dir": str(root / "run"), "preprocessing_cache_dir": str(root / "cache"), "bf16": False,
            "layout": "stream", "cutoff_len": 600, "report_to": "none", "max_steps": 2, "eval_steps": 2,
            "save_steps": 2, "learning_rate": 0.05,
        },
        origin="test",
    )  # fmt: skip
    return train(config, silent, Console(quiet=True))


@pytest.fixture(scope="module")
def expected(tiny: Path) -> list[Ranked]:
    return Recommender.load(tiny, say=silent).rank(REQUEST["history"], REQUEST["candidates"])


def command(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[list[str], list[str]]:
    """Lines on standard output and on standard error of a command that succeeds."""
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    found = capsys.readouterr()
    assert caught.value.code == 0, found.err
    return found.out.splitlines(), found.err.splitlines()


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line of a command that fails."""
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert caught.value.code in (2, 3) and len(errors) == 1
    return errors[0]


OPTIONS = (
    "--history",
    f"{ODD}=5",
    "--history",
    f"{EVEN}=1",
    *(f"--candidate={text}" for text in REQUEST["candidates"]),
)


def test_options_give_a_table_best_first(
    capsys: pytest.CaptureFixture[str], tiny: Path, expected: list[Ranked]
) -> None:
    out, _ = command(capsys, "rank", tiny, *OPTIONS, "-k", "2")
    rows = [line.split() for line in out[-3:]]
    assert rows[0] == ["#", "title", "P(Yes)", "item"]
    for place, (row, item) in enumerate(zip(rows[1:], expected[:2], strict=True), start=1):
        assert row == [str(place), *item.title.split(), f"{item.score:.3f}", item.item_id]


def test_json_gives_one_line_and_nothing_else_on_standard_output(
    capsys: pytest.CaptureFixture[str], tiny: Path, expected: list[Ranked]
) -> None:
    out, err = command(capsys, "rank", tiny, *OPTIONS, "--json")
    (line,) = out
    assert_ranked(json.loads(line), expected)
    assert any(said.startswith("device: ") for said in err)


def assert_ranked(line: dict[str, Any], expected: list[Ranked]) -> None:
    assert [row["item_id"] for row in line["ranked"]] == [item.item_id for item in expected]
    for place, (row, item) in enumerate(zip(line["ranked"], expected, strict=True), start=1):
        assert list(row) == ["rank", "title", "item_id", "score", "log_odds"]
        assert (row["rank"], row["title"]) == (place, item.title)
        assert row["score"] == pytest.approx(item.score, abs=1e-5)
        assert row["log_odds"] == pytest.approx(item.log_odds, abs=1e-4)


def test_a_file_of_requests_gives_a_line_each_with_what_else_it_held(
    capsys: pytest.CaptureFixture[str], tiny: Path, expected: list[Ranked], tmp_path: Path
) -> None:
    file = tmp_path / "requests.jsonl"
    lines = [json.dumps(REQUEST), "", json.dumps({"id": "b\u2028ü", "candidates": ["12"]}, ensure_ascii=False)]
    file.write_text("\n".join(lines), encoding="utf-8")
    out, _ = command(capsys, "rank", tiny, "--input", file, "--json")
    first, second = map(json.loads, out)
    assert list(first) == ["id", "ranked"] and first["id"] == "a"
    assert_ranked(first, expected)
    assert second["id"] == "b\u2028ü" and [row["item_id"] for row in second["ranked"]] == ["12"]
    shown, _ = command(capsys, "rank", tiny, "--input", file)
    assert [line for line in shown if line.startswith(str(file))] == [f"{file}, line 1", f"{file}, line 3"]


def test_standard_input_is_read_as_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny: Path, expected: list[Ranked]
) -> None:
    text = json.dumps(REQUEST, indent=2)  # one object over several lines
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode()), encoding="ascii"))
    (line,), _ = command(capsys, "rank", tiny, "--input", "-", "--json")
    assert_ranked(json.loads(line), expected)


def test_what_came_before_a_bad_line_is_answered(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny: Path
) -> None:
    text = json.dumps(REQUEST) + "\n" + json.dumps({"history": [], "candidates": ["Film 99"]}) + "\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8"))
    with pytest.raises(SystemExit):
        main(["rank", str(tiny), "--input", "-", "--json"])
    found = capsys.readouterr()
    assert len(found.out.splitlines()) == 1
    assert "error: standard input, line 2, candidates, item 1: no item is called 'Film 99'; did you mean" in found.err


@pytest.mark.parametrize("bad", ['{"history": [], "candidates": ["Film 99"]}', "no JSON"])
def test_what_came_before_a_bad_line_of_a_file_is_answered(
    capsys: pytest.CaptureFixture[str], tiny: Path, tmp_path: Path, bad: str
) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_text("\n".join([json.dumps(REQUEST), json.dumps(REQUEST), bad, json.dumps(REQUEST)]))
    with pytest.raises(SystemExit):
        main(["rank", str(tiny), "--input", str(file), "--json"])
    found = capsys.readouterr()
    assert len(found.out.splitlines()) == 2
    assert f"error: {file}, line 3" in found.err


def test_foreign_titles_need_an_explicit_choice(capsys: pytest.CaptureFixture[str], tiny: Path) -> None:
    told = refused(capsys, "rank", tiny, "--candidate", "Dune [red]")
    assert told.startswith("error: candidates, item 1: no item is called 'Dune [red]'")
    out, _ = command(capsys, "rank", tiny, "--candidate", "Dune [red]", "--unknown", "text")
    assert "candidates, item 1: 'Dune [red]' is not in the catalog" in "\n".join(out)
    assert out[-1].split()[:3] == ["1", "Dune", "[red]"] and out[-1].split()[-1] == "-"


def test_options_that_do_not_go_together_are_refused_before_loading(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    gone = tmp_path / "no run"
    assert refused(capsys, "rank", gone).startswith("error: --candidate: none is given; name items to rank")
    assert "--history: does nothing with --input" in refused(
        capsys, "rank", gone, "--input", "-", "--history", "a=1", "--candidate", "b"
    )
    assert refused(capsys, "rank", gone, "--input", tmp_path / "x").startswith(f"error: {tmp_path / 'x'}: no such file")
    with pytest.raises(ConfigError, match="--candidate: does nothing with --input"):
        check_options([], ["b"], Path("-"))


@pytest.mark.parametrize("value", [None, [], "Heat (1995)", {"a": 1}])
def test_a_request_without_a_list_of_candidates_is_refused(
    capsys: pytest.CaptureFixture[str], tiny: Path, tmp_path: Path, value: Any
) -> None:
    file = tmp_path / "requests.json"
    file.write_text(json.dumps([REQUEST, {"candidates": value}]), encoding="utf-8")
    told = refused(capsys, "rank", tiny, "--input", file)
    assert told == f"error: {file}, request 2: candidates is {str(value)[:60]!r}; give a list of titles or item ids"


# --- reading ---


@pytest.mark.parametrize(
    ("text", "event"),
    [
        ("Toy Story (1995)=5", ["Toy Story (1995)", 5.0]),
        ("a=b=c=Yes", ["a=b=c", "Yes"]),
        ("a=-1.5", ["a", -1.5]),
        ("a=", ["a", ""]),
        ("Heat (1995)", ["Heat (1995)"]),
    ],
)
def test_the_last_equals_sign_divides_title_and_value(text: str, event: list[Any]) -> None:
    assert event_of(text) == event


OBJECTS = st.dictionaries(st.text(max_size=5), st.text(max_size=5) | st.none() | st.integers(), max_size=3)


@given(st.lists(OBJECTS, min_size=1, max_size=5), st.booleans(), st.booleans())
def test_requests_are_read_in_every_form(objects: list[dict[str, Any]], escaped: bool, blank: bool) -> None:
    gap = "\n \n" if blank else "\n"
    lines = gap.join(json.dumps(each, ensure_ascii=escaped) for each in objects)
    for text in (lines, json.dumps(objects), json.dumps(objects, indent=1)):
        found = list(read_requests(io.StringIO(text, newline="\n"), "here"))
        assert [request for _, request in found] == objects
    assert [where for where, _ in read_requests(io.StringIO(lines, newline="\n"), "x")] == [
        f"x, line {1 + at * (1 + blank)}" for at in range(len(objects))
    ]


def test_requests_are_read_as_they_come() -> None:
    def lines() -> Any:
        yield '{"a": 1}\n'
        raise AssertionError("read too far")

    assert next(read_requests(lines(), "x")) == ("x, line 1", {"a": 1})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "x: no request; give one JSON object a line, such as"),
        (" \n\n", "x: no request"),
        ("\nhello\n", "x, line 2: 'hello' does not begin a JSON object; give one a line"),
        ("5", "x, line 1: '5' does not begin a JSON object"),
        ("null", "x, line 1: 'null' does not begin"),
        ("[1, 2]", "x, line 1: '[1, 2]' does not begin"),
        ("[]", "x, line 1: '[]' does not begin"),
        ('{"a": 1}\n{"a": \n', "x, line 2: '{\"a\":' is not a JSON object; give one a line"),
        ('{"a": 1}\n[1]\n', "x, line 2: '[1]' is not a JSON object"),
        ("[" * 100_000, "does not begin a JSON object"),
    ],
)
def test_what_is_no_request_is_named_by_its_line(text: str, told: str) -> None:
    with pytest.raises(DataError) as caught:
        list(read_requests(io.StringIO(text), "x"))
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_no_text_is_one_line(capsys: pytest.CaptureFixture[str], tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_bytes(b'{"candidates": ["\xff\xfe"]}')
    assert f"error: {file}: cannot be read (" in refused(capsys, "rank", tiny, "--input", file)


# --- showing ---


def test_titles_in_a_table_are_no_markup_and_scores_have_three_digits() -> None:
    console = Console(file=io.StringIO(), width=60)
    ranking = [Ranked("[bold]Up[/] (2009)", "5", 0.98765, 4.4, 7), Ranked("Heat", None, 0.0004, -7.8, 1)]
    console.print(ranking_table(ranking, "Yes", "mf rank"))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert [line.split() for line in lines] == [
        ["#", "title", "P(Yes)", "mf", "rank", "item"],
        ["1", "[bold]Up[/]", "(2009)", "0.988", "7", "5"],
        ["2", "Heat", "0.000", "1", "-"],
    ]
    assert as_records(ranking)[0] == {
        "rank": 1, "title": "[bold]Up[/] (2009)", "item_id": "5", "score": 0.98765, "log_odds": 4.4,
        "retriever_rank": 7,
    }  # fmt: skip
