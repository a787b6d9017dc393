"""What is wrong with a run, in plain words, from its history alone.

Each rule looks at the history up to an evaluation, or up to the end, and says nothing unless it is sure: a rule that
cries at healthy runs is soon not read. Thresholds are reasoned where they stand; docs/experiments.md has the runs that
they were held against.
"""

from __future__ import annotations

from collections.abc import Sequence

from rectune.train.curves import Curves, Facts, Log
from rectune.train.data_rules import class_imbalance, loss_at_zero, small_evaluation
from rectune.train.finding import Finding, Rule
from rectune.train.learning_rules import collapse, overconfidence, overfitting, still_falling, underfitting
from rectune.train.not_finite import BROKEN
from rectune.train.step_rules import (
    exploding_gradients,
    learning_rate_too_high,
    learning_rate_too_low,
    no_effect,
    not_a_number,
)

EXPLAINED_BY: dict[str, set[str]] = {
    "learning_rate_too_low": {"no_effect"},
    "underfitting": {"no_effect", "learning_rate_too_low", "learning_rate_too_high", "overfitting"},
}
"""Rules that have nothing to add where others have spoken."""
RULES: tuple[Rule, ...] = (
    not_a_number,
    loss_at_zero,
    exploding_gradients,
    learning_rate_too_high,
    no_effect,
    learning_rate_too_low,
    collapse,
    overfitting,
    underfitting,
    still_falling,
    overconfidence,
    class_imbalance,
    small_evaluation,
)


def diagnose(history: Sequence[Log], facts: Facts) -> list[Finding]:
    """All that is wrong with a run so far, each once, at the step at which it was first seen.

    Every rule is asked at each evaluation, at a break and at the end, with what was known then. So the findings of a
    longer history begin with those of a shorter one, and a resumed run has those of an uninterrupted one.

    Args:
        history: the Trainer's log entries, oldest first.
        facts: what is known besides.
    """
    found: dict[str, Finding] = {}
    for at, log in enumerate(history):
        if "eval_loss" in log or "train_runtime" in log or BROKEN in log:
            curves = Curves.of(history[: at + 1])
            for rule in RULES:
                name = rule.__name__
                if name in found or found.keys() & EXPLAINED_BY.get(name, set()):
                    continue
                if (finding := rule(curves, facts)) is not None:
                    found[name] = finding
    return list(found.values())
