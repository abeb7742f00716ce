"""The create of a granted volume, from the driver's call to the record, and what undoes it.

The grant is the intent: it was stored before we were asked. Recording it may meet that nobody wants the volume
any more; then what was made is deleted, and a refusal is written only after that, or when the backend was out of
reach for longer than the operation may take.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from cinderblock.core.api.backend import Pool
from cinderblock.core.api.volume import OperationKind, Volume
from cinderblock.core.errors import BackendFault, BackendUnavailable, StorageError
from cinderblock.core.kube.port import Conflict, KubeError, ObjectNotFound
from cinderblock.drivers.base import CreateVolume, VolumeRef
from cinderblock.operator.engine.queue import Key
from cinderblock.operator.engine.writer import StatusWriter
from cinderblock.operator.host import volume_status as say
from cinderblock.operator.host.decide_volume import Create, current_ref, may_pass
from cinderblock.operator.host.drivers import OpenBackend, ask
from cinderblock.operator.host.tools import HostTools, backend_of

T = TypeVar("T")
SLOW_SECONDS = 2.0

_log = logging.getLogger(__name__)


async def slowly(
    tools: HostTools, call: Awaitable[T], volume: Volume, kind: OperationKind
) -> tuple[T, Volume]:
    """Await a driver's call; when it takes long, say so in the status meanwhile."""
    task = asyncio.ensure_future(call)
    timer = asyncio.ensure_future(tools.clock.sleep(SLOW_SECONDS))
    try:
        await asyncio.wait({task, timer}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            try:
                status = say.operating(volume, kind, tools.clock.now())
                writer = StatusWriter(tools.kube, tools.stores.volumes)
                volume = await writer.status(volume, volume.with_(status=status))
            except KubeError as error:  # news only: what is done must not end for it
                _log.info("volume %s/%s: %s", volume.namespace, volume.name, error)
        return await task, volume
    finally:
        timer.cancel()
        task.cancel()


class Creates:
    def __init__(
        self,
        tools: HostTools,
        *,
        changed: Callable[[str], None],
        take_inventory: Callable[[str], None],
    ) -> None:
        self._tools = tools
        self._changed = changed
        self._take_inventory = take_inventory
        self._writer = StatusWriter(tools.kube, tools.stores.volumes)
        self._begun: dict[Key, tuple[str, VolumeRef]] = {}  # creates without a recorded end

    def notice_leftovers(self, key: Key, volume: Volume | None) -> None:
        """A create that was begun and whose grant does not stand any more: the inventory rule cleans up."""
        begun = self._begun.get(key)
        if begun is not None and (volume is None or current_ref(volume) != begun[1]):
            del self._begun[key]
            self._take_inventory(begun[0])

    def forget(self, key: Key) -> None:
        self._begun.pop(key, None)

    async def create(self, key: Key, volume: Volume, step: Create) -> Volume | None:
        """The volume with its create recorded; None when it is somebody else's turn."""
        backend, ref = backend_of(volume), step.ref
        try:
            async with self._tools.drivers.use(backend) as opened:
                request = CreateVolume(ref, await self._driver_pool(volume), step.size_bytes, step.thick)
                self._begun[key] = (backend, ref)
                info, volume = await slowly(
                    self._tools,
                    ask(f"create of {ref.object_name}", opened.driver.create_volume(request)),
                    volume,
                    OperationKind.CREATE,
                )
                if info.size_bytes < step.size_bytes:
                    raise BackendFault(f"the driver made {info.size_bytes} bytes, not {step.size_bytes}")
        except StorageError as error:
            await self._create_failed(key, volume, step, error)
            return None
        self._changed(backend)
        return await self._record_created(key, volume, ref, info.size_bytes)

    async def _driver_pool(self, volume: Volume) -> str | None:
        """The driver's own name of the granted Pool."""
        name = volume.status.allocation.pool if volume.status.allocation is not None else ""
        pool = self._tools.stores.pools.get(None, name)
        if pool is None:
            try:
                pool = await self._tools.kube.get(Pool, name)
            except (ObjectNotFound, KubeError) as error:
                raise BackendUnavailable(f"Pool {name}: {error}", reason="PoolMissing") from error
        if (pool.spec.backend, pool.spec.host) != (backend_of(volume), self._tools.host):
            raise BackendUnavailable(
                f"Pool {name} belongs to Backend {pool.spec.backend} on host {pool.spec.host} by now",
                reason="PoolMissing",
            )
        return pool.spec.pool

    async def _record_created(
        self, key: Key, volume: Volume, ref: VolumeRef, capacity_bytes: int
    ) -> Volume | None:
        while True:
            status = say.created(volume, capacity_bytes, self._tools.clock.now())
            try:
                stored = await self._writer.status(volume, volume.with_(status=status))
            except (Conflict, ObjectNotFound):
                fresh = await self._tools.fresh_volume(volume)
                if fresh is None or not self._stands(fresh, ref):
                    await self._undo(key, backend_of(volume), ref)
                    return None
                if say.is_provisioned(fresh):
                    return fresh  # recorded already: an answer of ours was lost
                volume = fresh
                continue
            self._begun.pop(key, None)
            return stored

    def _stands(self, fresh: Volume, ref: VolumeRef) -> bool:
        """Whether this host still holds the grant."""
        allocation = fresh.status.allocation
        return allocation is not None and allocation.host == self._tools.host and current_ref(fresh) == ref

    async def _undo(self, key: Key, backend: str, ref: VolumeRef) -> None:
        """Nobody is granted what was made: it goes, at once or by the inventory rule."""
        _log.info("grant %s does not stand any more: deleting what was made", ref.object_name)
        try:
            async with self._tools.drivers.use(backend) as opened:
                await self._clean(opened, ref)
        except StorageError:
            self._take_inventory(backend)
            raise
        self._begun.pop(key, None)

    async def _clean(self, opened: OpenBackend, ref: VolumeRef) -> None:
        """Delete what a create may have left. What is sealed was recorded once: that is data, never deleted here."""
        info = await ask(f"get of {ref.object_name}", opened.driver.get_volume(ref))
        if info is not None and info.sealed:
            raise BackendFault(
                f"{ref.object_name} exists and is sealed, though this Volume never had it: left alone",
                reason="SealedObject",
            )
        await ask(f"delete of {ref.object_name}", opened.driver.delete_volume(ref))

    async def _create_failed(self, key: Key, cached: Volume, step: Create, error: StorageError) -> None:
        """Refuse the grant, or say why it is tried again here. Decided on a fresh read: what a late write of a
        predecessor recorded is data, and a slow call has written since the cached one."""
        backend, ref = backend_of(cached), step.ref
        volume = await self._tools.fresh_volume(cached)
        if volume is None or not self._stands(volume, ref):
            await self._undo(key, backend, ref)
            return
        if say.is_provisioned(volume):
            return  # the store has it by now, which asks for this key again
        now = self._tools.clock.now()
        operation = volume.status.operation
        overdue = (
            operation is not None
            and (operation.kind, operation.grant) == (OperationKind.CREATE, ref.grant)
            and now >= operation.deadline
        )
        if overdue or not may_pass(error):
            left = await self._left(backend, ref)
            if left is None or (overdue and may_pass(left)):
                await self._refuse(key, volume, error, left)
                return
            error = BackendUnavailable(
                f"{error.message}; cleaning up failed: {left.message}", reason=error.reason
            )
        await self._writer.status(volume, volume.with_(status=say.create_failed(volume, error, now)))
        raise error

    async def _left(self, backend: str, ref: VolumeRef) -> StorageError | None:
        """Clean up; why something may be left, None when nothing is."""
        try:
            async with self._tools.drivers.use(backend) as opened:
                await self._clean(opened, ref)
        except StorageError as error:
            return error
        return None

    async def _refuse(self, key: Key, volume: Volume, error: StorageError, left: StorageError | None) -> None:
        """`left`: the backend has been out of reach for too long, as if this host were dead: another pool may
        try, with a code that promises nothing, and the inventory cleans up when the backend is back."""
        if left is not None and not may_pass(error):
            error = BackendUnavailable(
                f"{error.message}; cleaning up failed: {left.message}", reason=error.reason
            )
        status = say.refused(volume, error, self._tools.clock.now())
        await self._writer.status(volume, volume.with_(status=status))
        if left is None:
            self._begun.pop(key, None)
        self._changed(backend_of(volume))
        await self._tools.recorder.warn(
            volume, error.reason, f"refused by {self._tools.host}: {error.message}"
        )
