"""The commands `rank` and `recommend`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rectune.cli_options import AsOf, Overrides, RetrieverName, RunOrConfig, Unknown, aside, console, say

RANK_EXAMPLE = (
    'Example: rectune rank output/demo --history "Toy Story (1995)=5" --history "Heat (1995)=2" '
    '--candidate "Alien (1979)" --candidate "Fargo (1996)"   ·   rectune rank output/demo --input requests.jsonl --json'
)


def rank(
    run: RunOrConfig,
    overrides: Overrides = None,
    history: Annotated[
        list[str] | None, typer.Option(metavar="TITLE=RATING", help="An event, oldest first; =Yes, =No are labels.")
    ] = None,
    candidate: Annotated[list[str] | None, typer.Option(metavar="TITLE", help="An item to rank, or its id.")] = None,
    input_file: Annotated[
        Path | None,
        typer.Option("--input", metavar="FILE|-", help='JSON lines of {"history": [...], "candidates": [...]}.'),
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many of the best to show.")] = 10,
    unknown: Annotated[
        Unknown, typer.Option(help="Titles not in the catalog: refuse, or ask as text.")
    ] = Unknown.ERROR,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON line for each request.")] = False,
) -> None:
    """Rank items for one person by P(like), given what they did; no user of the dataset is needed."""
    from rectune.report.rank import rank as stage

    notes = aside if as_json else say
    stage(run, overrides or [], history or [], candidate or [], input_file, k, unknown.value, as_json, notes, console())


RECOMMEND_EXAMPLE = "Example: rectune recommend output/demo --user 42 -k 10   ·   ... --user 42 --retriever item_knn"


def recommend(
    run: RunOrConfig,
    user: Annotated[str, typer.Option(help="A user of the dataset.")],
    overrides: Overrides = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many items to show.")] = 10,
    pool: Annotated[
        int | None,
        typer.Option(min=1, help="Unseen items that the retriever hands to the model; 100, or k if more."),
    ] = None,
    retriever: Annotated[RetrieverName, typer.Option(help="The cheap first stage.")] = RetrieverName.MF,
    as_of: Annotated[AsOf, typer.Option(help="What is known: all events, or those before this split.")] = AsOf.NOW,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Recommend items to a user of the dataset: a retriever's best, ranked again by the model."""
    from rectune.report.recommend import recommend as stage

    notes = aside if as_json else say
    stage(run, overrides or [], user, k, pool, retriever.value, as_of.value, as_json, notes, console())
