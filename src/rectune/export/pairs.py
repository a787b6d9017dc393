"""The questions with which an export is checked: real histories and candidates, as a foreign client sends them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from rectune.data.columns import HISTORY_END, SPLIT, TEST, TRAIN, USER_ID, VALIDATION
from rectune.data.folder import META, load_catalog, load_events, load_meta
from rectune.errors import ModelError
from rectune.export.prompt_template import PromptTemplate
from rectune.prompt.dataset import Dataset
from rectune.prompt.encode import encode, sample_rows
from rectune.prompt.events import Event
from rectune.prompt.histories import EventHistories
from rectune.prompt.pointwise import PointwisePrompts
from rectune.prompt.tree import Trees
from rectune.score.items import with_rate
from rectune.score.open_run import OpenRun

PAIRS = 200
"""How many questions an export is checked with."""
_FILMS = (
    "Toy Story (1995)", "Heat (1995)", "Apollo 13 (1995)", "Braveheart (1995)", "Waterworld (1995)", "Fargo (1996)",
    "Shawshank Redemption, The (1994)", "Alien (1979)", "Godfather, The (1972)", "Titanic (1997)", "Casablanca (1942)",
)  # fmt: skip
"""For a run whose dataset is not there."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Pairs:
    """What is asked.

    Attributes:
        trees: the questions as the run scores them, laid out as in training, without a prior.
        asked: (query, document) of each, as a client writes them; together they are its prompt.
        marked: bool [n]; whether a title in it holds a marker, which a client's tokenizer takes for the real one.
        tied: how many ask about an event that shares its moment with others.
        origin: where they come from, in words.
    """

    trees: Trees
    asked: list[tuple[str, str]]
    marked: npt.NDArray[np.bool_]
    tied: int
    origin: str

    @property
    def texts(self) -> list[str]:
        """Each prompt as one string."""
        return ["".join(pair) for pair in self.asked]


def pairs_of(run: OpenRun, template: PromptTemplate, say: Say) -> Pairs:
    """At most 200 pairs of the run's test events, or made-up ones where its dataset is not there.

    Raises:
        DataError: the dataset is damaged.
        ModelError: a client's prompt is tokenised otherwise than the one that was trained.
    """
    folder = run.config.dataset_folder()
    if (folder / META).is_file():
        data = Dataset(folder, load_events(folder), load_catalog(folder), load_meta(folder))
        if data.content_hash != run.settings.data_hash:
            say("data: this dataset is not the one that the adapter was trained on")
        pairs = _real(run, template, data, say)
    else:
        say(f"data: {folder} is not there, so the export is checked with made-up histories of {len(_FILMS)} films")
        pairs = _made_up(run, template)
    _check_tokens(run, pairs)
    return pairs


def _split_of(events: pl.DataFrame) -> str:
    """The first of test, validation and training that has events."""
    found = set(events[SPLIT].unique())
    return next(split for split in (TEST, VALIDATION, TRAIN) if split in found)


def _real(run: OpenRun, template: PromptTemplate, data: Dataset, say: Say) -> Pairs:
    # The model's own answer is compared; what a prior adds to it is no matter of the weights.
    config = run.config.with_overrides(prior="none")
    split = _split_of(data.events)
    # Whole users, so that events of one moment are asked about together, as branches.
    rows = sample_rows(data.events, split, PAIRS, config.seed, whole_users=True)
    trees = encode(config, data.events, data.catalog, data.content_hash, run.prompts, rows, say)
    histories = EventHistories(data.events, data.catalog, config)
    asked, marked = [], []
    for row, first in zip(trees.rows.tolist(), trees.shown_from.tolist(), strict=True):
        history = [histories.event(at) for at in range(first, histories.stops[row])]
        candidate = histories.titles[row]
        if isinstance(run.prompts, PointwisePrompts):  # a text to be classified may be cut in its middle
            candidate = run.prompts.fitted(candidate)
        asked.append(template.pair(history, candidate))
        marked.append(_holds_marker(run, [*(event.title for event in history), histories.titles[row]]))
    moments = data.events.select(size=pl.len().over(USER_ID, HISTORY_END))["size"].to_numpy()
    tied = int((moments[trees.rows] > 1).sum())
    users = len(set(data.users(trees.rows)))
    return Pairs(trees, asked, np.array(marked), tied, f"{split} events of {users} users of {data.meta['name']}")


def _made_up(run: OpenRun, template: PromptTemplate) -> Pairs:
    draw = np.random.default_rng(run.config.seed)
    films = [with_rate(run, film, None) for film in _FILMS]
    prompts: list[npt.ArrayLike] = []
    asked = []
    for _ in range(PAIRS):
        order = draw.permutation(len(films))
        count = int(draw.integers(0, min(len(films) - 1, run.config.history_len) + 1))
        ratings = draw.integers(2, 11, size=count) / 2
        history = [
            Event(films[at], float(rating), int(rating >= 4)) for at, rating in zip(order, ratings, strict=False)
        ]
        built = run.prompts.build(history, films[order[-1]])
        prompts.append(built.tokens)
        asked.append(template.pair(history[built.dropped :], films[order[-1]]))
    nothing = np.zeros(PAIRS, dtype=np.int32)
    trees = Trees.of_prompts(prompts, nothing, nothing, nothing)
    return Pairs(trees, asked, np.zeros(PAIRS, dtype=bool), 0, "made-up histories")


def _holds_marker(run: OpenRun, titles: list[str]) -> bool:
    return any(marker in title for marker in run.prompts.pieces.special_ids for title in titles)


def _check_tokens(run: OpenRun, pairs: Pairs) -> None:
    """Compare each prompt's tokens with those that a client's tokenizer finds in its string.

    Raises:
        ModelError: they differ although no title holds a marker.
    """
    plain = pairs.trees.plain()
    for number, text in enumerate(pairs.texts):
        if pairs.marked[number]:
            continue
        if run.loaded.tokenizer(text).input_ids != plain.tree_tokens(number).tolist():
            raise ModelError(
                f"the tokenizer {type(run.loaded.tokenizer).__name__} reads the prompt {text[-60:]!r} otherwise than "
                "the trained one, so no client could ask this model; take a model with a byte-level tokenizer (Qwen, "
                "SmolLM, Llama 3), or prompt_format=completion"
            )
