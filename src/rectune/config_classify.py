"""The keys of text classification: what they imply for other keys, and what does not go with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rectune.config_keys import Config, default_of
from rectune.errors import ConfigError

CLASSIFY = "classify"
STRATIFIED = "stratified"
_IMPLIED: dict[str, Any] = {
    "layout": "pointwise", "history_len": 0, "history_shows": "nothing", "label_from": "column", "split": STRATIFIED,
}  # fmt: skip
"""What a text without a history means for other keys, where they are not given."""
_ONLY: dict[str, tuple[Any, ...]] = {
    "layout": ("pointwise",), "history_len": (0,), "label_from": ("column",), "split": (STRATIFIED, "column"),
}  # fmt: skip
_IDLE = (
    "min_history", "max_per_user", "train_since", "item_column", "time_column", "rating_column", "title_column",
    "category_column", "attribute_columns", "items", "items_id_column", "item_text", "item_rate_text", "prior", "blend",
    "history_drop", "history_shuffle", "shuffle_moments", "instruction", "history_header",
)  # fmt: skip
"""Keys of histories and items, which texts have not."""
_MANY: dict[str, tuple[tuple[Any, ...], str]] = {
    "prompt_format": (("chat", "instruction", "completion"), "a classification head has two classes here"),
    "loss_over": (("vocabulary",), "a loss over label words is one of two"),
    "class_weights": (("none",), "weights are of two labels; oversample works for any number"),
    "label_smoothing": ((0.0,), "it is spread over two words"),
    "focal_gamma": ((0.0,), "it is made for two labels"),
    "gen_eval_samples": ((0,), "generated answers are read as one of two words"),
    "backend": (("native",), "the others are tried with two labels only"),
    "panel_samples": ((0,), "the panel shows one probability an answer"),
    "metric_for_best_model": (("loss", "accuracy", "macro_f1", "balanced_accuracy"), "the others are of two classes"),
}
"""What more than two classes cannot have: key → values, reason."""


def only_recommending(config: Config, doing: str) -> None:
    """Refuse what is for users and items where texts are classified.

    Args:
        config: of a run.
        doing: what was asked for.

    Raises:
        ConfigError: it is such a run.
    """
    if config.task == CLASSIFY:
        raise ConfigError(
            f"{doing}: is for users and items, and this run classifies texts (task: classify); "
            "`rectune score RUN --text '...'` or `--input FILE` asks it"
        )


def only_two_classes(config: Config, doing: str) -> None:
    """Refuse what is made for two labels where there are more.

    Raises:
        ConfigError: there are.
    """
    if len(config.classes) > 2:
        raise ConfigError(
            f"{doing}: is for two classes, and this configuration has {len(config.classes)}; train, evaluate and score "
            "take any number"
        )


def for_task(values: dict[str, Any]) -> dict[str, Any]:
    """A configuration's values with what `task: classify` implies; those of other tasks as they are.

    The label words are those of `labels`, whatever else is said.
    """
    labels = values.get("labels")
    if values.get("task") != CLASSIFY:
        return values
    found = {**_IMPLIED, **values}
    if found.get("split_column") is not None and "split" not in values:
        found["split"] = "column"
    if isinstance(labels, Mapping) and len(labels) >= 2:
        numbers = (int, float)  # a YAML key such as 1 is meant as the text; true is not, since it may have been yes
        plain = [isinstance(name, numbers) and not isinstance(name, bool) for name in labels]
        names = [str(name) if number else name for name, number in zip(labels, plain, strict=True)]
        found["labels"] = dict(zip(names, labels.values(), strict=True))
        if all(isinstance(word, str) for word in labels.values()):
            first, second = list(labels.values())[:2]
            two = len(labels) == 2  # then the first is what is looked for; of more, labels count from the first
            found["positive_label"], found["negative_label"] = (first, second) if two else (second, first)
        if len(labels) > 2:
            for key, value in (("metric_for_best_model", "macro_f1"), ("panel_samples", 0)):
                found.setdefault(key, value)
    return found


def classify_problems(config: Config) -> list[str]:
    """Keys of the other task, classes that cannot be told apart, and what many classes cannot have."""
    if config.task != CLASSIFY:
        return _of_recommending(config)
    problems = []
    for key, allowed in _ONLY.items():
        got = getattr(config, key)
        if got not in allowed:
            shown = " or ".join(map(str, allowed))
            problems.append(f"{key}: got {got!r} beside task: classify, where it is {shown}; leave it out")
    problems += [
        f"{key}: does nothing beside task: classify; leave it out"
        for key in _IDLE
        if getattr(config, key) not in (default_of(key), "")  # a saved run has empty texts for those left out
    ]
    if config.metric_for_best_model == "uauc":
        problems.append("metric_for_best_model: got 'uauc' beside task: classify, where texts have no users; use auc")
    if isinstance(config.oversample, float) and not 0 < config.oversample < 1:
        problems.append(f"oversample: got {config.oversample}, allowed: none, or a share between 0 and 1 such as 0.5")
    return problems + _of_labels(config)


def _of_recommending(config: Config) -> list[str]:
    keys = ("labels", "rubric", "text_column", "oversample")
    problems = [
        f"{key}: does nothing beside task: {config.task}; set task=classify"
        for key in keys
        if getattr(config, key) != default_of(key)
    ]
    if config.split == STRATIFIED:
        problems.append(f"split: got {STRATIFIED!r} beside task: {config.task}; it is for texts, set task=classify")
    if config.metric_for_best_model in ("macro_f1", "balanced_accuracy"):
        problems.append(f"metric_for_best_model: got {config.metric_for_best_model!r}, which is for task: classify")
    return problems


def _of_labels(config: Config) -> list[str]:
    labels, problems = config.labels, []
    if len(labels) == 1:
        problems.append(f"labels: got one class, {next(iter(labels))!r}; name at least two")
    words = [word.strip() for word in labels.values()]
    if "" in words:
        problems.append("labels: a class has an empty word; give each a short word of its own")
    owner = {name.strip().casefold(): name for name in labels}
    problems += [  # a column of labels may hold either, so that both would be meant
        f"labels: the word {word!r} of {name!r} is the name of another class; choose another word"
        for name, word in labels.items()
        if owner.get(word.strip().casefold(), name) != name
    ]
    names = [name.strip().casefold() for name in labels]
    for what, values in (("word", [word.casefold() for word in words]), ("name", names)):
        again = sorted({value for value in values if values.count(value) > 1})
        if again:
            problems.append(f"labels: the {what} {again[0]!r} stands for two classes; give each its own")
    if len(labels) > 2:
        for key, (allowed, reason) in _MANY.items():
            got = getattr(config, key)
            if got not in allowed:
                shown = ", ".join(map(str, allowed))
                problems.append(f"{key}: got {got!r} beside {len(labels)} labels, allowed: {shown} ({reason})")
    return problems
