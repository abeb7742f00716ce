"""Provisioned capacity of every pool: a sum over the Volumes' grants, never a counter of its own.

Kept up incrementally from the Store. What the leader has decided but not yet seen is added as an assumption. A
write carries the resourceVersion that it was decided on, so an assumption is settled the moment that a newer
version of its Volume is seen: either the write is in it, or the write can only conflict.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from cinderblock.core.api.volume import Volume
from cinderblock.core.kube.store import Store, StoreKey, key_of, version_of
from cinderblock.core.placement import held_bytes


@dataclass(frozen=True)
class Holding:
    """Bytes that one Volume takes in one pool."""

    pool: str
    backend: str
    size_bytes: int


@dataclass(frozen=True)
class Assumption:
    """A grant on its way to the API server, decided on this version of this very Volume."""

    uid: str
    decided_on: int
    holding: Holding


def holding_of(volume: Volume) -> Holding | None:
    """The largest of what was granted, what exists, and what a running operation goes to."""
    allocation = volume.status.allocation
    if allocation is None:
        return None
    return Holding(allocation.pool, allocation.backend, held_bytes(volume))


class Ledger:
    """Subscribes to the Volumes. `freed` is called with the pool's name whenever its sum falls."""

    def __init__(self, volumes: Store[Volume], freed: Callable[[str], None] = lambda pool: None) -> None:
        self._freed = freed
        self._stored: dict[StoreKey, Holding] = {}
        self._assumed: dict[StoreKey, list[Assumption]] = {}
        self._taken: dict[StoreKey, dict[str, int]] = {}  # what each key counts for, by pool
        self._pools: defaultdict[str, int] = defaultdict(int)
        for volume in volumes.all():
            self._changed(None, volume)
        self._unsubscribe = volumes.subscribe(self._changed)

    def close(self) -> None:
        self._unsubscribe()

    def provisioned_bytes(self, pool: str, *, without: StoreKey | None = None) -> int:
        """Sum of the grants in a pool; `without` leaves out the Volume that is being decided."""
        own = self._taken.get(without, {}).get(pool, 0) if without is not None else 0
        return self._pools.get(pool, 0) - own

    def assume(self, before: Volume, after: Volume) -> Assumption:
        """Count `after`'s grant from now on. Call it in the same step as the decision, before any await."""
        holding = holding_of(after)
        if holding is None:
            raise ValueError(f"{after.name} holds no grant to assume")
        assumption = Assumption(before.uid, version_of(before), holding)
        key = key_of(before)
        self._assumed.setdefault(key, []).append(assumption)
        self._recount(key)
        return assumption

    def drop(self, key: StoreKey, assumption: Assumption) -> None:
        """The write certainly did not and will not happen."""
        left = [known for known in self._assumed.get(key, []) if known is not assumption]
        self._keep(key, left)
        self._recount(key)

    def assumed_in_backend(self, backend: str) -> bool:
        """Whether a grant to this Backend is on its way."""
        return any(a.holding.backend == backend for known in self._assumed.values() for a in known)

    def assumed_in_pool(self, pool: str) -> bool:
        return any(a.holding.pool == pool for known in self._assumed.values() for a in known)

    def _changed(self, old: Volume | None, new: Volume | None) -> None:
        seen = new if new is not None else old
        if seen is None:
            return
        key = key_of(seen)
        holding = holding_of(new) if new is not None else None
        if holding is None:
            self._stored.pop(key, None)
        else:
            self._stored[key] = holding
        if key in self._assumed:
            version = version_of(seen)
            self._keep(
                key,
                [
                    a
                    for a in self._assumed[key]
                    if new is not None and a.uid == seen.uid and a.decided_on >= version
                ],
            )
        self._recount(key)

    def _keep(self, key: StoreKey, left: list[Assumption]) -> None:
        if left:
            self._assumed[key] = left
        else:
            self._assumed.pop(key, None)

    def _recount(self, key: StoreKey) -> None:
        """A pool counts the larger of what stands and what is assumed there: an extend is not paid twice."""
        now: dict[str, int] = {}
        stored = self._stored.get(key)
        holdings = [a.holding for a in self._assumed.get(key, [])]
        for holding in [*holdings, stored] if stored is not None else holdings:
            now[holding.pool] = max(now.get(holding.pool, 0), holding.size_bytes)
        before = self._taken.get(key, {})
        if now == before:
            return
        if now:
            self._taken[key] = now
        else:
            self._taken.pop(key, None)
        fallen: list[str] = []
        for pool in now.keys() | before.keys():
            change = now.get(pool, 0) - before.get(pool, 0)
            self._pools[pool] += change
            if self._pools[pool] == 0:
                del self._pools[pool]
            if change < 0:
                fallen.append(pool)
        for pool in fallen:
            self._freed(pool)
