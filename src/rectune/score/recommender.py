"""The Python interface: a tuned model, or an untuned one, that scores, ranks and recommends items for one person."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from rectune.baselines.prior import prior_of
from rectune.baselines.retrieve import DEFAULT, Retrieved, Retriever, fit
from rectune.config import Config, load_config, parse_override
from rectune.config_classify import only_recommending
from rectune.data.candidate_sets import history_at
from rectune.data.clean import CATALOG_SCHEMA, HIGHEST_RATING, LOWEST_RATING
from rectune.data.columns import ITEM_ID, LABEL, RATING, USER_ID
from rectune.data.folder import META, load_catalog, load_events, load_meta, own_events
from rectune.data.titles import Titles
from rectune.errors import ConfigError, DataError
from rectune.measure.classification import probability
from rectune.prompt.dataset import Dataset, open_dataset
from rectune.prompt.events import Event
from rectune.score.candidates import CandidateScorer, Request
from rectune.score.given import Asked, Given, Named, Unknown
from rectune.score.items import Items
from rectune.score.open_run import OpenRun, open_run, run_config
from rectune.score.pairs import AS_OF, NOW
from rectune.shipped import find_config

Say = Callable[[str], None]

POOL = 100
"""Items that a retriever hands over as a rule."""


@dataclass(frozen=True)
class Ranked:
    """An item of a ranking.

    Attributes:
        title: as the catalog has it, or as it was given.
        item_id: None for a title that is in no catalog.
        score: P(like), 0 to 1.
        log_odds: of the two label words, prior added; the ranking goes by these, which do not saturate.
        retriever_rank: place among the retriever's items, 1 the best; None where none was asked.
        retriever: which one; popularity where the one asked for knows nothing of the user.
    """

    title: str
    item_id: str | None
    score: float
    log_odds: float
    retriever_rank: int | None = None
    retriever: str | None = None


def open_untuned(config: Config, say: Say) -> tuple[OpenRun, Dataset]:
    """A configuration's base model, asked as a run of that configuration would be, and its dataset.

    What a run has saved is made here: prompt texts from the configuration, item rates from the dataset, which is
    prepared first where it is missing.
    """
    from rectune.model.classifier import for_answers
    from rectune.model.load import load_model
    from rectune.prompt.layouts import prompts_for
    from rectune.prompt.pieces import Pieces
    from rectune.score.settings import settings_of

    data = open_dataset(config, say)
    loaded = load_model(config, say)
    prompts = prompts_for(config, Pieces(loaded.tokenizer))
    loaded = for_answers(config, loaded, prompts.verbalizer, say)
    dtype = str(loaded.dtype).removeprefix("torch.")
    stack, _ = prior_of(config, data.events, data.catalog, data.content_hash, say)
    settings = settings_of(
        config,
        prompts.verbalizer,
        loaded.source,
        loaded.revision,
        dtype,
        data.content_hash,
        data.events,
        {} if stack is None else {"stack": stack},
    )
    say(f"model: {config.model_name_or_path}, untuned; give a run folder for a tuned one")
    return OpenRun(config.output_dir, settings.config(config), settings, loaded.model, loaded, prompts), data


def data_of(run: OpenRun, say: Say) -> Dataset | None:
    """The prepared dataset of a run as it lies there, or None where it is missing.

    Raises:
        DataError: it is damaged, or missing while the run knows items by their ids.
    """
    folder = run.config.dataset_folder()
    if (folder / META).is_file():
        data = Dataset(folder, load_events(folder), load_catalog(folder), load_meta(folder))
        if data.content_hash != run.settings.data_hash:
            say("data: this dataset is not the one that the adapter was trained on")
        return data
    advice = f"prepare it with `rectune prepare {run.folder}`, or name its folder with dataset_dir=FOLDER"
    if run.settings.knows_items:
        raise DataError(f"{folder}: the run's dataset is not there, and this run knows items by their ids; {advice}")
    say(f"data: {folder} is not there, so titles are taken as they are and there is nothing to recommend; {advice}")
    return None


def rating_scale(events: pl.DataFrame) -> tuple[float, float] | None:
    """Between which ratings one can lie: those of MovieLens where all of a dataset's do, else its own lowest and
    highest; None where it has none."""
    low, high = events.select(pl.col(RATING).min().alias("low"), pl.col(RATING).max().alias("high")).row(0)
    if low is None:
        return None
    if low >= LOWEST_RATING and high <= HIGHEST_RATING:
        return LOWEST_RATING, HIGHEST_RATING
    return low, high


class Recommender:
    """Says how likely a person is to like items, given what they did.

    A history is a list of events, oldest first. An event is `(item, rating)`, `(item, True or False)`, or a mapping
    with `title` or `item_id` and `rating` or `label`. An item is a title as in the catalog (case, white space, the
    year and the place of an article may differ), an item id, or a mapping with `title` or `item_id`. Ratings become
    labels by the run's `rating_threshold`. A run whose prompts show ratings needs them.

    >>> from rectune import Recommender
    >>> recommender = Recommender.load("output/demo", say=lambda line: None)
    >>> history = [("Toy Story (1995)", 5), ("Heat (1995)", 2), ({"item_id": "3"}, 4)]
    >>> scores = recommender.score(history, ["Alien (1979)", "The Godfather"])
    >>> [0 < score < 1 for score in scores]
    [True, True]
    >>> best, *others = recommender.rank(history, ["alien", "The Godfather", "Fargo (1996)"], k=2)
    >>> best.score >= others[0].score, best.title in ("Alien (1979)", "Godfather, The (1972)", "Fargo (1996)")
    (True, True)
    >>> recommender.score(history, ["Alein"])
    Traceback (most recent call last):
    rectune.errors.DataError: candidates, item 1: no item is called 'Alein'; did you mean 'Alien (1979)' (183)? ...
    >>> len(recommender.score(history, ["A film of next year"], unknown="text"))
    1
    >>> [item.retriever_rank is not None for item in recommender.recommend("7", k=3)]
    [True, True, True]

    Attributes:
        run: the opened run.
        data: its dataset, or None where it is missing.
        titles: its catalog's titles.
        scorer: what scores its requests.
        scale: lowest and highest rating of its dataset, None where it has none.
    """

    def __init__(self, run: OpenRun, data: Dataset | None, say: Say = print) -> None:
        self.run, self.data, self._say = run, data, say
        catalog = data.catalog if data is not None else pl.DataFrame(schema=CATALOG_SCHEMA)
        self.titles = Titles(catalog)
        self._items = Items(run, catalog)
        self.scorer = CandidateScorer(run, say)
        self.scale = None if data is None else rating_scale(data.events)
        self._given = Given(run, self._items, self.titles, self.scale, say)
        self._fitted: tuple[tuple[str, str], Retriever] | None = None

    @classmethod
    def load(cls, source: str | Path | Config, overrides: Sequence[str] = (), say: Say = print) -> Recommender:
        """Open a run folder (the tuned model), or a configuration (its base model, untuned).

        Args:
            source: a run folder or one of its checkpoints; a YAML file, the name of a shipped configuration, or a
                Config.
            overrides: `key=value` strings; for a run only keys that do not change its prompts.
            say: prints one line.

        Raises:
            ConfigError: there is no such run folder, file or shipped configuration, or a key is wrong.
            DataError: the dataset is damaged, or missing where it is needed.
            ModelError, ResourceError: the model is missing, damaged, or does not fit.
        """
        if not isinstance(source, Config):
            path = Path(source).expanduser()
            if path.is_dir():
                only_recommending(run_config(path, list(overrides)), "rank, recommend and serve")
                run = open_run(path, list(overrides), say)
                return cls(run, data_of(run, say), say)
            try:
                file = find_config(path)
            except ConfigError as error:
                raise ConfigError(f"{error}; or give a run folder, the output_dir of a training") from error
            return cls(*open_untuned(load_config(file, list(overrides)), say), say)
        return cls(*open_untuned(source.with_overrides(**dict(map(parse_override, overrides))), say), say)

    def ask(
        self, history: Iterable[Any], candidates: Iterable[Any], unknown: Unknown = "error", where: str = ""
    ) -> Asked:
        """A question, read and checked, for `answer`; `where` stands before what its errors name."""
        # Without a catalog no title can be wrong; that was said when the dataset was found missing.
        return self._given.ask(history, candidates, unknown if self.data is not None else "text", where)

    def answer(self, asked: Sequence[Asked], k: int | None = None) -> list[list[Ranked]]:
        """Rankings of several questions at once, each best first, at most `k` items long.

        An item that a question names twice is ranked once; items with equal scores keep their order.

        Raises:
            ConfigError: k is less than 1.
        """
        _at_least_one("k", k)
        found = self.scorer.score([each.request for each in asked])
        rankings = []
        for each, log_odds in zip(asked, found, strict=True):
            pairs: dict[Named, float] = {}
            for name, odds in zip(each.names, log_odds.tolist(), strict=True):
                pairs.setdefault(name, odds)
            best = sorted(pairs.items(), key=lambda pair: -pair[1])[:k]
            scores = probability(np.array([odds for _, odds in best])).tolist()
            rankings.append(
                [
                    Ranked(name.title, name.item_id, score, odds)
                    for (name, odds), score in zip(best, scores, strict=True)
                ]
            )
        return rankings

    def score(
        self, history: Iterable[Any], candidates: Iterable[Any], unknown: Unknown = "error", user: str | None = None
    ) -> list[float]:
        """P(like) of each candidate, in their order.

        Args:
            history: events, oldest first (see the class).
            candidates: items (see the class).
            unknown: what to do with a title that the catalog does not hold: `error`, with the nearest titles, or
                `text`, to ask the model about it as it stands.
            user: a name of your own under which the history's keys and values are kept: asking again, with new events
                behind the same ones, then costs these events only. The least recently asked users are dropped.

        Raises:
            ConfigError, DataError: see `Given.ask`.
        """
        (log_odds,) = self.scorer.score([self._kept(self.ask(history, candidates, unknown), user).request])
        return [float(score) for score in probability(log_odds)]

    def rank(
        self,
        history: Iterable[Any],
        candidates: Iterable[Any],
        k: int | None = None,
        unknown: Unknown = "error",
        user: str | None = None,
    ) -> list[Ranked]:
        """The candidates by P(like), best first; see `score` for the arguments, and `answer`.

        Args:
            history, candidates, unknown, user: as `score` takes them.
            k: how many to return; None returns all.
        """
        _at_least_one("k", k)
        return self.answer([self._kept(self.ask(history, candidates, unknown), user)], k)[0]

    @staticmethod
    def _kept(asked: Asked, user: str | None) -> Asked:
        """The question with its history kept under a name."""
        if user is None:
            return asked
        return replace(asked, request=replace(asked.request, user=f"named {user}"))

    # --- two stages ---

    def _known(self, as_of: str) -> tuple[Dataset, pl.DataFrame]:
        """The dataset, which two stages need, and those of its events that are known.

        Raises:
            ConfigError: an unknown `as_of`.
            DataError: the dataset is missing.
        """
        if as_of not in AS_OF:
            raise ConfigError(f"as_of: got {as_of!r}, allowed: {', '.join(AS_OF)}")
        if self.data is None:
            raise DataError(
                f"{self.run.config.dataset_folder()}: the run's dataset is not there, so there are no users and no "
                "items to recommend; prepare it, or name its folder with dataset_dir=FOLDER"
            )
        return self.data, own_events(self.data.events) if as_of == NOW else history_at(self.data.events, as_of)

    def events_of(self, user_id: str | int, as_of: str = NOW) -> pl.DataFrame:
        """A user's events, oldest first, with the columns of `load_events`.

        Args:
            user_id: a user of the dataset.
            as_of: `now` takes all; `validation` and `test` those strictly earlier than the user's first event of
                that split.

        Raises:
            ConfigError: an unknown `as_of`.
            DataError: the dataset is missing, or does not hold the user.
        """
        data, known = self._known(as_of)
        user = str(user_id)
        found = known.filter(pl.col(USER_ID) == user)
        if found.is_empty() and user not in data.events[USER_ID]:
            users = data.events[USER_ID].unique(maintain_order=True)
            raise DataError(
                f"user: the dataset has no user {user[:60]!r}; it has {len(users):,}, such as "
                f"{', '.join(users.head(3))}; for a person who is not in it, give what they did to `rectune rank` "
                "(Recommender.rank)"
            )
        return found

    def fit_retriever(self, retriever: str = DEFAULT, as_of: str = NOW) -> Retriever:
        """A retriever fitted on what is known of all users, as `events_of` takes it; the last one fitted is kept.

        Raises:
            ConfigError: an unknown retriever or `as_of`.
            DataError: the dataset is missing.
        """
        if self._fitted is None or self._fitted[0] != (retriever, as_of):
            data, known = self._known(as_of)
            self._fitted = (retriever, as_of), fit(known, retriever, data.catalog[ITEM_ID])
        return self._fitted[1]

    def past(self, user_id: str | int, as_of: str = NOW) -> list[Event]:
        """A user's events as a request's history; see `events_of`."""
        past = self.events_of(user_id, as_of).select(ITEM_ID, RATING, LABEL)
        return [self._items.event(*event) for event in past.iter_rows()]

    def retrieve(
        self, user_id: str | int, pool: int, as_of: str = NOW, retriever: str = DEFAULT
    ) -> tuple[Retrieved, Request]:
        """The retriever's best items that a user has no event of, and the request that ranks them; see `recommend`."""
        history = self.past(user_id, as_of)
        found = self.fit_retriever(retriever, as_of).top(str(user_id), pool, [str(event.item_id) for event in history])
        return found, Request(history, [self._items.candidate(item) for item in found.items], f"{as_of} {user_id}")

    def recommend(
        self, user_id: str | int, k: int = 10, pool: int | None = None, as_of: str = NOW, retriever: str = DEFAULT
    ) -> list[Ranked]:
        """Items for a user of the dataset: a cheap retriever's best, ranked again by the model.

        Args:
            user_id: a user of the dataset.
            k: how many items to return.
            pool: how many items the retriever hands over, of those that the user has no event of; None takes 100,
                or k where that is more.
            as_of: what is known, as `events_of` takes it; `now` includes the held-out events.
            retriever: `mf`, `item_knn` or `popularity` (see `baselines.retrieve`). Where it knows nothing of the
                user, popularity stands in, and that is said.

        Returns:
            At most k items, best first, with their retriever ranks.

        Raises:
            ConfigError: k is less than 1, pool less than k, or a name is unknown.
            DataError: the dataset is missing, does not hold the user, or does not fit its catalog.
        """
        _at_least_one("k", k)
        pool = max(POOL, k) if pool is None else pool
        _at_least_one("pool", pool)
        if pool < k:
            raise ConfigError(f"pool: got {pool}, allowed: {k} or more, since the k={k} best are taken from it")
        found, request = self.retrieve(user_id, pool, as_of, retriever)
        if found.by != retriever:
            self._say(f"retriever: {retriever} knows nothing of user {user_id}; {found.by} stands in")
        (log_odds,) = self.scorer.score([request])
        scores = probability(log_odds)
        order = sorted(range(len(found.items)), key=lambda at: -log_odds[at])[:k]
        return [
            Ranked(
                self.titles.title(found.items[at]), found.items[at], float(scores[at]), float(log_odds[at]), at + 1,
                found.by,
            )
            for at in order
        ]  # fmt: skip


def _at_least_one(name: str, value: int | None) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ConfigError(f"{name}: got {value!r}, allowed: a whole number of 1 or more")
