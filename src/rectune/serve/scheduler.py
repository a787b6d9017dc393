"""The thread that owns the model: requests in flight are scored together, by the histories they share.

A round takes what waits, first come first, until a pass of the model is full: candidates of one history as one
request, so that its keys are computed once, and of a large request a slice, so that it cannot keep small ones
waiting. While a round is scored the next one gathers; nothing waits for company. Scores do not depend on what is
scored beside them, beyond the rounding of the model's precision.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from rectune.prompt.events import Event
from rectune.score.candidates import CandidateScorer, Request
from rectune.serve.limits import TEXT_CHARACTERS

Floats = npt.NDArray[np.float64]
_SMOOTH = 0.2
"""Weight of the last round in the speed."""


def kept_name(history: Sequence[Event]) -> str:
    """A name under which the keys of a history that nobody has named are kept."""
    return hashlib.sha256(repr(tuple(history)).encode("utf-8", "backslashreplace")).hexdigest()


@dataclass(eq=False)
class Job:
    """One history and its candidates, on their way through the model.

    Attributes:
        scorer: of the run that read the request; it is also answered by that one, whatever is loaded meanwhile.
        request: with the name its history's keys are kept under.
        trunk, own: tokens of the history, and of each candidate, as `CandidateScorer.tokens` gives them.
        deadline: on the monotonic clock; later nobody waits for it.
        answer: the log-odds, float64 [candidates]; whoever cancels it takes the job back.
        at: candidates that are scored.
    """

    scorer: CandidateScorer
    request: Request
    trunk: int
    own: list[int]
    deadline: float
    answer: Future[Floats] = field(default_factory=Future)
    at: int = 0
    started: float | None = None

    def __post_init__(self) -> None:
        self.history = tuple(self.request.history)
        self._odds = np.zeros(len(self.own))

    @property
    def tokens(self) -> int:
        """What is left to compute, the history once."""
        return self.trunk + sum(self.own[self.at :])

    @property
    def gone(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.answer.done() or time.monotonic() > self.deadline

    def found(self, odds: Floats) -> bool:
        """Take the next candidates' log-odds; whether it is complete."""
        self._odds[self.at : self.at + len(odds)] = odds
        self.at += len(odds)
        if self.at < len(self.own):
            return False
        self._settle(lambda: self.answer.set_result(self._odds))
        return True

    def fail(self, error: BaseException) -> None:
        """Answer with an error."""
        self._settle(lambda: self.answer.set_exception(error))

    @staticmethod
    def _settle(settle: Callable[[], None]) -> None:
        try:
            settle()
        except InvalidStateError:
            return  # taken back in this very moment


@dataclass(frozen=True)
class Slice:
    """Candidates of a job that a round scores: those from its `at` on to before `stop`."""

    job: Job
    stop: int


@dataclass(frozen=True)
class Round:
    """What one round took.

    Attributes:
        jobs: how many jobs took part.
        candidates, tokens: how many were scored and computed, those of kept histories not known apart.
        seconds: how long it took.
        kept: bytes of histories' keys that are kept for later rounds.
    """

    jobs: int
    candidates: int
    tokens: int
    seconds: float
    kept: int


def choose(waiting: Sequence[Job], room: int) -> list[Slice]:
    """The next round: jobs of one run in the order of arrival, those of one history together, up to `room` tokens.

    The first job always gets a candidate, however long its prompt.
    """
    if not waiting:
        return []
    scorer = waiting[0].scorer
    first: dict[tuple[Event, ...], int] = {}
    for place, job in enumerate(waiting):
        first.setdefault(job.history, place)
    chosen: list[Slice] = []
    trunks: set[tuple[Event, ...]] = set()
    for job in sorted((job for job in waiting if job.scorer is scorer), key=lambda job: first[job.history]):
        left = room - (0 if job.history in trunks else job.trunk)
        stop = job.at
        while stop < len(job.own) and left >= job.own[stop]:
            left -= job.own[stop]
            stop += 1
        if stop == job.at:
            if chosen:
                continue  # a shorter one may fit
            stop += 1
        chosen.append(Slice(job, stop))
        trunks.add(job.history)
        room = left
        if room <= 0:
            break
    return chosen


class Scheduler(threading.Thread):
    """Scores jobs until it is stopped.

    Args:
        told: called after each round.
    """

    def __init__(self, told: Callable[[Round], None] = lambda _round: None) -> None:
        super().__init__(name="scheduler", daemon=True)
        self._told = told
        self._waiting: deque[Job] = deque()
        self._tokens = 0
        self._changed = threading.Condition()
        self._stopping = False
        self._speed: float | None = None

    def submit(self, job: Job) -> None:
        """Let a job wait for its turn."""
        with self._changed:
            self._waiting.append(job)
            self._tokens += job.tokens
            self._changed.notify()

    def stop(self, seconds: float = 0.0) -> bool:
        """End the thread after its round; what still waits is never answered.

        Args:
            seconds: how long to wait for its end.

        Returns:
            Whether it has ended.
        """
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self.ident is not None and seconds:
            self.join(seconds)
        return not self.is_alive()

    @property
    def waiting(self) -> int:
        """Tokens that are still to be computed."""
        return self._tokens

    def wait_for(self, tokens: int) -> float | None:
        """Seconds in which so many more tokens would be computed; None before anything was timed."""
        return None if self._speed is None else (self.waiting + tokens) / self._speed

    def run(self) -> None:
        """Rounds, one after the other."""
        while True:
            with self._changed:
                while not self._waiting and not self._stopping:
                    self._changed.wait()
                if self._stopping:
                    return
                gone = {job for job in self._waiting if job.gone}
                self._leave(gone)
                waiting = list(self._waiting)
            for job in gone:
                job.fail(TimeoutError())
            if waiting:
                self._round(choose(waiting, waiting[0].scorer.budget.tokens))

    def _leave(self, jobs: Collection[Job], again: Sequence[Job] = ()) -> None:
        """Let jobs wait no more, but for those whose turn comes again, behind all others; with the lock held."""
        self._waiting = deque([*(job for job in self._waiting if job not in jobs), *again])
        self._tokens = sum(job.tokens for job in self._waiting)

    def _round(self, slices: list[Slice]) -> None:
        started = time.monotonic()
        for each in slices:
            each.job.started = each.job.started or started
        sizes = [each.stop - each.job.at for each in slices]
        trunks = {each.job.history: each.job.trunk for each in slices}
        tokens = sum(trunks.values()) + sum(sum(each.job.own[each.job.at : each.stop]) for each in slices)
        try:
            done = set(self._score(slices))
        except Exception:
            # One job's fault must not be another's: each by itself.
            done = {job for each in slices for job in self._alone(each)}
        with self._changed:
            # Those whose candidates are not all scored go behind those who have not had a turn.
            self._leave({each.job for each in slices}, [each.job for each in slices if each.job not in done])
        seconds = time.monotonic() - started
        speed = tokens / max(seconds, 1e-6)
        self._speed = speed if self._speed is None else (1 - _SMOOTH) * self._speed + _SMOOTH * speed
        scorer = slices[0].job.scorer
        self._told(Round(len(slices), sum(sizes), tokens, seconds, scorer.trunks.size))
        pieces = scorer.run.prompts.pieces
        if pieces.held > TEXT_CHARACTERS:
            pieces.forget()

    def _alone(self, one: Slice) -> list[Job]:
        try:
            return self._score([one])
        except Exception as error:
            one.job.fail(error)
            return [one.job]

    @staticmethod
    def _score(slices: list[Slice]) -> list[Job]:
        """Score slices of one run's jobs, those of one history as one request; the jobs that are complete now.

        Raises:
            RectuneError: see `CandidateScorer.score`; no job has changed then.
        """
        groups: dict[tuple[Event, ...], list[Slice]] = {}
        for each in slices:
            groups.setdefault(each.job.history, []).append(each)
        requests = [
            Request(
                history,
                [one for each in group for one in each.job.request.candidates[each.job.at : each.stop]],
                group[0].job.request.user,
            )
            for history, group in groups.items()
        ]
        scored = slices[0].job.scorer.score(requests)
        done = []
        for group, odds in zip(groups.values(), scored, strict=True):
            at = 0
            for each in group:
                size = each.stop - each.job.at
                if each.job.found(odds[at : at + size]):
                    done.append(each.job)
                at += size
        return done
