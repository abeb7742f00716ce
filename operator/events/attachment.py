"""Attachments: of the leader all, of a host those that carry its label."""

from __future__ import annotations

from typing import Any

import kopf

from cinderblock.core.api import Attachment
from cinderblock.operator.engine.stores import Stores
from cinderblock.operator.events.feed import feed, names


def register(registry: kopf.OperatorRegistry, stores: Stores) -> None:
    @kopf.on.event(*names(Attachment), id="attachment", registry=registry)
    async def attachment(event: kopf.RawEvent, **_: Any) -> None:
        feed(stores.attachments, event)
