"""Snapshots, for the leader: they hold their source."""

from __future__ import annotations

from typing import Any

import kopf

from cinderblock.core.api import Snapshot
from cinderblock.operator.engine.stores import Stores
from cinderblock.operator.events.feed import feed, names


def register(registry: kopf.OperatorRegistry, stores: Stores) -> None:
    @kopf.on.event(*names(Snapshot), id="snapshot", registry=registry)
    async def snapshot(event: kopf.RawEvent, **_: Any) -> None:
        feed(stores.snapshots, event)
