"""Keeps a Store true: list, watch from there, watch again, and list again every 10 minutes.

The periodic listing runs beside the watch and heals whatever a watch lost without telling.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Generic, TypeVar

from cinderblock.core.api.meta import Resource
from cinderblock.core.clock import Clock, SystemClock
from cinderblock.core.kube.port import HistoryGone, Kube, KubeError, WatchType
from cinderblock.core.kube.store import Store

R = TypeVar("R", bound=Resource)

RELIST_SECONDS = 600.0
_RETRY_FIRST, _RETRY_MAX = 0.5, 30.0

_log = logging.getLogger(__name__)


class Informer(Generic[R]):
    """`await informer.run()` in a task of its own; wait for `store.synced`."""

    def __init__(
        self,
        kube: Kube,
        store: Store[R],
        *,
        namespace: str | None = None,
        field_selector: str | None = None,
        label_selector: str | None = None,
        clock: Clock | None = None,
        relist_seconds: float = RELIST_SECONDS,
    ) -> None:
        self._kube = kube
        self._store = store
        self._namespace = namespace
        self._field_selector = field_selector
        self._label_selector = label_selector
        self._clock = clock or SystemClock()
        self._relist_seconds = relist_seconds
        self.listed_at: float | None = None  # monotonic time of the last listing, for health checks

    async def run(self) -> None:
        """List, then watch for ever. Errors are logged and tried again; ends only when cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_for_ever())
            group.create_task(self._relist_for_ever())

    async def relist(self) -> str:
        """Take a fresh listing into the store; returns its resourceVersion."""
        listing = await self._kube.list(
            self._store.kind,
            namespace=self._namespace,
            label_selector=self._label_selector,
            field_selector=self._field_selector,
        )
        changed = self._store.replace(listing)
        self.listed_at = self._clock.monotonic()
        _log.debug("listed %d %s, %d differed", len(listing.items), self._store.kind.PLURAL, changed)
        return listing.resource_version

    async def _watch_for_ever(self) -> None:
        version = ""
        retry = _RETRY_FIRST
        while True:
            started = self._clock.monotonic()
            try:
                if not version:
                    version = await self.relist()
                version = await self._watch(version)
                failed = False
            except HistoryGone:
                version, failed = "", False
            except KubeError as error:
                _log.warning("watching %s: %s", self._store.kind.PLURAL, error)
                failed = True
            # a server that closes every watch at once must not be asked without a pause
            quick = self._clock.monotonic() - started < 1.0
            retry = min(retry * 2, _RETRY_MAX) if failed else _RETRY_FIRST
            if failed or quick:
                await self._clock.sleep(retry)

    async def _watch(self, version: str) -> str:
        events = self._kube.watch(
            self._store.kind,
            resource_version=version,
            namespace=self._namespace,
            label_selector=self._label_selector,
            field_selector=self._field_selector,
        )
        async with contextlib.aclosing(events) as stream:  # type: ignore[type-var]
            try:
                async for event in stream:
                    if event.type is WatchType.DELETED:
                        self._store.remove(event.object)
                    elif event.type is not WatchType.BOOKMARK:
                        self._store.apply(event.object)
                    version = event.object.metadata.resource_version or version
            except HistoryGone:
                raise
            except KubeError as error:
                # what was seen stays seen: go on from there
                _log.info("watch of %s broke: %s", self._store.kind.PLURAL, error)
        return version

    async def _relist_for_ever(self) -> None:
        await self._store.synced.wait()
        while True:
            await self._clock.sleep(self._relist_seconds)
            try:
                await self.relist()
            except KubeError as error:
                _log.warning("listing %s again: %s", self._store.kind.PLURAL, error)
