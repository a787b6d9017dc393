"""The words of a prompt: shipped texts, lines of the history, item texts.

Everything a prompt says is decided here; `pieces.py` turns it into tokens and `data/prepare.py` writes it as
Alpaca records, so that training, evaluation, serving and export all say the same.
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass

import polars as pl

from rectune.config import Config
from rectune.errors import ConfigError

NO_HISTORY = "(none yet)"
_YEAR = r"\s*\((19|20)\d\d\)\s*$"


@dataclass(frozen=True)
class PromptTexts:
    """The fixed texts of a prompt, with the label words filled in."""

    system: str
    instruction: str
    history_header: str
    """`{count}` stands for the number of events shown."""
    candidate_header: str
    question: str
    stream_header: str = ""
    """Above the first line of a stream."""


_SHIPPED = {
    "films": PromptTexts(
        system=(
            "You are a film recommender. You know what one user has watched and how they rated it, and you judge "
            "whether one more film would please them. Reply with a single word, {positive} or {negative}."
        ),
        instruction=(
            "Decide whether this user will like the candidate film, that is, rate it well by their own standards. "
            "Weigh their taste in genres and eras, how strict they are, and how good the film is."
        ),
        history_header="The user's last {count} films, oldest first:",
        candidate_header="Candidate film:",
        question="Will the user like the candidate film? Answer {positive} or {negative}.",
    ),
    "products": PromptTexts(
        system=(
            "You are a shopping recommender. You know what one customer has bought and how they rated it, and you "
            "judge whether one more product would suit them. Reply with a single word, {positive} or {negative}."
        ),
        instruction=(
            "Decide whether this customer will like the candidate product. Weigh the kinds of product they choose, "
            "how strict they are, and how good the product is."
        ),
        history_header="The customer's last {count} products, oldest first:",
        candidate_header="Candidate product:",
        question="Will the customer like the candidate product? Answer {positive} or {negative}.",
    ),
    "food": PromptTexts(
        system=(
            "You are a food delivery recommender. You know what one customer has ordered, and you judge whether they "
            "would order one more dish. Reply with a single word, {positive} or {negative}."
        ),
        instruction=(
            "Decide whether this customer will order the candidate dish. Weigh the dishes and cuisines they choose "
            "and how often they try something new."
        ),
        history_header="The customer's last {count} orders, oldest first:",
        candidate_header="Candidate dish:",
        question="Will the customer order the candidate dish? Answer {positive} or {negative}.",
    ),
}


_STREAM_HEADERS = {
    "films": (
        "Films one person watched, oldest first, and whether they liked each, {positive} or {negative}.",
        "Films one person watched, oldest first{ratings}. Will they like the last one, {positive} or {negative}?",
    ),
    "products": (
        "Products one customer bought, oldest first, and whether they liked each, {positive} or {negative}.",
        "Products one customer bought, oldest first{ratings}. Will they like the last one, {positive} or {negative}?",
    ),
    "food": (
        "Dishes shown to one customer, oldest first, and whether they ordered each, {positive} or {negative}.",
        "Dishes shown to one customer, oldest first{ratings}. Will they order the last one, {positive} or {negative}?",
    ),
}
"""Where the lines show labels, and where they show ratings or nothing."""


def _stream_header(config: Config) -> str:
    labels, others = _STREAM_HEADERS[config.prompt_domain]
    if config.history_shows == "label":
        return labels
    return others.replace("{ratings}", ", each with its rating" if config.history_shows == "rating" else "")


_RUBRIC = "You sort texts into classes. Read the text and decide which class it is of."


def _of_classes(config: Config) -> PromptTexts:
    """The texts of a classification: the rubric with the words that may be answered, the text, the words again."""
    words = [config.labels[name] for name in config.labels]
    meanings = ", ".join(f"{word} for {name}" if word != name else word for name, word in config.labels.items())
    choice = " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
    rubric = (config.rubric if config.rubric is not None else _RUBRIC).strip()
    if "{labels}" in rubric:
        system = rubric.replace("{labels}", meanings)
    else:
        system = f"{rubric} Reply with a single word: {meanings}."
    return PromptTexts(
        system=system, instruction="", history_header="", candidate_header="Text:", question=f"Answer {choice}."
    )


def texts_for(config: Config) -> PromptTexts:
    """The texts of this configuration: its own where given, the domain's shipped ones elsewhere.

    An empty string in the configuration means "leave this text out"; a missing key means the shipped text.
    """
    shipped = _of_classes(config) if config.task == "classify" else _SHIPPED[config.prompt_domain]

    def filled(own: str | None, default: str) -> str:
        text = default if own is None else own
        text = text.replace("{positive}", config.positive_label).replace("{negative}", config.negative_label)
        return text.strip()

    return PromptTexts(
        system=filled(config.system_prompt, shipped.system),
        instruction=filled(config.instruction, shipped.instruction),
        history_header=filled(config.history_header, shipped.history_header),
        candidate_header=filled(config.candidate_header, shipped.candidate_header),
        question=filled(config.question, shipped.question),
        stream_header=filled(config.stream_header, _stream_header(config)),
    )


def one_line(text: str) -> str:
    """Text from data on one line: every run of white space becomes one space, the ends are trimmed."""
    return " ".join(text.split())


def history_suffix(rating: float | None, label_word: str | None, shows: str) -> str:
    """What stands behind a title of the history, with its leading space: ` (rating 4.0)`, ` → Yes` or nothing."""
    if shows == "rating" and rating is not None:
        return f" (rating {rating:.1f})"
    if shows == "label" and label_word is not None:
        return f" → {label_word}"
    return ""


def stream_suffix(rating: float | None, label_word: str, shows: str) -> str:
    """What stands behind an event's cue in a stream, with its line's end: ` Yes`, ` 4.5`, or ` ?` for nothing.

    A sign stands for nothing, because tokenizers join a cue such as `:` with the end of the line.

    >>> stream_suffix(4.0, "Yes", "rating"), stream_suffix(4.0, "Yes", "label"), stream_suffix(None, "No", "rating")
    (' 4\\n', ' Yes\\n', ' ?\\n')
    """
    if shows == "label":
        return f" {label_word}\n"
    return " ?\n" if shows == "nothing" or rating is None else f" {rating:g}\n"


def history_line(index: int, title: str, rating: float | None, label_word: str | None, shows: str) -> str:
    """One numbered line of the history, without its line end.

    >>> history_line(2, "Heat (1995)", 4.5, "Yes", "rating")
    '2. Heat (1995) (rating 4.5)'
    >>> history_line(2, "Heat (1995)", 4.5, "Yes", "nothing")
    '2. Heat (1995)'
    """
    return f"{index}. {title}{history_suffix(rating, label_word, shows)}"


def history_heading(texts: PromptTexts, count: int) -> str:
    """The line above the history; an empty history says so in words."""
    heading = texts.history_header.replace("{count}", str(count))
    return f"{heading} {NO_HISTORY}" if heading and not count else heading


def user_input(texts: PromptTexts, history_lines: list[str], candidate: str) -> str:
    """The Alpaca `input`: history, candidate and question, one below the other."""
    lines = [
        history_heading(texts, len(history_lines)),
        *history_lines,
        f"{texts.candidate_header} {candidate}",
        texts.question,
    ]
    return "\n".join(line for line in lines if line)


_Part = tuple[str, str | None, str | None, str | None]
"""A part of a template: text, and the name, format and conversion of the value behind it."""


class _Blank(str):
    """Stands for a value that is not there: empty, however it is to be formatted."""

    def __format__(self, form: str) -> str:
        return ""


class _Number(float):
    """A number that is written without `.0` where no format says otherwise."""

    def __format__(self, form: str) -> str:
        return format(float(self), form) if form else f"{self:.12g}"


def _filled(parts: list[_Part], row: dict[str, str | int | float | None]) -> str:
    """A parsed template with the values of one item; unlike `str.format` it takes any column's name, `unit.price` too.

    Raises:
        ValueError: a value cannot be formatted so.
    """
    found = []
    for literal, name, form, conversion in parts:
        found.append(literal)
        if name is not None:
            value = _shown(row[name])
            found.append(
                format(string.Formatter().convert_field(value, conversion) if conversion else value, form or "")
            )
    return "".join(found)


def _shown(value: str | int | float | None) -> str | int | float:
    """An attribute as a template writes it."""
    if value is None:
        return _Blank()
    return _Number(value) if isinstance(value, float) else value


def item_texts(catalog: pl.DataFrame, item_text: str) -> dict[str, str]:
    """The text of every item: `title`, `title_categories`, `id` or a template over the catalog's columns.

    `{name}` in a template is the title without the year in brackets at its end. `{price:.2f}` and the like format
    numbers; a value that is not there is left out, with brackets that would be empty and a comma behind it.

    An item whose text comes out empty is called by its id.

    Args:
        catalog: one row per item, with `item_id`, `title` and attribute columns.
        item_text: the configuration's key of that name.

    Raises:
        ConfigError: the template names a column that the catalog does not have, or formats one wrongly.
    """
    ids = catalog["item_id"].to_list()
    if "name" not in catalog.columns:
        catalog = catalog.with_columns(name=pl.col("title").str.replace(_YEAR, ""))
    if item_text == "id":
        return {item: f"item {item}" for item in ids}
    if item_text == "title":
        return {
            item: one_line(title) or f"item {item}" for item, title in zip(ids, catalog["title"].to_list(), strict=True)
        }
    pattern = "{title} [{genres}]" if item_text == "title_categories" else item_text
    try:
        parts = list(string.Formatter().parse(pattern))
        wanted = [name for _, name, _, _ in parts if name is not None]
    except ValueError as error:
        raise ConfigError(
            f"item_text: {item_text!r} is not a template ({error}); write for example '{{title}}'"
        ) from error
    missing = [name for name in wanted if name not in catalog.columns]
    if missing or not wanted:
        raise ConfigError(
            f"item_text: got {item_text!r}, allowed: title, title_categories, id, or a template over the columns "
            f"{', '.join(catalog.columns)} such as '{{title}}'"
        )
    texts: dict[str, str] = {}
    for item, row in zip(ids, catalog.select(list(dict.fromkeys(wanted))).iter_rows(named=True), strict=True):
        try:
            filled = _filled(parts, row)
        except ValueError as error:
            raise ConfigError(f"item_text: {item_text!r} cannot be filled for item {item} ({error})") from error
        # An empty attribute leaves its brackets or separators behind; they would be noise in every such prompt.
        filled = re.sub(r"\s*(\[\s*\]|\(\s*\))", "", filled)
        if any(value in (None, "") for value in row.values()):
            filled = re.sub(r"(?:,\s*){2,}", ", ", filled)
        # A line of a prompt is never empty: where it ends would then be tokenised with what follows.
        texts[item] = one_line(filled).rstrip(" ,;:-") or f"item {item}"
    return texts
