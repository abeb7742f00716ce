"""A volume host for tests of the node: plays the host's side of docs/protocol.md on a FakeKube, with image files."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator

from fake_kube import FakeKube
from node_pool import MIB, NodePool

from cinderblock.core.api.attachment import EXPORTED, Attachment, AttachmentSpec, FormatPermit
from cinderblock.core.api.meta import ErrorRecord, ObjectMeta, set_condition
from cinderblock.core.api.volume import (
    Filesystem,
    FilesystemState,
    Use,
    Volume,
    VolumeAttachmentEntry,
    VolumeMode,
    VolumeSpec,
)
from cinderblock.core.clock import SystemClock
from cinderblock.core.errors import GrpcCode
from cinderblock.core.kube.port import Conflict, ObjectNotFound
from cinderblock.core.names import FINALIZER_PROTECT, attachment_name

NAMESPACE = "release"
NODE = "node-a"


class SimulatedHost:
    """`permits=False` plays a host that is not there for formatting."""

    def __init__(self, kube: FakeKube, pool: NodePool) -> None:
        self.kube = kube
        self.pool = pool
        self.clock = SystemClock()
        self.permits = True
        self.exports = True

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _run(self) -> None:
        while True:
            # Level-triggered and lazy: a look at everything, over and over.
            for attachment in (await self.kube.list(Attachment)).items:
                with contextlib.suppress(Conflict, ObjectNotFound):
                    await self._reconcile(attachment)
            await asyncio.sleep(0.005)

    async def volume(
        self,
        name: str = "vol",
        *,
        size_bytes: int = 64 * MIB,
        fs_type: str | None = "ext4",
        block: bool = False,
    ) -> str:
        """An Available Volume with its image; returns its handle."""
        spec = VolumeSpec(
            size=str(size_bytes),
            volume_mode=VolumeMode.BLOCK if block else VolumeMode.FILESYSTEM,
            fs_type=None if block else fs_type,
        )
        made = await self.kube.create(Volume(metadata=ObjectMeta(name=name, namespace=NAMESPACE), spec=spec))
        planned = (
            None if block or fs_type is None else Filesystem(type=fs_type, state=FilesystemState.FORMATTING)
        )
        status = made.status.with_(handle=made.uid, capacity_bytes=size_bytes, filesystem=planned)
        await self.kube.update_status(made, made.with_(status=status))
        self.pool.image(f"{made.uid}-1", size_bytes)
        return made.uid

    async def attach(
        self, handle: str, *, use: Use = Use.MOUNT, volume: str = "vol", read_only: bool = False
    ) -> Attachment:
        spec = AttachmentSpec(volume=volume, node=NODE, use=use, read_only=read_only)
        meta = ObjectMeta(
            name=attachment_name(handle, NODE), namespace=NAMESPACE, finalizers=(FINALIZER_PROTECT,)
        )
        return await self.kube.create(Attachment(metadata=meta, spec=spec))

    async def detach(self, handle: str) -> None:
        await self.kube.delete(await self.attachment(handle))

    async def attachment(self, handle: str) -> Attachment:
        return await self.kube.get(Attachment, attachment_name(handle, NODE), NAMESPACE)

    async def read_volume(self, name: str = "vol") -> Volume:
        return await self.kube.get(Volume, name, NAMESPACE)

    async def extend(self, handle: str, size_bytes: int) -> None:
        os.truncate(self.pool.image(f"{handle}-1", size_bytes), size_bytes)
        while True:
            before = await self.attachment(handle)
            assert before.status.connection is not None
            connection = before.status.connection.with_(size_bytes=size_bytes)
            with contextlib.suppress(Conflict):
                await self.kube.update_status(
                    before, before.with_(status=before.status.with_(connection=connection))
                )
                return

    async def _reconcile(self, attachment: Attachment) -> None:
        status = attachment.status
        namespace, name = attachment.volume_key
        volume = await self.kube.get(Volume, name, namespace)
        if attachment.deleting:
            if status.connection is None or status.released >= status.generation:
                kept = tuple(e for e in volume.status.attachments if e.attachment_uid != attachment.uid)
                await self._write_volume(volume, attachments=kept)
                await self.kube.update(attachment, attachment.without_finalizer(FINALIZER_PROTECT))
            return
        if status.connection is None:
            if self.exports:
                await self._export(attachment, volume)
            return
        if self.permits and attachment.spec.use is Use.MOUNT:
            await self._filesystem(attachment, volume)

    async def _write_volume(self, volume: Volume, **changes: object) -> Volume:
        return await self.kube.update_status(volume, volume.with_(status=volume.status.with_(**changes)))

    async def _export(self, attachment: Attachment, volume: Volume) -> None:
        generation = volume.status.attach_generation + 1
        entry = VolumeAttachmentEntry(
            attachment_uid=attachment.uid,
            attachment=f"{attachment.namespace}/{attachment.name}",
            node=attachment.spec.node,
            generation=generation,
            use=attachment.spec.use,
        )
        volume = await self._write_volume(
            volume, attachments=(*volume.status.attachments, entry), attach_generation=generation
        )
        identity = f"{volume.status.handle}-1"
        image = self.pool.root / "pool" / "volumes" / f"{identity}.img"
        connection = self.pool.connection(
            image,
            identity,
            size_bytes=volume.status.capacity_bytes,
            generation=generation,
            read_only=attachment.spec.read_only,
        )
        await self._write(
            attachment,
            admitted=True,
            generation=generation,
            connection=connection,
            conditions=set_condition(
                attachment.status.conditions,
                EXPORTED,
                True,
                reason="Exported",
                generation=attachment.metadata.generation,
                now=self.clock.now(),
            ),
        )

    async def _write(self, attachment: Attachment, **changes: object) -> None:
        await self.kube.update_status(attachment, attachment.with_(status=attachment.status.with_(**changes)))

    async def _filesystem(self, attachment: Attachment, volume: Volume) -> None:
        status, filesystem = attachment.status, volume.status.filesystem
        if filesystem is not None and filesystem.state is FilesystemState.FORMATTED:
            return
        if status.formatted is not None and status.formatted.generation == status.generation:
            await self._write_volume(
                volume, filesystem=Filesystem(type=status.formatted.type, state=FilesystemState.FORMATTED)
            )
            return
        probe = status.probe
        if status.format_permit is not None or probe is None or probe.generation != status.generation:
            return
        if probe.found == "Blank":
            await self._write_volume(
                volume, filesystem=Filesystem(type=probe.wanted_type, state=FilesystemState.FORMATTING)
            )
            await self._write(
                attachment, format_permit=FormatPermit(generation=status.generation, type=probe.wanted_type)
            )
        elif probe.found == probe.wanted_type:
            await self._write_volume(
                volume, filesystem=Filesystem(type=probe.found, state=FilesystemState.FORMATTED)
            )
        else:
            error = ErrorRecord(
                reason="InvalidRequest",
                message=f"the volume holds {probe.found}",
                grpc_code=GrpcCode.INVALID_ARGUMENT,
            )
            await self._write(attachment, last_error=error)
