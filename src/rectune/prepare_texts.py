"""`rectune prepare FILE --text COLUMN`: from a table of labelled texts to a dataset and a configuration to train on."""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping
from pathlib import Path
from shlex import quote
from typing import Any

import polars as pl
import yaml

from rectune.config import Config, parse_config, parse_override
from rectune.config_classify import CLASSIFY
from rectune.data.prepare import prepare
from rectune.data.sources.labelled_text import as_lines, label_column
from rectune.data.sources.table_file import open_table
from rectune.data.sources.table_values import ids, rows_of
from rectune.errors import DataError
from rectune.prepare_file import kind_of_machine, tokenizer_at_hand, write_config
from rectune.shipped import FOLDER
from rectune.wording import texts_for

_BASE = "reviews_cpu"
_CUDA = {"model_name_or_path": "Qwen/Qwen3-0.6B", "lora_layers": "all", "lora_alpha": 64, "max_train_samples": None}
"""What differs on a card."""
_OF_REVIEWS = ("labels", "rubric", "candidate_header", "question", "oversample", "cutoff_len", "dataset")
_LETTERS = string.ascii_uppercase
_MOST = 26
"""Classes: as many as there are letters, which are one token for every model."""
_RARE = 0.3
"""Below this share of two classes, half of what is trained on is to be of the rarer one."""
_CHARACTERS, _STEP, _LONGEST = 3.5, 64, 512

Say = Callable[[str], None]


def propose_labels(said: pl.Series, column: str) -> dict[str, str]:
    """A letter for each class, the rarest first, so that of two it is the one looked for.

    Args:
        said: what the column says, as text; null where it says nothing.
        column: its name, for messages.

    Raises:
        DataError: there are fewer than two classes, or more than there are letters.

    >>> propose_labels(pl.Series(["ham", "spam", "ham"]), "kind")
    {'spam': 'A', 'ham': 'B'}
    """
    names = [name for name, _ in _by_class(said)]
    if not 2 <= len(names) <= _MOST:
        shown = ", ".join(repr(name[:40]) for name in names[:4])
        raise DataError(
            f"{column}: holds {len(names):,} different labels ({shown}), allowed: 2 to {_MOST}; name the column of the "
            "classes with --label COLUMN, or write labels yourself in a configuration"
        )
    # A class that is called by a letter is answered by it: for another class that letter would stand for two.
    own = {name: name.upper() for name in names if name.upper() in _LETTERS and len(name) == 1}
    free = (letter for letter in _LETTERS if letter not in own.values())
    return {name: own[name] if name in own else next(free) for name in names}


def _by_class(said: pl.Series) -> list[tuple[str, int]]:
    """Each class in its most frequent spelling with its rows, the rarest first; case tells no classes apart."""
    counts = said.drop_nulls().value_counts(sort=True).rename({said.name: "name"}).sort("count", "name")
    rows: dict[str, int] = {}
    spelling: dict[str, str] = {}
    for name, number in counts.iter_rows():
        rows[name.casefold()] = rows.get(name.casefold(), 0) + number
        spelling[name.casefold()] = name  # the last is the most frequent
    return sorted(((spelling[key], number) for key, number in rows.items()), key=lambda each: (each[1], each[0]))


def _of_classes(said: pl.Series, column: str, own: Mapping[str, Any], say: Say) -> dict[str, Any]:
    """What the classes ask for: their words, oversampling where one of two is rare, a metric for more than two.

    Raises:
        DataError: the labels are no classes.
    """
    found: dict[str, Any] = {}
    if "labels" not in own:
        found["labels"] = propose_labels(said, column)
        say("proposed: labels " + ", ".join(f"{word} for {one}" for one, word in found["labels"].items()))
    labels = {**found, **own}["labels"]
    if len(labels) > 2:
        return {**found, "metric_for_best_model": "macro_f1"}
    rarer = min((number for _, number in _by_class(said)), default=0) / max(said.count(), 1)
    if rarer < _RARE and "oversample" not in own:
        found["oversample"] = 0.5
        say(f"proposed: oversample 0.5, since the rarer class is {rarer:.1%} of the rows")
    return found


def _cutoff(config: Config, texts: list[str]) -> tuple[int, str]:
    """A length that holds 99 of 100 texts whole, with rubric and answer, in steps of 64."""
    fixed = f"{texts_for(config).system} {texts_for(config).question}"
    tokenizer = tokenizer_at_hand(config)
    if tokenizer is None:
        sizes = [len(text) / _CHARACTERS for text in (fixed, *texts)]
        how = f"by characters, about {_CHARACTERS:g} a token, since no tokenizer is here"
    else:
        sizes = [float(len(tokenizer(text, add_special_tokens=False).input_ids)) for text in (fixed, *texts)]
        how = f"by the tokenizer of {config.model_name_or_path}"
    long = float(pl.Series(sizes[1:]).quantile(0.99, "nearest") or 1)
    wanted = min(sizes[0] + 32 + long, float(_LONGEST))
    return int(-(-wanted // _STEP) * _STEP), f"99 of 100 texts have at most {long:.0f} tokens ({how})"


def prepare_texts(
    file: Path, text: str, label: str | None, split: str | None, user: str | None, overrides: list[str], force: bool,
    say: Say,
) -> Path:  # fmt: skip
    """Look at a table of texts, propose a configuration for it and this machine, write it, and prepare the dataset.

    Args:
        file: the table.
        text, label, split, user: columns; the one of the labels is found by its name where it is None.
        overrides: `key=value` strings, which go before what is proposed.
        force: write the configuration anew even where one of another content is there.
        say: prints one line.

    Returns:
        The configuration's file.

    Raises:
        ConfigError: a configuration that someone has changed is in the way.
        DataError: the table cannot be read, a column is not there, or the labels are no classes.
    """
    if not file.is_file():
        raise DataError(f"{file}: no such file; give a table, or a configuration (`rectune configs`)")
    own = dict(map(parse_override, overrides))
    values: dict[str, Any] = {"task": CLASSIFY, "dataset": str(file), "text_column": text}
    given = {"label_column": label, "split_column": split, "user_column": user}
    values |= {key: column for key, column in given.items() if column is not None}
    table = open_table(file)
    if text not in table.names:
        raise DataError(f"{file.name}: --text: no column {text!r}; found {', '.join(table.names)}")
    values["label_column"] = label_column(parse_config({**values, **own}, "options"), table)
    rows = rows_of(table, [text, values["label_column"]])
    said, texts = ids(rows["field_1"]).alias("label"), as_lines(rows["field_0"]).drop_nulls()
    kind, machine = kind_of_machine()
    card = kind != "demo_cpu"
    say(f"settings: those of {_BASE}.yaml{', for Qwen3-0.6B on a card' if card else ''}, since {machine}")
    settings = yaml.safe_load((FOLDER / f"{_BASE}.yaml").read_text(encoding="utf-8"))
    settings = {key: value for key, value in settings.items() if key not in _OF_REVIEWS} | (_CUDA if card else {})
    name = parse_config({**values, **own}, "options").dataset_name()
    settings |= {"dataset_dir": f"data/{name}", "output_dir": f"output/{name}"}
    values |= _of_classes(said, values["label_column"], own, say)
    if "cutoff_len" not in own:
        draft = parse_config({**settings, **values, **own}, "what is proposed")
        values["cutoff_len"], why = _cutoff(draft, texts.head(2000).to_list())
        say(f"proposed: cutoff_len {values['cutoff_len']}: {why}")
    everything = {**settings, **values, **own}
    config = parse_config(everything, "what is proposed")
    target = config.dataset_folder().parent / f"{config.dataset_folder().name}.yaml"
    head = [
        f"# {file.name}, as `rectune prepare --text` found it.",
        "#",
        f"#   rectune train {quote(str(target))}      then  rectune evaluate {quote(str(everything['output_dir']))}",
        "#",
        "# rubric: what the model is told to decide; say there what tells the classes apart. labels: the words that it",
        "# answers, of two classes first the one that is looked for.",
        "",
    ]
    shown = {**values, "rubric": "You sort texts into classes. Answer {labels}.", **settings, **values, **own}
    body = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True, width=1000)
    write_config(target, "\n".join(head) + body, force)
    say(f"written: {target}")
    prepare(parse_config(shown, str(target)), force=force, say=say)
    typed = quote(str(target))
    say(f"next: rectune train {typed}   (before it: rectune inspect {typed} --show-examples 1)")
    return target
