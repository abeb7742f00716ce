"""Keyed work that outlives the call that asked for it.

grpc.aio cancels a handler when its client's deadline passes, in the middle of whatever it awaits. An effect must
then neither stop half-way nor run twice when the client asks again, so effects run here: a task of its own per
key, which callers start or join and only watch. The task is the lock of its key: it alone decides when the key
is free again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from cinderblock.core.errors import OperationPending

T = TypeVar("T")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Running:
    what: Hashable
    task: asyncio.Task[Any]


class KeyedWork:
    """At most one task per key; `name` is for messages only."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._running: dict[Hashable, _Running] = {}

    async def run(
        self,
        key: Hashable,
        factory: Callable[[], Awaitable[T]],
        timeout: float,
        *,
        what: Hashable = None,
    ) -> T:
        """Start the work of this key, or join it when the running one is the same `what`; return its result.

        `what` tells one request from another (an RPC and its arguments); equal calls share one task and one
        result or error, other ones wait their turn. The factory must give work that ends by itself: it has
        deadlines of its own.

        Errors: OperationPending when `timeout` seconds pass while the work of this key goes on; whatever the
        work raises.
        """
        loop = asyncio.get_running_loop()
        answer_by = loop.time() + timeout
        while (running := self._running.get(key)) is not None and running.what != what:
            await self._watch(key, running.task, answer_by - loop.time())
        if running is None:
            running = _Running(what, asyncio.create_task(_call(factory), name=f"{self._name}:{key}"))
            self._running[key] = running
            running.task.add_done_callback(lambda task: self._ended(key, task))
        await self._watch(key, running.task, answer_by - loop.time())
        if running.task.cancelled():
            # Never hand a CancelledError to gRPC: it would leave the client without an answer.
            raise OperationPending(
                f"the operation on {key} was interrupted by a stop of the process: ask again"
            )
        return cast("T", running.task.result())

    async def _watch(self, key: Hashable, task: asyncio.Task[Any], seconds: float) -> None:
        # wait() leaves the task alone when this caller is cancelled or out of time.
        await asyncio.wait({task}, timeout=max(0.0, seconds))
        if not task.done():
            raise OperationPending(f"the operation on {key} is still running: ask again")

    def busy(self, key: Hashable) -> bool:
        """Whether work holds this key now."""
        return key in self._running

    async def drain(self, timeout: float) -> None:
        """For a clean stop: let running work end for so long, then cancel the rest and wait for it."""
        tasks = {running.task for running in self._running.values()}
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=timeout)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)

    def _ended(self, key: Hashable, task: asyncio.Task[Any]) -> None:
        del self._running[key]
        # Nobody may be left to take the error; asking for it here keeps asyncio from reporting it as lost.
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.debug("%s of %s ended with %s: %s", self._name, key, type(error).__name__, error)


async def _call(factory: Callable[[], Awaitable[T]]) -> T:
    return await factory()
