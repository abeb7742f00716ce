"""What the leader does next about a Volume: a pure function of what was observed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from cinderblock.core.api.backend import Provisioning, VolumeType
from cinderblock.core.api.meta import is_true
from cinderblock.core.api.volume import PROVISIONED, Attempt, Volume
from cinderblock.core.errors import (
    GrpcCode,
    InvalidRequest,
    NotFound,
    NotReady,
    NotSupported,
    SizeOutOfRange,
    StorageError,
)
from cinderblock.core.units import format_bytes, parse_quantity
from cinderblock.operator.scheduler.model import PlacementRequest

MAX_ATTEMPTS = 3
HOST_LOST = "HostLost"
TYPE_NOT_FOUND = "VolumeTypeNotFound"


@dataclass(frozen=True)
class Observed:
    volume: Volume
    type: VolumeType | None = (
        None  # of the grant where one stands and was used, else the named or default one
    )
    host_alive: bool = True
    host_gone: bool = False  # its Node is 404 on a fresh read
    source_missing: str | None = None  # what is named as source and does not exist
    release_namespace: str = ""


@dataclass(frozen=True)
class Nothing:
    pass


@dataclass(frozen=True)
class DropProtect:
    """Nothing of it is left, or nobody is left who could clean up."""


@dataclass(frozen=True)
class MarkLost:
    """Its data was on a node that is gone."""


@dataclass(frozen=True)
class Place:
    """Find a pool. `attempts` are those of this cycle, the newest last."""

    request: PlacementRequest
    volume_type: str
    type_revision: int
    attempts: tuple[Attempt, ...] = ()


@dataclass(frozen=True)
class GiveUp:
    """Take the grant back: the cycle ends with these attempts, or the Volume is being deleted."""

    attempts: tuple[Attempt, ...]


@dataclass(frozen=True)
class Deny:
    """It cannot be placed, and no pool was asked."""

    error: StorageError


@dataclass(frozen=True)
class Resize:
    """The grant becomes this large; where it grows, room has to be found first."""

    size_bytes: int
    request: PlacementRequest

    def grows(self, volume: Volume) -> bool:
        """Whether it needs room that the Volume does not have yet."""
        allocation = volume.status.allocation
        granted_bytes = allocation.size_bytes if allocation is not None else 0
        return self.size_bytes > max(granted_bytes, volume.status.capacity_bytes or 0)


@dataclass(frozen=True)
class DenyResize:
    error: StorageError


@dataclass(frozen=True)
class ForgetError:
    """What could not be granted is not asked for any more."""


Decision = Nothing | DropProtect | MarkLost | Place | GiveUp | Deny | Resize | DenyResize | ForgetError


def decide(seen: Observed, now: datetime) -> Decision:
    volume = seen.volume
    allocation = volume.status.allocation
    provisioned = is_true(volume.status.conditions, PROVISIONED)
    if volume.deleting:
        return _deleting(seen, provisioned, now)
    if allocation is None:
        return _unplaced(seen)
    if not provisioned:
        return _in_work(seen, now)
    if seen.host_gone:
        return MarkLost()
    return _size(seen)


def _deleting(seen: Observed, provisioned: bool, now: datetime) -> Decision:
    if seen.volume.status.allocation is None or seen.host_gone:
        return DropProtect()
    if not provisioned and not seen.host_alive:
        # a dead host's leftovers are cleaned up by its inventory rule when it comes back
        return GiveUp((*_attempts(seen.volume), _host_lost(seen.volume, now)))
    return Nothing()


def _unplaced(seen: Observed) -> Decision:
    """A new cycle: what earlier ones tried does not bind it."""
    error = invalid(seen)
    if error is not None:
        return Deny(error)
    assert seen.type is not None
    return Place(_request(seen.volume, seen.type), seen.type.name, seen.type.metadata.generation)


def _in_work(seen: Observed, now: datetime) -> Decision:
    volume = seen.volume
    allocation, refusal = volume.status.allocation, volume.status.refusal
    assert allocation is not None
    if refusal is not None and refusal.grant == allocation.grant:
        attempt = Attempt(
            pool=allocation.pool,
            grant=allocation.grant,
            reason=refusal.reason,
            message=refusal.message,
            grpc_code=refusal.grpc_code,
            at=refusal.at,
        )
    elif not seen.host_alive or seen.host_gone:
        attempt = _host_lost(volume, now)
    else:
        return Nothing()
    attempts = (*_attempts(volume), attempt)
    if len(attempts) >= MAX_ATTEMPTS or invalid(seen) is not None:
        return GiveUp(attempts)
    assert seen.type is not None
    tried = frozenset(a.pool for a in attempts)
    return Place(_request(volume, seen.type, tried), seen.type.name, seen.type.metadata.generation, attempts)


def _size(seen: Observed) -> Decision:
    volume = seen.volume
    allocation, operation, capacity = (
        volume.status.allocation,
        volume.status.operation,
        volume.status.capacity_bytes,
    )
    assert allocation is not None
    wanted = max(
        volume.spec.size_bytes,
        operation.target_bytes if operation is not None else 0,
        capacity or 0,
    )
    if wanted == allocation.size_bytes:
        scheduling = volume.status.scheduling
        return ForgetError() if scheduling is not None and scheduling.error is not None else Nothing()
    if wanted > allocation.size_bytes:
        error = _size_error(wanted, seen.type)
        # only what the user asks for is judged; what exists already is only recorded
        if error is not None and wanted == volume.spec.size_bytes:
            return DenyResize(error)
    # as it was made, whatever its type says by now
    return Resize(wanted, PlacementRequest(size_bytes=wanted, thick=allocation.thick))


def invalid(seen: Observed) -> StorageError | None:
    """Why the spec cannot be placed whatever the pools say."""
    volume, spec = seen.volume, seen.volume.spec
    if spec.claim_ref is not None and volume.namespace != seen.release_namespace:
        return InvalidRequest(
            f"spec.claimRef is only for objects of namespace {seen.release_namespace}: remove it"
        )
    if spec.size_bytes <= 0:
        return InvalidRequest("spec.size must be above 0, such as 10Gi")
    if seen.source_missing is not None:
        return NotFound(f"{seen.source_missing} does not exist")
    if spec.source is not None and (spec.source.snapshot or spec.source.volume or spec.source.image):
        return NotSupported("volumes cannot be made from a source yet: remove spec.source")
    if seen.type is None:
        if spec.volume_type is not None:
            return NotReady(f"VolumeType {spec.volume_type!r} does not exist", reason=TYPE_NOT_FOUND)
        return NotReady(
            "no VolumeType is the default one: set spec.isDefault on one, or name one in spec.volumeType",
            reason=TYPE_NOT_FOUND,
        )
    return _size_error(spec.size_bytes, seen.type)


def _size_error(size_bytes: int, volume_type: VolumeType | None) -> StorageError | None:
    if volume_type is None:
        return None
    low, high = volume_type.spec.min_size, volume_type.spec.max_size
    if low is not None and size_bytes < parse_quantity(low):
        return SizeOutOfRange(
            f"{format_bytes(size_bytes)} is below the minimum of VolumeType {volume_type.name}, {low}"
        )
    if high is not None and size_bytes > parse_quantity(high):
        return SizeOutOfRange(
            f"{format_bytes(size_bytes)} is above the maximum of VolumeType {volume_type.name}, {high}"
        )
    return None


def _request(
    volume: Volume, volume_type: VolumeType, tried: frozenset[str] = frozenset()
) -> PlacementRequest:
    topology = volume.spec.topology
    return PlacementRequest(
        size_bytes=volume.spec.size_bytes,
        thick=volume_type.spec.provisioning is Provisioning.THICK,
        extra_specs=volume_type.spec.extra_specs,
        availability_zone=volume.spec.availability_zone,
        requisite_nodes=topology.requisite if topology is not None else (),
        preferred_nodes=topology.preferred if topology is not None else (),
        tried_pools=tried,
    )


def _attempts(volume: Volume) -> tuple[Attempt, ...]:
    scheduling = volume.status.scheduling
    return scheduling.attempts if scheduling is not None else ()


def _host_lost(volume: Volume, now: datetime) -> Attempt:
    allocation = volume.status.allocation
    assert allocation is not None
    return Attempt(
        pool=allocation.pool,
        grant=allocation.grant,
        reason=HOST_LOST,
        message=f"volume host {allocation.host} did not answer before the volume was made",
        grpc_code=GrpcCode.UNAVAILABLE,
        at=now,
    )


def wants_grant(volume: Volume) -> bool:
    """Whether a leader may be about to write a grant for it: placement, the next try, or an extend."""
    if volume.deleting:
        return False
    allocation = volume.status.allocation
    if allocation is None or not is_true(volume.status.conditions, PROVISIONED):
        return True
    return volume.spec.size_bytes > allocation.size_bytes
