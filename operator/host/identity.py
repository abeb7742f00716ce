"""Who this host is, and the guard that keeps it silent once it is nobody.

A host speaks for one Node object. When that object is gone, or another one has taken its name, the leader has
taken over its fields; a write of ours would undo what the leader decided. So every write is preceded by a fresh
read of the Node that is at most ten seconds old on the monotonic clock (a stopped and continued process reads
again), and a host that is gone writes nothing any more. The host of network backends has no Node: its guard is
the leader's Lease, which lies below this port.
"""

from __future__ import annotations

import asyncio
import logging
from typing import NoReturn, TypeVar

from cinderblock.core.api.builtin import Node
from cinderblock.core.api.meta import Resource
from cinderblock.core.clock import Clock
from cinderblock.core.kube.port import Kube, KubeError, KubeUnavailable, ObjectNotFound
from cinderblock.core.kube.reads import PassedReads
from cinderblock.core.kube.store import Store

R = TypeVar("R", bound=Resource)
_CONFIRMED_SECONDS = 10.0
_WAIT_FOR_NODE_SECONDS = 5.0

_log = logging.getLogger(__name__)


class HostGone(KubeError):
    """The Node of this host is gone or another one: nothing may be written any more."""


class HostIdentity:
    def __init__(self, kube: Kube, nodes: Store[Node], clock: Clock, host: str, node: str | None) -> None:
        self.host = host
        self.node = node
        self.gone = asyncio.Event()
        self._doubted = asyncio.Event()
        self._kube = kube
        self._nodes = nodes
        self._clock = clock
        self._known: Node | None = None
        self._confirmed_at = float("-inf")

    async def start(self) -> None:
        """Learn which Node object we speak for; waits while there is none."""
        while self.node is not None and self._known is None:
            try:
                self._known = await self._kube.get(Node, self.node)
                self._confirmed_at = self._clock.monotonic()
            except (ObjectNotFound, KubeUnavailable) as error:
                _log.info("host %s waits for its Node: %s", self.host, error)
                await self._clock.sleep(_WAIT_FOR_NODE_SECONDS)

    def doubt(self) -> None:
        """The watch says that the Node is gone or another one: look at once."""
        self._doubted.set()

    async def watch(self) -> NoReturn:
        """Raises HostGone once that is so, also for a host that has nothing to do."""
        while True:
            await self._doubted.wait()
            self._doubted.clear()
            try:
                await self.confirm(within=0.0)
            except HostGone:
                raise
            except KubeError as error:
                _log.warning("host %s cannot read its Node: %s", self.host, error)
                await self._clock.sleep(_WAIT_FOR_NODE_SECONDS)
                self._doubted.set()

    def is_another(self, node: Node) -> bool:
        """Whether this Node has only the name of the one that we speak for."""
        return self._known is not None and node.uid != self._known.uid

    @property
    def labels(self) -> dict[str, str]:
        """The Node's labels, as fresh as the watch where there is one."""
        if self.node is None:
            return {}
        watched = self._nodes.get(None, self.node)
        known = watched if watched is not None else self._known
        return dict(known.metadata.labels) if known is not None else {}

    async def confirm(self, *, within: float = _CONFIRMED_SECONDS) -> None:
        """Raises HostGone when the Node is gone or another one; reads it unless that was done lately."""
        if self.node is None:
            return
        if self.gone.is_set():
            raise HostGone(f"node {self.node} is gone or was made anew: this host stays silent")
        now = self._clock.monotonic()
        if now - self._confirmed_at < within:
            return
        known = self._known
        try:
            fresh: Node | None = await self._kube.get(Node, self.node)
        except ObjectNotFound:
            fresh = None
        if known is None or fresh is None or fresh.uid != known.uid:
            self.gone.set()
            self._doubted.set()
            raise HostGone(f"node {self.node} is gone or was made anew: this host stays silent")
        self._known, self._confirmed_at = fresh, now


class ConfirmedKube(PassedReads):
    """The Kubernetes port of a host: reads as they are, writes only while the host is somebody."""

    def __init__(self, kube: Kube, identity: HostIdentity) -> None:
        super().__init__(kube)
        self._identity = identity

    async def create(self, obj: R) -> R:
        await self._identity.confirm()
        return await self._kube.create(obj)

    async def update(self, before: R, after: R) -> R:
        await self._identity.confirm()
        return await self._kube.update(before, after)

    async def update_status(self, before: R, after: R) -> R:
        await self._identity.confirm()
        return await self._kube.update_status(before, after)

    async def delete(self, obj: R, *, unchanged: bool = False) -> None:
        await self._identity.confirm()
        await self._kube.delete(obj, unchanged=unchanged)
