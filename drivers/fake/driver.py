"""The fake backend: a complete driver whose volumes are records.

It accepts every node and keeps the contract to the letter (it refuses to delete what is exported, it fences), so
that what is tested against it holds for real backends too.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import ClassVar, TypeVar

from cinderblock.core.api.attachment import Connection, ConnectionProtocol
from cinderblock.core.errors import (
    BackendUnavailable,
    IncompatibleExists,
    InvalidRequest,
    Lost,
    NotFound,
    OutOfCapacity,
    PreconditionFailed,
    VolumeInUse,
)
from cinderblock.drivers.base import (
    CreateVolume,
    DriverConfig,
    DriverContext,
    ExportRequest,
    PoolReport,
    VolumeInfo,
    VolumeRef,
)
from cinderblock.drivers.fake.config import FakeConfig, Fault, FaultMoment, Verb
from cinderblock.drivers.fake.state import FakeState, FakeVolume, FilePlace, MemoryPlace, Place

T = TypeVar("T")


class FakeDriver:
    Config: ClassVar[type[DriverConfig]] = FakeConfig
    node_local: ClassVar[bool] = False
    online_extend: ClassVar[bool] = True

    def __init__(self, config: DriverConfig, context: DriverContext, *, place: Place | None = None) -> None:
        if not isinstance(config, FakeConfig):
            raise TypeError(f"FakeConfig expected, not {type(config).__name__}")
        self._config = config
        self._context = context
        self._opened_ids: dict[str, str] | None = None
        self._place = place or (
            FilePlace(context.pools_root / config.state_file) if config.state_file else MemoryPlace()
        )

    async def open(self, known_pool_ids: dict[str | None, str]) -> None:
        def effect(state: FakeState) -> None:
            for name in self._config.pool_sizes():
                known, found = known_pool_ids.get(name), state.pool_ids.get(name or "")
                if known is not None and found != known:
                    what = "holds no pool" if found is None else "holds another pool"
                    raise Lost(f"pool {name or 'default'}: the state {what}, pool id {known} is expected")
            for name in self._config.pool_sizes():
                state.pool_ids.setdefault(name or "", str(uuid.uuid4()))
            self._opened_ids = dict(state.pool_ids)

        await self._call(Verb.OPEN, None, effect)

    async def close(self) -> None:
        self._opened_ids = None

    async def pools(self) -> Sequence[PoolReport]:
        return await self._call(Verb.POOLS, None, self._reports)

    async def create_volume(self, request: CreateVolume) -> VolumeInfo:
        def effect(state: FakeState) -> VolumeInfo:
            name = request.ref.object_name
            existing = state.volumes.get(name)
            if existing is not None and existing.complete:
                if existing.size_bytes != request.size_bytes or existing.pool != request.pool:
                    raise IncompatibleExists(
                        f"volume {name} exists with {existing.size_bytes} bytes in pool {existing.pool},"
                        f" not {request.size_bytes} in {request.pool}"
                    )
                return _info(existing)
            state.volumes.pop(name, None)
            self._check_room(state, request.pool, request.size_bytes, thick=request.thick)
            volume = FakeVolume(
                handle=request.ref.handle,
                grant=request.ref.grant,
                pool=request.pool,
                size_bytes=request.size_bytes,
                thick=request.thick,
            )
            state.volumes[name] = volume
            _count(state, Verb.CREATE)
            return _info(volume)

        def half(state: FakeState) -> None:
            before = state.volumes.get(request.ref.object_name)
            effect(state)
            if before is None or not before.complete:
                state.volumes[request.ref.object_name].complete = False

        return await self._call(Verb.CREATE, request.ref, effect, pool=request.pool, half=half)

    async def seal_volume(self, ref: VolumeRef) -> None:
        def effect(state: FakeState) -> None:
            volume = _existing(state, ref)
            if not volume.sealed:
                volume.sealed = True
                _count(state, Verb.SEAL)

        await self._call(Verb.SEAL, ref, effect)

    async def delete_volume(self, ref: VolumeRef) -> None:
        def effect(state: FakeState) -> None:
            volume = state.volumes.get(ref.object_name)
            if volume is None:
                return
            if volume.exports:
                raise VolumeInUse(
                    f"volume {ref.object_name} is exported to {', '.join(sorted(volume.exports))}"
                )
            del state.volumes[ref.object_name]
            _count(state, Verb.DELETE)

        await self._call(Verb.DELETE, ref, effect)

    async def get_volume(self, ref: VolumeRef) -> VolumeInfo | None:
        def effect(state: FakeState) -> VolumeInfo | None:
            volume = state.volumes.get(ref.object_name)
            return _info(volume) if volume is not None and volume.complete else None

        return await self._call(Verb.GET, ref, effect)

    async def export(self, ref: VolumeRef, request: ExportRequest) -> Connection:
        node, generation = request.initiator.node, request.generation

        def effect(state: FakeState) -> Connection:
            volume = _existing(state, ref)
            if generation <= volume.fenced.get(node, 0):
                raise PreconditionFailed(
                    f"generation {generation} of {ref.object_name} on {node} was fenced", reason="Fenced"
                )
            if volume.exports.get(node) != generation:
                volume.exports[node] = generation
                _count(state, Verb.EXPORT)
            return Connection(
                protocol=ConnectionProtocol.FAKE,
                generation=generation,
                size_bytes=volume.size_bytes,
                read_only=request.read_only,
            )

        return await self._call(Verb.EXPORT, ref, effect)

    async def unexport(self, ref: VolumeRef, node: str) -> None:
        def effect(state: FakeState) -> None:
            volume = state.volumes.get(ref.object_name)
            if volume is not None and volume.exports.pop(node, None) is not None:
                _count(state, Verb.UNEXPORT)

        await self._call(Verb.UNEXPORT, ref, effect)

    async def inventory(self) -> Sequence[VolumeInfo]:
        def effect(state: FakeState) -> list[VolumeInfo]:
            return [_info(volume) for volume in state.volumes.values()]

        return await self._call(Verb.INVENTORY, None, effect)

    async def extend_volume(self, ref: VolumeRef, size_bytes: int) -> VolumeInfo:
        def effect(state: FakeState) -> VolumeInfo:
            volume = _existing(state, ref)
            if size_bytes > volume.size_bytes:
                more = size_bytes - volume.size_bytes
                self._check_room(state, volume.pool, more, thick=volume.thick)
                volume.size_bytes = size_bytes
                _count(state, Verb.EXTEND)
            return _info(volume)

        return await self._call(Verb.EXTEND, ref, effect)

    async def fence(self, ref: VolumeRef, node: str, generation: int) -> None:
        def effect(state: FakeState) -> None:
            volume = state.volumes.get(ref.object_name)
            if volume is None or volume.fenced.get(node, 0) >= generation:
                return
            volume.fenced[node] = generation
            if volume.exports.get(node, generation + 1) <= generation:
                del volume.exports[node]
            _count(state, Verb.FENCE)

        await self._call(Verb.FENCE, ref, effect)

    async def _call(
        self,
        verb: Verb,
        ref: VolumeRef | None,
        effect: Callable[[FakeState], T],
        *,
        pool: str | None = None,
        half: Callable[[FakeState], None] | None = None,
    ) -> T:
        """Latency, then faults and effect in one transaction: nobody sees a state in between."""
        latency = self._config.latency_seconds.get(verb, 0.0)
        if latency:
            await self._context.clock.sleep(latency)

        def run(state: FakeState) -> T:
            if verb is not Verb.OPEN:
                self._check_open(state)
            fault = self._due_fault(state, verb, ref, pool)
            if fault is None:
                return effect(state)
            if fault.when is FaultMoment.AFTER:
                effect(state)
            elif fault.when is FaultMoment.HALF and half is not None:
                half(state)
            raise fault.exception()

        return await self._place.transact(run)

    def _check_open(self, state: FakeState) -> None:
        """Believe no absence in a state that is not the one that was opened."""
        if self._opened_ids is None:
            raise BackendUnavailable(f"backend {self._context.backend} is not open")
        if any(state.pool_ids.get(name) != pool_id for name, pool_id in self._opened_ids.items()):
            raise BackendUnavailable(f"the state of backend {self._context.backend} was replaced")

    def _due_fault(
        self, state: FakeState, verb: Verb, ref: VolumeRef | None, pool: str | None
    ) -> Fault | None:
        if ref is not None and pool is None and (volume := state.volumes.get(ref.object_name)) is not None:
            pool = volume.pool
        due: Fault | None = None
        for fault in self._config.faults:
            if fault.verb is not verb:
                continue
            if fault.pool is not None and fault.pool != pool:
                continue
            if fault.handle is not None and (ref is None or fault.handle != ref.handle):
                continue
            seen = state.fault_calls.get(fault.key, 0)
            if fault.times is None and seen >= fault.skip:
                due = due or fault  # counted no further: an everlasting fault must not write for ever
                continue
            if fault.times is not None and seen >= fault.skip + fault.times:
                continue
            state.fault_calls[fault.key] = seen + 1
            if seen >= fault.skip:
                due = due or fault
        return due

    def _check_room(self, state: FakeState, pool: str | None, size_bytes: int, *, thick: bool) -> None:
        total_bytes = self._config.pool_sizes().get(pool)
        if total_bytes is None:
            raise InvalidRequest(f"backend {self._context.backend} has no pool {pool!r}")
        free_bytes = total_bytes - self._allocated_bytes(state, pool)
        if size_bytes > free_bytes and (thick or not self._config.thin):
            raise OutOfCapacity(f"pool {pool or 'default'} has {free_bytes} bytes free, {size_bytes} wanted")

    def _allocated_bytes(self, state: FakeState, pool: str | None) -> int:
        """Thin volumes hold nothing: nobody ever writes to them."""
        return sum(
            volume.size_bytes
            for volume in state.volumes.values()
            if volume.pool == pool and (volume.thick or not self._config.thin)
        )

    def _reports(self, state: FakeState) -> list[PoolReport]:
        reports = []
        for name, total_bytes in self._config.pool_sizes().items():
            allocated_bytes = self._allocated_bytes(state, name)
            reports.append(
                PoolReport(
                    name=name,
                    pool_id=state.pool_ids.get(name or "", ""),
                    total_bytes=total_bytes,
                    free_bytes=max(0, total_bytes - allocated_bytes),
                    allocated_bytes=allocated_bytes,
                    provisioned_bytes=sum(v.size_bytes for v in state.volumes.values() if v.pool == name),
                    thin=self._config.thin,
                    capabilities={
                        "thin_provisioning_support": str(self._config.thin).lower(),
                        "thick_provisioning_support": "true",
                        "multiattach": "true",
                        **self._config.capabilities,
                    },
                )
            )
        return reports


def _existing(state: FakeState, ref: VolumeRef) -> FakeVolume:
    volume = state.volumes.get(ref.object_name)
    if volume is None or not volume.complete:
        raise NotFound(f"volume {ref.object_name} does not exist")
    return volume


def _info(volume: FakeVolume) -> VolumeInfo:
    return VolumeInfo(
        ref=VolumeRef(volume.handle, volume.grant),
        size_bytes=volume.size_bytes,
        pool=volume.pool,
        sealed=volume.sealed,
        complete=volume.complete,
    )


def _count(state: FakeState, verb: Verb) -> None:
    state.effects[verb] = state.effects.get(verb, 0) + 1
