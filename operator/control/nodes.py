"""Whether a node is gone: only a 404 or another UID on a fresh read says so."""

from __future__ import annotations

import re

from cinderblock.core.api.backend import Pool
from cinderblock.core.api.builtin import Node
from cinderblock.core.kube.port import Kube, ObjectNotFound
from cinderblock.core.names import OPERATOR_HOST, host_name
from cinderblock.operator.engine.stores import Stores

_HASHED = re.compile(r"^n-[0-9a-f]{40}$")  # core.names.host_name of a name that is no label value


class Nodes:
    def __init__(self, kube: Kube, stores: Stores) -> None:
        self._kube = kube
        self._stores = stores

    async def fresh(self, node: str) -> Node | None:
        """The Node now; None = 404."""
        try:
            return await self._kube.get(Node, node)
        except ObjectNotFound:
            return None

    async def gone(self, node: str) -> bool:
        """The cache is asked first: that a node is there may be believed."""
        return self._stores.nodes.get(None, node) is None and await self.fresh(node) is None

    async def host_gone(self, host: str, pool: Pool | None) -> bool:
        """Whether the node of a volume host is gone; `operator` stands for no node."""
        node = self.node_of(host, pool)
        return node is not None and await self.gone(node)

    def node_of(self, host: str, pool: Pool | None) -> str | None:
        """The node of a host, also when its Pool object is gone; None where no node owns it or cannot be told."""
        if host == OPERATOR_HOST:
            return None
        if pool is not None and pool.spec.host == host:
            return pool.spec.node
        for known in self._stores.pools.by("host", host):
            if known.spec.node is not None:
                return known.spec.node
        if _HASHED.match(host) is None:
            return host
        return next((n.name for n in self._stores.nodes.all() if host_name(n.name) == host), None)
