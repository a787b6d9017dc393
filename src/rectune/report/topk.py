"""Top-K evaluation of a run: frozen candidate sets, whole catalogue, and a retriever's best ranked again by the model.

Every user's history is frozen at the split. A user counts when they liked an item after it.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from rich.console import Console

from rectune.baselines.rates import item_like_rate
from rectune.baselines.retrieve import DEFAULT, RETRIEVERS, Retriever, fit
from rectune.data.candidate_sets import NEGATIVES, candidate_sets, files_of, history_at
from rectune.data.candidate_sets import SEED as DRAWN_WITH
from rectune.data.columns import ITEM_ID, LABEL, TEST
from rectune.files import atomic_path, hash_file, write_json
from rectune.measure.bootstrap import Difference, bootstrap_intervals, paired_bootstrap
from rectune.measure.classification import user_auc
from rectune.measure.ranking import (
    FUSION_K,
    PerUser,
    by_user,
    mean_intervals,
    paired_means,
    ranking_metrics,
    reciprocal_rank_fusion,
)
from rectune.prompt.dataset import Dataset
from rectune.report.page import metrics_name
from rectune.report.topk_cases import POOL, Case, make_cases
from rectune.report.verdict import Estimate, comparison_sentence, summary_table
from rectune.score.frozen import Lookup, score_frozen
from rectune.score.open_run import OpenRun, open_run
from rectune.score.score import TUNED, UNTUNED, open_data

LIKE_RATE = "item like-rate"
RERANKED, FUSED = "re-ranked by tuned", "fused with tuned"
FROZEN, FULL, TWO_STAGE = "frozen_candidates", "full_catalogue", "two_stage"
DRAWS, LEVEL, SEED = 1000, 0.95, 0
METRIC = "ndcg@10"
"""What the verdict is about."""
LATER_AUC = "uauc_later"
PROTOCOL = (
    "top-K: each user's history is what is strictly earlier than their first event of the split; relevant are the "
    "items that they liked in it"
)
_SHOWN = {"ndcg@10": "NDCG@10", "hr@10": "HR@10", "mrr@10": "MRR@10", "recall@20": "Recall@20", LATER_AUC: "Later AUC"}

Floats = npt.NDArray[np.float64]
Say = Callable[[str], None]


Scores = Callable[[str, Sequence[str]], Floats]


def _scores_of(retriever: Retriever) -> Scores:
    return lambda user, items: retriever.scores(user, items).scores


def _row(per_user: PerUser) -> dict[str, Any]:
    """Means and intervals of one model."""
    bounds = mean_intervals(per_user, DRAWS, LEVEL, SEED)
    return {
        "metrics": {name: float(values.mean()) for name, values in per_user.items()},
        "intervals": {name: list(pair) for name, pair in bounds.items()},
    }


def _differences(first: str, tables: Mapping[str, PerUser], others: Sequence[str]) -> dict[str, Any]:
    found = {}
    for other in others:
        gaps = paired_means(tables[first], tables[other], DRAWS, LEVEL, SEED)
        found[f"{first} - {other}"] = {name: asdict(gap) for name, gap in gaps.items()}
    return found


class _Later:
    """AUC of liked before not liked among each user's later items, mean over the users who have both."""

    def __init__(self, cases: Sequence[Case]) -> None:
        self._later = [~case.negative for case in cases]
        self._users = [case.user for case, rows in zip(cases, self._later, strict=True) for _ in range(int(rows.sum()))]
        relevant = [case.relevant[rows] for case, rows in zip(cases, self._later, strict=True)]
        self._labels = np.concatenate(relevant).astype(np.int64)

    def _of(self, scores: Sequence[Floats]) -> Floats:
        return np.concatenate([each[rows] for each, rows in zip(scores, self._later, strict=True)])

    def add(self, row: dict[str, Any], scores: Sequence[Floats]) -> None:
        """Add it to a model's row."""
        odds = self._of(scores)
        row["metrics"][LATER_AUC] = user_auc(self._users, self._labels, odds)[0]
        bounds = bootstrap_intervals(self._labels, odds, self._users, ("uauc",), DRAWS, LEVEL, SEED)
        if bounds:
            row["intervals"][LATER_AUC] = list(bounds["uauc"])

    def add_difference(self, gaps: dict[str, Any], a: Sequence[Floats], b: Sequence[Floats]) -> None:
        """Add A minus B to their differences."""
        pair = self._of(a), self._of(b)
        found = paired_bootstrap(self._labels, *pair, self._users, ("uauc",), DRAWS, LEVEL, SEED)
        if found:
            gaps[LATER_AUC] = asdict(found["uauc"])


def measure_topk(
    cases: Sequence[Case], models: Mapping[str, Scores], retrievers: Mapping[str, Retriever], rate: Scores
) -> dict[str, Any]:
    """The three tables and the paired differences in them.

    Args:
        cases: the users.
        models: tuned, and untuned where it was scored: user, items → log-odds.
        retrievers: name → fitted retriever; the default one among them.
        rate: the item like-rate as scores.

    Returns:
        tables: table → model → metrics, intervals; paired_differences: table → "A - B" → metric → difference.
    """
    rankers: dict[str, Scores] = dict(models)
    rankers |= {name: _scores_of(retriever) for name, retriever in retrievers.items()}
    rankers[LIKE_RATE] = rate
    tables: dict[str, dict[str, Any]] = {FROZEN: {}, FULL: {}, TWO_STAGE: {}}
    frozen: dict[str, PerUser] = {}
    scores = {name: [ranker(case.user, case.items) for case in cases] for name, ranker in rankers.items()}
    later = _Later(cases)
    for name in rankers:
        pairs = zip(cases, scores[name], strict=True)
        frozen[name] = by_user([ranking_metrics(case.relevant, each) for case, each in pairs])
        tables[FROZEN][name] = _row(frozen[name])
        later.add(tables[FROZEN][name], scores[name])
    others = [name for name in rankers if name != TUNED]
    of_tuned = _differences(TUNED, frozen, others)
    for name in others:
        later.add_difference(of_tuned[f"{TUNED} - {name}"], scores[TUNED], scores[name])
    full: dict[str, PerUser] = {}
    for name, retriever in retrievers.items():
        found = []
        for case in cases:
            left = [item for item in retriever.items if item not in case.known]
            wanted = np.array([item in case.wanted for item in left])
            found.append(ranking_metrics(wanted, retriever.scores(case.user, left).scores))
        full[name] = by_user(found)
        tables[FULL][name] = _row(full[name])
    alone = f"{DEFAULT} alone"
    stages: dict[str, list[dict[str, float]]] = {alone: [], RERANKED: [], FUSED: []}
    for case in cases:
        wanted = np.array([item in case.wanted for item in case.pool.items])
        missed = len(case.wanted) - int(wanted.sum())
        tuned = models[TUNED](case.user, case.pool.items)
        fused = reciprocal_rank_fusion(case.pool.scores, tuned)
        for name, each in ((alone, case.pool.scores), (RERANKED, tuned), (FUSED, fused)):
            stages[name].append(ranking_metrics(wanted, each, missed))
    two = {name: by_user(users) for name, users in stages.items()}
    tables[TWO_STAGE] = {name: _row(per_user) for name, per_user in two.items()}
    return {
        "tables": tables,
        "paired_differences": {
            FROZEN: of_tuned,
            FULL: _differences(DEFAULT, full, [name for name in full if name != DEFAULT]),
            TWO_STAGE: _differences(RERANKED, two, [alone]) | _differences(FUSED, two, [alone]),
        },
        "pool_recall": float(np.mean([len(case.wanted & set(case.pool.items)) / len(case.wanted) for case in cases])),
    }


def in_a_word(difference: Difference | None) -> str:
    """Whether something helps, by its interval.

    >>> in_a_word(Difference(0.02, 0.01, 0.03, 0.002)), in_a_word(Difference(0.0, -0.1, 0.1, 1.0))
    ('yes', 'not shown')
    """
    if difference is None:
        return "not shown"
    return "yes" if difference.low > 0 else "no, it harms" if difference.high < 0 else "not shown"


def _sentences(found: Mapping[str, Any]) -> tuple[str, dict[str, str], list[str]]:
    """The verdict on both ways of ranking again, each in a word, and what to keep in mind."""
    words, texts = {}, []
    for name, question, subject in (
        (RERANKED, "Does the tuned model's order help?", "Re-ranking"),
        (FUSED, "Does fusing both orders help?", "Fusion"),
    ):
        gap = found["paired_differences"][TWO_STAGE][f"{name} - {DEFAULT} alone"].get(METRIC)
        difference = Difference(**gap) if gap else None
        words[name] = in_a_word(difference)
        sentence = comparison_sentence(difference, f"{DEFAULT} alone", _SHOWN[METRIC], LEVEL, subject)
        texts.append(f"{question} {words[name].capitalize()}. {sentence}")
    notes = [
        "What this asks: do the items that a user went on to like stand first? The model was trained on another "
        "question: would the user like this item, once they have it? It was never asked what they choose next. An item "
        "that they would have liked but never chose counts against it here, while a retriever learns from what is "
        "chosen. So a loss here does not say that its answers are wrong; Later AUC asks its own question, liked "
        "before not liked among the items that the user did choose.",
        f"The pool of {POOL} items holds {found['pool_recall']:.1%} of the liked ones on average; no second stage can "
        "find the others.",
        "Figures on candidate sets are higher than those over the whole catalogue, since most negatives are easy; "
        "compare within a table only (Krichene and Rendle, KDD 2020).",
    ]
    return " ".join(texts), words, notes


def _show(report: Mapping[str, Any], console: Console) -> None:
    heads = {
        FROZEN: f"Frozen candidates: later items and {report['candidate_sets']['negatives']} negatives",
        FULL: "Whole catalogue, known items left out",
        TWO_STAGE: f"Two stages: the {POOL} best of {DEFAULT}, in its own order and in others",
    }
    for table, head in heads.items():
        rows = {
            name: {
                shown: Estimate(row["metrics"][key], *row["intervals"].get(key, (None, None)))
                for key, shown in _SHOWN.items()
                if key in row["metrics"]
            }
            for name, row in report["tables"][table].items()
        }
        console.print(f"\n{head}", highlight=False, markup=False)
        console.print(summary_table(rows, list(next(iter(rows.values())))))
    console.print(report["verdict"], highlight=False, markup=False)
    for note in report["notes"]:
        console.print(note, highlight=False, markup=False)


def _how_made(run: OpenRun, data: Dataset, command: str) -> dict[str, str]:
    return {
        "model": f"{run.settings.base_model} with LoRA, {run.folder}",
        "data": f"{data.meta['name']}, {data.meta.get('leak', {}).get('note', '')}",
        "dataset hash": data.content_hash,
        "adapter hash": run.adapter_hash,
        "precision": f"{str(run.loaded.dtype).removeprefix('torch.')} on {run.loaded.device.type}",
        "retrievers": f"fitted on the likes of all users' frozen histories; {DEFAULT} is the first stage",
        "fusion": f"reciprocal rank fusion, k = {FUSION_K:g}",
        "ties": "expected value over all orders of equal scores",
        "versions": ", ".join(f"{name} {number}" for name, number in run.settings.versions.items()),
        "command": command,
    }


def evaluate_topk(
    folder: Path, overrides: list[str], split: str, max_users: int | None, untuned: bool, say: Say, console: Console
) -> dict[str, Any]:
    """Rank with the tuned model, the untuned one, retrievers and like-rate; write the figures into the run.

    Writes `metrics_topk.json` and `predictions_topk_SPLIT_MODEL.parquet` (user_id, item_id, log_odds); for validation
    `metrics_topk_validation.json`. Candidate sets are frozen in the dataset folder.

    Args:
        folder: a run folder.
        overrides: `key=value` strings.
        split: `test` or `validation`.
        max_users: users at most, drawn by a hash of their ids; None takes all.
        untuned: whether to rank with the untuned model too.
        say: prints one line.
        console: shows progress and the tables.

    Returns:
        What the JSON holds: verdict, helps (in a word), notes, protocol, split, users, users_left_out,
        candidate_sets, retriever, pool, pool_recall, cold_users, tables, paired_differences, intervals, how_made.
    """
    run = open_run(folder, overrides, say)
    data = open_data(run, say)
    frozen = candidate_sets(data.folder, data.events, data.catalog, data.content_hash, split, say)
    seen = history_at(data.events, split)
    retrievers = {name: fit(seen, name, data.catalog[ITEM_ID]) for name in RETRIEVERS}
    cases, left_out = make_cases(data.events, frozen, split, retrievers[DEFAULT], max_users)
    say(
        f"users: {len(cases):,} measured; left out: {left_out['no_relevant_item']:,} who liked nothing new in the "
        f"split, {left_out['not_drawn']:,} beyond --max-users"
    )
    models = (TUNED, UNTUNED) if untuned else (TUNED,)
    scored = score_frozen(run, data, split, cases, models, "topk", say, console)
    rates = item_like_rate(seen.with_columns(pl.col(LABEL).cast(pl.Int64)), data.catalog)
    rate = dict(zip(data.catalog[ITEM_ID].to_list(), rates.tolist(), strict=True))
    found = measure_topk(
        cases, {which: Lookup(scored[which]) for which in models}, retrievers,
        lambda _user, items: np.array([rate[item] for item in items]),
    )  # fmt: skip
    verdict, words, notes = _sentences(found)
    cold = sum(case.pool.by != DEFAULT for case in cases)
    if cold:
        notes.append(f"{cold:,} users of whom {DEFAULT} knows no like were given the most popular items.")
    if run.settings.blend:
        notes.append(f"Baselines have a part in the tuned model's answers: {run.settings.correction_text}.")
    table, _ = files_of(data.folder, split)
    options = ["--split", split] if split != TEST else []
    options += ["--max-users", str(max_users)] if max_users is not None else []
    options += [] if untuned else ["--no-base"]
    command = shlex.join(["rectune", "evaluate", str(folder), *overrides, "--protocol", "topk", *options])
    report = {
        "verdict": verdict,
        "helps": words,
        "notes": notes,
        "protocol": PROTOCOL,
        "split": split,
        "users": len(cases),
        "users_left_out": left_out,
        "candidate_sets": {
            "file": str(table), "negatives": NEGATIVES, "seed": DRAWN_WITH, "sha256": hash_file(table),
        },
        "retriever": DEFAULT,
        "pool": POOL,
        "cold_users": cold,
        **found,
        "intervals": {"method": "percentile bootstrap over users", "draws": DRAWS, "level": LEVEL, "seed": SEED},
        "how_made": _how_made(run, data, command),
    }  # fmt: skip
    for which in models:
        with atomic_path(run.folder / f"predictions_topk_{split}_{which}.parquet") as temporary:
            scored[which].write_parquet(temporary)
    path = run.folder / metrics_name("report_topk" if split == TEST else f"report_topk_{split}")
    write_json(path, report)
    _show(report, console)
    say(f"written: {path}")
    return report
