"""GetCapacity: what a VolumeType could still get where a node reaches it.

The same arithmetic as the scheduler's (core/capacity.py), over the same sums of grants; an answer is advice, the
grant decides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from cinderblock.core.api.backend import HOST_ALIVE, POOL_READY, Pool, Provisioning, VolumeType
from cinderblock.core.api.meta import ConditionStatus, find_condition, is_true
from cinderblock.core.api.volume import Volume
from cinderblock.core.capacity import of_status, room
from cinderblock.core.errors import NotReady
from cinderblock.core.extra_specs import capability_of, satisfies
from cinderblock.core.kube.store import Store
from cinderblock.core.placement import default_type, held_bytes
from cinderblock.core.units import parse_quantity
from cinderblock.csi.gateway.caches import Caches


@dataclass(frozen=True)
class Available:
    """Sum over the pools, the largest and the smallest volume; 0 for smallest = any."""

    available_bytes: int
    largest_bytes: int
    smallest_bytes: int


class HeldSums:
    """Bytes that Volumes hold, by pool: kept up at each change, since one pool may serve thousands of Volumes
    and the provisioner asks once per StorageClass and node."""

    def __init__(self, volumes: Store[Volume]) -> None:
        self._sums: Counter[str] = Counter()
        for volume in volumes.all():
            self._changed(None, volume)
        volumes.subscribe(self._changed)

    def __getitem__(self, pool: str) -> int:
        return self._sums[pool]

    def _changed(self, old: Volume | None, new: Volume | None) -> None:
        for volume, sign in ((old, -1), (new, 1)):
            if volume is not None and volume.status.allocation is not None:
                self._sums[volume.status.allocation.pool] += sign * held_bytes(volume)


class CapacityGateway:
    def __init__(self, caches: Caches) -> None:
        self._caches = caches
        self._held = HeldSums(caches.volumes.store)

    def available(self, volume_type: str | None, node: str | None) -> Available:
        """For volumes of that type (None = the default one) that `node` must reach (None = any node).

        Errors: NotReady when the type does not exist (yet).
        """
        chosen = self._type(volume_type)
        rooms = [self._room(pool, chosen) for pool in self._pools(chosen, node)]
        largest = max(rooms, default=0)
        if chosen is not None and chosen.spec.max_size is not None:
            largest = min(largest, parse_quantity(chosen.spec.max_size))
        smallest = parse_quantity(chosen.spec.min_size) if chosen is not None and chosen.spec.min_size else 0
        if largest < smallest:
            return Available(0, 0, smallest)
        return Available(sum(rooms), largest, smallest)

    def _type(self, name: str | None) -> VolumeType | None:
        store = self._caches.types.store
        if name is None:
            return default_type(store.all())
        found = store.get(None, name)
        if found is None:
            raise NotReady(f"the VolumeType {name} does not exist", reason="VolumeTypeNotFound")
        return found

    def _pools(self, chosen: VolumeType | None, node: str | None) -> Iterator[Pool]:
        wanted = chosen.spec.extra_specs if chosen is not None else {}
        for pool in self._caches.pools.store.all():
            if node is not None and pool.spec.node not in (None, node):
                continue
            if not _usable(pool):
                continue
            capabilities = pool.status.capabilities
            named = ((capability_of(key), value) for key, value in wanted.items())
            if all(key is None or satisfies(capabilities.get(key), value) for key, value in named):
                yield pool

    def _room(self, pool: Pool, chosen: VolumeType | None) -> int:
        capacity = of_status(pool.status, self._held[pool.name])
        thick = chosen is not None and chosen.spec.provisioning is Provisioning.THICK
        return room(capacity, thick=thick).grantable_bytes if capacity is not None else 0


def _usable(pool: Pool) -> bool:
    alive = find_condition(pool.status.conditions, HOST_ALIVE)
    dead = alive is not None and alive.status is ConditionStatus.FALSE
    return not pool.deleting and not dead and is_true(pool.status.conditions, POOL_READY)
