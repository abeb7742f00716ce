"""What a host measures of its own; the composition hands a recorder down, tests none."""

from __future__ import annotations

from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge


class HostMetrics(Protocol):
    def inventory(self, backend: str, *, unknown: int, missing: int, deleted: int) -> None: ...


class _NoHostMetrics:
    def inventory(self, backend: str, *, unknown: int, missing: int, deleted: int) -> None: ...


NO_HOST_METRICS: HostMetrics = _NoHostMetrics()


class PrometheusHostMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._unknown = Gauge(
            "cinderblock_backend_unknown_objects",
            "Sealed objects of a backend that no Volume names; nothing deletes them.",
            ["backend"],
            registry=registry,
        )
        self._missing = Gauge(
            "cinderblock_backend_missing_objects",
            "Provisioned Volumes that the last inventory of their backend did not hold.",
            ["backend"],
            registry=registry,
        )
        self._deleted = Counter(
            "cinderblock_backend_leftovers_deleted",
            "Objects that were never recorded and that nobody was granted.",
            ["backend"],
            registry=registry,
        )

    def inventory(self, backend: str, *, unknown: int, missing: int, deleted: int) -> None:
        self._unknown.labels(backend).set(unknown)
        self._missing.labels(backend).set(missing)
        self._deleted.labels(backend).inc(deleted)
