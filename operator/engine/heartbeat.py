"""A volume host's sign of life: one Lease per host, changed every 10 s.

The leader takes a host as alive while it sees the Lease change; it compares no clocks. A node's Lease is owned by
its Node, so that it goes with it.
"""

from __future__ import annotations

import logging

from cinderblock.core.api.builtin import Lease, LeaseSpec, Node
from cinderblock.core.api.meta import ObjectMeta, OwnerReference
from cinderblock.core.clock import Clock
from cinderblock.core.kube.port import Conflict, Kube, KubeError, ObjectExists, ObjectNotFound
from cinderblock.core.names import host_lease

HEARTBEAT_SECONDS = 10.0
HOST_LEASE_SECONDS = 40
_RETRY_SECONDS = 2.0

_log = logging.getLogger(__name__)


class Heartbeat:
    def __init__(
        self, kube: Kube, clock: Clock, *, namespace: str, host: str, identity: str, node: str | None = None
    ) -> None:
        self._kube = kube
        self._clock = clock
        self._namespace = namespace
        self._name = host_lease(host)
        self._identity = identity
        self._node = node
        self._lease: Lease | None = None
        self.beat_at: float | None = None  # monotonic time of the last one that arrived, for health checks

    async def run(self) -> None:
        """Beat until cancelled; faults are logged and tried again."""
        while True:
            try:
                await self.beat()
                pause = HEARTBEAT_SECONDS
            except (KubeError, TimeoutError) as error:
                _log.warning("heartbeat %s: %s", self._name, str(error) or "no answer in time")
                pause = _RETRY_SECONDS
            await self._clock.sleep(pause)

    async def beat(self) -> None:
        """One change of the Lease. Errors: those of the port."""
        spec = LeaseSpec(
            holder_identity=self._identity,
            lease_duration_seconds=HOST_LEASE_SECONDS,
            renew_time=f"{self._clock.now():%Y-%m-%dT%H:%M:%S}.{self._fraction():06d}Z",
        )
        try:
            if self._lease is None:
                self._lease = await self._kube.get(Lease, self._name, self._namespace)
            self._lease = await self._kube.update(self._lease, self._lease.with_(spec=spec))
        except ObjectNotFound:
            meta = ObjectMeta(
                name=self._name, namespace=self._namespace, owner_references=await self._owners()
            )
            try:
                self._lease = await self._kube.create(Lease(metadata=meta, spec=spec))
            except ObjectExists:
                self._lease = None
                raise
        except Conflict:
            self._lease = (
                None  # read it anew: an earlier beat arrived without its answer, or a predecessor lives
            )
            raise
        self.beat_at = self._clock.monotonic()

    async def _owners(self) -> tuple[OwnerReference, ...]:
        if self._node is None:
            return ()
        node = await self._kube.get(Node, self._node)
        return (OwnerReference(api_version=Node.API_VERSION, kind=Node.KIND, name=node.name, uid=node.uid),)

    def _fraction(self) -> int:
        return int(self._clock.monotonic() % 1 * 1_000_000)
