"""The host's reconciler of Volumes: observe, decide (decide_volume.py), do one step, record it, ask again.

The queue key is the Volume, so one volume is never in two hands. Whatever ends this process in the middle, the
next one finds the grant or the operation that was stored before the effect, and repeats a call that is
idempotent by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cinderblock.core.api.volume import OperationKind, Volume
from cinderblock.core.errors import (
    BackendFault,
    NotFound,
    NotSupported,
    StorageError,
    VolumeInUse,
)
from cinderblock.core.names import FINALIZER_PROTECT
from cinderblock.drivers.base import VolumeRef
from cinderblock.operator.engine.queue import Backoff, Key, WorkQueue
from cinderblock.operator.engine.writer import StatusWriter
from cinderblock.operator.host import volume_status as say
from cinderblock.operator.host.attachments import Attachments
from cinderblock.operator.host.creates import Creates, slowly
from cinderblock.operator.host.decide_volume import (
    Check,
    Create,
    Delete,
    Extend,
    Protect,
    Rest,
    Seal,
    Settle,
    VolumeView,
    Wait,
    current_ref,
    decide_volume,
    may_pass,
)
from cinderblock.operator.host.drivers import OpenBackend, Slots, ask
from cinderblock.operator.host.tools import HostTools, backend_of

_WORKERS = 128  # waiting costs little; what a backend may take of them is limited by its slots
_AT_ONCE = 16
_MOST_STEPS = 8
_GRANTS_BY_NAME = 8
_EXTEND_BACKOFF = Backoff(5.0, 300.0)


@dataclass(frozen=True)
class _Held:
    """An extend that failed for good reasons: not tried again before `until`, unless its target changes."""

    target_bytes: int
    failures: int
    until: float


class Volumes:
    def __init__(
        self,
        tools: HostTools,
        attachments: Attachments,
        *,
        changed: Callable[[str], None],
        take_inventory: Callable[[str], None],
        open_backend: Callable[[str], None],
    ) -> None:
        """`changed(backend)`: its figures moved; `take_inventory(backend)`: something may be left there;
        `open_backend(backend)`: a Volume waits for it to open."""
        self.queue = WorkQueue(
            "host-volumes",
            self.reconcile,
            workers=_WORKERS,
            clock=tools.clock,
            backoff=Backoff(0.5, 60.0),
            metrics=tools.metrics,
        )
        self._tools = tools
        self._attachments = attachments
        self._changed = changed
        self._open_backend = open_backend
        self._writer = StatusWriter(tools.kube, tools.stores.volumes)
        self._creates = Creates(tools, changed=changed, take_inventory=take_inventory)
        self._slots = Slots(_AT_ONCE)
        self._unsealed: set[VolumeRef] = set()
        self._suspects: set[VolumeRef] = set()
        self._held: dict[Key, _Held] = {}

    # what an inventory found -----------------------------------------------------------------------------
    def seal(self, volume: Volume, ref: VolumeRef) -> None:
        self._unsealed.add(ref)
        self.queue.add((volume.namespace or "", volume.name))

    def suspect(self, volume: Volume, ref: VolumeRef) -> None:
        self._suspects.add(ref)
        self.queue.add((volume.namespace or "", volume.name))

    # reconcile -------------------------------------------------------------------------------------------
    async def reconcile(self, key: Key) -> float | None:
        volume = self._tools.stores.volumes.get(*key)
        allocation = volume.status.allocation if volume is not None else None
        self._creates.notice_leftovers(key, volume)
        ours = allocation is not None and allocation.host == self._tools.host
        undecided = allocation is not None and self._tools.drivers.undecided(allocation.backend)
        needed = allocation.backend if allocation is not None and ours and not undecided else None
        self._wake(self._slots.pass_on(key, needed=needed))
        if volume is None or allocation is None or not ours:
            self._held.pop(key, None)
            await self._attachments.judge_unserved(key, volume)
            return None
        if undecided:
            self._open_backend(allocation.backend)
            return None  # asked again with the verdict
        if not self._slots.enter(allocation.backend, key):
            return None
        try:
            return await self._work(key, volume)
        finally:
            self._wake(self._slots.leave(allocation.backend))

    def _wake(self, parked: Key | None) -> None:
        if parked is not None:
            self.queue.add(parked)

    async def _work(self, key: Key, volume: Volume) -> float | None:
        failure: StorageError | None = None
        orphans_only = False
        try:
            orphans_only = await self._attachments.serve(volume)
        except StorageError as error:
            failure = error  # an Attachment that fails must not stop an extend or a deletion
            if isinstance(error, NotFound) and (ref := current_ref(volume)) is not None:
                self._suspects.add(ref)
        volume = self._tools.stores.volumes.get(*key) or volume
        delay = await self._steps(key, volume, orphans_only=orphans_only)
        if failure is not None:
            raise failure
        return delay

    async def _steps(self, key: Key, volume: Volume, *, orphans_only: bool) -> float | None:
        for _ in range(_MOST_STEPS):
            ref = current_ref(volume)
            step = decide_volume(
                VolumeView(
                    volume,
                    self._tools.host,
                    unsealed=ref in self._unsealed,
                    suspect=ref in self._suspects,
                    orphans_only=orphans_only,
                )
            )
            match step:
                case Rest():
                    return None
                case Protect():
                    volume = await self._writer.update(volume, volume.with_finalizer(FINALIZER_PROTECT))
                    continue
                case Create():
                    created = await self._creates.create(key, volume, step)
                    if created is None:
                        return None
                    self._unsealed.add(step.ref)
                    volume = created
                    continue
                case Seal():
                    await self._seal(volume, step.ref)
                    continue
                case Check():
                    await self._check(volume, step.ref)
                    return None
                case Extend():
                    return await self._extend(key, volume, step)
                case Wait():
                    status = say.delete_waits(volume, step.reason, step.message, self._tools.clock.now())
                    await self._writer.status(volume, volume.with_(status=status))
                    return None
                case Delete():
                    fresh = await self._tools.fresh_volume(volume)
                    if fresh is None:
                        return None
                    if fresh.metadata.resource_version != volume.metadata.resource_version:
                        volume = fresh  # decided on something stale: decide again
                        continue
                    await self._delete(volume, step.ref)
                    return None
                case Settle():
                    self._held.pop(key, None)
                    status = say.settled(volume, self._tools.clock.now())
                    await self._writer.status(volume, volume.with_(status=status))
                    return None
        return 0.0

    # the provisioned volume ------------------------------------------------------------------------------
    async def _seal(self, volume: Volume, ref: VolumeRef) -> None:
        try:
            async with self._tools.drivers.use(backend_of(volume)) as opened:
                await ask(f"seal of {ref.object_name}", opened.driver.seal_volume(ref))
        except NotFound:
            self._suspects.add(ref)
        self._unsealed.discard(ref)

    async def _check(self, volume: Volume, ref: VolumeRef) -> None:
        """Lost is what a fresh answer of the backend says; found again ends it."""
        async with self._tools.drivers.use(backend_of(volume)) as opened:
            info = await ask(f"get of {ref.object_name}", opened.driver.get_volume(ref))
        now = self._tools.clock.now()
        self._suspects.discard(ref)
        if info is not None:
            if not info.sealed:
                self._unsealed.add(ref)
            if say.is_lost(volume):
                status = say.settled(volume, now, capacity_bytes=info.size_bytes)
                await self._writer.status(volume, volume.with_(status=status))
            else:
                self.queue.add((volume.namespace or "", volume.name))
            return
        message = f"backend {backend_of(volume)} does not hold {ref.object_name} any more"
        await self._writer.status(volume, volume.with_(status=say.lost(volume, message, now)))
        await self._tools.recorder.warn(volume, "Lost", message)

    async def _extend(self, key: Key, volume: Volume, step: Extend) -> float | None:
        held = self._held.get(key)
        if held is not None and held.target_bytes == step.target_bytes:
            left = held.until - self._tools.clock.monotonic()
            if left > 0:
                return left
        try:
            async with self._tools.drivers.use(backend_of(volume)) as opened:
                extender = opened.extender
                if extender is None:
                    raise NotSupported(f"driver {opened.driver_name} cannot extend volumes")
                if volume.status.attachments and not extender.online_extend:
                    raise VolumeInUse(
                        f"driver {opened.driver_name} extends detached volumes only: delete the Attachments"
                    )
                status = say.operating(
                    volume, OperationKind.EXTEND, self._tools.clock.now(), target_bytes=step.target_bytes
                )
                volume = await self._writer.status(volume, volume.with_(status=status))
                info = await ask(
                    f"extend of {step.ref.object_name}",
                    extender.extend_volume(step.ref, step.target_bytes),
                )
                if info.size_bytes < step.target_bytes:
                    raise BackendFault(f"the driver answers {info.size_bytes} bytes, not {step.target_bytes}")
        except StorageError as error:
            return await self._extend_failed(key, volume, step, error)
        self._held.pop(key, None)
        self._changed(backend_of(volume))
        status = say.settled(volume, self._tools.clock.now(), capacity_bytes=info.size_bytes)
        await self._writer.status(volume, volume.with_(status=status))
        return None

    async def _extend_failed(
        self, key: Key, volume: Volume, step: Extend, error: StorageError
    ) -> float | None:
        pending = may_pass(error)
        status = say.extend_failed(volume, error, self._tools.clock.now(), pending=pending)
        await self._writer.status(volume, volume.with_(status=status))
        if isinstance(error, NotFound):
            self._suspects.add(step.ref)
            return 0.0
        if pending:
            raise error
        # Our own writes wake this key: without a pause of its own it would try, and write, for ever.
        held = self._held.get(key)
        failures = held.failures + 1 if held is not None and held.target_bytes == step.target_bytes else 1
        pause = _EXTEND_BACKOFF.delay(failures)
        self._held[key] = _Held(step.target_bytes, failures, self._tools.clock.monotonic() + pause)
        await self._tools.recorder.warn(volume, error.reason, f"extend failed: {error.message}")
        return pause

    # delete ----------------------------------------------------------------------------------------------
    async def _delete(self, volume: Volume, ref: VolumeRef) -> None:
        backend = backend_of(volume)
        try:
            async with self._tools.drivers.use(backend) as opened:
                _, volume = await slowly(
                    self._tools, self._delete_objects(opened, volume, ref), volume, OperationKind.DELETE
                )
        except StorageError as error:
            status = say.delete_failed(volume, error, self._tools.clock.now())
            await self._writer.status(volume, volume.with_(status=status))
            await self._tools.recorder.warn(volume, error.reason, f"delete failed: {error.message}")
            raise
        self._changed(backend)
        self._suspects.discard(ref)
        self._unsealed.discard(ref)
        self._creates.forget((volume.namespace or "", volume.name))
        await self._writer.update(volume, volume.without_finalizer(FINALIZER_PROTECT))

    async def _delete_objects(self, opened: OpenBackend, volume: Volume, ref: VolumeRef) -> None:
        """Every object of this handle on this backend: the standing grant's last, so that a fault keeps it named."""
        last = volume.status.last_grant
        if last <= _GRANTS_BY_NAME:
            older = [VolumeRef(ref.handle, grant) for grant in range(1, last + 1)]
        else:
            entries = await ask(f"inventory of {opened.name}", opened.driver.inventory())
            older = [entry.ref for entry in entries if entry.ref.handle == ref.handle]
        for each in (*(r for r in older if r != ref), ref):
            await ask(f"delete of {each.object_name}", opened.driver.delete_volume(each))
