"""What every reader returns, whatever the data was written in."""

from __future__ import annotations

from typing import NamedTuple

import polars as pl


class Nouns(NamedTuple):
    """What messages call the rows of a source, in the plural."""

    interactions: str = "events"
    items: str = "items"


class Source(NamedTuple):
    """What was read, cleaned but neither labelled nor split.

    Attributes:
        interactions: in the order of the file: user_id (String), item_id (String), rating (Float64, null where there is
            none), timestamp (Int64, in any one unit that orders events); where the source brings them also label
            (UInt8) and split (String, a name of `columns.SPLITS`).
        catalog: one row per item: item_id (String), title (String), and any attribute columns of type String, Int64 or
            Float64. `genres` (String, joined by ", ") are the item's categories and `year` (Int64) is its year, for
            whoever looks at these; every item of the interactions is in it.
        rejects: file, line (1-based), reason, text, as `clean.REJECTS_SCHEMA` has them.
        nouns: for messages.
        market: the catalog's column that says where an item is offered, where not all are offered to everybody: what
            is sampled beside a purchase is offered where that is.
    """

    interactions: pl.DataFrame
    catalog: pl.DataFrame
    rejects: pl.DataFrame
    nouns: Nouns = Nouns()
    market: str | None = None
