"""Ask a run about prompts from a file, or about one canned prompt, the tuned answer beside the untuned."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from rectune.baselines.item_rates import uses_rates
from rectune.data.columns import LABEL
from rectune.errors import ConfigError, DataError
from rectune.files import write_json, write_text
from rectune.measure.classification import probability
from rectune.prompt.events import Event, Prompt
from rectune.prompt.tree import Trees
from rectune.report.evaluate import write_metrics
from rectune.score.candidates import Candidate, Request, request_joined, request_prior
from rectune.score.generate import extract_label, generate_answers, generated_line, generation_problem
from rectune.score.items import item_prior, like_rate, with_rate
from rectune.score.open_run import OpenRun
from rectune.score.score import TUNED, UNTUNED
from rectune.score.scorer import score_trees
from rectune.wording import one_line

Say = Callable[[str], None]

_CANNED = {
    "history_titles": ["Toy Story (1995)", "Apollo 13 (1995)", "Braveheart (1995)", "Waterworld (1995)"],
    "history_ratings": [4.0, 5.0, 4.0, 2.0],
    "candidate_title": "Shawshank Redemption, The (1994)",
    # The films are in no dataset.
    "history_item_ids": [None, None, None, None],
    "candidate_item_id": None,
}


@dataclass(frozen=True)
class Question:
    """One prompt from a file: its tokens, its label where the file gives one, the record it came from, its prior, and
    the log-odds of the baselines that join the answer."""

    prompt: Prompt
    label: int | None
    record: dict[str, Any]
    prior: float = 0.0
    joined: Mapping[str, float] = field(default_factory=dict)


def read_records(file: Path) -> list[dict[str, Any]]:
    """Records of a JSON list or of JSON lines.

    Raises:
        DataError: the file is missing, empty or no JSON; a bad line is named by its number.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{file}: cannot be read ({error}); give test_raw.jsonl or eval.json of a dataset folder"
        ) from error
    if text.lstrip().startswith("["):
        try:
            records: list[dict[str, Any]] = json.loads(text)
        except ValueError as error:
            raise DataError(f"{file}: not whole JSON ({error})") from error
    else:
        records = []
        for number, line in enumerate(text.split("\n"), start=1):  # titles may hold U+2028, which splitlines cuts
            if not line.strip():
                continue
            try:
                records.append(json.loads(line))
            except ValueError as error:
                raise DataError(f"{file}, line {number}: not JSON ({error})") from error
    if not records or not all(isinstance(record, dict) for record in records):
        raise DataError(f"{file}: no records; expected a JSON list or one JSON object a line")
    return records


def _checked(record: dict[str, Any], key: str, kinds: tuple[type, ...], many: bool, where: str) -> Any:
    """A field of a record.

    Raises:
        DataError: it is not of these kinds, or not a list of them.
    """
    value = record[key]
    good = (
        isinstance(value, list) and all(isinstance(one, kinds) for one in value) if many else isinstance(value, kinds)
    )
    if not good:
        wanted = "numbers" if float in kinds else "text"
        raise DataError(f"{where}: {key} is {str(value)[:60]!r}; expected {'a list of ' if many else ''}{wanted}")
    return value


def _label(run: OpenRun, word: Any, where: str) -> int | None:
    """0 or 1 from a label word or number."""
    verbalizer = run.prompts.verbalizer
    known = {verbalizer.positive: 1, verbalizer.negative: 0, 1: 1, 0: 0, None: None}
    if not isinstance(word, (str, int, type(None))) or word not in known:
        raise DataError(f"{where}: label {word!r}, allowed: {verbalizer.positive}, {verbalizer.negative}, 1, 0")
    return known[word]


def _history_labels(run: OpenRun, record: dict[str, Any], ratings: list[float | None], where: str) -> list[int | None]:
    """0 or 1 of each event of a record's history: its own `history_labels`, else 1 where a history is of purchases,
    else from the ratings where labels are made from these, else None."""
    if record.get("history_labels"):
        words = _checked(record, "history_labels", (str, int, type(None)), True, where)
        if len(words) != len(ratings):
            raise DataError(f"{where}: {len(ratings)} history_titles but {len(words)} history_labels")
        return [_label(run, word, where) for word in words]
    if run.config.label_from != "rating":
        return [1 if run.config.label_from == "purchases" else None] * len(ratings)
    return [None if rating is None else int(rating >= run.config.rating_threshold) for rating in ratings]


def _item_ids(record: dict[str, Any], key: str, count: int | None, where: str) -> list[str | None]:
    """The item ids of a record, one for the candidate or `count` for the history; null is an item without ratings.

    Raises:
        DataError: they are not there, or not as many as the titles.
    """
    if key not in record:
        raise DataError(
            f"{where}: no {key}, but this run knows items by their ids; give those of its dataset, or null "
            "for an item that it does not hold"
        )
    found = _checked(record, key, (str, int, type(None)), count is not None, where)
    if count is not None and len(found) != count:
        raise DataError(f"{where}: {count} history_titles but {len(found)} {key}")
    return [None if item is None else str(item) for item in (found if count is not None else [found])]


def _with_items(
    run: OpenRun, record: dict[str, Any], titles: list[str], candidate: str, where: str
) -> tuple[list[str], str, list[str | None], str | None]:
    """Texts of history and candidate, with their like-rates where the run writes them, and the ids of both.

    Raises:
        DataError: the run needs item ids, and the record does not give them.
    """
    config = run.config
    past: list[str | None] = [None] * len(titles)
    asked: str | None = None
    if run.settings.knows_items:
        (asked,) = _item_ids(record, "candidate_item_id", None, where)
        if titles and (config.item_rate_text or run.settings.baselines):
            past = _item_ids(record, "history_item_ids", len(titles), where)
    if config.item_rate_text:
        titles = [with_rate(run, title, item) for title, item in zip(titles, past, strict=True)]
    return titles, with_rate(run, candidate, asked), past, asked


def question(run: OpenRun, record: dict[str, Any], where: str) -> Question:
    """The prompt of one record: `history_titles` and `candidate_title`, or Alpaca's instruction and input.

    Raises:
        DataError: the record has neither form, its label is not one of the two words, a rating that the prompt shows
            or an item id that its like-rate needs is missing, or it is an Alpaca record and brings a system text or
            instruction other than the run's, or the run cannot take one.
    """
    if "candidate_title" in record:
        # The texts are there where a prompt says something else of an item than its title (`item_text`).
        asked, past = (
            key if key in record else other
            for key, other in (("candidate_text", "candidate_title"), ("history_texts", "history_titles"))
        )
        candidate = _checked(record, asked, (str,), False, where)
        titles = _checked(record, past, (str,), True, where) if record.get(past) else []
        ratings: list[float | None] = [None] * len(titles)
        if record.get("history_ratings"):
            ratings = _checked(record, "history_ratings", (int, float, type(None)), True, where)
        if len(ratings) != len(titles):
            raise DataError(f"{where}: {len(titles)} history_titles but {len(ratings)} history_ratings")
        labels = _history_labels(run, record, ratings, where)
        rated = run.prompts.shows == "rating" and run.config.label_from != "purchases"
        missing = ratings if rated else labels
        if (run.prompts.shows != "nothing" or run.settings.baselines) and None in missing:
            why = f"prompts show each title with its {run.prompts.shows}"
            why = why if run.prompts.shows != "nothing" else "baselines look at what was liked"
            raise DataError(
                f"{where}: history_ratings: {missing.count(None)} of {len(titles)} are missing, but this run's {why}; "
                "give a rating for every title" + ("" if rated else ", or history_labels")
            )
        titles, candidate = [one_line(title) for title in titles], one_line(candidate)
        titles, candidate, items, item = _with_items(run, record, titles, candidate, where)
        history = [
            Event(title, rating, label or 0, past)
            for title, rating, label, past in zip(titles, ratings, labels, items, strict=True)
        ]
        asked_of = Request(history, [Candidate(candidate, item_prior(run, item), item)])
        (prior,) = request_prior(run, asked_of).tolist()
        joined = {name: float(odds[0]) for name, odds in request_joined(run, asked_of).items()}
        if run.config.layout == "pointwise":
            history = history[len(history) - min(len(history), run.config.history_len) :]
        prompt = run.prompts.build(history, candidate)
        return Question(prompt, _label(run, record.get("label"), where), record, prior, joined)
    if "input" in record:
        texts = run.prompts.texts
        for key in ("system", "instruction", "input"):
            if key in record:
                _checked(record, key, (str,), False, where)
        try:
            prompt = run.prompts.record(texts.system, texts.instruction, record["input"])
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        if run.settings.knows_items:
            raise DataError(
                f"{where}: an Alpaca record names no items, but this run knows them by their ids; give records "
                "with candidate_title and candidate_item_id (test_raw.jsonl)"
            )
        for key, own in (("system", texts.system), ("instruction", texts.instruction)):
            if record.get(key, own).strip() != own:
                raise DataError(
                    f"{where}: {key} is {record[key][:60]!r}, but the run was trained with {own[:60]!r}; "
                    f"leave {key} out of the record, or give a file of the run's own dataset"
                )
        return Question(prompt, _label(run, record.get("output"), where), record)
    raise DataError(f"{where}: neither candidate_title nor input; found {', '.join(record) or 'nothing'}")


def _trees(questions: list[Question]) -> Trees:
    return Trees.of_prompts(
        [question.prompt.tokens for question in questions],
        [question.label or 0 for question in questions],
        np.arange(len(questions)),
        [question.prompt.dropped for question in questions],
        [question.prior for question in questions],
    )


def answer(run: OpenRun, questions: list[Question], which: str, mode: str) -> pl.DataFrame:
    """Scores (and generated answers) of one model: log_odds, score, prediction, and generated where asked."""
    trees, size = _trees(questions), run.config.per_device_eval_batch_size
    verbalizer = run.prompts.verbalizer
    with run.model.disable_adapter() if which == UNTUNED else nullcontext():
        log_odds = score_trees(run.model, trees, verbalizer, size, run.loaded.attention)
        texts = (
            generate_answers(run.model, trees, run.loaded.tokenizer, verbalizer, size) if mode == "generate" else None
        )
    if which == TUNED:
        joined = {name: np.array([each.joined[name] for each in questions]) for name in run.settings.joining}
        log_odds = run.settings.calibrated(log_odds, joined)
    score = probability(log_odds)
    labels: list[int | None] = [int(value >= run.settings.threshold) for value in score]
    if texts is not None:
        labels = [extract_label(text, verbalizer) for text in texts]
    words = [None if label is None else verbalizer.word(label) for label in labels]
    frame = pl.DataFrame(
        {"log_odds": log_odds, "score": score, "prediction": words}, schema_overrides={"prediction": pl.String}
    )
    return frame if texts is None else frame.with_columns(generated=pl.Series(texts))


def infer_demo(run: OpenRun, say: Say) -> None:
    """One canned prompt, answered by the untuned and by the tuned model."""
    asked = question(run, _CANNED, "the canned prompt")
    say(run.loaded.tokenizer.decode(asked.prompt.tokens))
    if uses_rates(run.config):
        rate, _ = like_rate(run, None)
        say(f"item rates: these films are in no dataset, so all have the like-rate of an unrated item ({rate:.0%})")
    mode = "generate" if generation_problem(run) is None else "logits"
    for which in (UNTUNED, TUNED):
        row = answer(run, [asked], which, mode).row(0, named=True)
        says = f"   says {row['generated']!r}" if mode == "generate" else ""
        say(f"{which:>8}: P({run.prompts.verbalizer.positive}) = {row['score']:.3f}{says}")


def _check_lengths(run: OpenRun, questions: list[Question], file: Path, say: Say) -> None:
    """Say how many records are longer than any prompt of the training: their history is text and cannot be cut.

    Raises:
        DataError: a record is longer than the model can read at all.
    """
    ending = 2 if run.config.ends_answers else 0
    sizes = [len(question.prompt.tokens) + ending for question in questions]
    most = getattr(run.model.config, "max_position_embeddings", None)
    if most is not None and max(sizes) > most:
        number = next(number for number, size in enumerate(sizes, start=1) if size > most)
        raise DataError(
            f"{file}, record {number}: its prompt needs {sizes[number - 1]:,} tokens, but the model reads at most "
            f"{most:,}; shorten its input"
        )
    longer = sum(size > run.config.cutoff_len for size in sizes)
    if longer:
        say(
            f"lengths: {longer:,} of {len(sizes):,} records are longer than the cutoff_len={run.config.cutoff_len} of "
            "the training; they are asked whole"
        )


def _labelled(run: OpenRun, questions: list[Question], table: pl.DataFrame) -> pl.DataFrame:
    """The predictions of the records with a label, ready for `write_metrics`.

    A record without user_id is a user of its own: AUC within users has no meaning for it.
    """
    users = [str(item.record.get("user_id", f"record {number}")) for number, item in enumerate(questions, start=1)]
    table = table.with_columns(
        pl.Series(LABEL, [item.label for item in questions], dtype=pl.Int64), pl.Series("user_id", users)
    )
    if "generated" in table.columns:
        labels = [extract_label(text, run.prompts.verbalizer) for text in table["generated"].to_list()]
        table = table.with_columns(generated_label=pl.Series(labels, dtype=pl.Int64))
    return table.filter(pl.col(LABEL).is_not_null())


def infer_file(
    run: OpenRun, file: Path, output: Path, limit: int | None, compare_base: bool, mode: str, say: Say
) -> None:
    """Answer every record of a file.

    Writes `lora_predictions.jsonl` (and `base_predictions.jsonl`), each record with its score, and
    `metrics_summary.json` on the records that carry a label.

    Raises:
        ConfigError: the run has a prior, which a generated answer cannot have.
        DataError: see `read_records` and `question`.
    """
    problem = generation_problem(run) if mode == "generate" else None
    if problem is not None:
        raise ConfigError(f"--mode: generate {problem}; use logits")
    records = read_records(file)[:limit]
    asked = [question(run, record, f"{file}, record {number}") for number, record in enumerate(records, start=1)]
    _check_lengths(run, asked, file, say)
    if run.config.layout == "stream" or run.settings.baselines:
        longest = max((len(record.get("history_titles") or []) for record in records), default=0)
        say(
            f"history: at most {longest} events in this file's records; `rectune evaluate` shows the model "
            "what a window holds, and the baselines all of a user's events, so its scores of the same rows are others"
        )
    if uses_rates(run.config):
        unrated = sum(str(record["candidate_item_id"]) not in run.settings.item_rates for record in records)
        say(f"item rates: {unrated:,} of {len(records):,} candidates have none and get that of an unrated item")
    unlabelled = sum(item.label is None for item in asked)
    names = {TUNED: "lora"} | ({UNTUNED: "base"} if compare_base else {})
    summary: dict[str, Any] = {}
    for which, name in names.items():
        table = answer(run, asked, which, mode)
        lines = [
            json.dumps({**item.record, **row}, ensure_ascii=False)
            for item, row in zip(asked, table.iter_rows(named=True), strict=True)
        ]
        write_text(output / f"{name}_predictions.jsonl", "\n".join(lines) + "\n")
        say(f"written: {output / f'{name}_predictions.jsonl'} ({len(table):,} predictions)")
        if unlabelled < len(asked):
            labelled = _labelled(run, asked, table)
            summary[name] = write_metrics(labelled, output / f"{name}_metrics.json", run.settings.threshold)
    if unlabelled:
        say(f"labels: {unlabelled:,} of {len(asked):,} records have none and are left out of the metrics")
    if summary:
        write_json(output / "metrics_summary.json", summary)
        for name, metrics in summary.items():
            known = [key for key in ("auc", "uauc", "accuracy", "f1") if metrics[key] is not None]
            shown = "  ".join(f"{key} {metrics[key]:.3f}" for key in known)
            say(f"{name}: {shown}  ({metrics['n']:,} rows)")
            if "generated" in metrics:
                say(generated_line(name, metrics["generated"]))
