"""Score many candidates of a user: what a request is, and the scorer that answers it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rectune.prompt.events import Event
from rectune.prompt.tree import Trees
from rectune.score.open_run import OpenRun
from rectune.score.scorer import score_trees

Floats = npt.NDArray[np.float64]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Candidate:
    """An item asked about: its text as the prompt says it, and what is added to the model's log-odds."""

    text: str
    prior: float = 0.0


@dataclass(frozen=True)
class Request:
    """One user's question.

    Attributes:
        history: what the user did, oldest first.
        candidates: the items asked about, each after the whole history.
        user: under this name the history's keys and values are kept for the next request; None keeps nothing.
    """

    history: Sequence[Event]
    candidates: Sequence[Candidate]
    user: str | None = None


class CandidateScorer:
    """Scores candidates with one opened run.

    Args:
        run: from `open_run`.
        say: prints one line.
        memory_gib: what scoring may take beside the weights; None finds it from what is free.
    """

    def __init__(self, run: OpenRun, say: Say, memory_gib: float | None = None) -> None:
        self.run = run
        self.say = say

    def score(self, requests: Sequence[Request], progress: Callable[[int], None] | None = None) -> list[Floats]:
        """Log-odds of every candidate of every request, each [candidates of the request], prior added.

        Args:
            requests: any number of users, with any numbers of candidates.
            progress: called with the number of candidates scored since the last call.
        """
        prompts = self.run.prompts
        found = []
        for request in requests:
            history = list(request.history)
            if self.run.config.layout == "pointwise":
                history = history[-self.run.config.history_len :]
            built = [prompts.build(history, candidate.text) for candidate in request.candidates]
            none = np.zeros(len(built), dtype=np.int32)
            trees = Trees.of_prompts(
                [prompt.tokens for prompt in built], none, none, none, [each.prior for each in request.candidates]
            )
            size, attention = self.run.config.per_device_eval_batch_size, self.run.loaded.attention
            found.append(score_trees(self.run.model, trees, prompts.verbalizer, size, attention))
            if progress is not None:
                progress(len(built))
        return found
