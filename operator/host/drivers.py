"""Opened drivers: who may use one, and the edge where a stranger's code meets ours.

A driver that is being closed waits for the calls in work, so a changed configuration never pulls the ground from
under them. A slot per running reconcile keeps a backend that hangs from taking every worker of its neighbours.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from cinderblock.core.errors import BackendUnavailable, OperationTimeout, StorageError
from cinderblock.drivers.base import CanExtend, CanFence, DriverConfig, VolumeDriver
from cinderblock.operator.engine.queue import Key

T = TypeVar("T")
CALL_SECONDS = 180.0  # beyond every deadline that a driver has of its own: a bug must not hold a key for ever

_log = logging.getLogger(__name__)


async def ask(what: str, call: Awaitable[T]) -> T:
    """Await a driver's call: whatever it raises comes out as a StorageError that does not claim too much.

    An exception that is not of our tree says nothing about what was done or still runs, hence BackendUnavailable.
    """
    try:
        async with asyncio.timeout(CALL_SECONDS):
            return await call
    except StorageError:
        raise
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        # nobody cancelled us: it came out of the driver, and must not end the worker that called it
        raise BackendUnavailable(f"{what} was cancelled in the driver", reason="DriverFault") from None
    except TimeoutError:
        raise OperationTimeout(f"{what} did not end within {CALL_SECONDS:g} s") from None
    except Exception as error:  # the edge: a driver may be anybody's
        _log.exception("driver fault in %s", what)
        raise BackendUnavailable(
            f"{what} failed in the driver: {type(error).__name__}: {error}", reason="DriverFault"
        ) from error


@dataclass(eq=False)
class OpenBackend:
    """One opened driver; `serving` once its pool ids are stored in the Pools."""

    name: str
    backend_uid: str
    driver_name: str
    driver: VolumeDriver
    config: DriverConfig
    node_local: bool
    serving: bool = False
    closing: bool = False
    _uses: int = 0
    _unused: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._unused.set()

    @property
    def extender(self) -> CanExtend | None:
        return self.driver if isinstance(self.driver, CanExtend) else None

    @property
    def fencer(self) -> CanFence | None:
        return self.driver if isinstance(self.driver, CanFence) else None

    @asynccontextmanager
    async def used(self) -> AsyncIterator[None]:
        self._uses += 1
        self._unused.clear()
        try:
            yield
        finally:
            self._uses -= 1
            if not self._uses:
                self._unused.set()

    async def close(self) -> None:
        """No new call begins; those in work end; then the driver lets go of its locks."""
        self.closing = True
        await self._unused.wait()
        try:
            await ask(f"close of {self.name}", self.driver.close())
        except StorageError as error:
            _log.warning("backend %s did not close cleanly: %s", self.name, error)


class OpenBackends:
    """The drivers that are open on this host, by Backend.

    `confirm` raises when this host is nobody any more (identity.py): then no driver is used either.
    """

    def __init__(self, confirm: Callable[[], Awaitable[None]] | None = None) -> None:
        self._confirm = confirm
        self._open: dict[str, OpenBackend] = {}
        self._why_not: dict[str, str] = {}

    def get(self, name: str) -> OpenBackend | None:
        return self._open.get(name)

    def names(self) -> list[str]:
        return sorted(self._open)

    def put(self, opened: OpenBackend) -> None:
        self._open[opened.name] = opened

    def explain(self, name: str, why: str | None) -> None:
        """Remember why a Backend does not serve, for the errors of its Volumes; None forgets."""
        if why is None:
            self._why_not.pop(name, None)
        else:
            self._why_not[name] = why

    async def close(self, name: str) -> None:
        opened = self._open.get(name)
        if opened is not None:
            await opened.close()
            if self._open.get(name) is opened:
                del self._open[name]

    def undecided(self, name: str) -> bool:
        """Neither open nor known why not: its volumes wait for the verdict without a word."""
        opened = self._open.get(name)
        return (opened is None or not opened.serving) and name not in self._why_not

    @asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[OpenBackend]:
        """Errors: BackendUnavailable while it is not open, or being opened anew."""
        if self._confirm is not None:
            await self._confirm()
        opened = self._open.get(name)
        if opened is None or not opened.serving or opened.closing:
            why = self._why_not.get(name, "it is being opened")
            raise BackendUnavailable(
                f"Backend {name} is not open on this host: {why}", reason="BackendNotOpen"
            )
        async with opened.used():
            yield opened


class Slots:
    """At most `limit` keys of one backend at work; the others are parked, without holding a worker."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._busy: dict[str, int] = {}
        self._parked: dict[str, deque[Key]] = {}
        self._handed: dict[Key, str] = {}  # parked once, and now on the way to a slot of this backend

    def enter(self, backend: str, key: Key) -> bool:
        """False: the key is parked and will be handed out when a slot is free."""
        busy = self._busy.get(backend, 0)
        if busy < self._limit:
            self._busy[backend] = busy + 1
            return True
        parked = self._parked.setdefault(backend, deque())
        if key not in parked:
            parked.append(key)
        return False

    def leave(self, backend: str) -> Key | None:
        """Give the slot back; answers a parked key that should run now."""
        self._busy[backend] -= 1
        if not self._busy[backend]:
            del self._busy[backend]
        return self._next(backend)

    def pass_on(self, key: Key, *, needed: str | None) -> Key | None:
        """Of a key that runs and needs a slot of `needed`, or none: a parked key that may have the one handed to it."""
        backend = self._handed.pop(key, None)
        if backend is None or backend == needed or self._busy.get(backend, 0) >= self._limit:
            return None
        return self._next(backend)

    def _next(self, backend: str) -> Key | None:
        parked = self._parked.get(backend)
        if not parked:
            return None
        key = parked.popleft()
        if not parked:
            del self._parked[backend]
        self._handed[key] = backend
        return key
