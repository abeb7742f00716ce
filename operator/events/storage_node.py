"""StorageNodes: the initiator facts that exports are made for."""

from __future__ import annotations

from typing import Any

import kopf

from cinderblock.core.api import StorageNode
from cinderblock.operator.engine.stores import Stores
from cinderblock.operator.events.feed import feed, names


def register(registry: kopf.OperatorRegistry, stores: Stores) -> None:
    @kopf.on.event(*names(StorageNode), id="storage-node", registry=registry)
    async def storage_node(event: kopf.RawEvent, **_: Any) -> None:
        feed(stores.storage_nodes, event)
