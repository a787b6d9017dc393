"""The study of a sweep on disk: what was tried, what comes next, what is given up early. Optuna behind our words.

The study is an SQLite file. Each change is a transaction and its lock ends with its process, so a killed sweep leaves
neither half a record nor a lock; Optuna's other kind of file, the journal, leaves its lock behind and cannot be read
once a line has been cut.
"""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rectune.config import Config
from rectune.config_sweep import NEUTRAL, Choices, Space, search_space
from rectune.errors import ConfigError, ResourceError
from rectune.measure.classification import LOWER_IS_BETTER
from rectune.train.sweep_trial import Result

if TYPE_CHECKING:
    import optuna

FILE = "study.db"
_NAME = "rectune"
_ASKED = "asked"
_RANDOM = 5
"""Trials before TPE begins, the configuration's own among them; Optuna's 10 suits hundreds of trials."""
_PRUNE_AFTER = 4
"""Complete trials that there must be before another is given up."""
_FIRST_PRUNED = 2
"""Number of the first evaluation that may end a trial: at the first, the learning rate is still near its peak."""


@dataclass(frozen=True)
class Row:
    """A trial as tables show it.

    Attributes:
        number: from 0, which has the configuration's own settings.
        values: of each key of the space.
        outcome: as `Result` has it, or `running`.
        value, step, reason: as `Result` has them.
        seconds: how long it has run, over all sittings.
        evaluations: the metric by the number of the evaluation, from 1.
    """

    number: int
    values: dict[str, Any]
    outcome: str
    value: float | None
    step: int | None
    reason: str
    seconds: float
    evaluations: dict[int, float]


def import_optuna() -> Any:
    """Optuna, quiet.

    Raises:
        ResourceError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise ResourceError("sweep: needs Optuna, which is not installed: pip install optuna") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


def better(value: float, other: float, metric: str) -> bool:
    """Whether a value of a metric is better than another one."""
    return value < other if metric in LOWER_IS_BETTER else value > other


def best_row(rows: list[Row], metric: str) -> Row | None:
    """The best complete trial; the earliest wins a tie."""
    best: Row | None = None
    for row in rows:
        if row.outcome == "complete" and row.value is not None:
            best = row if best is None or best.value is None or better(row.value, best.value, metric) else best
    return best


def _label(value: Any) -> Any:
    """A choice as Optuna keeps it: lists become texts."""
    return value if isinstance(value, str | int | float) else json.dumps(value)


class SweepStudy:
    """The study of one configuration, its space and its metric.

    Args:
        folder: of the sweep; the study's file is in it, or will be.
        config: the configuration that is swept.
        metric: what makes a trial the best.
        data_hash: of the dataset.

    Raises:
        ConfigError: the file holds a sweep of something else.
        ResourceError: Optuna is not installed.
    """

    def __init__(self, folder: Path, config: Config, metric: str, data_hash: str) -> None:
        self.optuna = import_optuna()
        from sqlalchemy.engine import URL

        self.config, self.metric, self.folder = config, metric, folder
        self.space: Space = search_space(config)
        address = URL.create("sqlite", database=str(folder / FILE)).render_as_string()
        # The median of complete trials, not successive halving: with a handful of evaluations and a dozen trials one
        # after the other, halving would judge most of them by their first evaluation, where rates have not come down.
        self.study: optuna.Study = self.optuna.create_study(
            storage=self.optuna.storages.RDBStorage(address),
            study_name=_NAME,
            direction="minimize" if metric in LOWER_IS_BETTER else "maximize",
            pruner=self.optuna.pruners.MedianPruner(n_startup_trials=_PRUNE_AFTER, n_warmup_steps=_FIRST_PRUNED),
            load_if_exists=True,
        )
        self._check_same(data_hash)
        if not self.study.get_trials(deepcopy=False):
            self.study.enqueue_trial({key: _label(getattr(config, key)) for key in self.space})

    def _check_same(self, data_hash: str) -> None:
        """Hold the study against what it was begun with; trials of something else could not be compared."""
        config = {key: value for key, value in self.config.model_dump(mode="json").items() if key not in NEUTRAL}
        asked = {"metric": self.metric, "data": data_hash, "config": config}
        before = self.study.user_attrs.get(_ASKED)
        if before is None:
            self.study.set_user_attr(_ASKED, asked)
            return
        changed = [f"--metric {before['metric']}"] if before["metric"] != self.metric else []
        changed += [f"{key}={before['config'][key]}" for key in config if before["config"].get(key) != config[key]]
        changed += ["other data"] if before["data"] != data_hash else []
        if changed:
            raise ConfigError(
                f"{self.folder}: holds a sweep with {', '.join(changed)}, whose trials cannot be compared with those "
                "asked for now; put that back, set output_dir=OTHER, or start over with --overwrite"
            )

    def _distributions(self) -> dict[str, Any]:
        """The space as Optuna writes it."""
        found = self.optuna.distributions
        made = {}
        for key, part in self.space.items():
            if isinstance(part, Choices):
                made[key] = found.CategoricalDistribution([_label(value) for value in part.values])
            elif isinstance(part.low, int):
                made[key] = found.IntDistribution(part.low, part.high, log=part.log, step=part.step or 1)
            else:
                made[key] = found.FloatDistribution(part.low, part.high, log=part.log, step=part.step)
        return made

    def next_trial(self) -> Any:
        """The trial that was cut off, with its parameters, or else a new one.

        Each trial has a sampler of its own, seeded with the seed and its number: a sweep that was cut off and goes on
        draws what an uninterrupted one draws.
        """
        running = self.study.get_trials(deepcopy=False, states=(self.optuna.trial.TrialState.RUNNING,))
        number = running[0].number if running else len(self.rows())
        seed = int(np.random.SeedSequence([self.config.seed, number]).generate_state(1)[0])
        self.study.sampler = self.optuna.samplers.TPESampler(seed=seed, n_startup_trials=_RANDOM, multivariate=True)
        if not running:
            return self.study.ask(self._distributions())
        trial = self.optuna.trial.Trial(self.study, running[0]._trial_id)
        for key, distribution in self._distributions().items():
            trial._suggest(key, distribution)  # what it has already stays
        return trial

    def values(self, params: dict[str, Any]) -> dict[str, Any]:
        """A trial's parameters as the configuration's keys take them, in the order of the space."""
        found = {}
        for key, part in self.space.items():
            if key in params:
                listed = {_label(value): value for value in part.values} if isinstance(part, Choices) else {}
                found[key] = listed.get(params[key], params[key])
        return found

    def report(self, trial: Any, number: int, value: float, seconds: float) -> None:
        """Write down an evaluation; one that a resumed trial repeats is there already."""
        trial.set_user_attr("seconds", seconds)
        if number not in self._frozen(trial).intermediate_values:
            trial.report(value, number)

    def reason_to_prune(self, trial: Any) -> str:
        """Why a trial is given up after its latest evaluation, or nothing."""
        if not trial.should_prune():
            return ""
        number = max(self._frozen(trial).intermediate_values)
        others = [row.evaluations[number] for row in self.complete() if number in row.evaluations]
        return (
            f"worse after {number} evaluations than the median {self.metric} {np.median(others):.4f} of "
            f"{len(others)} complete trials"
        )

    def finish(self, trial: Any, result: Result, seconds: float) -> Row:
        """Write down how a trial ended.

        Settings that cannot run count for the sampler as the worst of all, so that it keeps away from them; a crash
        says nothing about settings and is left out.
        """
        state = self.optuna.trial.TrialState
        for name, value in (("outcome", result.outcome), ("value", result.value), ("step", result.step)):
            trial.set_user_attr(name, value)
        trial.set_user_attr("reason", result.reason)
        trial.set_user_attr("seconds", seconds)
        if result.outcome == "complete":
            self.study.tell(trial, result.value)
        else:
            self.study.tell(trial, state=state.FAIL if result.outcome == "failed" else state.PRUNED)
        return self._row(self._frozen(trial))

    def _frozen(self, trial: Any) -> Any:
        return self.study._storage.get_trial(trial._trial_id)

    def row(self, trial: Any) -> Row:
        """A trial as it is now."""
        return self._row(self._frozen(trial))

    def _row(self, frozen: Any) -> Row:
        attrs = frozen.user_attrs
        return Row(
            number=frozen.number,
            values=self.values(frozen.params),
            outcome=attrs.get("outcome", "failed") if frozen.state.is_finished() else "running",
            value=attrs.get("value"),
            step=attrs.get("step"),
            reason=attrs.get("reason", ""),
            seconds=attrs.get("seconds", 0.0),
            evaluations={number: value for number, value in frozen.intermediate_values.items() if math.isfinite(value)},
        )

    def rows(self) -> list[Row]:
        """Every trial that has begun, by number."""
        waiting = self.optuna.trial.TrialState.WAITING
        return [self._row(trial) for trial in self.study.get_trials(deepcopy=False) if trial.state != waiting]

    def finished(self) -> list[Row]:
        """Every trial that has ended, in whatever way."""
        return [row for row in self.rows() if row.outcome != "running"]

    def complete(self) -> list[Row]:
        """Trials that ran to their end."""
        return [row for row in self.rows() if row.outcome == "complete"]


def described(space: Space) -> str:
    """The space in a line."""
    return "; ".join(f"{key} {part}" for key, part in space.items())
