"""From a CSI volume id to what is here: its Attachment and its device."""

from __future__ import annotations

from collections.abc import Mapping

from cinderblock.core.api.attachment import Attachment, Connection, ConnectionProtocol
from cinderblock.core.api.volume import Volume
from cinderblock.core.errors import NotFound, NotReady, NotStaged, NotSupported
from cinderblock.core.kube.port import Kube, ObjectNotFound
from cinderblock.core.names import attachment_name
from cinderblock.csi.connectors.base import Connector, Device
from cinderblock.csi.gateway.waiting import Cache
from cinderblock.csi.node.mountinfo import Mount, mount_at
from cinderblock.csi.node.mounts import shows_device


class NodeVolumes:
    def __init__(
        self,
        kube: Kube,
        cache: Cache[Attachment],
        connectors: Mapping[ConnectionProtocol, Connector],
        *,
        namespace: str,
        node: str,
    ) -> None:
        self.cache = cache
        self.node = node
        self._kube = kube
        self._connectors = connectors
        self._namespace = namespace

    async def attachment(self, volume_id: str) -> Attachment:
        """Errors: NotFound, after a fresh read."""
        name = attachment_name(volume_id, self.node)
        found = await self.cache.get(self._namespace, name)
        if found is None or found.spec.node != self.node:
            raise NotFound(f"volume {volume_id} is not attached to node {self.node}")
        return found

    def known(self, volume_id: str) -> Attachment | None:
        """What the cache has: fit for a hint only."""
        return self.cache.store.get(self._namespace, attachment_name(volume_id, self.node))

    async def fresh(self, attachment: Attachment) -> Attachment:
        """This very object now. Errors: NotFound."""
        found = await self.cache.fresh(attachment.namespace, attachment.name)
        if found is None or found.uid != attachment.uid:
            raise NotFound(f"attachment {attachment.name} is gone")
        return found

    async def fresh_volume(self, attachment: Attachment) -> Volume:
        namespace, name = attachment.volume_key
        try:
            return await self._kube.get(Volume, name, namespace)
        except ObjectNotFound:
            raise NotFound(f"volume {namespace}/{name} is gone") from None

    async def report(self, before: Attachment, after: Attachment) -> Attachment:
        stored = await self._kube.update_status(before, after)
        self.cache.store.apply(stored)
        return stored

    def connector(self, connection: Connection) -> Connector:
        found = self._connectors.get(connection.protocol)
        if found is None:
            raise NotSupported(f"node {self.node} has no connector for {connection.protocol}")
        return found

    async def prove(self, attachment: Attachment) -> Device:
        """The connected device, its identity proved anew. Errors: NotReady, those of Connector.connect."""
        connection = attachment.status.connection
        if connection is None:
            raise NotReady(f"attachment {attachment.name} has no connection yet")
        return await self.connector(connection).connect(connection)

    async def device(self, attachment: Attachment) -> Device:
        """What the kernel has. Errors: NotStaged."""
        connection = attachment.status.connection
        device = None if connection is None else await self.connector(connection).find(connection)
        if device is None:
            raise NotStaged(f"the device of attachment {attachment.name} is not connected on this node")
        return device

    async def is_ours(self, mount: Mount) -> bool:
        """Whether a mount is of a device that one of our connectors brought up."""
        for connector in self._connectors.values():
            if any(shows_device(mount, device) for _, device in await connector.strays()):
                return True
        return False

    async def shown_at(self, volume_id: str, path: str) -> tuple[Device, Mount]:
        """The device of a volume and its mount at `path`. Errors: NotFound, also for a path of another volume."""
        attachment = await self.attachment(volume_id)
        mount = mount_at(path) if path.startswith("/") else None
        try:
            device = await self.device(attachment)
        except NotStaged as error:
            raise NotFound(error.message) from None
        if mount is None or not shows_device(mount, device):
            raise NotFound(f"volume {volume_id} is not at {path}")
        return device, mount
