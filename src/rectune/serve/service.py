"""What is served: the run that answers now, how many questions may wait, and how one run gives way to the next."""

from __future__ import annotations

import asyncio
import gc
import math
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from rectune.baselines.retrieve import DEFAULT
from rectune.data.columns import ITEM_ID
from rectune.errors import ConfigError, ModelError, RectuneError
from rectune.score.candidates import CandidateScorer
from rectune.score.given import Unknown
from rectune.score.recommender import Recommender
from rectune.serve.journal import Journal
from rectune.serve.limits import Limits
from rectune.serve.metrics import Metrics
from rectune.serve.reading import Going, Question, Reader
from rectune.serve.refusal import Refused
from rectune.serve.scheduler import Job, Scheduler, kept_name

Floats = npt.NDArray[np.float64]
Say = Callable[[str], None]
Read = TypeVar("Read")
Ask = Callable[["Serving", Going], tuple[list[Question], Read]]
"""Makes questions of a request for a run, and something beside them, as long as somebody waits."""
_SLOWEST = 60
"""Seconds after which a client is told to come again, at most."""


@dataclass(frozen=True)
class Serving:
    """A run that answers.

    Attributes:
        name: what answers call it: the folder's name.
        adapter: SHA-256 of its weights.
    """

    name: str
    adapter: str
    recommender: Recommender
    reader: Reader

    @cached_property
    def untuned(self) -> CandidateScorer:
        """The same model without its adapter; it keeps no histories."""
        return CandidateScorer(self.recommender.run, lambda _line: None, tuned=False)


@dataclass(frozen=True)
class Answered:
    """Log-odds of a question's candidates.

    Attributes:
        tokens: of the prompts, the history once.
        waited: seconds before the model began with it.
    """

    odds: Floats
    tokens: int
    waited: float


def load_serving(run: Path, overrides: Sequence[str], unknown: Unknown, limits: Limits, say: Say) -> Serving:
    """Open a run to be served, with its retriever, and let it answer once.

    Args:
        run: a run folder, or a link to one; whoever changes the link while it is read still gets one run.
        overrides: as `Recommender.load` takes them.
        unknown: what to do with unknown titles where a request does not say.
        limits: of requests.
        say: prints one line.

    Raises:
        ConfigError: there is no such folder.
        RectuneError: see `Recommender.load`; or it does not answer.
    """
    if not run.is_dir():
        raise ConfigError(f"{run}: no such run folder; train first with `rectune train CONFIG`")
    loading = True

    def told(line: str) -> None:
        if loading:  # later lines tell what requests hold
            say(line)

    recommender = Recommender.load(run.resolve(), overrides, told)
    _take_in(recommender.run.model)
    data = recommender.data
    some = [{"title": "A first question"} if data is None else {"item_id": data.catalog[ITEM_ID][0]}]
    if data is not None:
        recommender.fit_retriever(DEFAULT)
    # A first pass finds out whether the model can share a history's pass, and whether its answers are numbers.
    (odds,) = recommender.scorer.score([recommender.ask([], some, "text").request])
    if not np.isfinite(odds).all():
        raise ModelError(f"{run}: its answers are not numbers")
    loading = False
    reader = Reader(recommender, DEFAULT, unknown, limits.candidates)
    return Serving(run.name or run.resolve().name, recommender.run.adapter_hash, recommender, reader)


def _take_in(model: Any) -> None:
    """Have a model's weights in memory of this process, where they may be mapped from files.

    A file that is written over in place changes what is mapped, and one that is cut off ends the process (SIGBUS).
    """
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()


class Service:
    """Answers questions by the run that is served.

    Args:
        serving: the first one.
        load: opens the run folder again, for `reload`.
        limits: of requests.
        metrics, journal: what is counted and written down.

    Attributes:
        draining: whether it takes no more requests.
        watched: requests of open pages.
    """

    def __init__(
        self, serving: Serving, load: Callable[[], Serving], limits: Limits, metrics: Metrics, journal: Journal
    ) -> None:
        self.serving, self.limits, self.metrics, self.journal = serving, limits, metrics, journal
        self.draining = False
        self.watched: set[asyncio.Task[Any]] = set()
        self._load = load
        self._in_flight = 0
        self._scheduler = Scheduler(metrics.round)
        # One thread reads, since the catalog's and the tokenizer's caches are made for one.
        self._reading = ThreadPoolExecutor(1, "reading")
        self._reloading = threading.Lock()
        metrics.watch(lambda: self._in_flight, lambda: self._scheduler.waiting)
        metrics.serving(serving.adapter)

    def start(self) -> None:
        """Begin to answer."""
        self._scheduler.start()

    def drain(self) -> None:
        """Take no more requests, and end what a page keeps open for as long as somebody looks at it."""
        self.draining = True
        for task in self.watched:
            task.cancel()

    def stop(self, seconds: float = 0.0) -> bool:
        """Answer nothing any more.

        Args:
            seconds: how long to wait for the end of what is being scored.

        Returns:
            Whether it has ended; where it has not, a thread is still in the middle of a pass, or of loading a run, for
            nobody.
        """
        self._reading.shutdown(wait=False, cancel_futures=True)
        return self._scheduler.stop(seconds) and not self._reloading.locked()

    async def look_up(self, what: Callable[[Serving], Read]) -> Read:
        """Something about the run that is served, in the reading thread."""
        return await asyncio.get_running_loop().run_in_executor(self._reading, what, self.serving)

    # --- questions ---

    async def answer(
        self, read: Ask[Read], gone: Callable[[], Awaitable[None]]
    ) -> tuple[Serving, list[Question], Read, list[Answered]]:
        """Read a request and answer its questions.

        Args:
            read: makes questions for the run that is served now; called in the reading thread.
            gone: returns when the client has hung up.

        Returns:
            The run that answered, the questions, what `read` gave beside them, and the answers in their order.

        Raises:
            Refused: too many questions wait already, or it took too long.
            RectuneError: the request cannot be read, or the model fails.
        """
        if self._in_flight >= self.limits.queue:
            raise Refused(429, f"{self._in_flight} requests wait already; come again", self._come_again(0))
        self._in_flight += 1
        try:
            return await self._answer(read, gone)
        finally:
            self._in_flight -= 1

    async def _answer(
        self, read: Ask[Read], gone: Callable[[], Awaitable[None]]
    ) -> tuple[Serving, list[Question], Read, list[Answered]]:
        arrived = time.monotonic()
        deadline = arrived + self.limits.seconds
        serving, over = self.serving, threading.Event()

        def going() -> None:
            # Reading is work, too: a thread cannot be ended from outside, so it asks.
            if over.is_set() or time.monotonic() > deadline:
                raise _late(self.limits.seconds)

        reading = partial(self._jobs, serving, read, deadline, going)
        work = asyncio.get_running_loop().run_in_executor(self._reading, reading)
        try:
            questions, beside, jobs = await _until(work, deadline, gone)
        except TimeoutError:
            raise _late(self.limits.seconds) from None
        finally:
            over.set()
        tokens = sum(job.tokens for job in jobs)
        seconds = self._scheduler.wait_for(tokens)
        waiting = self._scheduler.waiting
        if waiting and seconds is not None and time.monotonic() + seconds > deadline:
            line = (
                f"{waiting:,} tokens wait already, and it would take longer than {self.limits.seconds:g} s; come again"
            )
            raise Refused(429, line, self._come_again(tokens))
        try:
            for job in jobs:
                self._scheduler.submit(job)
            odds = await _until(_all(jobs), deadline, gone)
        except TimeoutError:
            raise _late(self.limits.seconds) from None
        finally:
            for job in jobs:
                job.answer.cancel()
        answers = [
            Answered(found, job.trunk + sum(job.own), (job.started or arrived) - arrived)
            for job, found in zip(jobs, odds, strict=True)
        ]
        return serving, questions, beside, answers

    def _jobs(
        self, serving: Serving, read: Ask[Read], deadline: float, going: Going
    ) -> tuple[list[Question], Read, list[Job]]:
        going()
        questions, beside = read(serving, going)
        jobs = []
        for question in questions:
            going()
            request, scorer = question.request, question.scorer or serving.recommender.scorer
            if question.scorer is None and request.user is None and request.history:
                request = replace(request, user=kept_name(request.history))
            jobs.append(Job(scorer, request, *scorer.tokens(request), deadline))
        return questions, beside, jobs

    def _come_again(self, tokens: int) -> int:
        seconds = self._scheduler.wait_for(tokens)
        return 1 if seconds is None else min(_SLOWEST, max(1, math.ceil(seconds)))

    # --- the next run ---

    def reload(self, wait: bool = False) -> tuple[Serving, float]:
        """Open the run folder again and answer by it from now on; what was read before is answered by the one before.

        Args:
            wait: where it is being loaded already, whether to load it once more afterwards: what is loaded then may be
                what lay there before.

        Returns:
            What is served now, and the seconds it took.

        Raises:
            Refused: it is being loaded already, and this one does not wait.
            RectuneError: it cannot be served; the one before goes on.
        """
        if not self._reloading.acquire(blocking=wait):
            raise Refused(409, "a run is being loaded already; wait for it", 5)
        started = time.monotonic()
        try:
            serving = self._load()
        except Exception as error:
            self.metrics.reloads.labels("refused").inc()
            # The line names files and what is wrong with them, and nothing of any request.
            line = str(error) if isinstance(error, RectuneError) else type(error).__name__
            self.journal.write("reload", result="refused", reason=line[:500], adapter=self.serving.adapter[:12])
            if not isinstance(error, RectuneError):
                self.journal.failed("reload", error)
                raise ModelError(
                    f"the run could not be loaded ({type(error).__name__}); the one before goes on"
                ) from error
            raise
        finally:
            self._reloading.release()
        self.serving = serving
        self.metrics.serving(serving.adapter)
        self.metrics.reloads.labels("loaded").inc()
        seconds = time.monotonic() - started
        self.journal.write("reload", result="loaded", adapter=serving.adapter[:12], seconds=round(seconds, 2))
        gc.collect()  # the one before, once its last question is answered
        return serving, seconds


def _late(seconds: float) -> Refused:
    return Refused(504, f"not answered within {seconds:g} s; ask for fewer candidates, or when there is less to do")


async def _all(jobs: Sequence[Job]) -> list[Floats]:
    """The answers of jobs, in their order; the first failure is that of all."""
    return await asyncio.gather(*(asyncio.wrap_future(job.answer) for job in jobs))


async def _until(work: Awaitable[Any], deadline: float, gone: Callable[[], Awaitable[None]]) -> Any:
    """What comes of work, if it is done before the deadline and while the client is there.

    Raises:
        TimeoutError: it is late.
        Refused: the client has hung up; nobody will read this.
    """
    doing, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        left = max(0.0, deadline - time.monotonic())
        await asyncio.wait({doing, leaving}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        if leaving.done():
            raise Refused(499, "the client has hung up")
        raise TimeoutError
    finally:
        leaving.cancel()
        if not doing.done():
            doing.cancel()
