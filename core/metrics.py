"""Prometheus metrics: one registry per process, made by its composition and handed down.

Layers below know only small recorders such as QueueMetrics, so nothing registers itself at import.
"""

from __future__ import annotations

from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0, 300.0)


class QueueMetrics(Protocol):
    def depth(self, queue: str, keys: int) -> None: ...

    def ran(self, queue: str, seconds: float, *, failed: bool) -> None: ...


class _NoQueueMetrics:
    def depth(self, queue: str, keys: int) -> None: ...

    def ran(self, queue: str, seconds: float, *, failed: bool) -> None: ...


NO_QUEUE_METRICS: QueueMetrics = _NoQueueMetrics()


class PrometheusQueueMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._depth = Gauge(
            "cinderblock_queue_depth", "Keys that wait for a worker.", ["queue"], registry=registry
        )
        self._seconds = Histogram(
            "cinderblock_reconcile_seconds",
            "Time of one reconcile.",
            ["queue"],
            registry=registry,
            buckets=_SECONDS,
        )
        self._failures = Counter(
            "cinderblock_reconcile_failures", "Reconciles that failed.", ["queue"], registry=registry
        )

    def depth(self, queue: str, keys: int) -> None:
        self._depth.labels(queue).set(keys)

    def ran(self, queue: str, seconds: float, *, failed: bool) -> None:
        self._seconds.labels(queue).observe(seconds)
        if failed:
            self._failures.labels(queue).inc()
