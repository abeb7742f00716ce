"""Blocking file calls, off the event loop, under a deadline, one at a time for each volume.

A thread that waits for a disk cannot be stopped. It therefore keeps its volume's lock until it ends, whatever
happened to the caller: a repeated call queues behind it and finds its effect. The threads are the driver's own, so
that a hanging disk takes none from its neighbours.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from cinderblock.core.errors import BackendUnavailable, OperationTimeout

T = TypeVar("T")
_THREADS = 8


@dataclass
class _Lane:
    """The line of calls for one volume; gone when it is empty."""

    lock: threading.Lock
    users: int = 0


class Worker:
    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix=name)
        self._lanes: dict[str, _Lane] = {}
        self._lanes_lock = threading.Lock()
        self._running: set[Future[object]] = set()
        self._closed = False

    async def run(
        self,
        call: Callable[[], T],
        *,
        key: str | None = None,
        timeout: float,
        abandoned: Callable[[T], None] | None = None,
    ) -> T:
        """`call()` in a thread; with `key`, never beside another call of that key.

        `abandoned` gets the result when the caller is gone by then (deadline or cancellation): to close what
        nobody else will.
        Errors: OperationTimeout when the deadline passes (a call that has begun goes on), BackendUnavailable once
        closed.
        """
        if self._closed:
            raise BackendUnavailable("the pool is closed")
        future: Future[T] = self._executor.submit(self._in_lane, key, call)
        self._running.add(future)  # type: ignore[arg-type]  # Future is invariant; only waited for
        future.add_done_callback(self._running.discard)
        wrapped = asyncio.wrap_future(future)
        try:
            done, _ = await asyncio.wait({wrapped}, timeout=timeout)
        except asyncio.CancelledError:
            _leave(future, wrapped, abandoned)
            raise
        if not done:
            _leave(future, wrapped, abandoned)
            raise OperationTimeout(f"the disk did not answer within {timeout:g} s; the work goes on")
        return wrapped.result()

    async def close(self, timeout: float) -> bool:
        """No new calls; True when all running ones have ended, so that descriptors may be closed."""
        self._closed = True
        self._executor.shutdown(wait=False)
        waiting = {asyncio.wrap_future(future) for future in list(self._running)}
        if not waiting:
            return True
        done, pending = await asyncio.wait(waiting, timeout=timeout)
        for future in done | pending:
            future.add_done_callback(_forget)
        return not pending

    def _in_lane(self, key: str | None, call: Callable[[], T]) -> T:
        if key is None:
            return call()
        with self._lanes_lock:
            lane = self._lanes.setdefault(key, _Lane(threading.Lock()))
            lane.users += 1
        try:
            with lane.lock:
                return call()
        finally:
            with self._lanes_lock:
                lane.users -= 1
                if not lane.users:
                    del self._lanes[key]


def _leave(future: Future[T], wrapped: asyncio.Future[T], abandoned: Callable[[T], None] | None) -> None:
    wrapped.add_done_callback(_forget)
    if future.cancel():
        return  # no thread had begun it, and none will: a disk that hangs piles up no work for later

    def hand_over(ended: Future[T]) -> None:
        if abandoned is not None and not ended.cancelled() and ended.exception() is None:
            abandoned(ended.result())

    future.add_done_callback(hand_over)


def _forget(future: asyncio.Future[T]) -> None:
    """Nobody waits for it any more: take its error, so that none is reported as never retrieved."""
    if not future.cancelled():
        future.exception()
