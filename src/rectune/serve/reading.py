"""From a request's body to questions for the model: checked, with the catalog's items in place of what was written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from pydantic import ValidationError

from rectune.baselines.retrieve import Retrieved
from rectune.data.columns import USER_ID
from rectune.errors import DataError
from rectune.prompt.events import Event
from rectune.score.candidates import CandidateScorer, Request
from rectune.score.given import Named, Unknown
from rectune.score.recommender import POOL, Recommender
from rectune.serve.history_text import events_of
from rectune.serve.limits import EVENTS, TITLE
from rectune.serve.schema import Pair, RecommendRequest, RerankRequest, ScoreRequest

_USERS = 256
"""Users of the dataset whose events are kept at hand."""


Going = Callable[[], None]
"""Raises where nobody waits for the request any more."""


class TooLarge(DataError):  # noqa: N818
    """A request that asks for more than one may."""


@dataclass(frozen=True)
class Question:
    """One history with its candidates, what the candidates are called, and who is asked; None is the tuned model."""

    request: Request
    names: list[Named]
    scorer: CandidateScorer | None = None


class Reader:
    """Reads the requests of one run.

    Args:
        recommender: the run.
        retriever: finds items for a user.
        unknown: what to do with unknown titles where a request does not say.
        most: candidates of a request at most.
    """

    def __init__(self, recommender: Recommender, retriever: str, unknown: Unknown, most: int) -> None:
        self._recommender, self._retriever, self._unknown, self._most = recommender, retriever, unknown, most
        data, words = recommender.data, recommender.run.prompts.verbalizer
        self._users = frozenset() if data is None else frozenset(data.events[USER_ID].unique())
        self._words = (words.positive, words.negative)
        self._past = lru_cache(_USERS)(recommender.past)

    def rerank(self, body: RerankRequest, going: Going = lambda: None) -> list[Question]:
        """The question of a ranking.

        Args:
            body: the request.
            going: called for every event and every candidate, and ends the reading where it raises.

        Raises:
            DataError: an entry cannot be read, or names nothing that is known.
            TooLarge: more candidates than allowed.
        """
        _check_events([body])
        name = "documents" if body.documents is not None else "candidates"
        asked = body.documents or body.candidates or []
        return [self._question(body, asked, name, self._or_own(body.unknown), going)]

    def score(self, body: ScoreRequest, going: Going = lambda: None) -> list[Question]:
        """The question of one history, or those of the pairs in their order; see `rerank`."""
        unknown = self._or_own(body.unknown)
        if body.pairs is None:
            _check_events([body])
            return [self._question(body, body.candidates or [], "candidates", unknown, going)]
        self._check_count("pairs", body.pairs)
        pairs = [_pair(given, f"pairs, entry {at}: ") for at, given in enumerate(body.pairs, start=1)]
        _check_events(pairs)
        return [
            self._question(pair, [pair.candidate], "candidate", unknown, going, f"pairs, entry {at}: ")
            for at, pair in enumerate(pairs, start=1)
        ]

    def recommend(self, body: RecommendRequest) -> tuple[Question, Retrieved]:
        """The question whose candidates the retriever finds; see `rerank`.

        Raises:
            DataError: an unknown user, a pool smaller than k, or no dataset.
        """
        self._check_size("k", body.k)
        pool = min(max(POOL, body.k), self._most) if body.pool is None else body.pool
        if pool < body.k:
            raise DataError(f"pool: got {pool}, allowed: {body.k} or more, since the k={body.k} best are taken from it")
        self._check_size("pool", pool)
        self._check_user(body.user_id)
        found, request = self._recommender.retrieve(body.user_id, pool, retriever=self._retriever)
        names = [Named(item, self._recommender.titles.title(item)) for item in found.items]
        return Question(request, names), found

    def _or_own(self, unknown: Unknown | None) -> Unknown:
        return self._unknown if unknown is None else unknown

    def _question(
        self,
        body: RerankRequest | ScoreRequest | Pair,
        candidates: Sequence[Any],
        name: str,
        unknown: Unknown,
        going: Going,
        where: str = "",
    ) -> Question:
        self._check_count(name, candidates)
        _check_titles(candidates, f"{where}{name}")
        history, items = self._history(body, where), map(_as_item, candidates)
        asked = self._recommender.ask(_each(history, going), _each(items, going), unknown, where)
        if body.user_id is None:
            return Question(asked.request, asked.names)
        self._check_user(body.user_id)
        past: list[Event] = self._past(str(body.user_id))
        # Under the name that `retrieve` gives, so that a history is kept once.
        return Question(replace(asked.request, history=past, user=f"now {body.user_id}"), asked.names)

    def _history(self, body: RerankRequest | ScoreRequest | Pair, where: str) -> list[Any]:
        if body.query is not None:
            events: list[Any] = list(events_of(body.query, self._words))
        else:
            events = _in_order(body.history or [], where)
        _check_titles(events, f"{where}history")
        return events

    def _check_user(self, user: str | int) -> None:
        # Not the recommender's own words, which name other users.
        if str(user) not in self._users:
            held = f"knows {len(self._users):,} users" if self._users else "has no dataset"
            raise DataError(f"user_id: no such user (this service {held}); give a history of their events in its place")

    def _check_count(self, name: str, given: Sequence[Any]) -> None:
        self._check_size(name, len(given))

    def _check_size(self, name: str, size: int) -> None:
        if size > self._most:
            raise TooLarge(f"{name}: got {size:,}, allowed: {self._most:,} in a request; send several requests")


def _check_events(askers: Sequence[RerankRequest | ScoreRequest | Pair]) -> None:
    """Refuse histories that would only be read to be cut off.

    Raises:
        TooLarge: they have more events than all prompts together could show.
    """
    size = sum(len(one.history or []) + (one.query or "").count("\n") for one in askers)
    if size > EVENTS:
        raise TooLarge(f"history: got {size:,} events, allowed: {EVENTS:,} in a request; send the newest ones")


def _pair(given: Any, where: str) -> Pair:
    """A pair as its entry says it.

    Raises:
        DataError: it is none.
    """
    try:
        return Pair.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = "".join(f"{part}: " for part in first["loc"])
        raise DataError(f"{where}{place}{first['msg'].removeprefix('Value error, ')}") from error


def _each(entries: Iterable[Any], going: Going) -> Iterator[Any]:
    """Entries, as long as somebody waits for what is made of them."""
    for entry in entries:
        going()
        yield entry


def _as_item(entry: Any) -> Any:
    """A candidate as the recommender takes it: a document's text is a title."""
    if isinstance(entry, Mapping) and "text" in entry and "title" not in entry:
        return {"title" if key == "text" else key: value for key, value in entry.items()}
    return entry


def _in_order(history: Sequence[Any], where: str) -> list[Any]:
    """Events by their timestamps, those of one timestamp as they came; as they are where none has one.

    Raises:
        DataError: some have timestamps and some have none, or one is no number.
    """
    timed = [isinstance(event, Mapping) and event.get("timestamp") is not None for event in history]
    bare = [
        {key: value for key, value in event.items() if key != "timestamp"} if isinstance(event, Mapping) else event
        for event in history
    ]
    if not any(timed):
        return bare
    if not all(timed):
        raise DataError(
            f"{where}history, event {timed.index(False) + 1}: has no timestamp, but others have; give all or none"
        )
    times = [event["timestamp"] for event in history]
    for at, time in enumerate(times, start=1):
        if isinstance(time, bool) or not isinstance(time, (int, float)) or time != time:
            raise DataError(f"{where}history, event {at}: timestamp is {str(time)[:60]!r}; give a number")
    return [event for _, event in sorted(zip(times, bare, strict=True), key=lambda pair: pair[0])]


def _texts(entry: Any, deep: int = 3) -> Iterable[str]:
    """Texts in an entry; what lies deeper is no event and no item."""
    if isinstance(entry, str):
        yield entry
    elif deep and isinstance(entry, (Mapping, list)):
        for part in entry.values() if isinstance(entry, Mapping) else entry:
            yield from _texts(part, deep - 1)


def _check_titles(entries: Sequence[Any], where: str) -> None:
    """Refuse texts that are no title, before anything looks for the nearest one.

    Raises:
        DataError: one is too long.
    """
    for at, entry in enumerate(entries, start=1):
        longest = max(map(len, _texts(entry)), default=0)
        if longest > TITLE:
            raise DataError(f"{where}, entry {at}: a text of {longest:,} characters; allowed: {TITLE:,}")
