"""What a caller gives as history and candidates, turned into events and candidates of a run's prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rectune.data.titles import Titles
from rectune.errors import ConfigError, DataError
from rectune.prompt.events import Event
from rectune.score.candidates import Candidate, Request
from rectune.score.items import Items
from rectune.score.open_run import OpenRun

Unknown = Literal["error", "text"]
_LIKED, _DISLIKED = ("yes", "like", "liked", "true"), ("no", "dislike", "disliked", "false")
_HUGE = 1e300
_TELLS = 1000
"""Titles of no catalog that are told of; a service meets new ones for ever."""
_WHOLE, _NUMBER = (int, np.integer), (int, float, np.integer, np.floating)
_ITEM_KEYS, _EVENT_KEYS = ("title", "item_id"), ("title", "item_id", "rating", "label")


@dataclass(frozen=True)
class Named:
    """An item that was given: its id where the catalog holds it or the caller named one, and its title."""

    item_id: str | None
    title: str


@dataclass(frozen=True)
class Asked:
    """One question as the scorer takes it, and the candidates' names in its order."""

    request: Request
    names: list[Named]


class Given:
    """Reads what callers give.

    Args:
        run: decides what an event must tell: ratings, labels, or nothing.
        items, titles: of the run's catalog, which may be empty.
        scale: smallest and largest rating of the dataset, where known; a rating outside is a mistake.
        say: prints one line.
    """

    def __init__(
        self, run: OpenRun, items: Items, titles: Titles, scale: tuple[float, float] | None, say: Callable[[str], None]
    ) -> None:
        self._run, self._items, self._titles, self._scale, self._say = run, items, titles, scale, say
        words = run.prompts.verbalizer
        self._words = dict.fromkeys(_LIKED, 1) | dict.fromkeys(_DISLIKED, 0)
        self._words |= {words.positive.strip().casefold(): 1, words.negative.strip().casefold(): 0}
        self._told: set[str] = set()

    def ask(self, history: Iterable[Any], candidates: Iterable[Any], unknown: Unknown, where: str = "") -> Asked:
        """A question of any forms that `Recommender` takes.

        Args:
            history: events, oldest first.
            candidates: items.
            unknown: `error` refuses a title that the catalog does not hold, `text` asks about it as it stands.
            where: put before "history" and "candidates" in errors.

        Raises:
            ConfigError: `unknown` is neither.
            DataError: an entry cannot be read, or its item is unknown or not the only one of its title.
        """
        if unknown not in ("error", "text"):
            raise ConfigError(f"unknown: got {unknown!r}, allowed: error, text")
        for name, given in (("history", history), ("candidates", candidates)):
            if isinstance(given, (str, Mapping)) or not isinstance(given, Iterable):
                raise DataError(f"{where}{name}: got {str(given)[:60]!r}; give a list")
        events = [self._event(one, unknown, f"{where}history, event {at}") for at, one in enumerate(history, start=1)]
        names = [self._named(one, unknown, f"{where}candidates, item {at}") for at, one in enumerate(candidates, 1)]
        return Asked(Request(events, [self._candidate(name) for name in names]), names)

    def _candidate(self, name: Named) -> Candidate:
        return self._items.candidate(name.item_id, name.title)

    def _named(self, entry: Any, unknown: Unknown, where: str) -> Named:
        """The item of a title, an id or a mapping of these."""
        if isinstance(entry, Mapping):
            return self._of_mapping(entry, _ITEM_KEYS, unknown, where)
        if isinstance(entry, _WHOLE) and not isinstance(entry, bool):
            return self._of_id(str(entry), None, unknown, where)
        if not isinstance(entry, str):
            raise DataError(f"{where}: got {str(entry)[:60]!r}; give a title, an item id, or {{title, item_id}}")
        return self._of_title(entry, unknown, where)

    def _of_mapping(self, entry: Mapping[Any, Any], keys: Sequence[str], unknown: Unknown, where: str) -> Named:
        other = [key for key in entry if key not in keys]
        if other:
            raise DataError(f"{where}: unknown key {other[0]!r}; allowed: {', '.join(keys)}")
        item, title = entry.get("item_id"), entry.get("title")
        if title is not None and not isinstance(title, str):
            raise DataError(f"{where}: title is {str(title)[:60]!r}; give a text")
        if item is None:
            if title is None:
                raise DataError(f"{where}: neither title nor item_id is given")
            return self._of_title(title, unknown, where)
        if isinstance(item, bool) or not isinstance(item, (str, *_WHOLE)):
            raise DataError(f"{where}: item_id is {str(item)[:60]!r}; give a text or a whole number")
        return self._of_id(str(item), title, unknown, where)

    def _of_id(self, item: str, title: str | None, unknown: Unknown, where: str) -> Named:
        if item in self._titles:
            known = self._titles.title(item)
            if title is not None and item not in self._titles.matches(title):
                raise DataError(
                    f"{where}: item_id {item} is {known!r} in this catalog, not {title[:80]!r}; give one of the two"
                )
            return Named(item, known)
        if unknown == "text" and title is not None:
            return self._foreign(item, title, where)
        held = f"the catalog holds {len(self._titles):,} items" if len(self._titles) else "there is no catalog"
        raise DataError(f"{where}: no item has the id {item[:80]!r} ({held}); give an id of the catalog, or a title")

    def _of_title(self, title: str, unknown: Unknown, where: str) -> Named:
        if unknown == "text" and not self._titles.matches(title):
            return self._foreign(None, title, where)
        item = self._titles.find(title, where)
        return Named(item, self._titles.title(item))

    def _foreign(self, item: str | None, title: str, where: str) -> Named:
        """A title of no catalog; said once each, because it may be a misspelt one."""
        try:
            text = self._items.text(item, title)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        if len(self._titles) and title not in self._told and len(self._told) < _TELLS:
            self._told.add(title)
            self._say(f"{where}: {title[:80]!r} is not in the catalog; the model is asked about it as {text!r}")
        return Named(item, title)

    def _event(self, entry: Any, unknown: Unknown, where: str) -> Event:
        rating, label = None, None
        if isinstance(entry, Mapping):
            name = self._of_mapping(entry, _EVENT_KEYS, unknown, where)
            if entry.get("rating") is not None:
                rating = self._rating(entry["rating"], where)
            if entry.get("label") is not None:
                label = self._label(entry["label"], where)
        elif isinstance(entry, Sequence) and not isinstance(entry, str):
            if len(entry) not in (1, 2):
                raise DataError(f"{where}: got {str(entry)[:60]!r}; give (item, rating) or (item, True or False)")
            name = self._named(entry[0], unknown, where)
            value = entry[1] if len(entry) == 2 else None
            if isinstance(value, (bool, np.bool_, str)):
                label = self._label(value, where)
            elif value is not None:
                rating = self._rating(value, where)
        else:
            name = self._named(entry, unknown, where)
        return self._complete(name, rating, label, where)

    def _rating(self, value: Any, where: str) -> float:
        # Compared before it is made a float: a whole number may be too large for one.
        if isinstance(value, bool) or not isinstance(value, _NUMBER) or not -_HUGE < value < _HUGE:
            raise DataError(f"{where}: rating is {str(value)[:60]!r}; give a number")
        if self._scale is not None and not self._scale[0] <= value <= self._scale[1]:
            low, high = self._scale
            raise DataError(f"{where}: rating is {float(value):g}, but this dataset's go from {low:g} to {high:g}")
        return float(value)

    def _label(self, value: Any, where: str) -> int:
        if isinstance(value, str) and value.strip().casefold() in self._words:
            return self._words[value.strip().casefold()]
        if isinstance(value, (np.bool_, *_WHOLE)) and value in (0, 1):
            return int(value)
        raise DataError(
            f"{where}: {str(value)[:60]!r} is neither a rating nor a label; give a number, yes or no, like or dislike, "
            "true or false"
        )

    def _complete(self, name: Named, rating: float | None, label: int | None, where: str) -> Event:
        """An event that tells what the run's prompts show; a label that is not given comes from the rating, and where
        the run was trained on purchases it is one."""
        shows, threshold = self._run.prompts.shows, self._run.config.rating_threshold
        if self._run.config.label_from == "purchases":
            if label == 0:
                raise DataError(
                    f"{where}: {name.title[:80]!r} is said not to be chosen, but this run's histories are of what was "
                    "chosen alone; leave it out"
                )
            return self._items.event(name.item_id, rating, 1, name.title)
        tells = self._run.config.label_from == "rating" and rating is not None
        if shows == "rating" and rating is None:
            raise DataError(
                f"{where}: {name.title[:80]!r} has no rating, but this run's prompts show each title with its rating; "
                f"give one (liked is {threshold:g} or more)"
            )
        looked_at = bool(self._run.settings.baselines)
        if (shows == "label" or looked_at) and not tells and label is None:
            why = "prompts show if each title was liked" if shows == "label" else "baselines look at what was liked"
            lacks, give = ("neither rating nor label", "one of the two") if rating is None else ("no label", "one")
            raise DataError(f"{where}: {name.title[:80]!r} has {lacks}, but this run's {why}; give {give}")
        if label is None:
            label = int(rating is not None and rating >= threshold)
        return self._items.event(name.item_id, rating, label, name.title)
