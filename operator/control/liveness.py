"""Which volume hosts are alive, judged by change alone: clocks of two machines are never compared.

A host's Lease was seen to change within 40 s of our own monotonic time, or it is not alive. Time in which we
could not look ourselves counts for nobody's death.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from cinderblock.core.api.builtin import Lease
from cinderblock.core.clock import Clock
from cinderblock.core.kube.port import Kube, KubeError
from cinderblock.core.names import host_lease

ALIVE_SECONDS = 40.0
POLL_SECONDS = 5.0
_BLIND_SECONDS = 3 * POLL_SECONDS

_log = logging.getLogger(__name__)
_PREFIX = host_lease("")
_Record = tuple[str | None, str | None, int | None]


class HostLiveness:
    """`changed(host)` is called when a host turns alive or dead."""

    def __init__(self, kube: Kube, namespace: str, clock: Clock, changed: Callable[[str], None]) -> None:
        self._kube = kube
        self._namespace = namespace
        self._clock = clock
        self._changed = changed
        self._records: dict[str, _Record] = {}
        self._seen_at: dict[str, float] = {}
        self._since = self._polled_at = clock.monotonic()
        self._dead: set[str] = set()
        self._unknown_at: dict[str, float] = {}

    def alive(self, host: str) -> bool:
        """Every host counts as alive for the first 40 s of being looked at."""
        if host not in self._records and host not in self._unknown_at:
            self._unknown_at[host] = self._clock.monotonic()
        return host not in self._dead

    async def run(self) -> None:
        """Look every few seconds, until cancelled."""
        while True:
            try:
                await self.poll()
            except KubeError as error:
                _log.warning("host leases cannot be read: %s", error)
            await self._clock.sleep(POLL_SECONDS)

    async def poll(self) -> None:
        leases = (await self._kube.list(Lease, namespace=self._namespace)).items
        now = self._clock.monotonic()
        if now - self._polled_at > _BLIND_SECONDS:
            self._since = now
        self._polled_at = now
        present: dict[str, _Record] = {
            lease.name.removeprefix(_PREFIX): (
                lease.spec.holder_identity,
                lease.spec.renew_time,
                lease.spec.lease_transitions,
            )
            for lease in leases
            if lease.name.startswith(_PREFIX)
        }
        for host, record in present.items():
            if self._records.get(host) != record:
                self._seen_at[host] = now
            self._unknown_at.pop(host, None)
        self._records = present
        self._judge(now)

    def _judge(self, now: float) -> None:
        hosts = self._seen_at.keys() | self._unknown_at.keys()
        for host in sorted(hosts):
            seen_at = self._seen_at.get(host, self._unknown_at.get(host, now))
            dead = now - max(seen_at, self._since) > ALIVE_SECONDS
            if dead == (host in self._dead):
                continue
            if dead:
                self._dead.add(host)
                _log.warning("volume host %s is not alive: its Lease has not changed", host)
            else:
                self._dead.discard(host)
            self._changed(host)
