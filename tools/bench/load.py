"""The client: makes objects, and sees by a watch when they are what was asked for."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from cinderblock.core.api.meta import Resource
from cinderblock.core.kube.port import Kube, WatchType
from tools.shell import ToolError

R = TypeVar("R", bound=Resource)

# Requests of the client at once. Each needs a connection of its own, and a TLS handshake costs both sides about as
# much as a create: a burst over as many connections as objects would measure handshakes.
_IN_FLIGHT = 16


@dataclass(frozen=True)
class Timing:
    """Monotonic times of one object: before its POST was sent, when the watch showed it done."""

    posted: float
    done: float

    @property
    def seconds(self) -> float:
        return self.done - self.posted


def rate(timings: Sequence[Timing]) -> float:
    """Objects per second, from the first POST to the last one done."""
    return len(timings) / (max(t.done for t in timings) - min(t.posted for t in timings))


class Load(Generic[R]):
    """Of one kind in one namespace; `done` tells from an object whether it is there."""

    def __init__(
        self, kube: Kube, kind: type[R], namespace: str, done: Callable[[R], bool], *, timeout: float = 90.0
    ) -> None:
        self._kube = kube
        self._kind = kind
        self._namespace = namespace
        self._done = done
        self._timeout = timeout
        self._requests = asyncio.Semaphore(_IN_FLIGHT)
        self._seen: dict[str, R] = {}
        self._waiting: dict[str, asyncio.Future[float]] = {}
        self._leaving: dict[str, asyncio.Future[float]] = {}

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Needed around everything else."""
        listing = await self._kube.list(self._kind, namespace=self._namespace)
        task = asyncio.create_task(self._watch(listing.resource_version))
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _watch(self, version: str) -> None:
        try:
            while True:
                async for event in self._kube.watch(
                    self._kind, resource_version=version, namespace=self._namespace
                ):
                    now = time.monotonic()
                    version = event.object.metadata.resource_version
                    if event.type is not WatchType.BOOKMARK:
                        self._take(event.type, event.object, now)
        except Exception as error:  # whoever waits must hear of it
            for future in (*self._waiting.values(), *self._leaving.values()):
                if not future.done():
                    future.set_exception(ToolError(f"the client's watch ended: {error!r}"))
            raise

    def _take(self, type_: WatchType, obj: R, now: float) -> None:
        name = obj.name
        if type_ is WatchType.DELETED:
            self._seen.pop(name, None)
            if (left := self._leaving.pop(name, None)) and not left.done():
                left.set_result(now)
            return
        self._seen[name] = obj
        if name in self._waiting and self._done(obj):
            future = self._waiting.pop(name)
            if not future.done():
                future.set_result(now)

    async def create(self, obj: R) -> Timing:
        """One object, until it is done. ToolError with its last state at the deadline."""
        future = self._waiting[obj.name] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(self._timeout):
                async with self._requests:
                    posted = time.monotonic()
                    await self._kube.create(obj)
                return Timing(posted, await future)
        except TimeoutError:
            last = self._seen.get(obj.name)
            state = last.to_api().get("status") if last is not None else "never seen"
            raise ToolError(
                f"{obj.KIND} {obj.name} was not done after {self._timeout:.0f} s: {state}"
            ) from None
        finally:
            self._waiting.pop(obj.name, None)

    def seen(self, name: str) -> R:
        """As the watch showed it last."""
        return self._seen[name]

    async def one_at_a_time(self, objects: Sequence[R]) -> list[Timing]:
        return [await self.create(obj) for obj in objects]

    async def burst(self, objects: Sequence[R]) -> list[Timing]:
        """All at once."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.create(obj)) for obj in objects]
        return [task.result() for task in tasks]

    async def delete(self, name: str, *, finalizer: str | None = None) -> Timing:
        """Until the watch says that it is gone; takes a finalizer of the client's own away first."""
        obj = self._seen[name]
        future = self._leaving[name] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(self._timeout):
                async with self._requests:
                    posted = time.monotonic()
                    if finalizer is not None:
                        obj = await self._kube.update(obj, obj.without_finalizer(finalizer))
                    await self._kube.delete(obj)
                return Timing(posted, await future)
        except TimeoutError:
            last = self._seen.get(name)
            raise ToolError(f"{obj.KIND} {name} did not go: {last.to_api() if last else None}") from None
        finally:
            self._leaving.pop(name, None)

    async def delete_all(self, *, finalizer: str | None = None) -> list[Timing]:
        """Everything that this client has seen, at once."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.delete(name, finalizer=finalizer)) for name in list(self._seen)]
        return [task.result() for task in tasks]
