"""The leader's reconciler of Volumes: observe, decide (volume_decide), apply, report."""

from __future__ import annotations

import logging

from cinderblock.core.api.backend import VolumeType
from cinderblock.core.api.builtin import PersistentVolume
from cinderblock.core.api.meta import is_true
from cinderblock.core.api.snapshot import Snapshot
from cinderblock.core.api.volume import NAMED_BY_PV, PROVISIONED, Attempt, Volume
from cinderblock.core.errors import StorageError
from cinderblock.core.kube.port import ObjectNotFound
from cinderblock.core.kube.store import key_of
from cinderblock.core.names import FINALIZER_PROTECT, FINALIZER_PV
from cinderblock.core.placement import default_type
from cinderblock.operator.control import volume_status as status
from cinderblock.operator.control.granting import Granting
from cinderblock.operator.control.pv_hold import holder, holds, names_handle
from cinderblock.operator.control.tools import Tools
from cinderblock.operator.control.volume_decide import (
    Deny,
    DenyResize,
    DropProtect,
    ForgetError,
    GiveUp,
    MarkLost,
    Nothing,
    Observed,
    Place,
    Resize,
    decide,
)
from cinderblock.operator.control.waiting import Waiting
from cinderblock.operator.engine.queue import Key
from cinderblock.operator.engine.writer import StatusWriter

_log = logging.getLogger(__name__)


class VolumeReconciler:
    def __init__(self, tools: Tools, granting: Granting, waiting: Waiting) -> None:
        self._tools = tools
        self._granting = granting
        self._waiting = waiting
        self._writer = StatusWriter(tools.kube, tools.stores.volumes)

    async def reconcile(self, key: Key) -> float | None:
        volume = self._tools.stores.volumes.get(*key)
        if volume is None:
            self._waiting.forget(key)
            return None
        scheduling = volume.status.scheduling
        if scheduling is not None and scheduling.epoch > self._tools.epoch:
            _log.error("volume %s/%s is in charge of a newer leader; leaving it alone", *key)
            return None
        volume = await self._hold_for_pv(volume)
        if volume is None:
            return None
        waits = volume.status.allocation is None and not volume.deleting
        if waits and (remaining := self._waiting.remaining(key, volume.metadata.generation)) > 0:
            return remaining
        seen = await self._observe(volume)
        decision = decide(seen, self._tools.clock.now())
        match decision:
            case Nothing():
                return self._rest(volume)
            case ForgetError():
                await self._writer.status(volume, status.error_forgotten(volume))
                return self._rest(volume)
            case DropProtect():
                self._waiting.forget(key)
                await self._writer.update(volume, volume.without_finalizer(FINALIZER_PROTECT))
            case MarkLost():
                await self._mark_lost(volume)
            case Deny(error=error):
                return await self._deny(volume, error)
            case GiveUp(attempts=attempts):
                return await self._give_up(volume, attempts)
            case Place():
                return await self._place(volume, decision)
            case DenyResize(error=error):
                return await self._deny_resize(volume, error)
            case Resize():
                return await self._resize(volume, decision)
        return None

    # observe ---------------------------------------------------------------------------------------------
    async def _observe(self, volume: Volume) -> Observed:
        tools, allocation = self._tools, volume.status.allocation
        alive, gone, missing = True, False, None
        if allocation is not None:
            alive = tools.liveness.alive(allocation.host)
            pool = tools.stores.pools.get(None, allocation.pool)
            gone = await tools.nodes.host_gone(allocation.host, pool)
        elif not volume.deleting:
            missing = await self._missing_source(volume)
        return Observed(
            volume=volume,
            type=self._type_of(volume),
            host_alive=alive,
            host_gone=gone,
            source_missing=missing,
            release_namespace=tools.release_namespace,
        )

    def _type_of(self, volume: Volume) -> VolumeType | None:
        """Of a Volume that exists the type that it was granted under: another default one is not its own."""
        types, allocation = self._tools.stores.volume_types, volume.status.allocation
        made = allocation is not None and is_true(volume.status.conditions, PROVISIONED)
        if allocation is not None and made and allocation.volume_type is not None:
            return types.get(None, allocation.volume_type)
        if volume.spec.volume_type is not None:
            return types.get(None, volume.spec.volume_type)
        return default_type(types.all())

    async def _missing_source(self, volume: Volume) -> str | None:
        """The source in words when a fresh read says that it is not there."""
        source = volume.spec.source
        if source is None:
            return None
        try:
            if source.snapshot is not None:
                await self._tools.kube.get(Snapshot, source.snapshot, volume.namespace)
            if source.volume is not None:
                await self._tools.kube.get(Volume, source.volume, volume.namespace)
        except ObjectNotFound:
            kind, name = ("Snapshot", source.snapshot) if source.snapshot else ("Volume", source.volume)
            return f"{kind} {volume.namespace}/{name} named in spec.source"
        return None

    # apply -----------------------------------------------------------------------------------------------
    async def _place(self, volume: Volume, decision: Place) -> float | None:
        key = key_of(volume)
        volume = await self._writer.update(volume, volume.with_finalizer(FINALIZER_PROTECT))
        outcome = await self._granting.place(volume, decision)
        if outcome is None:
            self._waiting.granted(key)
            return None
        error, refused = outcome
        now = self._tools.clock.now()
        if decision.attempts:
            last = decision.attempts[-1]
            record = status.record_of_attempt(last, volume, f"; then {error.message}")
        else:
            record = status.record(error, volume)
        after = status.denied(
            volume,
            record,
            refused=refused,
            attempts=decision.attempts or None,
            epoch=self._tools.epoch,
            now=now,
        )
        written = await self._writer.status(volume, after)
        await self._tell(volume, written, record.reason, record.message)
        return self._waiting.wait(key, volume.metadata.generation, refused=bool(decision.attempts))

    async def _give_up(self, volume: Volume, attempts: tuple[Attempt, ...]) -> float | None:
        record = status.record_of_attempt(attempts[-1], volume)
        after = status.denied(
            volume, record, attempts=attempts, epoch=self._tools.epoch, now=self._tools.clock.now()
        )
        written = await self._writer.status(volume, after)
        await self._tell(volume, written, record.reason, record.message)
        return self._waiting.wait(key_of(volume), volume.metadata.generation, refused=True)

    async def _deny(self, volume: Volume, error: StorageError) -> float | None:
        after = status.denied(
            volume, status.record(error, volume), epoch=self._tools.epoch, now=self._tools.clock.now()
        )
        written = await self._writer.status(volume, after)
        await self._tell(volume, written, error.reason, error.message)
        return self._waiting.wait(key_of(volume), volume.metadata.generation)

    async def _resize(self, volume: Volume, decision: Resize) -> float | None:
        remaining = self._waiting.remaining(key_of(volume), volume.metadata.generation)
        if remaining > 0 and decision.grows(volume):
            return remaining
        error = await self._granting.resize(volume, decision)
        if error is not None:
            return await self._deny_resize(volume, error)
        return self._rest(volume)

    async def _deny_resize(self, volume: Volume, error: StorageError) -> float | None:
        remaining = self._waiting.remaining(key_of(volume), volume.metadata.generation)
        if remaining > 0:
            return remaining
        after = status.resize_denied(volume, status.record(error, volume), epoch=self._tools.epoch)
        written = await self._writer.status(volume, after)
        await self._tell(volume, written, error.reason, error.message)
        return self._waiting.wait(key_of(volume), volume.metadata.generation)

    async def _mark_lost(self, volume: Volume) -> None:
        written = await self._writer.status(volume, status.lost(volume, now=self._tools.clock.now()))
        await self._tell(volume, written, "Lost", "the node that held its data is gone")

    async def _tell(self, before: Volume, after: Volume, reason: str, message: str) -> None:
        """An Event where something was written; what was known already needs none."""
        if after is not before:
            await self._tools.recorder.warn(after, reason, message)

    def _rest(self, volume: Volume) -> float | None:
        """Nothing to wait for."""
        if is_true(volume.status.conditions, PROVISIONED):
            self._waiting.forget(key_of(volume))
        return None

    # PersistentVolumes -----------------------------------------------------------------------------------
    async def _hold_for_pv(self, volume: Volume) -> Volume | None:
        """Keep the finalizer cinderblock.io/pv as the PVs want it; None when that ended the Volume."""
        handle, held = volume.status.handle, volume.has_finalizer(FINALIZER_PV)
        if handle is None:
            return volume
        named_by = holder(self._tools.stores.persistent_volumes.by("handle", handle))
        if not volume.deleting:
            wanted = (
                volume.with_finalizer(FINALIZER_PV)
                if named_by is not None
                else volume.without_finalizer(FINALIZER_PV)
            )
            volume = await self._writer.update(volume, wanted) if (named_by is not None) != held else volume
        elif held and named_by is None and await self._let_go(handle):
            volume = await self._writer.update(volume, volume.without_finalizer(FINALIZER_PV))
            if not volume.metadata.finalizers:
                return None
            held = False
        blocked_by = named_by if volume.deleting and held else None
        if blocked_by is not None or is_true(volume.status.conditions, NAMED_BY_PV):
            after = status.named_by_pv(volume, blocked_by, now=self._tools.clock.now())
            volume = await self._writer.status(volume, after)
        return volume

    async def _let_go(self, handle: str) -> bool:
        """A fresh read agrees that no PV holds this handle. A known one is read alone, none known means a list."""
        known = self._tools.stores.persistent_volumes.by("handle", handle)
        if known:
            fresh: list[PersistentVolume] = []
            for pv in known:
                try:
                    fresh.append(await self._tools.kube.get(PersistentVolume, pv.name))
                except ObjectNotFound:
                    continue
        else:
            fresh = [
                pv for pv in (await self._tools.kube.list(PersistentVolume)).items if names_handle(pv, handle)
            ]
        return not any(names_handle(pv, handle) and holds(pv) for pv in fresh)
