"""PersistentVolumes, for the leader: one that names a handle holds the Volume."""

from __future__ import annotations

from typing import Any

import kopf

from cinderblock.core.api.builtin import PersistentVolume
from cinderblock.operator.engine.stores import Stores
from cinderblock.operator.events.feed import feed, names


def register(registry: kopf.OperatorRegistry, stores: Stores) -> None:
    @kopf.on.event(*names(PersistentVolume), id="persistent-volume", registry=registry)
    async def persistent_volume(event: kopf.RawEvent, **_: Any) -> None:
        feed(stores.persistent_volumes, event)
