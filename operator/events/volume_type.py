"""VolumeTypes, for the leader's placements."""

from __future__ import annotations

from typing import Any

import kopf

from cinderblock.core.api import VolumeType
from cinderblock.operator.engine.stores import Stores
from cinderblock.operator.events.feed import feed, names


def register(registry: kopf.OperatorRegistry, stores: Stores) -> None:
    @kopf.on.event(*names(VolumeType), id="volume-type", registry=registry)
    async def volume_type(event: kopf.RawEvent, **_: Any) -> None:
        feed(stores.volume_types, event)
