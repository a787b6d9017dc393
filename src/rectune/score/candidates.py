"""Score many candidates of a user: the history once, then all candidates as branches of its trunk."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from rectune.baselines.served import Met
from rectune.errors import ModelError, ResourceError
from rectune.model.answers import label_logits
from rectune.model.memory import free_memory, is_out_of_memory, scoring_budget
from rectune.model.prefix import Group, Keys, prefix_problem, run_groups
from rectune.prompt.events import Event, Fan
from rectune.prompt.tree import Trees
from rectune.score.open_run import OpenRun
from rectune.score.scorer import score_trees
from rectune.score.trunks import Trunks

Floats = npt.NDArray[np.float64]
Say = Callable[[str], None]
Progress = Callable[[int], None]

_TRIED = 8
"""Events and candidates with which a model's shared pass is compared with plain prompts."""
_AGREE, _AGREE_HALF = {torch.float32: 1e-3}, 0.2
"""How far the two may be apart, in log-odds, before the shared pass is distrusted; correct ones were 0.07 in bf16."""
_ASKING = threading.RLock()
"""A pass changes the model for its time (mode, adapter, kernel), so one thread asks at a time."""


@dataclass(frozen=True)
class Candidate:
    """An item asked about: its text as the prompt says it, what is added to the model's log-odds whatever the history
    is, and its id where a prior that looks at the history asks for it."""

    text: str
    prior: float = 0.0
    item_id: str | None = None


@dataclass(frozen=True)
class Request:
    """One user's question.

    Attributes:
        history: what the user did, oldest first.
        candidates: the items asked about, each after the whole history.
        user: under this name the history's keys and values are kept for the next request, which may go on with new
            events; None keeps nothing.
    """

    history: Sequence[Event]
    candidates: Sequence[Candidate]
    user: str | None = None


def request_prior(run: OpenRun, request: Request) -> Floats:
    """What a run adds to the model's log-odds of each candidate, float64 [candidates].

    Raises:
        ModelError: the run starts from the stack, and it is of another version.
    """
    prior = np.array([each.prior for each in request.candidates], dtype=np.float64)
    if run.config.prior != "stack":
        return prior
    return prior + run.settings.served["stack"].answer(*_met(request))


def _met(request: Request) -> tuple[list[Met], list[str | None]]:
    history = [Met(event.item_id, event.label, event.rating) for event in request.history]
    return history, [each.item_id for each in request.candidates]


def request_joined(run: OpenRun, request: Request) -> dict[str, Floats]:
    """Log-odds of each candidate by the baselines that join a run's answer, name → float64 [candidates].

    Raises:
        ModelError: one of them is of another version.
    """
    return {name: each.answer(*_met(request)) for name, each in run.settings.joining.items()}


@dataclass(frozen=True)
class _Piece:
    """A group of a pass: whose candidates its branches are, and the name to keep its trunk under."""

    request: int
    which: list[int]
    group: Group
    user: str | None
    trunk: list[int]


class CandidateScorer:
    """Scores candidates with one opened run.

    The scores are those of the plain prompts, run one at a time, up to the rounding of the precision in use: within
    5e-5 log-odds in float32, and some hundredths in bfloat16, where two batches of one prompt differ as much. Threads
    may share a scorer; their calls are served one after the other.

    Args:
        run: from `open_run`; its `scoring_memory_gib` bounds a pass and the trunks that are kept.
        say: prints one line.
        tuned: False asks the base model without its adapter.
        calibrated: False leaves the tuned model's log-odds as they are, prior added.
    """

    def __init__(self, run: OpenRun, say: Say, tuned: bool = True, calibrated: bool = True) -> None:
        self.run = run
        self.say = say
        self.tuned = tuned
        self.calibrated = calibrated
        self.budget = scoring_budget(run.model, run.config.scoring_memory_gib)
        self.trunks = Trunks(self.budget.kept)
        if self.budget.tight:
            say(f"memory: {self.budget.tokens:,} tokens a pass, since there are {self.budget.reason}")
        self._tokens = self.budget.tokens
        self._shared: bool | None = None

    def score(self, requests: Sequence[Request], progress: Progress | None = None) -> list[Floats]:
        """Log-odds of every candidate of every request: prior added, those of the tuned model blended and calibrated.

        Args:
            requests: any number of users, with any numbers of candidates.
            progress: called with the number of candidates scored since the last call.

        Returns:
            For each request float64 [candidates]; P(yes) is the sigmoid.

        Raises:
            DataError: a prompt does not fit `cutoff_len` even without history.
            ModelError: a score is not a number.
            ResourceError: the least that can be asked does not fit the device's memory.
        """
        found = [request_prior(self.run, request) for request in requests]
        with self._asking():
            if self._shared is None:
                self._shared = self._agrees(requests)
            for piece, odds in self._alone(requests) if self._shared is False else self._passes(requests):
                found[piece.request][piece.which] += odds
                if progress is not None and piece.which:
                    progress(len(piece.which))
        if self.tuned and self.calibrated:
            settings = self.run.settings
            found = [
                settings.calibrated(odds, request_joined(self.run, request))
                for odds, request in zip(found, requests, strict=True)
            ]
        bad = sum(int((~np.isfinite(odds)).sum()) for odds in found)
        if bad:
            raise ModelError(
                f"{bad} of {sum(map(len, found))} scores are not numbers: the adapter has diverged or float16 "
                "overflowed; train with bf16=true or a lower learning_rate"
            )
        return found

    def tokens(self, request: Request) -> tuple[int, list[int]]:
        """How many tokens a request's history takes, and each of its candidates behind it.

        Raises:
            DataError: a prompt does not fit `cutoff_len` even without history.
        """
        own, trunk = [0] * len(request.candidates), 0
        for fan in self._fans(request):
            trunk = max(trunk, len(fan.trunk))
            for place, branch in zip(fan.which, fan.branches, strict=True):
                own[place] = len(branch)
        return trunk, own

    @contextmanager
    def _asking(self) -> Iterator[None]:
        model = self.run.model
        with _ASKING:
            was_training = model.training
            model.eval()
            try:
                with torch.inference_mode(), nullcontext() if self.tuned else model.disable_adapter():
                    yield
            finally:
                model.train(was_training)

    def text(self, request: Request, at: int) -> str:
        """The plain prompt of one candidate as a string, without the events that do not fit; for people."""
        history, candidate = self._history(request), request.candidates[at].text
        return self.run.prompts.text(history[self.run.prompts.build(history, candidate).dropped :], candidate)

    def _history(self, request: Request) -> list[Event]:
        """The events that a prompt may show."""
        history = list(request.history)
        if self.run.config.layout != "pointwise":
            return history
        return history[len(history) - min(len(history), self.run.config.history_len) :]

    def _fans(self, request: Request) -> list[Fan]:
        return self.run.prompts.fan_out(self._history(request), [each.text for each in request.candidates])

    # --- shared passes ---

    def _passes(self, requests: Sequence[Request]) -> Iterator[tuple[_Piece, Floats]]:
        """Pieces of requests, packed into passes under the token budget, with their candidates' log-odds."""
        waiting: list[_Piece] = []
        for number, request in enumerate(requests):
            for fan in self._fans(request):
                kept = None if request.user is None else self.trunks.beginning(request.user, fan.trunk)
                at = 0
                while at < len(fan.which):
                    rest = fan.trunk[0 if kept is None else len(kept) :]
                    room = self._tokens - sum(piece.group.tokens for piece in waiting) - len(rest)
                    stop = at
                    while stop < len(fan.which) and room >= len(fan.branches[stop]):
                        room -= len(fan.branches[stop])
                        stop += 1
                    if stop == at and waiting:
                        yield from self._run(waiting)
                        waiting = []
                        continue
                    if stop == at and len(rest) > self._tokens // 2 > 0:  # a trunk too long for one pass
                        (kept,) = self._forward([Group(kept, rest[: self._tokens // 2], [], keep=True)])[1]
                        continue
                    stop = max(stop, at + 1)
                    more = stop < len(fan.which)
                    keep = more or (request.user is not None and bool(rest))
                    group = Group(kept, rest, fan.branches[at:stop], keep)
                    waiting.append(_Piece(number, fan.which[at:stop], group, request.user, fan.trunk))
                    at = stop
                    if more:
                        for piece, odds, keys in self._results(waiting):
                            kept = keys if piece is waiting[-1] else kept
                            yield piece, odds
                        waiting = []
        if waiting:
            yield from self._run(waiting)

    def _run(self, pieces: list[_Piece]) -> Iterator[tuple[_Piece, Floats]]:
        return ((piece, odds) for piece, odds, _ in self._results(pieces))

    def _results(self, pieces: list[_Piece]) -> Iterator[tuple[_Piece, Floats, Keys | None]]:
        """One pass; what it found for each piece, whose trunk is kept where it has a user's name."""
        odds, keys = self._forward([piece.group for piece in pieces])
        at = 0
        for piece, trunk in zip(pieces, keys, strict=True):
            if trunk is not None and piece.user is not None:
                self.trunks.keep(piece.user, piece.trunk, trunk)
            yield piece, odds[at : at + len(piece.which)], trunk
            at += len(piece.which)

    def _forward(self, groups: list[Group]) -> tuple[Floats, list[Keys | None]]:
        """Log-odds of all branches in order, and the keys wanted; halves the pass where memory runs out.

        Raises:
            ResourceError: the least that can be asked does not fit.
        """
        found = self._pass(groups)
        if found is not None:
            return found
        # Here, outside the handler, nothing holds the failed pass any more.
        free_memory(self.run.loaded.device)
        if len(self.trunks):
            self.trunks.clear()
            return self._forward(groups)
        tokens = sum(group.tokens for group in groups)
        self._tokens = min(self._tokens, max(1, tokens // 2))
        self.say(f"memory: {tokens:,} tokens at once do not fit this device; going on with {self._tokens:,}")
        if len(groups) > 1:
            middle = len(groups) // 2
            (one, some), (two, others) = self._forward(groups[:middle]), self._forward(groups[middle:])
            return np.concatenate([one, two]), [*some, *others]
        (group,) = groups
        half, middle = len(group.branches) // 2, len(group.trunk) // 2
        if half:
            first, (trunk,) = self._forward([replace(group, branches=group.branches[:half], keep=True)])
            second, _ = self._forward([Group(trunk, [], group.branches[half:])])
            return np.concatenate([first, second]), [trunk if group.keep else None]
        if not middle:
            raise ResourceError(
                f"scoring one prompt of {group.depth} tokens does not fit this device; lower cutoff_len, take a "
                "smaller model, or free some memory"
            )
        _, (trunk,) = self._forward([Group(group.kept, group.trunk[:middle], [], keep=True)])
        return self._forward([Group(trunk, group.trunk[middle:], group.branches, group.keep)])

    def _pass(self, groups: list[Group]) -> tuple[Floats, list[Keys | None]] | None:
        """One pass, or None where memory runs out."""
        model, words = self.run.model, self.run.prompts.verbalizer
        try:
            hidden, keys = run_groups(model, groups)
            logits = label_logits(model, hidden, words.negative_id, words.positive_id)
            # Widened on the CPU: Apple's devices have no float64.
            return (logits[:, 1] - logits[:, 0]).float().cpu().double().numpy(), keys
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return None

    # --- plain prompts ---

    def _alone(self, requests: Sequence[Request]) -> Iterator[tuple[_Piece, Floats]]:
        """Every candidate as a plain prompt, for models whose attention cannot be shared."""
        words, size = self.run.prompts.verbalizer, self.run.config.per_device_eval_batch_size
        for number, request in enumerate(requests):
            for fan in self._fans(request):
                prompts: list[npt.ArrayLike] = [[*fan.trunk, *branch] for branch in fan.branches]
                nothing = np.zeros(len(prompts), dtype=np.int32)
                trees = Trees.of_prompts(prompts, nothing, nothing, nothing)
                odds = score_trees(self.run.model, trees, words, size, self.run.loaded.attention)
                yield _Piece(number, fan.which, Group(None, fan.trunk, fan.branches), None, fan.trunk), odds

    def _agrees(self, requests: Sequence[Request]) -> bool | None:
        """Whether a shared pass gives what plain prompts give, tried on a few candidates; None without a candidate.

        Guards against models whose positions or masks are not those of the Llama family.
        """
        tried = max(requests, key=lambda each: (len(each.candidates) > 0, len(each.history)), default=None)
        if tried is None or not tried.candidates:
            return None
        asked = Request(tried.history[-_TRIED:], tried.candidates[:_TRIED])
        problem = prefix_problem(self.run.model, self.run.config.cutoff_len)
        if problem is None:
            shared, plain = np.zeros(len(asked.candidates)), np.zeros(len(asked.candidates))
            for found, way in ((shared, self._passes), (plain, self._alone)):
                for piece, odds in way([asked]):
                    found[piece.which] = odds
            apart = float(np.abs(shared - plain).max())
            if not apart <= _AGREE.get(self.run.loaded.dtype, _AGREE_HALF):
                problem = f"it is {apart:.2g} log-odds off"
        if problem is not None:
            self.say(f"scoring: each prompt by itself, since this model cannot share a history's pass: {problem}")
        return problem is None
