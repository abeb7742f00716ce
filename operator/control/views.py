"""The pools as the scheduler sees them: their reports, the leader's sums, and what it knows of hosts and Backends."""

from __future__ import annotations

from dataclasses import replace

from cinderblock.core.api.backend import ACCEPTED, Backend, Pool
from cinderblock.core.api.meta import ConditionStatus, find_condition
from cinderblock.core.api.volume import Volume
from cinderblock.core.kube.store import StoreKey, key_of
from cinderblock.operator.control.ledger import Ledger
from cinderblock.operator.control.liveness import HostLiveness
from cinderblock.operator.engine.stores import Stores
from cinderblock.operator.scheduler.model import PoolView


class PoolViews:
    def __init__(self, stores: Stores, ledger: Ledger, liveness: HostLiveness) -> None:
        self._stores = stores
        self._ledger = ledger
        self._liveness = liveness
        self._known: dict[str, PoolView] = {}  # a view that still holds keeps what it has computed

    def all(self, for_volume: StoreKey) -> list[PoolView]:
        """Every pool, with the sums that this Volume does not count in."""
        blocked = {b.name: _blocked(b) for b in self._stores.backends.all()}
        pools = self._stores.pools.all()
        if len(self._known) > 2 * len(pools):
            self._known.clear()  # of pools that are gone
        return [self._view(pool, for_volume, blocked.get(pool.spec.backend, _MISSING)) for pool in pools]

    def one(self, pool: str, for_volume: Volume) -> PoolView | None:
        """The pool that a Volume is in, as it looks without it; None when there is no such object."""
        found = self._stores.pools.get(None, pool)
        if found is None:
            return None
        backend = self._stores.backends.get(None, found.spec.backend)
        blocked = _blocked(backend) if backend is not None else _MISSING
        allocation = for_volume.status.allocation
        all_taken = not found.status.thin or (allocation is not None and allocation.thick)
        own_bytes = (for_volume.status.capacity_bytes or 0) if all_taken else 0
        return replace(self._view(found, key_of(for_volume), blocked), own_bytes=own_bytes)

    def _view(self, pool: Pool, for_volume: StoreKey, blocked: str | None) -> PoolView:
        provisioned_bytes = self._ledger.provisioned_bytes(pool.name, without=for_volume)
        alive = self._liveness.alive(pool.spec.host)
        known = self._known.get(pool.name)
        if (
            known is not None
            and known.pool is pool
            and known.provisioned_bytes == provisioned_bytes
            and known.host_alive is alive
            and known.blocked == blocked
        ):
            return known
        view = self._known[pool.name] = PoolView(pool, provisioned_bytes, alive, blocked)
        return view


_MISSING = "its Backend does not exist"


def _blocked(backend: Backend) -> str | None:
    if backend.deleting:
        return "its Backend is being deleted"
    accepted = find_condition(backend.status.conditions, ACCEPTED)
    if accepted is not None and accepted.status is ConditionStatus.FALSE:
        return f"its Backend is not valid: {accepted.message}"
    return None
