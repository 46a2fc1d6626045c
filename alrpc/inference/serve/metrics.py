"""What `GET /metrics` tells, for Prometheus: requests, their time, batches, and by which exits samples were answered."""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from alrpc.inference.predictor import Answer

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
SIZES = tuple(1 << power for power in range(11))
CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """The figures of a server since its start."""

    def __init__(self, waiting: Callable[[], float]):
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = Counter("alrpc_requests", "Requests answered.", ["route", "status"], registry=self._registry)
        self._seconds = Histogram(
            "alrpc_request_seconds", "From request to answer.", ["route"], buckets=SECONDS, registry=self._registry
        )
        self._batches = Histogram("alrpc_batch_size", "Samples computed at once.", buckets=SIZES, registry=self._registry)
        self._samples = Counter("alrpc_samples", "Samples answered, by exit.", ["exit"], registry=self._registry)
        gauge = Gauge("alrpc_waiting_samples", "Samples that wait for their batch.", registry=self._registry)
        gauge.set_function(waiting)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def computed(self, answers: Sequence[Answer]) -> None:
        """Count a batch."""
        self._batches.observe(len(answers))
        for exit, count in Counts(answer.exit for answer in answers).items():
            self._samples.labels(exit).inc(count)

    def text(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self._registry)
