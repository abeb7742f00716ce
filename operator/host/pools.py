"""Writes the Pools of one host: one object for each driver pool, made also when the driver does not open.

Figures are written at most every five seconds; what changes a Pool's standing is written at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from cinderblock.core.api.backend import Pool, PoolStatus
from cinderblock.core.api.volume import Volume
from cinderblock.core.clock import Clock
from cinderblock.core.errors import StorageError
from cinderblock.core.kube.port import Kube, ObjectExists
from cinderblock.core.kube.store import Store
from cinderblock.drivers.base import PoolReport, VolumeDriver
from cinderblock.operator.engine.writer import StatusWriter
from cinderblock.operator.host.decide_pool import (
    PoolOwner,
    closed_without_driver,
    failed,
    judge_change,
    reported,
)

REPORT_EVERY_SECONDS = 5.0


class Pools:
    def __init__(self, kube: Kube, store: Store[Pool], clock: Clock) -> None:
        self._kube = kube
        self._store = store
        self._clock = clock
        self._writer = StatusWriter(kube, store)
        self._written_at: dict[str, float] = {}

    async def known_ids(self, backend: str, host: str) -> dict[str | None, str]:
        """poolID by the driver's pool name, from a fresh list: a stale miss would let a driver make a pool anew."""
        listing = await self._kube.list(Pool)
        own = [p for p in listing.items if (p.spec.backend, p.spec.host) == (backend, host)]
        for pool in own:
            self._store.apply(pool)
        return {p.spec.pool: p.status.pool_id for p in own if p.status.pool_id is not None}

    def of(self, backend: str, host: str) -> list[Pool]:
        return [pool for pool in self._store.by("backend", backend) if pool.spec.host == host]

    async def report(
        self,
        owner: PoolOwner,
        driver: VolumeDriver,
        reports: Sequence[PoolReport],
        closed: tuple[str, str] | None,
    ) -> float | None:
        """Write what changed; answers the seconds until a held back report may be written, None = all is said."""
        now, again = self._clock.now(), None
        seen: set[str] = set()
        for report in reports:
            pool = await self._existing_or_new(owner, report.name)
            seen.add(pool.name)
            wait = await self._write(pool, reported(owner, pool, driver, report, now, closed=closed))
            again = wait if again is None else min(again, wait or again)
        for pool in self.of(owner.backend.name, owner.host):
            if pool.name in seen:
                continue
            if pool.status.pool_id is None:
                await self._drop(pool)  # made while the driver did not open and its pools were unknown
            else:
                gone = StorageError(f"the driver does not report pool {pool.spec.pool}", reason="PoolMissing")
                await self._write(pool, failed(owner, pool, gone, now))
        return again

    async def report_failure(self, owner: PoolOwner, error: StorageError) -> None:
        """The driver does not open or does not answer: say so on its Pools, on one of its own where none is known."""
        now = self._clock.now()
        pools = self.of(owner.backend.name, owner.host)
        for pool in pools or [await self._existing_or_new(owner, None)]:
            await self._write(pool, failed(owner, pool, error, now))

    async def close(self, backend: str, host: str, reason: str, message: str) -> None:
        for pool in self.of(backend, host):
            await self._write(pool, closed_without_driver(pool, reason, message, self._clock.now()))

    async def remove(self, backend: str, host: str) -> None:
        for pool in self.of(backend, host):
            await self._drop(pool)

    async def still_granted(self, backend: str, host: str) -> bool:
        """Whether any Volume is granted here, by a fresh list."""
        listing = await self._kube.list(Volume, field_selector=f"status.allocation.host={host}")
        return any(
            volume.status.allocation is not None and volume.status.allocation.backend == backend
            for volume in listing.items
        )

    async def _existing_or_new(self, owner: PoolOwner, name: str | None) -> Pool:
        new = owner.new_pool(name)
        known = self._store.get(None, new.name)
        if known is None:
            try:
                known = await self._kube.create(new)
            except ObjectExists:
                known = await self._kube.get(Pool, new.name)
        if (known.spec.backend, known.spec.host) != (owner.backend.name, owner.host):
            raise StorageError(
                f"Pool {known.name} belongs to Backend {known.spec.backend} on host {known.spec.host}:"
                " rename one of the Backends",
                reason="PoolNameTaken",
            )
        self._store.apply(known)
        return known

    async def _write(self, pool: Pool, status: PoolStatus) -> float | None:
        change = judge_change(pool.status, status)
        if not change.write:
            return None
        if change.figures_only:
            wait = (
                self._written_at.get(pool.name, float("-inf"))
                + REPORT_EVERY_SECONDS
                - self._clock.monotonic()
            )
            if wait > 0:
                return wait
        self._written_at[pool.name] = self._clock.monotonic()
        await self._writer.status(pool, pool.with_(status=status))
        return None

    async def _drop(self, pool: Pool) -> None:
        await self._kube.delete(pool)
        self._store.remove(pool)
        self._written_at.pop(pool.name, None)
