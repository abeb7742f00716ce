"""Volumes: of the leader all, of a host those granted to it."""

from __future__ import annotations

from typing import Any

import kopf

from cinderblock.core.api import Volume
from cinderblock.operator.engine.stores import Stores
from cinderblock.operator.events.feed import feed, names


def register(registry: kopf.OperatorRegistry, stores: Stores) -> None:
    @kopf.on.event(*names(Volume), id="volume", registry=registry)
    async def volume(event: kopf.RawEvent, **_: Any) -> None:
        feed(stores.volumes, event)
