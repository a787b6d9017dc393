"""Histories and candidates of events, in words."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import polars as pl

from rectune.baselines.item_rates import ItemRates, item_rates, rate_text, uses_rates
from rectune.config import Config
from rectune.data.columns import ITEM_ID, LABEL, RATING
from rectune.data.folder import history_slices
from rectune.errors import DataError
from rectune.prompt.events import Event
from rectune.wording import item_texts


def _texts_of(events: pl.DataFrame, texts: Mapping[str, str]) -> list[str]:
    """The text of each event's item.

    Raises:
        DataError: an event's item is not in the catalog.
    """
    items = events[ITEM_ID].to_list()
    try:
        return [texts[item] for item in items]
    except KeyError as error:
        missing = [item for item in items if item not in texts]
        raise DataError(
            f"catalog.parquet: {len(missing)} events are about items it does not hold, such as {missing[0]!r}; "
            "run `rectune prepare CONFIG --force`"
        ) from error


class EventHistories:
    """Histories and candidates of a dataset's events, or of whole timelines of it, as the prompt builder takes them.

    Args:
        events: whole timelines.
        catalog: the items; not looked at where `texts` are given.
        config: prompt keys.
        prior: float64 [events]; what the stack adds to the log-odds.
        rates: of these events; counted over them where the configuration wants some and none are given.
        texts: `item_texts` of the catalog.

    Attributes:
        titles: text of each event's item, with its like-rate where the configuration writes it.
        items: the same without the like-rate.
        ratings, labels: of each event.
        starts, stops: int64 [events]; where each event's longest history lies. The pointwise layout shows
            `history_len` events, a stream as many as fit.
        prior: float64 [events]; what is added to the log-odds.
    """

    def __init__(
        self,
        events: pl.DataFrame,
        catalog: pl.DataFrame,
        config: Config,
        prior: npt.NDArray[np.float64] | None = None,
        rates: ItemRates | None = None,
        texts: Mapping[str, str] | None = None,
    ) -> None:
        texts = item_texts(catalog, config.item_text) if texts is None else texts
        self.titles = self.items = _texts_of(events, texts)
        self.ratings: list[float | None] = events[RATING].to_list()
        self.labels: list[int] = events[LABEL].to_list()
        longest = config.history_len if config.layout == "pointwise" else events.height
        self.starts, self.stops = history_slices(events, longest)
        self.prior = np.zeros(events.height) if prior is None else prior
        if uses_rates(config):
            if rates is None:
                rates = item_rates(events, config.item_rate_from, config.item_rate_strength)
            if config.prior == "item_rate":
                self.prior = rates.log_odds
            if config.item_rate_text:
                known = zip(self.titles, rates.rate.tolist(), rates.count.tolist(), strict=True)
                self.titles = [title + rate_text(rate, count) for title, rate, count in known]

    def event(self, index: int) -> Event:
        """One event as it is shown in a later history."""
        return Event(self.titles[index], self.ratings[index], self.labels[index])

    def history(self, index: int) -> list[Event]:
        """The strictly earlier events shown for the event at this row index, oldest first."""
        return [self.event(at) for at in range(self.starts[index], self.stops[index])]
