"""Score trees: log-odds of the two label words at every answer.

Evaluation during training, `score`, `evaluate` and `compare` all call `score_trees`, so their numbers agree row by
row: same rows, same batches, same arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rectune.errors import NotFinite, ResourceError
from rectune.measure.classes import log_softmax
from rectune.model.answers import hidden_at, label_logits, token_logits
from rectune.model.attention import attention_mask
from rectune.prompt.forest import Forest, lay_out
from rectune.prompt.tree import Trees
from rectune.prompt.verbalizer import Verbalizer
from rectune.world import ALONE, World

CHUNK = 128
"""Trees that are batched together; scoring can be cut between chunks and go on later without changing a batch."""

Floats = npt.NDArray[np.float64]
Progress = Callable[[int], None]


def _batches(trees: Trees, size: int) -> Iterator[list[list[int]]]:
    """The trees of each batch, one a row."""
    for first in range(0, len(trees), CHUNK):
        order = first + np.argsort(-trees.lengths[first : first + CHUNK], kind="stable")
        for start in range(0, len(order), size):
            yield [[int(tree)] for tree in order[start : start + size]]


def scoring_batches(trees: Trees, size: int) -> Iterator[Forest]:
    """Batches of `size` trees, longest first within each chunk, so that little is padded.

    A tree's batch depends only on its chunk: bfloat16 results differ a little with the batch's shape, and equal
    batches make equal scores.
    """
    return (lay_out(trees, rows) for rows in _batches(trees, size))


def _share(trees: Trees, size: int, world: World, look: Callable[[], None] | None) -> Iterator[tuple[Forest, bool]]:
    """Every n-th batch of n processes, and whether it counts.

    Where the model is sharded all processes must make as many passes: one that has no batch left repeats the last.

    Args:
        look: called by all processes before each round of batches.
    """
    rounds = list(_batches(trees, size))
    for first in range(0, len(rounds), world.size):
        if look is not None:
            look()
        at = first + world.rank
        if at < len(rounds):
            yield lay_out(trees, rounds[at]), True
        elif world.sharded:
            yield lay_out(trees, rounds[-1]), False


def score_trees(
    model: Any,
    trees: Trees,
    verbalizer: Verbalizer,
    batch_size: int,
    attention: str,
    progress: Progress | None = None,
    world: World = ALONE,
    look: Callable[[], None] | None = None,
) -> Floats:
    """Log-odds of the positive label word at every answer, the trees' prior added.

    The score of an answer is P(yes) = sigmoid(log-odds); without a prior that is the softmax over the two label
    tokens' logits.

    Args:
        model: a causal language model, with or without an adapter; its mode is put back afterwards.
        trees: what to score.
        verbalizer: gives the label tokens.
        batch_size: trees per forward pass.
        attention: the attention kernel in use, for the masks of branching trees.
        progress: called with the number of trees scored by each batch.
        world: processes that share the batches and all get all scores: the batches, and so the floats, of one process.
        look: called by all processes before each round of batches, so that it may end the scoring in all of them.

    Returns:
        float64 [answers], in the order of the trees' answers.

    Raises:
        NotFinite: a score is not a number.
        ResourceError: a batch does not fit the device's memory.
    """

    def log_odds(hidden: torch.Tensor) -> torch.Tensor:
        logits = label_logits(model, hidden, verbalizer.negative_id, verbalizer.positive_id)
        return (logits[:, 1] - logits[:, 0])[:, None]

    return _read(model, trees, log_odds, 1, batch_size, attention, progress, world, look)[:, 0] + trees.prior


def score_classes(
    model: Any,
    trees: Trees,
    verbalizer: Verbalizer,
    batch_size: int,
    attention: str,
    progress: Progress | None = None,
    world: World = ALONE,
    look: Callable[[], None] | None = None,
) -> Floats:
    """Log-probabilities of the label words among themselves at every answer: float64 [answers, labels].

    Arguments and errors as for `score_trees`; there is no prior.
    """
    ids = verbalizer.token_ids
    logits = _read(
        model, trees, lambda hidden: token_logits(model, hidden, ids), len(ids), batch_size, attention, progress,
        world, look,
    )  # fmt: skip
    return log_softmax(logits)


def _read(
    model: Any, trees: Trees, numbers: Callable[[torch.Tensor], torch.Tensor], width: int, batch_size: int,
    attention: str, progress: Progress | None, world: World, look: Callable[[], None] | None,
) -> Floats:  # fmt: skip
    """What is made of the last hidden state at every answer, float64 [answers, width]."""
    device = next(model.parameters()).device
    result: Floats = np.zeros((len(trees.labels), width), dtype=np.float64)
    was_training = model.training
    model.eval()
    try:
        # Inference mode would mark the memory into which a sharded block is gathered, and training uses it again.
        with torch.no_grad() if world.sharded else torch.inference_mode():
            for batch, counts in _share(trees, batch_size, world, look):
                mask = None
                if not batch.plain:
                    run, first, fork = map(torch.from_numpy, (batch.run, batch.first, batch.fork))
                    mask = attention_mask(run.to(device), first.to(device), fork.to(device), attention, model.dtype)
                hidden = hidden_at(
                    model,
                    torch.from_numpy(batch.input_ids).to(device),
                    torch.from_numpy(batch.rows).to(device),
                    torch.from_numpy(batch.positions).to(device),
                    mask,
                    None if batch.plain else torch.from_numpy(batch.depth).to(device),
                )
                if counts:  # widened on the CPU: Apple's devices have no float64
                    result[batch.answers] = numbers(hidden).float().cpu().double().numpy()
                if progress is not None:
                    progress(len(batch.input_ids))
    except torch.OutOfMemoryError as error:
        raise ResourceError(
            f"scoring {batch_size} prompts of {int(trees.lengths.max())} tokens at once does not fit this device; "
            f"set per_device_eval_batch_size={max(1, batch_size // 2)}"
        ) from error
    finally:
        model.train(was_training)
    result = world.sum_array(result)
    broken = ~np.isfinite(result).all(axis=1)
    if broken.any():
        raise NotFinite(
            f"{int(broken.sum())} of {len(result)} scores are not numbers: the adapter has diverged or float16 "
            "overflowed; train with bf16=true or a lower learning_rate"
        )
    return result
