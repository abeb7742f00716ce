"""Fresh listings beside the watches: at the start, soon after it, and every 10 minutes.

A watch of kopf loses what vanished while its history was compacted (the new listing brings no DELETED), and what
vanished between our first listing and its own. Whatever a listing changes reaches the queues as any other change.
"""

from __future__ import annotations

import asyncio
import logging

from cinderblock.core.clock import Clock
from cinderblock.core.kube.port import Kube, KubeError
from cinderblock.operator.engine.scope import Scope, Watched

RELIST_SECONDS = 600.0
_AFTER_START = (10.0, 60.0)
_RETRY_FIRST, _RETRY_MAX = 1.0, 30.0

_log = logging.getLogger(__name__)


class Relister:
    def __init__(self, kube: Kube, scope: Scope, clock: Clock) -> None:
        self._kube = kube
        self._scope = scope
        self._clock = clock
        self.listed_at = (
            clock.monotonic()
        )  # when all kinds were last listed; the start counts as a first credit

    async def first(self) -> None:
        """Fill every store. Waits for as long as the API server or a kind of ours is missing."""
        await asyncio.gather(*(self._until_listed(watched) for watched in self._scope))
        self.listed_at = self._clock.monotonic()

    async def run(self) -> None:
        """List again for ever; after `first`."""
        for pause in _AFTER_START:
            await self._clock.sleep(pause)
            await self._all()
        while True:
            await self._clock.sleep(RELIST_SECONDS)
            await self._all()

    async def _all(self) -> None:
        complete = True
        for watched in self._scope:  # one after the other: nobody waits for this
            try:
                changed = await self._list(watched)
            except KubeError as error:
                complete = False
                _log.warning("listing %s again: %s", watched.store.kind.PLURAL, error)
                continue
            if changed:
                _log.info("a fresh listing of %s differed in %d objects", watched.store.kind.PLURAL, changed)
        if complete:
            self.listed_at = self._clock.monotonic()

    async def _until_listed(self, watched: Watched) -> None:
        retry = _RETRY_FIRST
        while True:
            try:
                await self._list(watched)
                return
            except KubeError as error:
                _log.warning("waiting for %s: %s", watched.store.kind.PLURAL, error)
            await self._clock.sleep(retry)
            retry = min(retry * 2, _RETRY_MAX)

    async def _list(self, watched: Watched) -> int:
        listing = await self._kube.list(
            watched.store.kind,
            field_selector=watched.field_selector,
            label_selector=watched.label_selector,
        )
        return watched.store.replace(listing)
