"""Rules about the events: rare labels, labels in the prompt, too few of them to evaluate."""

from __future__ import annotations

import numpy as np

from rectune.train.curves import Curves, Facts, auc_noise
from rectune.train.finding import Finding, seen

BY_THRESHOLD = ("accuracy", "precision", "recall", "f1")
"""Metrics that count answers above one half, and so flatter the commoner answer."""


def class_imbalance(curves: Curves, facts: Facts) -> Finding | None:
    """Less than a fifth of the events have the rarer label.

    Always answering the commoner one is then right in more than 80 %. The border is that between a mild and a moderate
    imbalance in Google's Machine Learning Crash Course (mild 20 to 40 %, moderate 1 to 20 %). It is no failure, but one
    must not choose the best adapter by counting right answers.
    """
    rates = (facts.training_rate, facts.validation_rate)
    rarer = min(min(rate, 1 - rate) for rate in rates)
    if rarer >= 0.2:
        return None
    counts = facts.metric in BY_THRESHOLD
    message = (
        f"{rates[0]:.0%} of the training events are positive and {rates[1]:.0%} of the validation events: always "
        f"giving the commoner answer is right in {max(rates[1], 1 - rates[1]):.0%} of them, so accuracy and F1 flatter"
    )
    advice = f"metric_for_best_model=auc (now {facts.metric})" if counts else "read AUC and loss, not accuracy"
    return seen("class_imbalance", curves, message, advice, "warning" if counts else "info")


def loss_at_zero(curves: Curves, facts: Facts) -> Finding | None:
    """The loss is next to nothing on events that were never trained on.

    On validation, 0.02 means that the right label has a probability of 0.98 on (geometric) average; people who rate the
    same films again do not agree with themselves that well (Amatriain, Pujol and Oliver, UMAP 2009). In training, three
    lines below 0.0001 within the first pass, where every event is new, mean that nothing is left to answer. A run that
    has learnt its events by heart has neither.
    """
    blank = curves.losses[(curves.epochs <= 1) & (curves.losses < 1e-4)]
    if len(blank) >= 3:
        message = f"the training loss is {blank[-1]:.1e} before any event was seen twice: there is nothing to learn"
    elif curves.evaluations and curves.evaluations[-1]["eval_loss"] < 0.02:
        log = curves.evaluations[-1]
        if log["eval_n"] * min(log["eval_positive_rate"], 1 - log["eval_positive_rate"]) < 5:
            return None
        message = f"the validation loss is {log['eval_loss']:.4f}: no taste is that certain; the prompt tells the label"
    else:
        return None
    advice = "`rectune inspect CONFIG --show-examples 3`, and look for the label in item_text and in the titles"
    return seen("loss_at_zero", curves, message, advice)


def small_evaluation(curves: Curves, facts: Facts) -> Finding | None:
    """At the end: the evaluations cannot be told apart by AUC, because there are too few events.

    The standard error of the best AUC (Hanley and McNeil 1982) is above 0.04, which makes its interval 0.16 wide: some
    170 events, half of them liked, at an AUC of 0.65. And the best lies less than two of them above the last
    evaluation, or above the lowest where the last is the best. The settings of one model differ by a few hundredths.
    """
    found = [log for log in curves.evaluations if "eval_auc" in log]
    if not curves.finished or len(curves.evaluations) < 2:
        return None
    advice = "max_eval_samples and validation_ratio: evaluate more events"
    if not found:
        message = f"the {facts.validation_events} validation events are all of one class, which gives no AUC"
        return seen("small_evaluation", curves, message, advice)
    best = max(found, key=lambda log: log["eval_auc"])
    other = found[-1] if found[-1] is not best else min(found, key=lambda log: log["eval_auc"])
    error, gap = auc_noise(best), best["eval_auc"] - other["eval_auc"]
    if error <= 0.04 or gap >= 2 * error:
        return None
    need = int(np.ceil(best["eval_n"] * (error / 0.02) ** 2 / 100) * 100)
    message = (
        f"{best['eval_n']} validation events of {facts.validation_users} users cannot tell step {best['step']} "
        f"(AUC {best['eval_auc']:.3f}) from step {other['step']} ({other['eval_auc']:.3f}): the standard error is "
        f"{error:.3f}"
    )
    advice = f"max_eval_samples={need} (now {best['eval_n']}) for an error of 0.02, or a larger validation_ratio"
    return seen("small_evaluation", curves, message, advice)
