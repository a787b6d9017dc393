"""What the page shows of a person: a ranking, tuned beside untuned, and which events moved a score."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rectune.baselines.retrieve import DEFAULT
from rectune.measure.classification import probability
from rectune.score.candidates import Request
from rectune.serve.reading import Going, Question
from rectune.serve.service import Service, Serving


class Mark(NamedTuple):
    """An item that was marked on the page, by its id, and whether it was liked."""

    item_id: str
    liked: bool


@dataclass(frozen=True)
class Row:
    """An item of the ranking: P(like) by the tuned model, and by the untuned one, prior added."""

    item_id: str
    title: str
    tuned: float
    untuned: float


@dataclass(frozen=True)
class Reason:
    """An event of the history, and by how much P(like) is higher with it than without it."""

    title: str
    liked: bool
    change: float


async def _never() -> None:
    """The page's own questions have nobody who could hang up."""
    await asyncio.Event().wait()


def rating_of(serving: Serving, liked: bool) -> float | None:
    """What a mark says to a run whose prompts show ratings: the highest one, or one half-way below the threshold."""
    run, scale = serving.recommender.run, serving.recommender.scale
    if run.prompts.shows != "rating" or scale is None:
        return None
    low = round(scale[0] + run.config.rating_threshold) / 2
    return scale[1] if liked else low


def _question(serving: Serving, marks: Sequence[Mark], items: Sequence[str]) -> Question:
    def event(mark: Mark) -> dict[str, object]:
        rating = rating_of(serving, mark.liked)
        told: dict[str, object] = {"item_id": mark.item_id}
        return told | ({"label": mark.liked} if rating is None else {"rating": rating, "label": mark.liked})

    asked = serving.recommender.ask(map(event, marks), [{"item_id": item} for item in items])
    return Question(asked.request, asked.names)


def search(serving: Serving, text: str, most: int) -> list[tuple[str, str]]:
    """Title and id of the items that a text may mean, the likeliest first."""
    titles = serving.recommender.titles
    if not text.strip():
        return []
    found = dict.fromkeys([*titles.matches(text), *titles.nearest(text, most)])
    return [(titles.title(item), item) for item in list(found)[:most]]


async def ranking(service: Service, marks: Sequence[Mark], wanted: Sequence[str], most: int) -> list[Row]:
    """Popular items that are not marked, and those that are wanted, best first by the tuned model."""

    def read(serving: Serving, _going: Going) -> tuple[list[Question], None]:
        seen = {mark.item_id for mark in marks}
        own = [item for item in dict.fromkeys(wanted) if item not in seen]
        # The retriever knows nobody of this name, and so gives what is popular.
        popular = serving.recommender.fit_retriever(DEFAULT).top("", most, {*seen, *own}).items
        tuned = _question(serving, marks, [*own, *popular][: max(most, len(own))])
        return [tuned, Question(tuned.request, tuned.names, serving.untuned)], None

    _, (question, _), _, (tuned, untuned) = await service.answer(read, _never)
    odds = tuned.odds.tolist()
    pairs = zip(question.names, probability(tuned.odds).tolist(), probability(untuned.odds).tolist(), strict=True)
    rows = [Row(str(name.item_id), name.title, one, other) for name, one, other in pairs]
    return [rows[at] for at in sorted(range(len(rows)), key=lambda at: -odds[at])]


async def reasons(service: Service, marks: Sequence[Mark], item: str) -> tuple[float, list[Reason], str]:
    """P(like) of an item, what each event does to it (by leaving it out), the strongest first, and the whole prompt."""

    def read(serving: Serving, _going: Going) -> tuple[list[Question], str]:
        whole = _question(serving, marks, [item])
        history, candidates = list(whole.request.history), whole.request.candidates
        without = [Request([*history[:at], *history[at + 1 :]], candidates) for at in range(len(history))]
        questions = [whole, *(Question(request, whole.names) for request in without)]
        return questions, serving.recommender.scorer.text(whole.request, 0)

    serving, _, prompt, answers = await service.answer(read, _never)
    with_all, *without = (float(probability(answer.odds)[0]) for answer in answers)
    found = [
        Reason(serving.recommender.titles.title(mark.item_id), mark.liked, with_all - alone)
        for mark, alone in zip(marks, without, strict=True)
    ]
    return with_all, sorted(found, key=lambda reason: -abs(reason.change)), prompt
