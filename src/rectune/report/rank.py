"""`rectune rank`: histories and candidates from options, a file or standard input; rankings as tables or JSON lines."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rectune.errors import ConfigError, DataError
from rectune.score.given import Asked, Unknown
from rectune.score.recommender import Ranked, Recommender

STANDARD_INPUT = Path("-")
_TOGETHER = 64
"""Requests of a file that are scored in one go; those of standard input are answered one by one."""
_FORM = '{"history": [["Heat (1995)", 5]], "candidates": ["Alien (1979)"]}'

Say = Callable[[str], None]


def event_of(text: str) -> list[Any]:
    """A `TITLE=RATING` or `TITLE=LABEL` option as `Recommender` takes events; the title may hold `=`.

    >>> event_of("Toy Story (1995)=4.5"), event_of("E=mc2=No"), event_of("Heat (1995)")
    (['Toy Story (1995)', 4.5], ['E=mc2', 'No'], ['Heat (1995)'])
    """
    title, equals, value = text.rpartition("=")
    if not equals:
        return [text]
    try:
        return [title, float(value)]
    except ValueError:
        return [title, value]


def read_requests(lines: Iterable[str], name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Requests of JSON lines, read as they come, or of one JSON object or list that spans lines.

    Args:
        lines: the text.
        name: what it is called in errors.

    Yields:
        Where the request stands, and the request.

    Raises:
        DataError: a line is no JSON object, or there is none.
    """
    numbered = ((number, line) for number, line in enumerate(lines, start=1) if line.strip())
    try:
        number, line = next(numbered)
    except StopIteration:
        raise DataError(f"{name}: no request; give one JSON object a line, such as {_FORM}") from None
    first = _json(line)
    if not isinstance(first, dict):
        # No whole object on the first line: one value over several lines, or a list of requests.
        whole = (
            _json(line + "".join(line for _, line in numbered)) if first is None or isinstance(first, list) else None
        )
        found = [whole] if isinstance(whole, dict) else whole
        if not isinstance(found, list) or not found or not all(isinstance(one, dict) for one in found):
            raise DataError(
                f"{name}, line {number}: {line.strip()[:60]!r} does not begin a JSON object; give one a line, such as "
                f"{_FORM}, or a list of such objects"
            )
        yield from ((f"{name}, request {at}", one) for at, one in enumerate(found, start=1))
        return
    yield f"{name}, line {number}", first
    for number, line in numbered:
        request = _json(line)
        if not isinstance(request, dict):
            raise DataError(f"{name}, line {number}: {line.strip()[:60]!r} is not a JSON object; give one a line")
        yield f"{name}, line {number}", request


def _json(text: str) -> Any:
    """The value of a JSON text, or None where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


@contextmanager
def _opened(file: Path) -> Iterator[tuple[Iterator[str], str]]:
    """The lines of a file or of standard input, and its name.

    Raises:
        DataError: it cannot be read.
    """
    name = "standard input" if file == STANDARD_INPUT else str(file)
    try:
        if file == STANDARD_INPUT:
            # JSON is UTF-8, whatever the terminal speaks.
            yield iter(io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8-sig", newline="\n")), name
        else:
            with file.open(encoding="utf-8-sig", newline="\n") as opened:
                yield iter(opened), name
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{name}: cannot be read ({error}); give JSON lines in UTF-8, such as {_FORM}") from error


def _asked(recommender: Recommender, request: dict[str, Any], where: str, unknown: Unknown) -> Asked:
    candidates = request.get("candidates")
    if not isinstance(candidates, list) or not candidates:
        raise DataError(f"{where}: candidates is {str(candidates)[:60]!r}; give a list of titles or item ids")
    history = request.get("history")
    return recommender.ask([] if history is None else history, candidates, unknown, f"{where}, ")


def _gather(
    recommender: Recommender, requests: Iterator[tuple[str, dict[str, Any]]], size: int, unknown: Unknown
) -> tuple[list[tuple[str, dict[str, Any], Asked]], DataError | None]:
    """The next requests, read and checked, and what is wrong with the one behind them, if anything is."""
    chunk: list[tuple[str, dict[str, Any], Asked]] = []
    try:
        for where, request in islice(requests, size):
            if where:
                asked = _asked(recommender, request, where, unknown)
            else:
                asked = recommender.ask(request["history"], request["candidates"], unknown)
            chunk.append((where, request, asked))
    except DataError as error:
        return chunk, error
    return chunk, None


def as_records(ranking: Sequence[Ranked]) -> list[dict[str, Any]]:
    """A ranking as JSON objects, best first."""
    return [
        {"rank": place, "title": item.title, "item_id": item.item_id, "score": item.score, "log_odds": item.log_odds}
        | ({} if item.retriever_rank is None else {"retriever_rank": item.retriever_rank})
        for place, item in enumerate(ranking, start=1)
    ]


def ranking_table(ranking: Sequence[Ranked], positive: str, retriever: str | None = None) -> Table:
    """A ranking as a table: place, title, P(positive), the retriever's rank where there is one, item id."""
    table = Table("#", "title", box=None, pad_edge=False, header_style="bold")
    table.columns[0].justify = "right"
    for name in (f"P({positive})", *([retriever] if retriever else []), "item"):
        table.add_column(Text(name), justify="right")
    for place, item in enumerate(ranking, start=1):
        found = [] if retriever is None else [str(item.retriever_rank)]
        # As Text, since a title in square brackets would be read as a style.
        table.add_row(str(place), Text(item.title), f"{item.score:.3f}", *found, Text(item.item_id or "-"))
    return table


def _requests(
    history: Sequence[str], candidates: Sequence[str], file: Path | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    if file is None:
        yield "", {"history": [event_of(text) for text in history], "candidates": list(candidates)}
        return
    with _opened(file) as (lines, name):
        yield from read_requests(lines, name)


def check_options(history: Sequence[str], candidates: Sequence[str], file: Path | None) -> None:
    """Refuse options that do not go together, before a model is loaded.

    Raises:
        ConfigError: a file beside a history or candidates, or neither.
        DataError: there is no such file.
    """
    if file is not None and (history or candidates):
        option = "--history" if history else "--candidate"
        raise ConfigError(f"{option}: does nothing with --input, which brings histories and candidates; leave it out")
    if file is None and not candidates:
        raise ConfigError("--candidate: none is given; name items to rank, or give --input FILE, or --input - to read")
    if file is not None and file != STANDARD_INPUT and not file.is_file():
        raise DataError(f"{file}: no such file; give JSON lines such as {_FORM}")


def rank(
    source: Path,
    overrides: Sequence[str],
    history: Sequence[str],
    candidates: Sequence[str],
    file: Path | None,
    k: int,
    unknown: Unknown,
    as_json: bool,
    say: Say,
    console: Console,
) -> None:
    """Rank candidates for one person, or for the person of each request of a file.

    With `as_json` each request gives one line: what it holds besides history and candidates, such as an id, and
    `ranked`, a list of rank, title, item_id, score and log_odds.

    Args:
        source, overrides: as `Recommender.load` takes them.
        history: `TITLE=RATING` or `TITLE=LABEL`, oldest first.
        candidates: titles or item ids.
        file: JSON requests in place of the two; `-` is standard input.
        k: how many to show.
        unknown: as `Recommender.score` takes it.
        as_json: print JSON lines in place of tables.
        say: prints one line beside the result.
        console: prints the result.

    Raises:
        ConfigError, DataError, ModelError, ResourceError: see `check_options`, `read_requests`, `Recommender`.
    """
    check_options(history, candidates, file)
    recommender = Recommender.load(source, overrides, say)
    positive = recommender.run.prompts.verbalizer.positive
    requests = _requests(history, candidates, file)
    size = 1 if file == STANDARD_INPUT else _TOGETHER
    chunk, problem = _gather(recommender, requests, size, unknown)
    while chunk:
        rankings = recommender.answer([asked for _, _, asked in chunk], k)
        for (where, request, _), ranking in zip(chunk, rankings, strict=True):
            if as_json:
                others = {key: value for key, value in request.items() if key not in ("history", "candidates")}
                print(json.dumps({**others, "ranked": as_records(ranking)}), flush=True)
                continue
            if where:
                console.print(Text(where), soft_wrap=True)
            console.print(ranking_table(ranking, positive))
        if problem is not None:
            break
        chunk, problem = _gather(recommender, requests, size, unknown)
    if problem is not None:
        raise problem
