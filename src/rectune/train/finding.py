"""One thing that is wrong with a run, in plain words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rectune.train.curves import Curves, Facts

Severity = Literal["info", "warning", "stop"]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        code: its short name, which stays.
        step: the optimiser step at which it was first seen.
        severity: `info` (good to know), `warning` (the result suffers) or `stop` (the run cannot go on).
        message: what was seen, with the figures.
        advice: what to change, key and value where there is one.
    """

    code: str
    step: int
    severity: Severity
    message: str
    advice: str

    def as_json(self) -> dict[str, Any]:
        """As `logs/diagnosis.json` holds it."""
        return asdict(self)

    def line(self) -> str:
        """One line for the terminal."""
        return f"diagnosis: {self.message}; {self.advice}"


Rule = Callable[[Curves, Facts], Finding | None]


def seen(code: str, curves: Curves, message: str, advice: str, severity: Severity = "warning") -> Finding:
    """A finding at the curves' last step."""
    return Finding(code, curves.step, severity, message, advice)


def slower(facts: Facts, factor: float) -> str:
    """Advice to divide the learning rate."""
    return f"learning_rate={facts.learning_rate / factor:.1e} (now {facts.learning_rate:.1e})"


def faster(facts: Facts, factor: float) -> str:
    """Advice to multiply the learning rate."""
    return f"learning_rate={facts.learning_rate * factor:.1e} (now {facts.learning_rate:.1e})"


def length(facts: Facts, steps: int) -> str:
    """Advice to train for so many steps."""
    if facts.by_steps:
        return f"max_steps={steps} (now {facts.steps})"
    return f"num_train_epochs={facts.epochs * steps / facts.steps:.2g} (now {facts.epochs:.3g})"
