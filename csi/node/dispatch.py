"""The agent's keyed queue: one key never runs twice at once, and a key added while it runs runs again after."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from cinderblock.core.errors import StorageError
from cinderblock.core.kube.port import Conflict, KubeError

Key = tuple[str, str]
_FIRST, _LAST = 0.2, 30.0
_AFTER_CONFLICT = 0.05
_PARALLEL = 32  # a sick disk holds a place for each of its volumes

_log = logging.getLogger(__name__)


class Dispatcher:
    """`reconcile(key)` returns the seconds after which it wants to be called again, or None."""

    def __init__(
        self, reconcile: Callable[[Key], Awaitable[float | None]], *, parallel: int = _PARALLEL
    ) -> None:
        self._reconcile = reconcile
        self._places = asyncio.Semaphore(parallel)
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._again: set[Key] = set()
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._failures: dict[Key, int] = {}
        self._closed = False

    def add(self, key: Key, after: float = 0.0) -> None:
        if self._closed:
            return
        if (timer := self._timers.pop(key, None)) is not None:
            timer.cancel()
        if after > 0:
            self._timers[key] = asyncio.get_running_loop().call_later(after, self._due, key)
        elif key in self._tasks:
            self._again.add(key)
        else:
            self._tasks[key] = asyncio.create_task(self._run(key), name=f"attachment:{key[0]}/{key[1]}")

    def _due(self, key: Key) -> None:
        self._timers.pop(key, None)
        self.add(key)

    async def _run(self, key: Key) -> None:
        after: float | None
        try:
            async with self._places:
                self._again.discard(key)  # what was added until here is seen by this run
                after = await self._once(key)
        finally:
            del self._tasks[key]
        if key in self._again:
            self._again.discard(key)
            self.add(key)
        elif after is not None:
            self.add(key, after)

    async def _once(self, key: Key) -> float | None:
        try:
            after = await self._reconcile(key)
        except Conflict:
            return _AFTER_CONFLICT
        except (StorageError, KubeError) as error:
            _log.warning("attachment %s/%s: %s", *key, error)
        except Exception:  # the edge: a fault of one object must not stop the others
            _log.exception("attachment %s/%s failed", *key)
        else:
            self._failures.pop(key, None)
            return after
        count = self._failures.get(key, 0)
        self._failures[key] = count + 1
        return min(_FIRST * 2.0 ** min(count, 10), _LAST)

    def forget(self, key: Key) -> None:
        self._failures.pop(key, None)

    async def close(self) -> None:
        """Cancel what waits and what runs, and wait until it has ended."""
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
