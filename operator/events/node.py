"""Nodes: of the leader all, of a host its own."""

from __future__ import annotations

from typing import Any

import kopf

from cinderblock.core.api.builtin import Node
from cinderblock.operator.engine.stores import Stores
from cinderblock.operator.events.feed import feed, names


def register(registry: kopf.OperatorRegistry, stores: Stores) -> None:
    @kopf.on.event(*names(Node), id="node", registry=registry)
    async def node(event: kopf.RawEvent, **_: Any) -> None:
        feed(stores.nodes, event)
