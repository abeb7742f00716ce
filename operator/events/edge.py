"""kopf embedded in our event loop: it watches what a Scope names and feeds the stores."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import kopf

from cinderblock.core.kube.adapter import ApiServerKube
from cinderblock.operator.engine.scope import Scope
from cinderblock.operator.engine.stores import Stores
from cinderblock.operator.events import (
    attachment,
    backend,
    node,
    persistent_volume,
    pool,
    snapshot,
    storage_node,
    volume,
    volume_type,
)
from cinderblock.operator.settings import kopf_settings

_EDGES = {
    "volumes": volume,
    "attachments": attachment,
    "snapshots": snapshot,
    "backends": backend,
    "pools": pool,
    "volumetypes": volume_type,
    "storagenodes": storage_node,
    "nodes": node,
    "persistentvolumes": persistent_volume,
}


def make_registry(kube: ApiServerKube, scope: Scope, stores: Stores) -> kopf.OperatorRegistry:
    """Handlers for the kinds of a scope, and a login that shares the process's one connection pool."""
    registry = kopf.OperatorRegistry()
    for watched in scope:
        _EDGES[watched.store.kind.PLURAL].register(registry, stores)

    @kopf.on.login(id="login", registry=registry)
    async def login(**_: Any) -> kopf.AiohttpSession:
        return kopf.AiohttpSession(server=kube.credentials.server, aiohttp_session=kube.open_session())

    return registry


async def watch(
    kube: ApiServerKube,
    scope: Scope,
    stores: Stores,
    *,
    stop: asyncio.Event,
    ready: asyncio.Event,
) -> None:
    """Watch until `stop` is set. kopf cancels every task that began after it did, once it ends."""
    await kopf.operator(
        registry=make_registry(kube, scope, stores),
        settings=kopf_settings(scope),
        # Left to itself kopf asks for the user's name, and a container's uid has none. It serves peering only.
        identity=cast(Any, "cinderblock"),
        standalone=True,
        clusterwide=True,
        stop_flag=stop,
        ready_flag=ready,
    )
