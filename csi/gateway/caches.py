"""The caches that the CSI controller reads, and the informers that feed them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from cinderblock.core.api.attachment import Attachment
from cinderblock.core.api.backend import Pool, VolumeType
from cinderblock.core.api.node import StorageNode
from cinderblock.core.api.volume import Volume
from cinderblock.core.clock import Clock
from cinderblock.core.kube.informer import Informer
from cinderblock.core.kube.port import Kube
from cinderblock.core.kube.store import Store
from cinderblock.core.names import host_name
from cinderblock.csi.gateway.waiting import Cache


def _by_handle(volume: Volume) -> Iterable[str]:
    return (volume.status.handle,) if volume.status.handle else ()


def _by_volume(attachment: Attachment) -> Iterable[str]:
    return ("/".join(attachment.volume_key),)


def _by_segment(node: StorageNode) -> Iterable[str]:
    return (host_name(node.name),)


class Caches:
    """Volumes of all namespaces (a handle may live anywhere), Attachments of all, and the cluster's facts."""

    def __init__(self, kube: Kube, clock: Clock) -> None:
        self.volumes = Cache(kube, Store(Volume, {"handle": _by_handle}))
        self.attachments = Cache(kube, Store(Attachment, {"volume": _by_volume}))
        self.nodes = Cache(kube, Store(StorageNode, {"segment": _by_segment}))
        self.pools = Cache(kube, Store(Pool))
        self.types = Cache(kube, Store(VolumeType))

        self._informers: tuple[Informer[Any], ...] = (
            Informer(kube, self.volumes.store, clock=clock),
            Informer(kube, self.attachments.store, clock=clock),
            Informer(kube, self.nodes.store, clock=clock),
            Informer(kube, self.pools.store, clock=clock),
            Informer(kube, self.types.store, clock=clock),
        )

    @property
    def synced(self) -> bool:
        return all(informer.store.synced.is_set() for informer in self._informers)

    def fault(self, limit: float) -> str | None:
        """What is wrong when a cache has not been fed for `limit` seconds; None = well."""
        return next((said for informer in self._informers if (said := informer.fault(limit))), None)

    def node_of_segment(self, segment: str) -> str | None:
        """The node whose topology segment has this value."""
        found = self.nodes.store.by("segment", segment)
        return found[0].name if found else None

    async def run(self) -> None:
        """Feed the caches for ever."""
        async with asyncio.TaskGroup() as group:
            for informer in self._informers:
                group.create_task(informer.run())
