"""The leader's writes of a Volume's status, each as a pure transition (docs/protocol.md)."""

from __future__ import annotations

from datetime import datetime

from cinderblock.core.api.meta import ErrorRecord, drop_condition, set_condition
from cinderblock.core.api.volume import (
    LOST,
    NAMED_BY_PV,
    READY,
    SCHEDULED,
    Allocation,
    Attempt,
    Operation,
    OperationKind,
    Rejection,
    Scheduling,
    Volume,
    VolumePhase,
)
from cinderblock.core.errors import GrpcCode, NoValidBackend, OutOfCapacity, StorageError, grpc_code
from cinderblock.operator.scheduler.model import PlacementRequest, Verdict
from cinderblock.operator.scheduler.report import candidates, rejections

_MESSAGE_MAX = 1024
_WITH_FIGURES = frozenset({OutOfCapacity.default_reason, NoValidBackend.default_reason})


def granted(
    volume: Volume,
    verdict: Verdict,
    *,
    request: PlacementRequest,
    volume_type: str,
    type_revision: int,
    attempts: tuple[Attempt, ...],
    epoch: int,
    now: datetime,
) -> Volume:
    """The best candidate gets the next grant."""
    pool = verdict.candidates[0].view.pool
    grant = volume.status.last_grant + 1
    status = volume.status.with_(
        observed_generation=volume.metadata.generation,
        phase=VolumePhase.SCHEDULED,
        handle=volume.status.handle or volume.uid,
        allocation=Allocation(
            backend=pool.spec.backend,
            pool=pool.name,
            host=pool.spec.host,
            size_bytes=request.size_bytes,
            thick=request.thick,
            volume_type=volume_type,
            type_revision=type_revision,
            grant=grant,
        ),
        last_grant=grant,
        scheduling=Scheduling(
            epoch=epoch,
            candidates=candidates(verdict),
            rejections=rejections(verdict),
            attempts=attempts,
        ),
        operation=_without_create(volume),
        conditions=set_condition(
            volume.status.conditions,
            SCHEDULED,
            True,
            reason="Granted",
            message=f"placed in pool {pool.name}",
            generation=volume.metadata.generation,
            now=now,
        ),
    )
    return volume.with_(status=status)


def denied(
    volume: Volume,
    error: ErrorRecord,
    *,
    refused: tuple[Rejection, ...] = (),
    attempts: tuple[Attempt, ...] | None = None,
    epoch: int,
    now: datetime,
) -> Volume:
    """No grant stands. attempts None = those of the last cycle stay for people to read."""
    before = volume.status.scheduling or Scheduling()
    kept = before.attempts if attempts is None else attempts
    error, refused = _steady(before, error, refused)
    status = volume.status.with_(
        observed_generation=volume.metadata.generation,
        phase=VolumePhase.ERROR if kept else VolumePhase.PENDING,
        allocation=None,
        scheduling=Scheduling(epoch=epoch, rejections=refused, attempts=kept, error=error),
        operation=_without_create(volume),
        conditions=set_condition(
            volume.status.conditions,
            SCHEDULED,
            False,
            reason=error.reason,
            message=error.message,
            generation=volume.metadata.generation,
            now=now,
        ),
    )
    return volume.with_(status=status)


def resized(volume: Volume, size_bytes: int, *, epoch: int) -> Volume:
    """The standing grant becomes this large."""
    allocation = volume.status.allocation
    assert allocation is not None
    status = volume.status.with_(
        observed_generation=volume.metadata.generation,
        allocation=allocation.with_(size_bytes=size_bytes),
        scheduling=_scheduling(volume).with_(epoch=epoch, error=None),
    )
    return volume.with_(status=status)


def resize_denied(volume: Volume, error: ErrorRecord, *, epoch: int) -> Volume:
    """What stands keeps standing; only the error is told."""
    before = _scheduling(volume)
    steady, _ = _steady(before, error, before.rejections)
    status = volume.status.with_(
        observed_generation=volume.metadata.generation,
        scheduling=before.with_(epoch=epoch, error=steady),
    )
    return volume.with_(status=status)


def error_forgotten(volume: Volume) -> Volume:
    return volume.with_(status=volume.status.with_(scheduling=_scheduling(volume).with_(error=None)))


def stamped(volume: Volume, epoch: int) -> Volume:
    """This leader is in charge now: a predecessor's late write conflicts."""
    return volume.with_(status=volume.status.with_(scheduling=_scheduling(volume).with_(epoch=epoch)))


def lost(volume: Volume, *, now: datetime) -> Volume:
    """The fields of a host that is gone, taken over."""
    allocation = volume.status.allocation
    host = allocation.host if allocation is not None else "?"
    message = f"the node of volume host {host} is gone, and the data with it; delete the Volume to forget it"
    conditions = set_condition(
        volume.status.conditions,
        LOST,
        True,
        reason="NodeGone",
        message=message,
        generation=volume.metadata.generation,
        now=now,
    )
    conditions = set_condition(
        conditions,
        READY,
        False,
        reason=LOST,
        message=message,
        generation=volume.metadata.generation,
        now=now,
    )
    return volume.with_(
        status=volume.status.with_(phase=VolumePhase.LOST, operation=None, conditions=conditions)
    )


def named_by_pv(volume: Volume, holder: str | None, *, now: datetime) -> Volume:
    """Why a deletion waits; the condition goes with its cause."""
    if holder is None:
        conditions = drop_condition(volume.status.conditions, NAMED_BY_PV)
    else:
        conditions = set_condition(
            volume.status.conditions,
            NAMED_BY_PV,
            True,
            reason="PersistentVolumeExists",
            message=f"PersistentVolume {holder} names this volume: delete its claim or the PersistentVolume",
            generation=volume.metadata.generation,
            now=now,
        )
    if conditions == volume.status.conditions:
        return volume
    return volume.with_(status=volume.status.with_(conditions=conditions))


def record(error: StorageError, volume: Volume) -> ErrorRecord:
    return ErrorRecord(
        reason=error.reason,
        message=error.message[:_MESSAGE_MAX],
        grpc_code=grpc_code(error),
        observed_generation=volume.metadata.generation,
        grant=volume.status.allocation.grant if volume.status.allocation else volume.status.last_grant,
    )


def record_of_attempt(attempt: Attempt, volume: Volume, note: str = "") -> ErrorRecord:
    """The last refusal as the error of its cycle."""
    return ErrorRecord(
        reason=attempt.reason,
        message=f"pool {attempt.pool}: {attempt.message}{note}"[:_MESSAGE_MAX],
        grpc_code=GrpcCode(attempt.grpc_code),
        observed_generation=volume.metadata.generation,
        grant=attempt.grant,
    )


def _scheduling(volume: Volume) -> Scheduling:
    return volume.status.scheduling or Scheduling()


def _without_create(volume: Volume) -> Operation | None:
    """A create in work belongs to the grant that it was started for."""
    operation = volume.status.operation
    return None if operation is not None and operation.kind is OperationKind.CREATE else operation


def _steady(
    before: Scheduling, error: ErrorRecord, refused: tuple[Rejection, ...]
) -> tuple[ErrorRecord, tuple[Rejection, ...]]:
    """What was told already stays as it was told: the same verdict with other free bytes is no news to write."""
    known = before.error
    if (
        known is not None
        and known.reason in _WITH_FIGURES
        and known.with_(message=error.message) == error
        and _outline(before.rejections) == _outline(refused)
    ):
        return known, before.rejections
    return error, refused


def _outline(rejections_: tuple[Rejection, ...]) -> list[tuple[str, int]]:
    return [(r.filter, r.count) for r in rejections_]
