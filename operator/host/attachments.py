"""The host's work on the Attachments of one Volume; called under that Volume's queue key.

Order: who leaves first makes room for who waits. Before each unexport and each format permit Volume and
Attachment are read fresh; an entry stands in the Volume before anything is exported.
"""

from __future__ import annotations

from cinderblock.core.api.attachment import Attachment
from cinderblock.core.api.volume import Volume, VolumeAttachmentEntry
from cinderblock.core.errors import (
    NotFound,
    NotReady,
    NotSupported,
    StorageError,
)
from cinderblock.core.kube.port import ObjectNotFound
from cinderblock.core.names import FINALIZER_PROTECT, OPERATOR_HOST
from cinderblock.operator.engine.queue import Key
from cinderblock.operator.engine.writer import StatusWriter
from cinderblock.operator.host import attachment_status as say
from cinderblock.operator.host import volume_status
from cinderblock.operator.host.decide_attachment import (
    DropEntry,
    FenceEntry,
    KeepEntry,
    OrphanView,
    find_entry,
    in_order,
    judge_detach,
    judge_orphan,
    may_name,
)
from cinderblock.operator.host.decide_volume import ref_of
from cinderblock.operator.host.drivers import ask
from cinderblock.operator.host.exports import Exports, foreign
from cinderblock.operator.host.tools import HostTools, backend_of


class Attachments:
    def __init__(self, tools: HostTools) -> None:
        self._tools = tools
        self._volumes = StatusWriter(tools.kube, tools.stores.volumes)
        self._attachments = StatusWriter(tools.kube, tools.stores.attachments)
        self._exports = Exports(tools)

    # Attachments that no host serves ---------------------------------------------------------------------
    async def judge_unserved(self, key: Key, volume: Volume | None) -> None:
        """The operator's host answers for Attachments whose Volume is missing or granted nowhere."""
        if self._tools.host != OPERATOR_HOST or (volume is not None and volume.status.allocation is not None):
            return
        waiting = [a for a in self._tools.stores.attachments.by("volume", "/".join(key)) if not a.deleting]
        if not waiting:
            return
        error: StorageError = NotReady("the volume does not exist on any backend yet")
        if volume is None:
            try:
                fresh = await self._tools.kube.get(Volume, key[1], key[0])
            except ObjectNotFound:
                error = NotFound(f"Volume {'/'.join(key)} does not exist")
            else:
                self._tools.stores.volumes.apply(fresh)
                return
        for attachment in waiting:
            allowed = may_name(attachment, self._tools.release_namespace)
            await self._exports.refuse(attachment, error if allowed else foreign(attachment))

    # Attachments of a Volume that is served here ---------------------------------------------------------
    async def serve(self, volume: Volume) -> bool:
        """One pass over all of them; the first fault is raised after all had their turn.

        Answers whether every entry left is one that the driver's own delete may judge (decide_attachment.py).
        Errors: StorageError of a driver; Conflict and other KubeError's at once.
        """
        key = (volume.namespace or "", volume.name)
        own = in_order(self._tools.stores.attachments.by("volume", "/".join(key)))
        known = {a.uid: a for a in own}
        faults: list[StorageError] = []
        orphans: list[VolumeAttachmentEntry] = []
        for entry in volume.status.attachments:
            attachment = known.get(entry.attachment_uid)
            try:
                if attachment is None or attachment.deleting or attachment.status.fence is not None:
                    fresh = await self._tools.fresh_attachment(entry)
                    if fresh is None:
                        orphans.append(entry)
                    else:
                        known[fresh.uid] = fresh
                        volume = await self._detach(volume, entry, fresh)
            except StorageError as error:
                faults.append(error)
        volume, kept = await self._serve_orphans(volume, orphans, list(known.values()), faults)
        for attachment in in_order(known.values()):
            try:
                if attachment.deleting:
                    await self._let_go(volume, attachment)
                else:
                    volume = await self._exports.serve(volume, attachment, known, kept)
            except StorageError as error:
                faults.append(error)
        if faults:
            raise faults[0]
        left = {e.attachment_uid for e in volume.status.attachments}
        return bool(left) and volume.deleting and left <= {uid for uid, safe in kept.items() if safe}

    # detach ----------------------------------------------------------------------------------------------
    async def _detach(self, volume: Volume, entry: VolumeAttachmentEntry, attachment: Attachment) -> Volume:
        verdict = judge_detach(attachment, entry)
        if isinstance(verdict, FenceEntry):
            try:
                let_go = attachment.status.released >= entry.generation
                volume = await self._fence(volume, entry, let_go=let_go)
            except StorageError as error:
                after = attachment.with_(status=say.failed(attachment, error))
                await self._attachments.status(attachment, after)
                await self._tools.recorder.warn(attachment, error.reason, error.message)
                if isinstance(error, NotSupported):
                    return volume  # the data stays where it is; only the node itself can end this
                raise
            entry = find_entry(volume, entry.attachment_uid) or entry
            verdict = judge_detach(attachment, entry)
        if isinstance(verdict, DropEntry):
            return await self._exports.drop(volume, entry)
        if entry.fenced:
            after = attachment.with_(status=say.fenced(attachment, self._tools.clock.now()))
            await self._attachments.status(attachment, after)
        return volume

    async def _fence(self, volume: Volume, entry: VolumeAttachmentEntry, *, let_go: bool = False) -> Volume:
        """Cut the node off at the target, then record it: a repeated fence of one generation does nothing new.

        `let_go`: the node itself has let go of this generation, which leaves nothing to cut off.
        """
        await self._tools.same_volume(volume)
        if not let_go:
            await self._cut_off(volume, entry)
        status = volume_status.entry_fenced(volume.status, entry.attachment_uid)
        return await self._volumes.status(volume, volume.with_(status=status))

    async def _cut_off(self, volume: Volume, entry: VolumeAttachmentEntry) -> None:
        ref = ref_of(volume)
        async with self._tools.drivers.use(backend_of(volume)) as opened:
            fencer = opened.fencer
            if fencer is None:
                raise NotSupported(
                    f"driver {opened.driver_name} cannot cut node {entry.node} off: the volume stays with it"
                    " until the node lets go",
                    reason="CannotFence",
                )
            await ask(f"fence of {ref.object_name}", fencer.fence(ref, entry.node, entry.generation))

    async def _let_go(self, volume: Volume, attachment: Attachment) -> None:
        """Take our finalizer off an Attachment that no entry names, by fresh reads of both."""
        if find_entry(volume, attachment.uid) is not None or not attachment.has_finalizer(FINALIZER_PROTECT):
            return
        await self._tools.same_volume(volume)
        await self._attachments.update(attachment, attachment.without_finalizer(FINALIZER_PROTECT))
        self._exports.forget(attachment.uid)

    async def _serve_orphans(
        self,
        volume: Volume,
        orphans: list[VolumeAttachmentEntry],
        live: list[Attachment],
        faults: list[StorageError],
    ) -> tuple[Volume, dict[str, bool]]:
        """Entries without an Attachment: (volume, UID -> whether the driver's delete may judge it) of what stays."""
        kept: dict[str, bool] = {}
        for entry in orphans:
            opened = self._tools.drivers.get(backend_of(volume))
            if opened is None:
                kept[entry.attachment_uid] = False
                continue
            view = OrphanView(
                entry,
                volume_deleting=volume.deleting,
                wanted_by_other_node=any(not a.deleting and a.spec.node != entry.node for a in live),
                can_fence=opened.fencer is not None,
                node_local=opened.node_local and entry.node == self._tools.node,
            )
            verdict = judge_orphan(view)
            try:
                if isinstance(verdict, FenceEntry):
                    volume = await self._fence(volume, entry)
                    verdict = DropEntry(find_entry(volume, entry.attachment_uid) or entry)
                if isinstance(verdict, DropEntry) and verdict.entry.fenced:
                    volume = await self._exports.drop(volume, verdict.entry)
                    continue
            except StorageError as error:
                faults.append(error)
            kept[entry.attachment_uid] = isinstance(verdict, DropEntry)
            if isinstance(verdict, KeepEntry):
                await self._tools.recorder.warn(
                    volume,
                    "AttachmentVanished",
                    f"Attachment {entry.attachment} is gone without letting go: node {entry.node} may still use"
                    " the volume; make an Attachment for that node again, or delete the Volume",
                )
        return volume, kept
