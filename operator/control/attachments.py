"""The leader's part of Attachments: the host label, fences, and what nobody else can finish."""

from __future__ import annotations

from cinderblock.core.api.attachment import ADMITTED, Attachment, Fence
from cinderblock.core.api.meta import ErrorRecord, set_condition
from cinderblock.core.api.node import StorageNode
from cinderblock.core.api.volume import Volume
from cinderblock.core.errors import InvalidRequest, grpc_code
from cinderblock.core.kube.port import ObjectNotFound
from cinderblock.core.names import FINALIZER_PROTECT, LABEL_HOST
from cinderblock.operator.control.tools import Tools
from cinderblock.operator.engine.queue import Key
from cinderblock.operator.engine.writer import StatusWriter


class AttachmentReconciler:
    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._writer = StatusWriter(tools.kube, tools.stores.attachments)
        self._volumes = StatusWriter(tools.kube, tools.stores.volumes)

    async def reconcile(self, key: Key) -> float | None:
        attachment = self._tools.stores.attachments.get(*key)
        if attachment is None:
            return None
        error = self._unservable(attachment)
        if error is not None:
            attachment = await self._refuse(attachment, error)
        else:
            attachment = await self._label(attachment)
        attachment = await self._fence(attachment)
        if attachment.deleting and attachment.has_finalizer(FINALIZER_PROTECT):
            never_served = error is not None and attachment.status.generation == 0
            await self._release(attachment, never_served=never_served)
        return None

    # who serves it ---------------------------------------------------------------------------------------
    def _unservable(self, attachment: Attachment) -> InvalidRequest | None:
        """Why no host may serve it: only the leader knows the release namespace; hosts judge all the rest."""
        if attachment.namespace not in (attachment.volume_key[0], self._tools.release_namespace):
            return InvalidRequest(
                "spec.volumeNamespace is only for objects of namespace"
                f" {self._tools.release_namespace}: make the Attachment beside its Volume"
            )
        if attachment.spec.claim_ref is not None and attachment.namespace != self._tools.release_namespace:
            return InvalidRequest(
                f"spec.claimRef is only for objects of namespace {self._tools.release_namespace}"
            )
        return None

    async def _refuse(self, attachment: Attachment, error: InvalidRequest) -> Attachment:
        """Say so in the host's place."""
        if attachment.deleting or attachment.status.generation:
            return attachment
        generation = attachment.metadata.generation
        record = ErrorRecord(
            reason=error.reason,
            message=error.message,
            grpc_code=grpc_code(error),
            observed_generation=generation,
        )
        status = attachment.status.with_(
            admitted=False,
            last_error=record,
            conditions=set_condition(
                attachment.status.conditions,
                ADMITTED,
                False,
                reason=error.reason,
                message=error.message,
                generation=generation,
                now=self._tools.clock.now(),
            ),
        )
        written = await self._writer.status(attachment, attachment.with_(status=status))
        if written is not attachment:
            await self._tools.recorder.warn(attachment, error.reason, error.message)
        return written

    async def _label(self, attachment: Attachment) -> Attachment:
        volume = self._tools.stores.volumes.get(*attachment.volume_key)
        allocation = volume.status.allocation if volume is not None else None
        labels = attachment.metadata.labels
        if allocation is None or labels.get(LABEL_HOST) == allocation.host:
            return attachment
        metadata = attachment.metadata.with_(labels={**labels, LABEL_HOST: allocation.host})
        return await self._writer.update(attachment, attachment.with_(metadata=metadata))

    # fence -----------------------------------------------------------------------------------------------
    async def _fence(self, attachment: Attachment) -> Attachment:
        generation, fence = attachment.status.generation, attachment.status.fence
        if generation == 0 or (fence is not None and fence.generation >= generation):
            return attachment
        reason = await self._node_gone(attachment)
        if reason is None:
            return attachment
        status = attachment.status.with_(fence=Fence(generation=generation, reason=reason))
        written = await self._writer.status(attachment, attachment.with_(status=status))
        await self._tools.recorder.warn(attachment, "Fenced", reason)
        return written

    async def _node_gone(self, attachment: Attachment) -> str | None:
        """In words, when fresh reads say that the node of this Attachment is no more."""
        stores, name = self._tools.stores, attachment.spec.node
        known, facts = stores.nodes.get(None, name), stores.storage_nodes.get(None, name)
        if known is not None and (facts is None or facts.status.node_uid in (None, known.uid)):
            return None
        node = await self._tools.nodes.fresh(name)
        if node is None:
            return f"Node {name} does not exist any more"
        try:
            facts = await self._tools.kube.get(StorageNode, name)
        except ObjectNotFound:
            return None
        born, node_born = attachment.metadata.creation_timestamp, node.metadata.creation_timestamp
        if born is not None and node_born is not None and born > node_born:
            return None  # made for the Node that is there now, whose agent has not reported yet
        if facts.status.node_uid in (None, node.uid):
            return None
        return f"Node {name} is another one by now"

    # what nobody else can finish -------------------------------------------------------------------------
    async def _volume(self, attachment: Attachment) -> Volume | None:
        namespace, name = attachment.volume_key
        try:
            return await self._tools.kube.get(Volume, name, namespace)
        except ObjectNotFound:
            return None

    async def _release(self, attachment: Attachment, *, never_served: bool) -> None:
        """Remove the finalizer where no host can: its Volume is gone or placed nowhere, or the host is gone."""
        if never_served:
            await self._writer.update(attachment, attachment.without_finalizer(FINALIZER_PROTECT))
            return
        cached = self._tools.stores.volumes.get(*attachment.volume_key)
        if cached is not None and not await self._ownerless(cached):
            return
        volume = await self._volume(attachment)
        if volume is not None:
            if not await self._ownerless(volume):
                return
            entries = tuple(e for e in volume.status.attachments if e.attachment_uid != attachment.uid)
            status = volume.status.with_(attachments=entries)
            await self._volumes.status(volume, volume.with_(status=status))
        await self._writer.update(attachment, attachment.without_finalizer(FINALIZER_PROTECT))

    async def _ownerless(self, volume: Volume) -> bool:
        allocation = volume.status.allocation
        if allocation is None:
            return True
        pool = self._tools.stores.pools.get(None, allocation.pool)
        return await self._tools.nodes.host_gone(allocation.host, pool)
