"""What every part of a host works with, handed down whole by the composition (role.py)."""

from __future__ import annotations

from dataclasses import dataclass

from cinderblock.core.api.attachment import Attachment
from cinderblock.core.api.volume import Volume, VolumeAttachmentEntry
from cinderblock.core.clock import Clock
from cinderblock.core.kube.events import EventRecorder
from cinderblock.core.kube.port import Conflict, Kube, ObjectNotFound
from cinderblock.core.metrics import NO_QUEUE_METRICS, QueueMetrics
from cinderblock.operator.engine.stores import Stores
from cinderblock.operator.host.drivers import OpenBackends
from cinderblock.operator.host.metrics import NO_HOST_METRICS, HostMetrics


@dataclass(frozen=True)
class HostTools:
    kube: Kube  # guarded: identity.py
    stores: Stores
    clock: Clock
    recorder: EventRecorder
    host: str
    node: str | None
    drivers: OpenBackends
    release_namespace: str | None = None  # only Attachments there may name Volumes of other namespaces
    metrics: QueueMetrics = NO_QUEUE_METRICS
    host_metrics: HostMetrics = NO_HOST_METRICS

    # fresh reads: the only ones whose absence is believed ------------------------------------------------
    async def fresh_volume(self, volume: Volume) -> Volume | None:
        """The Volume as it stands; None when it is gone or another object has its name."""
        try:
            fresh = await self.kube.get(Volume, volume.name, volume.namespace)
        except ObjectNotFound:
            return None
        if fresh.uid != volume.uid:
            return None
        self.stores.volumes.apply(fresh)
        return fresh

    async def same_volume(self, volume: Volume) -> None:
        """Raises Conflict when it is not what the decision was made on."""
        fresh = await self.fresh_volume(volume)
        if fresh is None or fresh.metadata.resource_version != volume.metadata.resource_version:
            raise Conflict(f"volume {volume.namespace}/{volume.name} has changed", status=409)

    async def fresh_attachment(self, entry: VolumeAttachmentEntry) -> Attachment | None:
        """The Attachment of an entry; None when it is gone or another object has its name."""
        namespace, _, name = entry.attachment.partition("/")
        try:
            fresh = await self.kube.get(Attachment, name, namespace)
        except ObjectNotFound:
            return None
        self.stores.attachments.apply(fresh)
        return fresh if fresh.uid == entry.attachment_uid else None

    async def same_attachment(self, attachment: Attachment) -> None:
        """Raises Conflict when it is not what the decision was made on."""
        try:
            fresh = await self.kube.get(Attachment, attachment.name, attachment.namespace)
        except ObjectNotFound as error:
            raise Conflict(str(error), status=404) from error
        self.stores.attachments.apply(fresh)
        if fresh.metadata.resource_version != attachment.metadata.resource_version:
            raise Conflict(f"attachment {attachment.name} has changed", status=409)


def backend_of(volume: Volume) -> str:
    """The Backend of the standing grant, "" without one."""
    return volume.status.allocation.backend if volume.status.allocation is not None else ""
