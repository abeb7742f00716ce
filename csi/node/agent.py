"""The node's agent: makes the kernel follow the Attachments of this node, and reports (docs/protocol.md).

Level-triggered and without memory: each run looks at the Attachment, the kernel and the mounts, and does the one
step that decide() names. A process that dies anywhere in between is followed by one that sees the same.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from cinderblock.core.api.attachment import Attachment, Connection, ConnectionProtocol, Probe
from cinderblock.core.api.volume import Volume
from cinderblock.core.clock import Clock
from cinderblock.core.errors import NotSupported, StorageError, VolumeInUse
from cinderblock.core.kube.events import EventRecorder
from cinderblock.core.kube.port import Kube, KubeError
from cinderblock.core.kube.store import Store
from cinderblock.core.process import Runner
from cinderblock.csi.connectors.base import Connector, Device
from cinderblock.csi.node import decide as rules
from cinderblock.csi.node.decide import Step
from cinderblock.csi.node.dispatch import Dispatcher, Key
from cinderblock.csi.node.links import DeviceLinks
from cinderblock.csi.node.mountinfo import uses_of
from cinderblock.csi.node.probe import probe_device
from cinderblock.csi.node.volumes import KeyLocks

_BUSY_AGAIN = 2.0
_SWEEP_SECONDS = 600.0

_log = logging.getLogger(__name__)


class NodeAgent:
    """`await run()` in a task of its own, beside the informer that feeds `store`."""

    def __init__(
        self,
        kube: Kube,
        store: Store[Attachment],
        connectors: Mapping[ConnectionProtocol, Connector],
        *,
        links: DeviceLinks,
        locks: KeyLocks,
        runner: Runner,
        clock: Clock,
        recorder: EventRecorder,
        node: str,
        boot_id: str,
    ) -> None:
        self._kube = kube
        self._store = store
        self._connectors = connectors
        self._links = links
        self._locks = locks
        self._runner = runner
        self._clock = clock
        self._recorder = recorder
        self._node = node
        self._boot_id = boot_id
        self._dispatcher: Dispatcher | None = None

    async def run(self) -> None:
        dispatcher = self._dispatcher = Dispatcher(self.reconcile)
        unsubscribe = self._store.subscribe(self._changed)
        try:
            for attachment in self._store.all():
                self._changed(None, attachment)
            await self._store.synced.wait()
            while True:
                try:
                    await self.sweep()
                except (StorageError, KubeError, OSError) as error:
                    _log.warning("looking for stray devices: %s", error)
                await self._clock.sleep(_SWEEP_SECONDS)
        finally:
            unsubscribe()
            self._dispatcher = None
            await dispatcher.close()

    def poke(self, attachment: Attachment) -> None:
        """Something on the node changed (unstaged, say): look at this Attachment now."""
        self._changed(None, attachment)

    def _changed(self, old: Attachment | None, new: Attachment | None) -> None:
        seen = new or old
        if self._dispatcher is None or seen is None:
            return
        key = (seen.namespace or "", seen.name)
        if new is None:
            self._dispatcher.forget(key)
        else:
            self._dispatcher.add(key)

    async def reconcile(self, key: Key) -> float | None:
        attachment = self._store.get(*key)
        if attachment is None:
            return None
        step = rules.decide(attachment, node=self._node, boot_id=self._boot_id)
        if step is Step.NOTHING:
            return None
        async with self._locks.hold(attachment.volume_key):
            attachment = self._store.get(*key) or attachment
            step = rules.decide(attachment, node=self._node, boot_id=self._boot_id)
            if step is Step.LET_GO:
                return await self._let_go(attachment)
            if step is Step.VOID:
                attachment = await self._write(attachment, rules.report_voided(attachment, self._now()))
                step = Step.CONNECT
            if step is Step.CONNECT:
                await self._connect(attachment)
        return None

    def _now(self) -> datetime:
        return self._clock.now()

    async def _write(self, before: Attachment, after: Attachment) -> Attachment:
        stored = await self._kube.update_status(before, after)
        self._store.apply(stored)
        return stored

    def connector(self, connection: Connection) -> Connector:
        found = self._connectors.get(connection.protocol)
        if found is None:
            raise NotSupported(f"node {self._node} has no connector for {connection.protocol}")
        return found

    async def _connect(self, attachment: Attachment) -> None:
        connection = rules.published(attachment)
        if connection is None:
            return
        try:
            connector = self.connector(connection)
            async with self._locks.hold(("device", connector.stray_name(connection))):
                device = await connector.connect(connection)
            link = self._links.point(attachment.uid, device.path)
            probe = await self._probe(attachment, device)
        except StorageError as error:
            await self._recorder.warn(attachment, error.reason, error.message)
            await self._write(attachment, rules.report_failed(attachment, error, self._now()))
            raise
        reported = rules.report_connected(
            attachment,
            link=str(link),
            size_bytes=device.size_bytes,
            boot_id=self._boot_id,
            probe=probe,
            now=self._now(),
        )
        await self._write(attachment, reported)

    async def _probe(self, attachment: Attachment, device: Device) -> Probe | None:
        if not rules.may_need_probe(attachment):
            return None
        namespace, name = attachment.volume_key
        volume = await self._kube.get(Volume, name, namespace)
        if not rules.needs_probe(attachment, volume):
            return None
        found = await probe_device(self._runner, device.path, device.size_bytes)
        return Probe(
            wanted_type=rules.wanted_type(attachment, volume),
            found=found,
            generation=attachment.status.generation,
        )

    async def _let_go(self, attachment: Attachment) -> float | None:
        connection = rules.published(attachment)
        if connection is None:
            return None
        connector = self._connectors.get(connection.protocol)
        # Without a connector for it nothing was ever brought up here.
        if connector is not None and not self._shared(attachment, connector, connection):
            busy = await self._disconnect(connector, connection)
            if busy:
                await self._write(attachment, rules.report_busy(attachment, busy, self._now()))
                return _BUSY_AGAIN
        self._links.remove(attachment.uid)
        await self._write(attachment, rules.report_released(attachment, self._now()))
        return None

    def _shared(self, attachment: Attachment, connector: Connector, connection: Connection) -> bool:
        """Whether another Attachment of this node holds the same device; then only our link goes."""
        name = connector.stray_name(connection)
        for other in self._store.all():
            theirs = rules.published(other)
            if (
                other.uid != attachment.uid
                and other.spec.node == self._node
                and other.volume_key == attachment.volume_key
                and other.status.device is not None
                and theirs is not None
                and theirs.protocol is connection.protocol
                and connector.stray_name(theirs) == name
            ):
                return True
        return False

    async def _disconnect(self, connector: Connector, connection: Connection) -> Sequence[str]:
        """Empty when the device is gone, else what holds it."""
        device = await connector.find(connection)
        if device is None:
            return ()
        holders = [*uses_of(device.number), *await connector.holders(device)]
        if holders:
            return holders
        try:
            await connector.disconnect(connection)
        except VolumeInUse as error:
            return (error.message,)
        return ()

    async def sweep(self) -> list[str]:
        """Devices and links of ours that no Attachment names: let go where nothing holds them.

        Returns the names that had to stay.
        """
        stayed: list[str] = []
        for connector in self._connectors.values():
            seen = await connector.strays()
            # First the devices, then the list: what was connected before has its Attachment in it.
            known = await self._known(connector)
            for name, device in seen:
                if name not in known and not await self._sweep_device(connector, name, device):
                    stayed.append(name)
        await self._sweep_links()
        return stayed

    async def _known(self, connector: Connector) -> set[str]:
        """Names of all devices that Attachments of this node speak of, from a fresh list (as good as a 404)."""
        listing = await self._kube.list(Attachment, field_selector=f"spec.node={self._node}")
        return {
            connector.stray_name(connection)
            for attachment in listing.items
            if (connection := attachment.status.connection) is not None
            and connection.protocol is connector.protocol
        }

    async def _sweep_device(self, connector: Connector, name: str, device: Device) -> bool:
        async with self._locks.hold(("device", name)):
            if name in await self._known(connector):
                return True
            holders = [*uses_of(device.number), *await connector.holders(device)]
            try:
                if not holders:
                    await connector.disconnect_stray(name, device)
                    _log.info("%s (%s) had no Attachment: let go", device.path, name)
                    return True
            except VolumeInUse as error:
                holders = [error.message]
        _log.warning("%s (%s) has no Attachment and is used by %s", device.path, name, ", ".join(holders))
        return False

    async def _sweep_links(self) -> None:
        links = self._links.uids()
        if not links:
            return
        listing = await self._kube.list(Attachment, field_selector=f"spec.node={self._node}")
        uids = {attachment.uid for attachment in listing.items}
        for uid in links:
            # A link to a device that lives is left: it may be another node's on the same kernel.
            if uid not in uids and not _lives(self._links.target(uid)):
                self._links.remove(uid)


def _lives(device: Path | None) -> bool:
    """Whether the kernel has data behind a device; an unbound loop device has no size."""
    if device is None:
        return False
    try:
        return int(Path("/sys/class/block", device.name, "size").read_text()) > 0
    except OSError:
        return False
