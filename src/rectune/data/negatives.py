"""Sampled negatives for a log of purchases: items that a user has never bought, drawn once and kept with the events.

A negative stands for "was asked, and would have said no", not for something that happened. It shares its purchase's
user, moment, split and history, and stands behind all of the user's own events in the table: histories are runs of
earlier rows, so no negative can ever be in one, whoever reads them.

Which items may be drawn: those that anyone, in any split, had bought at the event's moment or before; else an item
that nobody had yet bought would be told by just that. Of these only the ones with a purchase in the event's own split
or an earlier one (of train, validation, test), so that training never meets an item of which only test events know: one
user's test may be before another's training. Never one that the user bought, in whatever split and at whatever time.
Where items are offered in markets, such as cities, only those of the purchase's own. A purchase for which no item is
left has no negatives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from rectune.data import columns as c
from rectune.data.folder import WITH_NEGATIVES
from rectune.errors import DataError

Sampling = Literal["uniform", "popularity", "hard"]
_STREAM = 3
"""The stream of random numbers of this draw, beside others that the seed begins."""
_TRIES = 24
"""Draws for a place before what is left for it is listed: the rejected ones are bought or drawn already."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Say = Callable[[str], None]


class Drawn(NamedTuple):
    """What was drawn.

    Attributes:
        events: all events, each user's own first, then the user's negatives in the order of their purchases; with the
            column drawn_for.
        purchases: events with negatives.
        negatives: how many were drawn.
        short: purchases with fewer negatives than were asked for, since there are no more items to draw.
        bare: those of them with none at all.
        elsewhere: negatives of `hard` from another category, since the purchase's own had no item left.
        again: purchases of an item that the user had bought strictly before.
    """

    events: pl.DataFrame
    purchases: int
    negatives: int
    short: int
    bare: int
    elsewhere: int
    again: int

    def meta(self, count: int, sampling: Sampling) -> dict[str, int | str]:
        """What `meta.json` says of them."""
        return {
            "per_purchase": count,
            "sampling": sampling,
            "purchases": self.purchases,
            "negatives": self.negatives,
            "purchases_with_fewer": self.short,
            "purchases_with_none": self.bare,
            "from_other_categories": self.elsewhere,
            "purchases_of_items_bought_before": self.again,
        }


class _Pools(NamedTuple):
    """Groups of items to draw from, laid end to end, each by first sale: at any moment a prefix is on sale.

    Attributes:
        members: int64; items of all groups.
        start: int64 [groups].
        key: int64 [members], ascending; group * span + the place of the item's first sale among all moments of such.
        span: more than there are such moments.
        weight: float64 [members + 1]; the sum of the weights before each member, and that of all; None where all weigh
            the same.
    """

    members: Ints
    start: Ints
    key: Ints
    span: int
    weight: Floats | None = None

    @classmethod
    def of(cls, groups: list[Ints], since: Ints, weight: Floats | None = None) -> _Pools:
        """Groups of items, with the place of every item's first sale in time, and its weight or none."""
        size = np.array([len(group) for group in groups], dtype=np.int64)
        members = np.concatenate([np.empty(0, np.int64), *groups])
        span = int(since.max(initial=0)) + 2
        key = np.repeat(np.arange(len(groups)), size) * span + since[members]
        order = np.argsort(key, kind="stable")
        members = members[order]
        sums = None if weight is None else np.concatenate([[0.0], np.cumsum(weight[members])])
        return cls(members, np.cumsum(size) - size, key[order], span, sums)

    def on_sale(self, group: Ints, moments: Ints) -> Ints:
        """How many of each group's members had been sold in the first so many moments of first sales; 0 in group -1."""
        last = group * self.span + np.minimum(moments, self.span - 1)
        return np.where(group < 0, 0, np.searchsorted(self.key, last) - self.start[group])

    def pick(self, group: Ints, size: Ints, chance: Floats) -> Ints:
        """One of the first members of each group, of so many (at least one), by a random number of 0 to 1."""
        if self.weight is None:
            place = (chance * size).astype(np.int64)
        else:
            low, high = self.weight[self.start[group]], self.weight[self.start[group] + size]
            place = np.searchsorted(self.weight, low + chance * (high - low), side="right") - 1 - self.start[group]
        return self.members[self.start[group] + np.clip(place, 0, size - 1)]


class _Draw:
    """Places of negatives being filled, a row for each purchase.

    Args:
        user: int64 [rows].
        bought: int64; user * items + item of all that users have bought, ascending.
        items: how many items there are.
        count: negatives of each row.
        random: of all draws.

    Attributes:
        chosen: int64 [rows, count]; items, -1 where none was found; those of a row are at its beginning.
    """

    def __init__(self, user: Ints, bought: Ints, items: int, count: int, random: np.random.Generator) -> None:
        self.user, self.bought, self.items, self.random = user, bought, items, random
        self.chosen = np.full((len(user), count), -1, dtype=np.int64)

    def _is_bought(self, rows: Ints, item: Ints) -> npt.NDArray[np.bool_]:
        code = self.user[rows] * self.items + item
        place = np.minimum(np.searchsorted(self.bought, code), len(self.bought) - 1)
        found: npt.NDArray[np.bool_] = self.bought[place] == code
        return found

    def fill(self, pools: _Pools, group: Ints, moments: Ints) -> None:
        """Fill what is empty from what each row's group has on sale, no item twice in a row, until there is no more."""
        size = pools.on_sale(group, moments)
        for place in range(self.chosen.shape[1]):
            empty = np.flatnonzero((self.chosen[:, place] < 0) & (size > 0))
            # A row with an earlier place left empty has nothing more to draw.
            empty = empty[(self.chosen[empty, :place] >= 0).all(axis=1)]
            for _ in range(_TRIES):
                if not len(empty):
                    break
                item = pools.pick(group[empty], size[empty], self.random.random(len(empty)))
                again = (self.chosen[empty, :place] == item[:, None]).any(axis=1)
                good = ~again & ~self._is_bought(empty, item)
                self.chosen[empty[good], place] = item[good]
                empty = empty[~good]
            for row in empty.tolist():
                self._list(pools, int(pools.start[group[row]]), int(size[row]), row, place)

    def _list(self, pools: _Pools, start: int, size: int, row: int, place: int) -> None:
        """Fill the places from this one on out of a list of all that is left of these members."""
        members = pools.members[start : start + size]
        own = slice(*np.searchsorted(self.bought, self.user[row] * self.items + np.array([0, self.items])).tolist())
        taken = np.concatenate([self.bought[own] - self.user[row] * self.items, self.chosen[row, :place]])
        free = ~np.isin(members, taken)
        left = members[free]
        wanted = min(len(left), self.chosen.shape[1] - place)
        chance = None
        if pools.weight is not None and len(left):
            weight = np.diff(pools.weight[start : start + size + 1])[free]
            chance = weight / weight.sum()
        if wanted:
            self.chosen[row, place : place + wanted] = self.random.choice(left, wanted, replace=False, p=chance)


def add_negatives(
    events: pl.DataFrame,
    purchases: pl.DataFrame,
    catalog: pl.DataFrame,
    count: int,
    sampling: Sampling,
    seed: int,
    market: str | None = None,
) -> Drawn:
    """Draw negatives for every purchase that is asked about; warm-up ones need none.

    Args:
        events: whole timelines of purchases, as `timeline` returns them.
        purchases: user_id, item_id, timestamp of all that is known to have been bought, also what `timeline` left out.
        catalog: item_id; for `hard` also genres, the items' categories.
        count: negatives of each purchase, different items; fewer where no more can be drawn.
        sampling: `uniform`: all items alike; `popularity`: by how often they are bought in warm-up and training, and 1
            where never, so that an item sold in held-out events only is drawn too; `hard`: of the rarest of the
            purchase's categories that has an item left, else of any.
        seed: the same input and seed give the same draw.
        market: the catalog's column that says where an item is offered; None where all are offered to everybody.

    Raises:
        DataError: `hard` without categories, `popularity` without a training purchase, or no negative for any
            training purchase.
    """
    items = catalog.select(c.ITEM_ID).with_row_index("_item")
    user_of = events.select(pl.col(c.USER_ID).unique(maintain_order=True)).with_row_index("_user")
    numbered = events.select(c.USER_ID, c.ITEM_ID).join(items, on=c.ITEM_ID, how="left", maintain_order="left")
    item = numbered["_item"].to_numpy().astype(np.int64)
    user = events[c.USER_ID].rle_id().to_numpy().astype(np.int64)
    known = purchases.select(c.USER_ID, c.ITEM_ID).unique().join(user_of, on=c.USER_ID).join(items, on=c.ITEM_ID)
    bought = np.sort(known["_user"].to_numpy().astype(np.int64) * len(items) + known["_item"].to_numpy())
    split = events[c.SPLIT].replace_strict(c.SPLITS, range(len(c.SPLITS)), return_dtype=pl.Int64).to_numpy()
    rows = np.flatnonzero(split > 0)
    draw = _Draw(user[rows], bought, len(items), count, np.random.default_rng([seed, _STREAM]))
    # Which items each split may draw: those bought in it or in an earlier one; and from which moment on.
    first = np.full(len(items), len(c.SPLITS))
    np.minimum.at(first, item, split)
    since, moments = _first_sales(purchases, items, events[c.TIMESTAMP].to_numpy()[rows])
    # Group market * splits + split.
    markets = np.zeros(len(items), dtype=np.int64)
    if market is not None:
        markets = catalog[market].fill_null("").rank("dense").to_numpy().astype(np.int64) - 1
    offered = [np.flatnonzero(markets == each) for each in range(int(markets.max(initial=0)) + 1)]
    weight = None
    if sampling == "popularity":
        sold = np.bincount(item[split <= 1], minlength=len(items)).astype(np.float64)
        if not sold.any():
            raise DataError("negative_sampling: popularity, but no purchase is in training; use uniform")
        weight = np.maximum(sold, 1.0)
    elsewhere = 0
    if sampling == "hard":
        for pools, group in _by_category(catalog, markets, first, since, item[rows], split[rows]):
            draw.fill(pools, group, moments)
        elsewhere = int((draw.chosen < 0).sum())
    of_split = [mine[first[mine] <= each] for mine in offered for each in range(len(c.SPLITS))]
    draw.fill(_Pools.of(of_split, since, weight), markets[item[rows]] * len(c.SPLITS) + split[rows], moments)
    elsewhere -= int((draw.chosen < 0).sum()) if sampling == "hard" else 0
    found = draw.chosen >= 0
    training = split[rows] == c.SPLITS.index(c.TRAIN)
    if training.any() and not found[training].any():
        raise DataError(
            f"negatives: none can be drawn for any of the {int(training.sum()):,} training purchases, since no other "
            "item had been bought by then that its user never buys; add users whose purchases overlap in time "
            "(max_users, history_len), or label the events by label_from=column or rating"
        )
    return Drawn(
        _beside(events, rows, draw.chosen, items[c.ITEM_ID], purchases.height),
        len(rows),
        int(found.sum()),
        int((~found).any(axis=1).sum()),
        int((~found).all(axis=1).sum()),
        elsewhere,
        _again(events),
    )


def _first_sales(purchases: pl.DataFrame, items: pl.DataFrame, asked: Ints) -> tuple[Ints, Ints]:
    """The moments at which some item was bought for the first time, counted.

    Args:
        purchases: item_id and timestamp of all.
        items: item_id, _item.
        asked: int64 [rows]; timestamps.

    Returns:
        since [items], the 0-based number of each item's moment, or that of all moments where it was never bought; and
        moments [rows], how many of them are at or before each timestamp: an item has been bought where since < moments.
    """
    earliest = purchases.group_by(c.ITEM_ID).agg(pl.col(c.TIMESTAMP).min())
    earliest = items.join(earliest, on=c.ITEM_ID, how="inner", maintain_order="left")
    time, number = np.unique(earliest[c.TIMESTAMP].to_numpy(), return_inverse=True)
    since = np.full(len(items), len(time), dtype=np.int64)
    since[earliest["_item"].to_numpy()] = number
    return since, np.searchsorted(time, asked, side="right").astype(np.int64)


def _by_category(
    catalog: pl.DataFrame, markets: Ints, first: Ints, since: Ints, item: Ints, split: Ints
) -> list[tuple[_Pools, Ints]]:
    """Pools to draw from one after the other: of each purchase's rarest category, then its next, to the last.

    Raises:
        DataError: no item has a category.
    """
    texts = catalog[c.GENRES] if c.GENRES in catalog.columns else pl.Series([None] * catalog.height, dtype=pl.String)
    # An item has each of its categories once, however often they are written.
    table = (
        pl.DataFrame(
            {"item": np.arange(catalog.height), "market": markets, "category": texts.fill_null("").str.split(", ")}
        )
        .explode("category")
        .filter(pl.col("category") != "")
        .unique(maintain_order=True)
        .with_columns(category=pl.concat_str("market", "category", separator=" "))
        .with_columns(sold=pl.col("item").is_in(np.flatnonzero(first < len(c.SPLITS))))
        .with_columns(size=pl.col("sold").sum().over("category"))
        .sort("item", "size", "category")
    )
    if table.is_empty():
        raise DataError(
            "negative_sampling: hard draws from the purchase's category, but no item has one; name category_column, or "
            "use uniform or popularity"
        )
    names = table["category"].unique(maintain_order=True)
    place = table["category"].replace_strict(names, pl.Series(range(len(names))), return_dtype=pl.Int64).to_numpy()
    of_item = table["item"].to_numpy()
    # Group k * splits + s: items of category k that split s may draw.
    groups = len(c.SPLITS)
    order = np.argsort(place, kind="stable")
    edges = np.searchsorted(place[order], np.arange(len(names) + 1))
    members = [of_item[order[edges[each] : edges[each + 1]]] for each in range(len(names))]
    pools = _Pools.of([np.sort(mine[first[mine] <= each]) for mine in members for each in range(groups)], since)
    begin = np.searchsorted(of_item, np.arange(catalog.height + 1))
    most = int(np.diff(begin).max())
    found = []
    for level in range(most):
        has = begin[item] + level < begin[item + 1]
        category = place[np.minimum(begin[item] + level, len(place) - 1)]
        found.append((pools, np.where(has, category * groups + split, -1)))
    return found


def _beside(events: pl.DataFrame, rows: Ints, chosen: Ints, items: pl.Series, first_id: int) -> pl.DataFrame:
    """The events with their negatives behind each user's own."""
    at, slot = np.nonzero(chosen >= 0)
    drawn = events[rows[at]].with_columns(
        items.gather(chosen[at, slot]).alias(c.ITEM_ID),
        pl.lit(None, dtype=pl.Float64).alias(c.RATING),
        pl.lit(0, dtype=pl.UInt8).alias(c.LABEL),
        pl.col(c.POSITION).alias(c.DRAWN_FOR),
        pl.int_range(first_id, first_id + len(at), eager=True, dtype=pl.UInt32).alias(c.ROW_ID),
    )
    number = events[c.USER_ID].rle_id()
    own = events.with_columns(pl.lit(None, dtype=pl.UInt32).alias(c.DRAWN_FOR), number.alias("_user"))
    drawn = drawn.with_columns(number.gather(rows[at]).alias("_user"))
    whole = pl.concat([own, drawn.select(own.columns)]).sort("_user", maintain_order=True)
    position = pl.int_range(pl.len(), dtype=pl.UInt32).over("_user").alias(c.POSITION)
    return whole.with_columns(position).select(*WITH_NEGATIVES)


def _again(events: pl.DataFrame) -> int:
    """How many purchases that are asked about are of an item that the user had bought at an earlier moment."""
    first = pl.col(c.TIMESTAMP).min().over(c.USER_ID, c.ITEM_ID)
    return int(events.select(((pl.col(c.TIMESTAMP) > first) & (pl.col(c.SPLIT) != c.WARMUP)).sum()).item())


def say_negatives(drawn: Drawn, count: int, sampling: Sampling, say: Say) -> None:
    """Print what was drawn, and what a reader of the metrics should know of it."""
    say(
        f"negatives: {drawn.negatives:,} drawn for {drawn.purchases:,} purchases, {count} each ({sampling}), none an "
        "item that its user ever bought; frozen with the events"
    )
    if drawn.short:
        say(
            f"negatives: {drawn.short:,} purchases have fewer, {drawn.bare:,} of them none, since their users buy all "
            "else that anyone had bought by then"
        )
    if drawn.elsewhere:
        say(f"negatives: {drawn.elsewhere:,} are of another category, since the purchase's own had no item left")
    if drawn.again:
        say(
            f"negatives: {drawn.again:,} of the purchases asked about ({drawn.again / drawn.purchases:.1%}) are of an "
            "item that the user had bought before; a negative never is, so these are easy to tell"
        )
