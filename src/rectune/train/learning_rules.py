"""Rules about what a run has learnt: too little, too much, one answer for all."""

from __future__ import annotations

import numpy as np

from rectune.measure.uncertainty import entropy
from rectune.train.curves import DROWNED, Curves, Facts, Log, auc_noise, ranks
from rectune.train.finding import Finding, length, seen, slower


def _off(log: Log) -> bool:
    """Whether the mean score is off the share of positives by a tenth."""
    rate = float(log["eval_positive_rate"])
    return abs(float(log.get("eval_score_mean", rate)) - rate) > 0.1


def _collapsed(log: Log) -> bool:
    """Whether an evaluation has one answer for all, while neither the labels nor a calibrated model would have."""
    rate, said = log["eval_positive_rate"], log["eval_predicted_positive_rate"]
    if log["eval_n"] * min(rate, 1 - rate) < 20 or not 0.1 <= rate <= 0.9:
        return False
    return (said <= 0.02 or said >= 0.98) and (_off(log) or not ranks(log))


def collapse(curves: Curves, facts: Facts) -> Finding | None:
    """All validation events get the same answer, for two evaluations or at the end.

    98 % of them lie on one side of one half. A calibrated model of rare likes does that too, so besides this its mean
    score must be off the share of positives by 0.1, or it must not rank: AUC within two standard errors of one half.
    Labels that are nearly all alike (under 10 %, or fewer than 20 of the rarer) are no ground to judge on.
    """
    settled = curves.settled(facts)
    if not settled or not all(map(_collapsed, settled)):
        return None
    log = settled[-1]
    auc = f"{log['eval_auc']:.2f}" if "eval_auc" in log else "undefined"
    message = (
        f"{log['eval_predicted_positive_rate']:.0%} of the validation events are answered with the positive label, "
        f"{log['eval_positive_rate']:.0%} have it (mean score {log.get('eval_score_mean', float('nan')):.2f}, AUC "
        f"{auc}): the model has collapsed to one answer"
    )
    if abs(facts.training_rate - facts.validation_rate) > 0.2:
        advice = f"mend the split: {facts.training_rate:.0%} of the training events are positive"
    elif _off(log) or log.get("eval_log_odds_moved", 0.0) > 1 or log.get("eval_log_odds_sd", 1.0) < DROWNED:
        advice = slower(facts, 10)
    else:
        advice = "it knows the share of positives and no more: give it more events or a prior (prior=item_rate)"
    return seen("collapse", curves, message, advice)


def overfitting(curves: Curves, facts: Facts) -> Finding | None:
    """The validation loss has risen from its best while the training loss fell on.

    It must have risen by more than two standard errors of the larger of both losses, and by 0.01, in two evaluations
    (at the end in one). The same events are scored each time: as soon as their losses correlate by one half, the error
    of the difference is no larger than that of one. The mean of the training lines since the best must lie below that
    of as many lines before it, and, where both are plain cross-entropy, below the best validation loss: what is no
    better known in training than in validation is not learnt by heart. Where the AUC has risen since the best loss by
    two standard errors, the model still learns and is only too sure of it, which `overconfidence` sees.
    """
    if len(curves.evaluations) < 2:
        return None
    best, last = curves.evaluations[curves.best()], curves.evaluations[-1]
    error = max(best.get("eval_loss_se", 0.0), last.get("eval_loss_se", 0.0))
    latest = curves.evaluations[-1:] if curves.finished else curves.evaluations[-2:]
    if min(log["eval_loss"] for log in latest) - best["eval_loss"] <= max(2 * error, 0.01):
        return None
    since, until = curves.losses[curves.steps > best["step"]], curves.losses[curves.steps <= best["step"]]
    if not len(since) or not len(until):
        return None
    before, after = float(until[-len(since) :].mean()), float(since.mean())
    if after >= before or (facts.plain_loss and after >= best["eval_loss"]):
        return None
    if last.get("eval_auc", 0.0) > best.get("eval_auc", 1.0) + 2 * auc_noise(best):
        return None
    message = (
        f"the validation loss rose from {best['eval_loss']:.3f} at step {best['step']} to {last['eval_loss']:.3f} "
        f"(standard error {error:.3f}) while the training loss fell from {before:.3f} to {after:.3f}: events are "
        "learnt by heart"
    )
    return seen("overfitting", curves, message, f"{length(facts, best['step'])}, more events, or lora_dropout=0.1")


def underfitting(curves: Curves, facts: Facts) -> Finding | None:
    """At its end a run is no better than what needs no training.

    That is the prior where there is one, else the share of positives as everyone's score. No better: the best
    validation loss is less than 1 % below it, and no AUC is two standard errors above it. A calibrated model that gains
    1 % of ln 2 has log-odds with a variance of 8 x 0.007, and so an AUC of 0.57. With an AUC's standard error above
    0.08 (some 40 events) or fewer than six lines nobody can tell.
    """
    if not curves.finished or not curves.evaluations or len(curves.losses) < 6:
        return None
    if not auc_noise(curves.evaluations[-1]) <= 0.08:
        return None
    known = facts.prior_loss is not None
    loss = facts.prior_loss if facts.prior_loss is not None else entropy(facts.validation_rate)
    area = facts.prior_auc if facts.prior_auc is not None else 0.5
    best = curves.evaluations[curves.best()]
    better = any(log.get("eval_auc", 0.0) > area + 2 * auc_noise(log) for log in curves.evaluations)
    if better or best["eval_loss"] < 0.99 * loss:
        return None
    what = "the prior alone has" if known else "the share of positives as everyone's score has"
    message = (
        f"the best validation loss is {best['eval_loss']:.3f} (step {best['step']}), and {what} {loss:.3f}: training "
        "has added nothing that holds"
    )
    return seen("underfitting", curves, message, f"more events (max_train_samples), {length(facts, 3 * facts.steps)}")


def still_falling(curves: Curves, facts: Facts) -> Finding | None:
    """A run ended while it was still learning clearly.

    The training loss of the last third of its lines falls along a line by more than two standard errors of the slope,
    and by more than a fifth of all that was gained since the first third; and the last validation loss is the lowest,
    by more than a standard error below that of the evaluation two thirds through. Good to know rather than wrong.
    """
    third = len(curves.losses) // 3
    if not curves.finished or third < 4 or len(curves.evaluations) < 3:
        return None
    late, at = curves.losses[-third:], np.arange(third, dtype=np.float64)
    slope, level = np.polyfit(at, late, 1)
    error = np.sqrt(((late - level - slope * at) ** 2).sum() / (third - 2) / ((at - at.mean()) ** 2).sum())
    fall, gained = -slope * (third - 1), curves.losses[:third].mean() - late.mean()
    last = curves.evaluations[-1]
    before = [log for log in curves.evaluations if log["step"] <= curves.step * 2 / 3]
    drop = before[-1]["eval_loss"] - last["eval_loss"] if before else 0.0
    lowest = curves.best() == len(curves.evaluations) - 1
    if not (-slope > 2 * error and fall > 0.2 * gained > 0 and lowest and drop > last.get("eval_loss_se", 0.0)):
        return None
    message = (
        f"the run ended while still learning: the training loss fell by {fall:.3f} in its last third, the validation "
        f"loss by {drop:.3f} to {last['eval_loss']:.3f}"
    )
    return seen("still_falling", curves, message, length(facts, 2 * facts.steps), "info")


def overconfidence(curves: Curves, facts: Facts) -> Finding | None:
    """The model ranks, but is far surer than it is right: its scores have saturated.

    Its log loss is half as large again as the one that its scores expect of themselves (their mean entropy), and above
    it by three standard errors, while its AUC lies above one half by two. A temperature mends that; where the AUC is no
    good either, another rule speaks.
    """
    settled = curves.settled(facts)
    if not settled or any("eval_loss_expected" not in log for log in settled):
        return None
    for log in settled:
        beyond = log["eval_loss"] - log["eval_loss_expected"]
        if not ranks(log) or beyond <= max(3 * log["eval_loss_se"], 0.5 * log["eval_loss_expected"]):
            return None
    log = settled[-1]
    message = (
        f"the scores are surer than they are right: their log loss is {log['eval_loss']:.3f} where they expect "
        f"{log['eval_loss_expected']:.3f} of themselves, with an AUC of {log['eval_auc']:.3f}"
    )
    advice = f"keep the temperature that is fitted on validation (`rectune calibrate RUN`), and {slower(facts, 3)}"
    return seen("overconfidence", curves, message, advice)
