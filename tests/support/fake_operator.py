"""Leader and volume host in a hundred lines: they write what docs/protocol.md says, nothing else.

`backend` is what exists on the backend; `created` and `deleted` list every effect, so that tests can count them.
The gates (`may_...`) hold a step back until a test lets it go on.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from cinderblock.core.api.attachment import ADMITTED, EXPORTED, Attachment, Connection, ConnectionProtocol
from cinderblock.core.api.meta import ErrorRecord, is_true, set_condition
from cinderblock.core.api.volume import (
    PROVISIONED,
    READY,
    SCHEDULED,
    Allocation,
    Scheduling,
    Volume,
    VolumeAttachmentEntry,
)
from cinderblock.core.errors import GrpcCode
from cinderblock.core.kube.port import Conflict, Kube, ObjectNotFound, WatchType
from cinderblock.core.names import FINALIZER_PROTECT

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def _open_gate() -> asyncio.Event:
    gate = asyncio.Event()
    gate.set()
    return gate


class FakeOperator:
    def __init__(
        self, kube: Kube, *, pool: str = "pool", host: str = "host", namespace: str | None = None
    ) -> None:
        self.kube = kube
        self.namespace = namespace  # None = all
        self.pool, self.host = pool, host
        self.schedule_error: tuple[GrpcCode, str] | None = None
        self.create_error: tuple[GrpcCode, str] | None = None
        self.extend_error: tuple[GrpcCode, str] | None = None
        self.export_error: tuple[GrpcCode, str] | None = None
        self.create_seconds = 0.0
        self.may_create, self.may_delete = _open_gate(), _open_gate()
        self.may_export, self.may_detach = _open_gate(), _open_gate()
        self.backend: dict[str, int] = {}
        self.created: list[str] = []
        self.deleted: list[str] = []
        self.exported: list[str] = []
        self._locks: defaultdict[Any, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._serve(Volume, self._volume, group))
            group.create_task(self._serve(Attachment, self._attachment, group))

    async def _serve(
        self, kind: Any, reconcile: Callable[[Any], Awaitable[None]], group: asyncio.TaskGroup
    ) -> None:
        listing = await self.kube.list(kind, namespace=self.namespace)
        for obj in listing.items:
            group.create_task(self._one(kind, obj, reconcile))
        version = listing.resource_version
        while True:
            async for event in self.kube.watch(kind, resource_version=version, namespace=self.namespace):
                version = event.object.metadata.resource_version
                if event.type is not WatchType.BOOKMARK:
                    group.create_task(self._one(kind, event.object, reconcile))

    async def _one(self, kind: Any, seen: Any, reconcile: Callable[[Any], Awaitable[None]]) -> None:
        async with self._locks[(kind.KIND, seen.namespace, seen.name)]:
            while True:
                try:
                    await reconcile(await self.kube.get(kind, seen.name, seen.namespace))
                except ObjectNotFound:
                    return
                except Conflict:
                    continue
                return

    # leader and host of Volumes --------------------------------------------------------------------------
    async def _volume(self, volume: Volume) -> None:
        status = volume.status
        if volume.deleting:
            if status.allocation is not None:
                if status.attachments:
                    return
                await self.may_delete.wait()
                if self.backend.pop(status.handle or "", None) is not None:
                    self.deleted.append(status.handle or "")
            await self.kube.update(volume, volume.without_finalizer(FINALIZER_PROTECT))
        elif status.allocation is None:
            await self._grant(volume)
        elif not is_true(status.conditions, PROVISIONED):
            await self._make(volume)
        elif volume.spec.size_bytes != status.allocation.size_bytes:
            await self._extend(volume)

    async def _grant(self, volume: Volume) -> None:
        status = volume.status
        if self.schedule_error is not None:
            record = self._record(volume, self.schedule_error, 0)
            after = status.with_(
                scheduling=Scheduling(error=record),
                conditions=self._set(volume, status.conditions, SCHEDULED, False, record.reason),
            )
        else:
            allocation = Allocation(
                backend="backend", pool=self.pool, host=self.host, size_bytes=volume.spec.size_bytes, grant=1
            )
            after = status.with_(
                handle=volume.uid,
                allocation=allocation,
                last_grant=1,
                conditions=self._set(volume, status.conditions, SCHEDULED, True, "Granted"),
            )
        await self.kube.update_status(volume, volume.with_(status=after))

    async def _make(self, volume: Volume) -> None:
        status = volume.status
        assert status.allocation is not None and status.handle is not None
        await self.may_create.wait()
        await asyncio.sleep(self.create_seconds)
        if self.create_error is not None:
            after = status.with_(last_error=self._record(volume, self.create_error, status.allocation.grant))
            await self.kube.update_status(volume, volume.with_(status=after))
            return
        if status.handle not in self.backend:
            self.created.append(status.handle)
            self.backend[status.handle] = status.allocation.size_bytes
        conditions = self._set(volume, status.conditions, PROVISIONED, True, "Created")
        after = status.with_(
            capacity_bytes=self.backend[status.handle],
            conditions=self._set(volume, conditions, READY, True, "Available"),
        )
        await self.kube.update_status(volume, volume.with_(status=after))

    async def _extend(self, volume: Volume) -> None:
        status = volume.status
        assert status.allocation is not None and status.handle is not None
        if self.extend_error is not None and volume.spec.size_bytes > status.allocation.size_bytes:
            error = self._record(volume, self.extend_error, 0)
            after = status.with_(scheduling=Scheduling(error=error))
        else:
            self.backend[status.handle] = volume.spec.size_bytes
            after = status.with_(
                allocation=status.allocation.with_(size_bytes=volume.spec.size_bytes),
                capacity_bytes=volume.spec.size_bytes,
                scheduling=Scheduling(),
            )
        await self.kube.update_status(volume, volume.with_(status=after))

    # host of Attachments ---------------------------------------------------------------------------------
    async def _attachment(self, attachment: Attachment) -> None:
        if attachment.deleting:
            await self.may_detach.wait()
            await self._forget(attachment)
            await self.kube.update(attachment, attachment.without_finalizer(FINALIZER_PROTECT))
            return
        if is_true(attachment.status.conditions, EXPORTED):
            return
        await self.may_export.wait()
        error = self.export_error
        namespace, name = attachment.volume_key
        volume = await self.kube.get(Volume, name, namespace)
        others = [e.node for e in volume.status.attachments if e.node != attachment.spec.node]
        if others and not volume.spec.multi_attach:
            error = (GrpcCode.FAILED_PRECONDITION, f"the volume is attached to {others[0]}")
        if error is not None:
            after = attachment.status.with_(last_error=self._record(attachment, error, 0))
            await self.kube.update_status(attachment, attachment.with_(status=after))
            return
        await self._admit(volume, attachment)

    async def _admit(self, volume: Volume, attachment: Attachment) -> None:
        entry = next((e for e in volume.status.attachments if e.attachment_uid == attachment.uid), None)
        if entry is None:
            generation = volume.status.attach_generation + 1
            entry = VolumeAttachmentEntry(
                attachment_uid=attachment.uid,
                attachment=f"{attachment.namespace}/{attachment.name}",
                node=attachment.spec.node,
                generation=generation,
                use=attachment.spec.use,
            )
            after = volume.status.with_(
                attachments=(*volume.status.attachments, entry), attach_generation=generation
            )
            await self.kube.update_status(volume, volume.with_(status=after))
            self.exported.append(attachment.name)
        conditions = self._set(attachment, attachment.status.conditions, ADMITTED, True, "Admitted")
        connection = Connection(
            protocol=ConnectionProtocol.FAKE, generation=entry.generation, size_bytes=volume.spec.size_bytes
        )
        status = attachment.status.with_(
            admitted=True,
            generation=entry.generation,
            connection=connection,
            last_error=None,
            conditions=self._set(attachment, conditions, EXPORTED, True, "Exported"),
        )
        await self.kube.update_status(attachment, attachment.with_(status=status))

    async def _forget(self, attachment: Attachment) -> None:
        namespace, name = attachment.volume_key
        try:
            volume = await self.kube.get(Volume, name, namespace)
        except ObjectNotFound:
            return
        left = tuple(e for e in volume.status.attachments if e.attachment_uid != attachment.uid)
        await self.kube.update_status(volume, volume.with_(status=volume.status.with_(attachments=left)))

    # words -----------------------------------------------------------------------------------------------
    def _record(self, obj: Any, error: tuple[GrpcCode, str], grant: int) -> ErrorRecord:
        code, message = error
        return ErrorRecord(
            reason="Injected",
            message=message,
            grpc_code=code,
            observed_generation=obj.metadata.generation,
            grant=grant,
        )

    def _set(self, obj: Any, conditions: Any, type_: str, status: bool, reason: str) -> Any:
        return set_condition(
            conditions, type_, status, reason=reason, generation=obj.metadata.generation, now=NOW
        )
