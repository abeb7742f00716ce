"""Pools: of the leader all, of a host its own."""

from __future__ import annotations

from typing import Any

import kopf

from cinderblock.core.api import Pool
from cinderblock.operator.engine.stores import Stores
from cinderblock.operator.events.feed import feed, names


def register(registry: kopf.OperatorRegistry, stores: Stores) -> None:
    @kopf.on.event(*names(Pool), id="pool", registry=registry)
    async def pool(event: kopf.RawEvent, **_: Any) -> None:
        feed(stores.pools, event)
