"""Items as a run's prompts say them: text, like-rate and prior of each item of a catalog."""

from __future__ import annotations

import numpy as np
import polars as pl

from rectune.baselines.item_rates import ItemRates, rate_text, uses_rates
from rectune.prompt.events import Event
from rectune.score.candidates import Candidate
from rectune.score.open_run import OpenRun
from rectune.wording import item_texts, one_line


def like_rate(run: OpenRun, item: str | None) -> tuple[float, int]:
    """Like-rate and count of an item, by its id; an unknown one's is that of an unrated item."""
    rates = run.settings.item_rates
    return rates.get(item, rates[None])


class Items:
    """The items of a catalog, and others by their text.

    Args:
        run: from `open_run`.
        catalog: item_id, title, genres, year.
    """

    def __init__(self, run: OpenRun, catalog: pl.DataFrame) -> None:
        self._run = run
        self._texts = item_texts(catalog, run.config.item_text)

    def text(self, item: str | None, title: str | None = None) -> str:
        """What a prompt calls an item of the catalog, or a title that is in none.

        Raises:
            KeyError: the item is not in the catalog, and no title is given.
        """
        text = self._texts[item] if item in self._texts else one_line(title) if title is not None else None
        if text is None:
            raise KeyError(item)
        return text + rate_text(*like_rate(self._run, item)) if self._run.config.item_rate_text else text

    def candidate(self, item: str | None, title: str | None = None) -> Candidate:
        """An item as a candidate."""
        prior = 0.0
        if uses_rates(self._run.config) and self._run.config.prior == "item_rate":
            rate, count = like_rate(self._run, item)
            prior = float(ItemRates(np.array([rate]), np.array([count])).log_odds[0])
        return Candidate(self.text(item, title), prior)

    def event(self, item: str | None, rating: float | None, label: int, title: str | None = None) -> Event:
        """An item as an event of a history."""
        return Event(self.text(item, title), rating, label)
