"""What Prometheus may read."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from rectune.serve.scheduler import Round

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Counts of one service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter = partial(Counter, registry=self.registry)
        gauge = partial(Gauge, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry)
        self.requests = counter("rectune_requests", "Requests answered, by route and status.", ["route", "status"])
        self.seconds = histogram(
            "rectune_request_seconds", "From a request's head to the end of its answer.", ["route"], buckets=_SECONDS
        )
        self.rounds = histogram("rectune_round_seconds", "Scoring of one batch.", buckets=_SECONDS)
        self.together = histogram(
            "rectune_round_requests", "Requests scored in one batch.", buckets=(1, 2, 4, 8, 16, 32, 64, 128)
        )
        self.candidates = counter("rectune_candidates", "Candidates scored.")
        self.tokens = counter("rectune_tokens", "Tokens of what was scored, a history once a batch, kept ones too.")
        self.reloads = counter("rectune_reloads", "Loads of another adapter, by what became of them.", ["result"])
        self.adapter = gauge("rectune_adapter_info", "What is served, by the SHA-256 of its weights.", ["adapter"])
        self.kept = gauge("rectune_kept_bytes", "Bytes of histories' keys that are kept between requests.")
        self._in_flight = gauge("rectune_requests_in_flight", "Requests that wait or are scored.")
        self._waiting = gauge("rectune_waiting_tokens", "Tokens that are still to be computed.")

    def watch(self, in_flight: Callable[[], float], waiting: Callable[[], float]) -> None:
        """Read these whenever somebody asks."""
        self._in_flight.set_function(in_flight)
        self._waiting.set_function(waiting)

    def round(self, taken: Round) -> None:
        """Count a round of the scheduler."""
        self.rounds.observe(taken.seconds)
        self.together.observe(taken.jobs)
        self.candidates.inc(taken.candidates)
        self.tokens.inc(taken.tokens)
        self.kept.set(taken.kept)

    def serving(self, adapter: str) -> None:
        """Say which adapter is served."""
        self.adapter.clear()
        self.adapter.labels(adapter[:12]).set(1)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)
