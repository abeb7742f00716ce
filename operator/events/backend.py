"""Backends: every process that may serve or judge one."""

from __future__ import annotations

from typing import Any

import kopf

from cinderblock.core.api import Backend
from cinderblock.operator.engine.stores import Stores
from cinderblock.operator.events.feed import feed, names


def register(registry: kopf.OperatorRegistry, stores: Stores) -> None:
    @kopf.on.event(*names(Backend), id="backend", registry=registry)
    async def backend(event: kopf.RawEvent, **_: Any) -> None:
        feed(stores.backends, event)
