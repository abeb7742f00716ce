"""Lets an Attachment in: admits it, exports for its node, and answers the formatting dialogue.

The entry in Volume.status.attachments[] stands before anything is exported, and Volume and Attachment are read
fresh before a format permit. Called under the Volume's queue key (attachments.py).
"""

from __future__ import annotations

from cinderblock.core.api.attachment import Attachment
from cinderblock.core.api.builtin import Node
from cinderblock.core.api.node import StorageNode
from cinderblock.core.api.volume import Volume, VolumeAttachmentEntry
from cinderblock.core.errors import (
    BackendUnavailable,
    InvalidRequest,
    NotSupported,
    StorageError,
)
from cinderblock.core.kube.port import ObjectNotFound
from cinderblock.core.names import FINALIZER_PROTECT
from cinderblock.drivers.base import ExportRequest, InitiatorFacts
from cinderblock.operator.engine.writer import StatusWriter
from cinderblock.operator.host import attachment_status as say
from cinderblock.operator.host import volume_status
from cinderblock.operator.host.decide_attachment import (
    NodeFacts,
    Refuse,
    find_entry,
    is_exported,
    judge_admission,
    judge_volume,
    may_name,
    ordered_off,
)
from cinderblock.operator.host.decide_filesystem import (
    Nothing,
    Object,
    Permit,
    Record,
    judge_filesystem,
    may_be_writing,
)
from cinderblock.operator.host.decide_volume import may_pass, ref_of
from cinderblock.operator.host.drivers import OpenBackend, ask
from cinderblock.operator.host.tools import HostTools, backend_of

_MOST_RECORDS = 4


def foreign(attachment: Attachment) -> StorageError:
    return InvalidRequest(
        f"a Volume of namespace {attachment.volume_key[0]} cannot be named from {attachment.namespace}",
        reason="ForeignVolume",
    )


class Exports:
    def __init__(self, tools: HostTools) -> None:
        self._tools = tools
        self._volumes = StatusWriter(tools.kube, tools.stores.volumes)
        self._attachments = StatusWriter(tools.kube, tools.stores.attachments)
        # UID -> the driver that exported it in this process's life, with the generation: what is not here is
        # exported again once, since a target may have forgotten everything with a reboot.
        self._exported: dict[str, tuple[int, OpenBackend]] = {}
        # UID -> why the driver itself refused an admitted Attachment; admitting it again would turn in circles.
        self._refused: dict[str, tuple[StorageError, OpenBackend]] = {}

    def forget(self, uid: str) -> None:
        self._exported.pop(uid, None)
        self._refused.pop(uid, None)

    # admit, export, format -------------------------------------------------------------------------------
    async def serve(
        self, volume: Volume, attachment: Attachment, known: dict[str, Attachment], orphans: dict[str, bool]
    ) -> Volume:
        entry = find_entry(volume, attachment.uid)
        if entry is None:
            volume = await self._admit(volume, attachment, orphans)
            entry = find_entry(volume, attachment.uid)
            if entry is None:
                return volume
            attachment = (
                self._tools.stores.attachments.get(attachment.namespace, attachment.name) or attachment
            )
            known[attachment.uid] = attachment
        if entry.fenced or ordered_off(attachment, entry):
            return volume
        try:
            attachment = await self._export(volume, attachment, entry)
        except (NotSupported, InvalidRequest) as error:
            return await self._withdraw(volume, attachment, entry, error)
        known[attachment.uid] = attachment
        return await self._filesystem(volume, attachment, known)

    async def _admit(self, volume: Volume, attachment: Attachment, orphans: dict[str, bool]) -> Volume:
        opened = self._tools.drivers.get(backend_of(volume))
        refused = self._refused.get(attachment.uid)
        if refused is not None and refused[1] is opened:
            await self.refuse(attachment, refused[0])
            return volume
        if not may_name(attachment, self._tools.release_namespace):
            await self.refuse(attachment, foreign(attachment))
            return volume
        objection = judge_volume(volume)
        if objection is not None:
            await self.refuse(attachment, objection)
            return volume
        node = await self._node_facts(attachment.spec.node, opened)
        verdict = judge_admission(volume, attachment, node, orphans)
        if isinstance(verdict, Refuse):
            await self.refuse(attachment, verdict.error)
            return volume
        if opened is None:
            raise BackendUnavailable(
                f"Backend {backend_of(volume)} is not open on this host", reason="BackendNotOpen"
            )
        try:
            attachment = await self._fresh_protected(attachment)
        except ObjectNotFound:
            return volume
        if attachment.deleting:
            return volume
        status = volume_status.entry_added(volume.status, verdict.entry, supersedes=verdict.supersedes)
        after = volume.with_(status=status.with_(filesystem=verdict.filesystem))
        return await self._volumes.status(volume, after)

    async def _fresh_protected(self, attachment: Attachment) -> Attachment:
        """The Attachment by a fresh answer, with our finalizer. Raises ObjectNotFound, also for another UID."""
        fresh = await self._tools.kube.get(Attachment, attachment.name, attachment.namespace)
        self._tools.stores.attachments.apply(fresh)
        if fresh.uid != attachment.uid:
            raise ObjectNotFound(f"attachment {attachment.name} is another one by now", status=404)
        if fresh.deleting:
            return fresh
        return await self._attachments.update(fresh, fresh.with_finalizer(FINALIZER_PROTECT))

    async def _node_facts(self, name: str, opened: OpenBackend | None) -> NodeFacts:
        try:
            node = await self._tools.kube.get(Node, name)
        except ObjectNotFound:
            return NodeFacts(exists=False, storage_node=False)
        storage_node = await self._storage_node(name)
        speaks_for = storage_node.status.node_uid if storage_node is not None else None
        return NodeFacts(
            exists=True,
            storage_node=storage_node is not None,
            same_node=speaks_for == node.uid,
            reachable=opened is None or not opened.node_local or name == self._tools.node,
        )

    async def _storage_node(self, name: str) -> StorageNode | None:
        known = self._tools.stores.storage_nodes.get(None, name)
        if known is not None:
            return known
        try:
            return await self._tools.kube.get(StorageNode, name)
        except ObjectNotFound:
            return None

    async def refuse(self, attachment: Attachment, error: StorageError) -> None:
        after = attachment.with_(status=say.refused(attachment, error, self._tools.clock.now()))
        if after != attachment:
            await self._attachments.status(attachment, after)
            await self._tools.recorder.warn(attachment, error.reason, error.message)

    async def _export(
        self, volume: Volume, attachment: Attachment, entry: VolumeAttachmentEntry
    ) -> Attachment:
        capacity_bytes = volume.status.capacity_bytes or 0
        ref = ref_of(volume)
        opened = self._tools.drivers.get(backend_of(volume))
        done = self._exported.get(attachment.uid)
        published = is_exported(attachment, entry, capacity_bytes)
        if published and (opened is None or not opened.serving):
            return attachment  # exported again when the driver opens; until then the node keeps what it has
        if published and done == (entry.generation, opened):
            return attachment
        facts = await self._storage_node(entry.node)
        status = facts.status if facts is not None else None
        request = ExportRequest(
            initiator=InitiatorFacts(
                node=entry.node,
                addresses=status.addresses if status is not None else (),
                iqn=status.iqn if status is not None else None,
                nqn=status.nqn if status is not None else None,
            ),
            generation=entry.generation,
            read_only=entry.read_only,
        )
        now = self._tools.clock.now()
        try:
            async with self._tools.drivers.use(backend_of(volume)) as used:
                connection = await ask(f"export of {ref.object_name}", used.driver.export(ref, request))
                opened = used
        except StorageError as error:
            if attachment.status.connection is None and isinstance(error, NotSupported | InvalidRequest):
                raise  # never published: it is withdrawn
            if not (published and may_pass(error)):
                after = attachment.with_(status=say.export_failed(attachment, error, now))
                await self._attachments.status(attachment, after)
            raise
        connection = connection.with_(
            generation=entry.generation, size_bytes=capacity_bytes, read_only=entry.read_only
        )
        after = attachment.with_(status=say.exported(attachment, entry, connection, now))
        attachment = await self._attachments.status(attachment, after)
        self._exported[attachment.uid] = (entry.generation, opened)
        return attachment

    async def _withdraw(
        self, volume: Volume, attachment: Attachment, entry: VolumeAttachmentEntry, error: StorageError
    ) -> Volume:
        """The driver cannot do it for that node: the entry goes again, the Attachment says why."""
        opened = self._tools.drivers.get(backend_of(volume))
        fresh = await self._tools.fresh_attachment(entry)
        if fresh is None or fresh.status.connection is not None or opened is None:
            raise error
        volume = await self.drop(volume, entry)
        self._refused[attachment.uid] = (error, opened)
        await self.refuse(fresh, error)
        return volume

    async def _filesystem(
        self, volume: Volume, attachment: Attachment, known: dict[str, Attachment]
    ) -> Volume:
        for _ in range(_MOST_RECORDS):
            entry = find_entry(volume, attachment.uid)
            if entry is None:
                return volume
            rival = any(
                may_be_writing(e, known.get(e.attachment_uid))
                for e in volume.status.attachments
                if e.attachment_uid != attachment.uid
            )
            match judge_filesystem(volume, attachment, entry, rival=rival):
                case Record() as record:
                    if record.filesystem.permitted:  # decided on what this node found, and not taken back
                        await self._tools.same_attachment(attachment)
                    after = volume.with_(status=volume.status.with_(filesystem=record.filesystem))
                    volume = await self._volumes.status(volume, after)
                case Permit() as permit:
                    await self._tools.same_volume(volume)
                    await self._tools.same_attachment(attachment)
                    status = say.permitted(attachment, permit.permit)
                    await self._attachments.status(attachment, attachment.with_(status=status))
                    return volume
                case Object() as objection:
                    after_objection = attachment.with_(status=say.failed(attachment, objection.error))
                    if after_objection != attachment:
                        await self._attachments.status(attachment, after_objection)
                        await self._tools.recorder.warn(
                            attachment, objection.error.reason, objection.error.message
                        )
                    return volume
                case Nothing():
                    await self._attachments.status(attachment, attachment.with_(status=say.calm(attachment)))
                    return volume
        return volume

    async def drop(self, volume: Volume, entry: VolumeAttachmentEntry) -> Volume:
        await self._tools.same_volume(volume)
        ref = ref_of(volume)
        self.forget(entry.attachment_uid)
        async with self._tools.drivers.use(backend_of(volume)) as opened:
            await ask(f"unexport of {ref.object_name}", opened.driver.unexport(ref, entry.node))
        status = volume_status.entry_removed(volume.status, entry.attachment_uid)
        return await self._volumes.status(volume, volume.with_(status=status))
