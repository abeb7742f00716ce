"""ControllerPublish and ControllerUnpublish: one Attachment per (handle, node), by name, so that none is twice."""

from __future__ import annotations

import asyncio

from cinderblock.core.api.attachment import Attachment, AttachmentSpec
from cinderblock.core.api.meta import ObjectMeta
from cinderblock.core.api.volume import Use, Volume
from cinderblock.core.errors import (
    IncompatibleExists,
    InvalidRequest,
    NotFound,
    OperationPending,
    PreconditionFailed,
)
from cinderblock.core.kube.port import Conflict, Kube, ObjectExists, Rejected
from cinderblock.core.names import FINALIZER_PROTECT, LABEL_HOST, attachment_name, is_object_name
from cinderblock.csi.capability import DEFAULT_FS_TYPE, unsupported
from cinderblock.csi.convert import error_of
from cinderblock.csi.gateway.caches import Caches
from cinderblock.csi.gateway.judge import attachment_mismatch, attachment_progress, exported
from cinderblock.csi.gateway.requests import PublishRequest
from cinderblock.csi.gateway.volumes import VolumeGateway
from cinderblock.csi.interceptors import Call
from cinderblock.csi.work import KeyedWork


class AttachmentGateway:
    def __init__(
        self, kube: Kube, caches: Caches, work: KeyedWork, volumes: VolumeGateway, namespace: str
    ) -> None:
        self._kube = kube
        self._caches = caches
        self._work = work
        self._volumes = volumes
        self._namespace = namespace

    async def publish(self, request: PublishRequest, call: Call) -> Attachment:
        """The exported Attachment.

        Errors: NotFound (volume, node), IncompatibleExists (published otherwise on that node), what the host
        recorded (AttachedElsewhere names the node), OperationPending.
        """
        volume = await self._volumes.must_find(request.handle)
        if not is_object_name(request.node) or await self._caches.nodes.get(None, request.node) is None:
            raise NotFound(f"node {request.node} is not known to the driver", reason="NodeNotFound")
        if (problem := unsupported(volume.spec, request.capability)) is not None:
            raise InvalidRequest(problem)
        wanted = self._wanted(volume, request)

        async def ensure() -> Attachment:
            return await self._ensure(volume, wanted)

        what = ("publish", wanted.spec.model_dump_json())
        made = await self._work.run(_key(wanted.name), ensure, call.time_left(), what=what)

        def judge(seen: Attachment | None) -> Attachment | None:
            if seen is None or seen.deleting:
                raise OperationPending(
                    f"volume {request.handle} is being detached from {request.node}: ask again"
                )
            if exported(seen):
                return seen
            if seen.status.last_error is not None:
                raise error_of(seen.status.last_error)
            return None

        return await self._caches.attachments.until(
            made,
            judge,
            answer_by=call.answer_by,
            pending=lambda a: f"publishing {request.handle} to {request.node}: {attachment_progress(a)}",
        )

    async def unpublish(self, handle: str, node: str, call: Call) -> None:
        """Detach from that node, or from every node when `node` is empty; wait until it is done.

        What is not attached is done, also when the volume or the node does not exist. Errors: OperationPending.
        """
        nodes = [node] if node else await self._nodes_of(handle)
        # All are asked before the first failure is told: one node that hangs on must not keep the others.
        results = await asyncio.gather(
            *(self._detach(handle, one, call) for one in nodes), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _detach(self, handle: str, node: str, call: Call) -> None:
        name = attachment_name(handle, node)

        async def ask() -> Attachment | None:
            # Read under the key: an earlier publish whose caller is gone may still be making it.
            found = await self._caches.attachments.fresh(self._namespace, name)
            if found is not None:
                await self._delete(found)
            return found

        asked = await self._work.run(_key(name), ask, call.time_left(), what="unpublish")
        if asked is not None:
            await self._caches.attachments.until_gone(
                asked,
                answer_by=call.answer_by,
                pending=lambda a: f"detaching {handle} from {node}: {attachment_progress(a)}",
            )

    async def _ensure(self, volume: Volume, wanted: Attachment) -> Attachment:
        cache = self._caches.attachments
        existing = cache.store.get(self._namespace, wanted.name)
        if existing is not None:
            # Kept from earlier, perhaps long ago: an answer of OK must not rest on a cache that is behind.
            existing = await cache.fresh(self._namespace, wanted.name)
        if existing is None:
            if volume.deleting:
                raise PreconditionFailed(
                    f"volume {volume.status.handle} is being deleted", reason="VolumeDeleting"
                )
            try:
                made = await self._kube.create(wanted)
            except ObjectExists:
                existing = await cache.fresh(self._namespace, wanted.name)
                if existing is None:
                    raise OperationPending(f"{wanted.name} is being deleted: ask again") from None
            except Rejected as error:
                raise InvalidRequest(str(error)) from error
            else:
                cache.store.apply(made)
                return made
        if existing.deleting:
            raise OperationPending(
                f"volume {volume.status.handle} is being detached from {wanted.spec.node}: ask again"
            )
        if existing.volume_key != wanted.volume_key:
            raise OperationPending(f"{wanted.name} is of another Volume with this handle: ask again")
        if (problem := attachment_mismatch(existing.spec, wanted.spec)) is not None:
            raise IncompatibleExists(
                f"volume {volume.status.handle} is published to {wanted.spec.node} already, but {problem}"
            )
        return existing

    async def _delete(self, attachment: Attachment) -> None:
        if attachment.deleting:
            return
        try:
            await self._kube.delete(attachment)
        except Conflict:  # another UID: this one is gone
            await self._caches.attachments.fresh(attachment.namespace, attachment.name)

    async def _nodes_of(self, handle: str) -> list[str]:
        """Where it is attached, or is being attached by now. By name, which needs no Volume: that may be gone."""
        known = (node.name for node in self._caches.nodes.store.all())
        nodes = [node for node in known if self._work.busy(_key(attachment_name(handle, node)))]
        listing = await self._kube.list(Attachment, namespace=self._namespace)
        nodes += [a.spec.node for a in listing.items if a.name == attachment_name(handle, a.spec.node)]
        return list(dict.fromkeys(nodes))

    def _wanted(self, volume: Volume, request: PublishRequest) -> Attachment:
        capability, allocation = request.capability, volume.status.allocation
        fs_type = None
        if capability.use is Use.MOUNT:
            made = volume.status.filesystem.type if volume.status.filesystem else None
            fs_type = capability.fs_type or made or volume.spec.fs_type or DEFAULT_FS_TYPE
        return Attachment(
            metadata=ObjectMeta(
                name=attachment_name(request.handle, request.node),
                namespace=self._namespace,
                labels={LABEL_HOST: allocation.host} if allocation else {},
                finalizers=(FINALIZER_PROTECT,),
            ),
            spec=AttachmentSpec(
                volume=volume.name,
                volume_namespace=volume.namespace if volume.namespace != self._namespace else None,
                node=request.node,
                read_only=request.read_only or capability.read_only,
                use=capability.use,
                fs_type=fs_type,
                access_mode=capability.mode,
                claim_ref=volume.spec.claim_ref,
            ),
        )


def _key(name: str) -> tuple[str, str]:
    """Of the work on an Attachment."""
    return ("attachment", name)
