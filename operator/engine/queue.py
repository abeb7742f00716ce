"""The keyed, level-triggered work queue under every reconciler.

A key says that something may have changed, never what. It runs at most once at a time, again after it was added
while it ran, again after a delay it asked for, and again under a back-off of its own after a fault.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from cinderblock.core.clock import Clock
from cinderblock.core.errors import StorageError
from cinderblock.core.kube.port import Conflict, KubeError
from cinderblock.core.metrics import NO_QUEUE_METRICS, QueueMetrics

Key = tuple[str, str]  # (namespace or "", name)
Reconcile = Callable[[Key], Awaitable[float | None]]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backoff:
    """Seconds until the next try after n failures in a row: first, doubled each time, never above cap."""

    first: float = 1.0
    cap: float = 300.0

    def delay(self, failures: int) -> float:
        return min(self.cap, self.first * 2.0 ** min(failures - 1, 30))


# A conflict means that the cache was behind: the watch is about to bring the news, which adds the key by itself.
_CONFLICT_BACKOFF = Backoff(first=0.05, cap=5.0)
_FAILED_AND_CHANGED_SECONDS = 1.0


class WorkQueue:
    """`add` from anywhere in the loop, `run` once in a task of its own."""

    def __init__(
        self,
        name: str,
        reconcile: Reconcile,
        *,
        workers: int,
        clock: Clock,
        backoff: Backoff | None = None,
        metrics: QueueMetrics = NO_QUEUE_METRICS,
    ) -> None:
        self.name = name
        self._reconcile = reconcile
        self._workers = workers
        self._clock = clock
        self._backoff = backoff or Backoff()
        self._metrics = metrics
        self._ready: asyncio.Queue[Key] = asyncio.Queue()
        self._queued: set[Key] = set()
        self._running: set[Key] = set()
        self._again: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._conflicts: dict[Key, int] = {}
        self._timers: list[tuple[float, Key]] = []
        self._due: dict[Key, float] = {}  # the truth about timers; entries of the heap may be stale
        self._timers_changed = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def add(self, key: Key, after: float = 0.0) -> None:
        """Run key now, or in `after` seconds unless it is due earlier anyway."""
        if after > 0:
            self._schedule(key, after)
        elif key in self._running:
            self._again.add(key)
        elif key not in self._queued:
            self._due.pop(key, None)
            self._queued.add(key)
            self._idle.clear()
            self._ready.put_nowait(key)
            self._metrics.depth(self.name, len(self._queued))

    @property
    def depth(self) -> int:
        """Keys that wait for a worker."""
        return len(self._queued)

    async def run(self) -> None:
        """Serve until cancelled. Whatever a reconcile raises ends up in the log, never here."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._serve_timers())
            for _ in range(self._workers):
                group.create_task(self._work())

    async def wait_idle(self) -> None:
        """Until nothing is ready and nothing runs; delayed keys do not count."""
        await self._idle.wait()

    # work ------------------------------------------------------------------------------------------------
    async def _work(self) -> None:
        while True:
            key = await self._ready.get()
            self._queued.discard(key)
            self._running.add(key)
            self._metrics.depth(self.name, len(self._queued))
            started = self._clock.monotonic()
            delay: float | None = None
            failed = True
            try:
                delay, failed = await self._once(key)
            finally:
                self._running.discard(key)
                self._metrics.ran(self.name, self._clock.monotonic() - started, failed=failed)
                again = key in self._again
                self._again.discard(key)
                if again and not failed:
                    self.add(key)
                elif again and delay is not None:
                    # something changed meanwhile, perhaps by our own report of the fault: soon, but no hot loop
                    self._schedule(key, min(delay, _FAILED_AND_CHANGED_SECONDS))
                if delay is not None:
                    self._schedule(key, delay)
                if not self._running and not self._queued:
                    self._idle.set()

    async def _once(self, key: Key) -> tuple[float | None, bool]:
        """Run one reconcile; (seconds until the next run or None, whether it failed)."""
        try:
            delay = await self._reconcile(key)
        except Conflict as error:
            if key in self._again:  # the news is here already
                return None, False
            count = self._conflicts[key] = self._conflicts.get(key, 0) + 1
            _log.debug("%s %s/%s: %s", self.name, *key, error)
            return _CONFLICT_BACKOFF.delay(count), False
        except (StorageError, KubeError) as error:
            delay = self._count_failure(key)
            _log.warning(
                "%s %s/%s failed, again in %g s: %s: %s", self.name, *key, delay, type(error).__name__, error
            )
            return delay, True
        except Exception:  # the edge of all reconcilers: a bug in one key must not stop the others
            delay = self._count_failure(key)
            _log.exception("%s %s/%s failed unexpectedly, again in %g s", self.name, *key, delay)
            return delay, True
        self._failures.pop(key, None)
        self._conflicts.pop(key, None)
        return (None if delay is None else max(delay, 0.001)), False

    def _count_failure(self, key: Key) -> float:
        count = self._failures[key] = self._failures.get(key, 0) + 1
        return self._backoff.delay(count)

    # timers ----------------------------------------------------------------------------------------------
    def _schedule(self, key: Key, after: float) -> None:
        due = self._clock.monotonic() + after
        if key in self._queued or self._due.get(key, float("inf")) <= due:
            return
        self._due[key] = due
        heapq.heappush(self._timers, (due, key))
        if self._timers[0] == (due, key):
            self._timers_changed.set()

    async def _serve_timers(self) -> None:
        while True:
            self._timers_changed.clear()
            now = self._clock.monotonic()
            while self._timers and self._timers[0][0] <= now:
                due, key = heapq.heappop(self._timers)
                if self._due.get(key) == due:
                    del self._due[key]
                    self.add(key)
            if not self._timers:
                await self._timers_changed.wait()
                continue
            sleeper = asyncio.ensure_future(self._clock.sleep(self._timers[0][0] - now))
            changed = asyncio.ensure_future(self._timers_changed.wait())
            try:
                await asyncio.wait({sleeper, changed}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                sleeper.cancel()
                changed.cancel()
