"""Rules about the optimiser: gradients, the learning rate, numbers that are none."""

from __future__ import annotations

import numpy as np

from rectune.measure.uncertainty import entropy
from rectune.train.curves import DROWNED, Curves, Facts, noise
from rectune.train.finding import Finding, faster, seen, slower
from rectune.train.not_finite import BROKEN, explain


def exploding_gradients(curves: Curves, facts: Facts) -> Finding | None:
    """The gradient norm was more than ten times its running median, at least three times.

    The median is of all lines before, at least five. Norms of healthy runs scatter: the largest of the demo's is six
    times the median. A single spike is what clipping is for. A norm must also lie above all of the first five, since
    that of a run which has learnt its events by heart is next to nothing, and ten times as much is nothing too.
    """
    norms = curves.norms
    medians = [float(np.median(norms[:at])) if at >= 5 else 0.0 for at in range(len(norms))]
    spikes = [
        (at, float(norms[at]) / median)
        for at, median in enumerate(medians)
        if 0 < 10 * median < norms[at] and norms[at] > norms[:5].max()
    ]
    if len(spikes) < 3:
        return None
    largest = max(norms[at] for at, _ in spikes)
    message = (
        f"the gradient exploded {len(spikes)} times: norms of up to {largest:.3g}, "
        f"{max(ratio for _, ratio in spikes):.0f} times the median before"
    )
    clip = "max_grad_norm=1.0 (now 0, no clipping) and " if facts.max_grad_norm == 0 else ""
    return seen("exploding_gradients", curves, message, f"{clip}{slower(facts, 3)}")


def not_a_number(curves: Curves, facts: Facts) -> Finding | None:
    """A loss, a gradient or scores stopped being finite numbers: the run cannot go on."""
    if curves.broken is None:
        return None
    message, advice = explain(curves.broken)
    return seen(BROKEN, curves, message, advice, "stop")


def no_effect(curves: Curves, facts: Facts) -> Finding | None:
    """The scores are those of the model before training.

    Equal to the last digit at an evaluation after warm-up, or moved by less than 0.01 in log-odds on average (0.0025 in
    a score of one half) after half of the run. Never within ten steps: the first of a warm-up has a rate of 0.
    """
    if not curves.evaluations:
        return None
    log = curves.evaluations[-1]
    moved = log.get("eval_log_odds_moved")
    if moved is None or log["step"] <= max(facts.warmup_steps, 10):
        return None
    if moved >= (0.01 if 2 * log["step"] >= facts.steps else 1e-12):
        return None
    message = f"after {log['step']} steps the scores are those of the untrained model (they moved by {moved:.1e})"
    return seen("no_effect", curves, message, f"{faster(facts, 100)}; check lora_target and lora_layers")


def learning_rate_too_high(curves: Curves, facts: Facts) -> Finding | None:
    """Training makes the model worse than it was, or than a constant, or deaf.

    After warm-up, the median of the last lines (four or more, a third of all) lies above the first line by more than
    three standard deviations of single lines, and by a tenth. Or the scores have moved by more than 1 in log-odds, two
    evaluations (at the end one) lie a quarter above the loss of the share of positives, and so does the training loss:
    a model that overfits has a low one, and one over the whole vocabulary has at least halved. (Labels rarer than one
    in twenty count as one in twenty there.) Or those evaluations give every prompt the same score, whatever it says:
    the adapter's part has drowned the input.
    """
    after = curves.losses[curves.steps > max(facts.warmup_steps, curves.steps[0] if len(curves.steps) else 0)]
    recent = after[-max(4, len(curves.losses) // 3) :]
    if len(recent) < 4:
        return None
    level, start = float(np.median(recent)), float(curves.losses[0])
    if level > start + max(3 * noise(curves.losses), 0.1 * start):
        message = f"the training loss is {level:.3f} after warm-up, and began at {start:.3f}"
        return seen("learning_rate_too_high", curves, message, slower(facts, 10))
    constant, settled = entropy(facts.validation_rate), curves.settled(facts)
    if settled and all(log.get("eval_log_odds_sd", 1.0) < DROWNED for log in settled):
        message = f"every prompt gets the same score (log-odds differ by {settled[-1]['eval_log_odds_sd']:.4f})"
        return seen("learning_rate_too_high", curves, message, slower(facts, 10))
    worse = all(log["eval_loss"] > 1.25 * constant and log.get("eval_log_odds_moved", 0.0) > 1 for log in settled)
    own = entropy(min(max(facts.training_rate, 0.05), 0.95))
    if not settled or not worse or not facts.plain_loss or level <= max(1.25 * own, 0.5 * start):
        return None
    message = (
        f"the validation loss is {settled[-1]['eval_loss']:.3f} and the training loss {level:.3f}, above "
        f"{constant:.3f}, that of giving everyone the share of positives"
    )
    return seen("learning_rate_too_high", curves, message, slower(facts, 10))


def learning_rate_too_low(curves: Curves, facts: Facts) -> Finding | None:
    """After a third of the run nothing much has happened.

    The scores have moved by less than 0.1 in log-odds on average (0.025 in a score of one half), and the training loss
    of the last third of at least six lines lies below that of the first by less than two standard errors.
    """
    third = len(curves.losses) // 3
    if third < 2 or not curves.evaluations or 3 * curves.step < facts.steps:
        return None
    moved = curves.evaluations[-1].get("eval_log_odds_moved")
    first, last = curves.losses[:third].mean(), curves.losses[-third:].mean()
    if moved is None or moved >= 0.1 or first - last > 2 * noise(curves.losses) * np.sqrt(2 / third):
        return None
    message = (
        f"after {curves.step} of {facts.steps} steps the training loss is {last:.3f} (it began at {first:.3f}) and the "
        f"scores have moved by {moved:.3f} in log-odds"
    )
    return seen("learning_rate_too_low", curves, message, faster(facts, 10))
