"""Items as a run's prompts say them: text, like-rate and prior of each item of a catalog."""

from __future__ import annotations

import numpy as np
import polars as pl

from rectune.baselines.item_rates import ItemRates, rate_text, uses_rates
from rectune.data.columns import ITEM_ID, TITLE, YEAR
from rectune.data.titles import split_year
from rectune.errors import DataError
from rectune.prompt.events import Event
from rectune.score.candidates import Candidate
from rectune.score.open_run import OpenRun
from rectune.wording import item_texts, one_line


def like_rate(run: OpenRun, item: str | None) -> tuple[float, int]:
    """Like-rate and count of an item, by its id; an unknown one's is that of an unrated item.

    Raises:
        ModelError: no item rates were saved with the run.
    """
    rates = run.settings.item_rates
    return rates.get(item, rates[None])


def item_prior(run: OpenRun, item: str | None) -> float:
    """What is added to the model's log-odds of an item whatever the history: those of its like-rate, or 0 in a run
    without such a prior."""
    if not uses_rates(run.config) or run.config.prior != "item_rate":
        return 0.0
    rate, count = like_rate(run, item)
    return float(ItemRates(np.array([rate]), np.array([count])).log_odds[0])


def with_rate(run: OpenRun, text: str, item: str | None) -> str:
    """An item's text with its like-rate behind it, where the run's prompts write that."""
    return text + rate_text(*like_rate(run, item)) if run.config.item_rate_text else text


class Items:
    """The items of a catalog, and others by their title.

    Args:
        run: from `open_run`.
        catalog: item_id, title, genres, year; may be empty.
    """

    def __init__(self, run: OpenRun, catalog: pl.DataFrame) -> None:
        self._run = run
        self._schema = catalog.schema
        self._texts = item_texts(catalog, run.config.item_text)

    def text(self, item: str | None, title: str | None = None) -> str:
        """What a prompt calls an item of the catalog, or a title that is in none.

        Raises:
            KeyError: the item is not in the catalog, and no title is given.
            DataError: the title is not in the catalog, and the run's prompts cannot say it.
        """
        text = self._texts.get(item) if item is not None else None
        if text is None:
            if title is None:
                raise KeyError(item)
            text = self._foreign(title)
        return with_rate(self._run, text, item)

    def _foreign(self, title: str) -> str:
        """A title of no catalog, put as `item_text` puts those of the catalog; what it does not tell is left out.

        Raises:
            DataError: the prompts say nothing that a title tells, or the title is empty.
        """
        if not one_line(title):
            raise DataError("got an empty title; give the title of an item")
        if self._run.config.item_text == "title":
            return one_line(title)
        known = {ITEM_ID: "", TITLE: title, YEAR: split_year(title)[1]}
        row = {name: [known.get(name)] for name in self._schema}
        (text,) = item_texts(pl.DataFrame(row, schema=self._schema), self._run.config.item_text).values()
        if text.strip() == "item":  # an item without any text is called by its id, and this one has none
            raise DataError(
                f"{title[:80]!r} is not in the catalog, and item_text={self._run.config.item_text!r} says nothing of "
                "an item that its title tells; give items of the catalog"
            )
        return text

    def candidate(self, item: str | None, title: str | None = None) -> Candidate:
        """An item as a candidate; see `text`."""
        return Candidate(self.text(item, title), item_prior(self._run, item), item)

    def event(self, item: str | None, rating: float | None, label: int, title: str | None = None) -> Event:
        """An item as an event of a history; see `text`."""
        return Event(self.text(item, title), rating, label, item)
