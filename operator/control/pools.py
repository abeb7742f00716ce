"""The leader's part of Pools: whether the host lives, and the Pools of a node that is gone."""

from __future__ import annotations

from cinderblock.core.api.backend import HOST_ALIVE, POOL_READY, Pool
from cinderblock.core.api.meta import set_condition
from cinderblock.core.api.volume import Volume
from cinderblock.operator.control.ledger import Ledger
from cinderblock.operator.control.tools import Tools
from cinderblock.operator.engine.queue import Key
from cinderblock.operator.engine.writer import StatusWriter


class PoolReconciler:
    def __init__(self, tools: Tools, ledger: Ledger) -> None:
        self._tools = tools
        self._ledger = ledger
        self._writer = StatusWriter(tools.kube, tools.stores.pools)

    async def reconcile(self, key: Key) -> float | None:
        pool = self._tools.stores.pools.get(*key)
        if pool is None or pool.deleting:
            return None
        if await self._tools.nodes.host_gone(pool.spec.host, pool):
            if await self._empty(pool):
                await self._tools.kube.delete(pool)
                return None
            await self._report_lost(pool)
        else:
            await self._report_alive(pool)
        return None

    async def _empty(self, pool: Pool) -> bool:
        """No allocation names it, by the cache, our own writes and a fresh list."""
        if self._tools.stores.volumes.by("pool", pool.name) or self._ledger.assumed_in_pool(pool.name):
            return False
        listing = await self._tools.kube.list(
            Volume, field_selector=f"status.allocation.host={pool.spec.host}"
        )
        named = any(v.status.allocation and v.status.allocation.pool == pool.name for v in listing.items)
        return not named and not self._ledger.assumed_in_pool(pool.name)

    async def _report_alive(self, pool: Pool) -> None:
        alive = self._tools.liveness.alive(pool.spec.host)
        conditions = set_condition(
            pool.status.conditions,
            HOST_ALIVE,
            alive,
            reason="LeaseRenewed" if alive else "LeaseExpired",
            message="" if alive else f"volume host {pool.spec.host} does not renew its Lease",
            generation=pool.metadata.generation,
            now=self._tools.clock.now(),
        )
        written = await self._writer.status(pool, pool.with_(status=pool.status.with_(conditions=conditions)))
        if not alive and written is not pool:
            await self._tools.recorder.warn(pool, "HostLost", f"volume host {pool.spec.host} does not answer")

    async def _report_lost(self, pool: Pool) -> None:
        """The host's own condition too: nobody else is left to write it."""
        conditions, message = pool.status.conditions, f"Node {pool.spec.node} does not exist any more"
        for type_, reason in ((HOST_ALIVE, "NodeGone"), (POOL_READY, "Lost")):
            conditions = set_condition(
                conditions,
                type_,
                False,
                reason=reason,
                message=message,
                generation=pool.metadata.generation,
                now=self._tools.clock.now(),
            )
        written = await self._writer.status(pool, pool.with_(status=pool.status.with_(conditions=conditions)))
        if written is not pool:
            await self._tools.recorder.warn(pool, "NodeGone", message)
