"""Keeps a Store true: list, watch from there, watch again, and list again every 10 minutes.

The periodic listing runs beside the watch and heals whatever a watch lost without telling.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
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
        self.store = store
        self._namespace = namespace
        self._field_selector = field_selector
        self._label_selector = label_selector
        self._clock = clock or SystemClock()
        self._relist_seconds = relist_seconds
        # monotonic times, for health checks; the start counts as a first credit
        self._listed_at = self._heard_at = self._clock.monotonic()

    async def run(self) -> None:
        """List, then watch for ever. Errors are logged and tried again; ends only when cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_for_ever())
            group.create_task(self._relist_for_ever())

    def fault(self, limit: float) -> str | None:
        """What is wrong when no watch was heard for `limit` seconds, or the listings are so late; None = well.

        A watch that lives is heard once a minute: the server sends bookmarks.
        """
        now, kind = self._clock.monotonic(), self.store.kind.PLURAL
        if (silent := now - self._heard_at) > limit:
            return f"no watch of {kind} for {silent:.0f} s"
        if (old := now - self._listed_at) > self._relist_seconds + limit:
            return f"no listing of {kind} for {old:.0f} s"
        return None

    async def relist(self) -> str:
        """Take a fresh listing into the store; returns its resourceVersion."""
        listing = await self._kube.list(
            self.store.kind,
            namespace=self._namespace,
            label_selector=self._label_selector,
            field_selector=self._field_selector,
        )
        changed = self.store.replace(listing)
        self._listed_at = self._clock.monotonic()
        _log.debug("listed %d %s, %d differed", len(listing.items), self.store.kind.PLURAL, changed)
        return listing.resource_version

    async def _watch_for_ever(self) -> None:
        version = ""
        retry = _RETRY_FIRST
        while True:
            started = self._clock.monotonic()
            try:
                if not version:
                    version = await self.relist()
                    self._heard_at = self._clock.monotonic()
                version = await self._watch(version)
                failed = False
            except HistoryGone:
                version, failed = "", False
            except KubeError as error:
                _log.warning("watching %s: %s", self.store.kind.PLURAL, error)
                failed = True
            # a server that closes every watch at once must not be asked without a pause
            quick = self._clock.monotonic() - started < 1.0
            retry = min(retry * 2, _RETRY_MAX) if failed else _RETRY_FIRST
            if failed or quick:
                # spread, so that a thousand nodes do not come back at the same moment
                await self._clock.sleep(retry * random.uniform(0.5, 1.0))  # noqa: S311 - not a secret

    async def _watch(self, version: str) -> str:
        events = self._kube.watch(
            self.store.kind,
            resource_version=version,
            namespace=self._namespace,
            label_selector=self._label_selector,
            field_selector=self._field_selector,
        )
        async with contextlib.aclosing(events) as stream:  # type: ignore[type-var]
            heard = False
            try:
                async for event in stream:
                    if event.type is WatchType.DELETED:
                        self.store.remove(event.object)
                    elif event.type is not WatchType.BOOKMARK:
                        self.store.apply(event.object)
                    version = event.object.metadata.resource_version or version
                    heard = True
                    self._heard_at = self._clock.monotonic()
            except HistoryGone:
                raise
            except KubeError as error:
                if not heard:
                    raise
                # what was seen stays seen: go on from there
                _log.info("watch of %s broke: %s", self.store.kind.PLURAL, error)
        self._heard_at = self._clock.monotonic()  # it was opened, and the server ended it in its own time
        return version

    async def _relist_for_ever(self) -> None:
        await self.store.synced.wait()
        while True:
            await self._clock.sleep(self._relist_seconds)
            try:
                await self.relist()
            except KubeError as error:
                _log.warning("listing %s again: %s", self.store.kind.PLURAL, error)
