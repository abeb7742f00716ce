"""The host's transitions of Volume.status, one pure function for each write of docs/protocol.md.

Each answers a new status, equal to the old one when it says nothing new, so that a repeated step writes nothing.
Only the host's fields change.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from cinderblock.core.api.meta import ErrorRecord, drop_condition, is_true, set_condition
from cinderblock.core.api.volume import (
    LOST,
    PROVISIONED,
    READY,
    Filesystem,
    FilesystemState,
    Operation,
    OperationKind,
    Refusal,
    Volume,
    VolumeAttachmentEntry,
    VolumeMode,
    VolumePhase,
    VolumeStatus,
)
from cinderblock.core.errors import StorageError, grpc_code

OPERATION_SECONDS = 120
MESSAGE_MAX = 1024


def error_record(error: StorageError, *, generation: int, grant: int) -> ErrorRecord:
    return ErrorRecord(
        reason=error.reason,
        message=error.message[:MESSAGE_MAX],
        grpc_code=grpc_code(error),
        observed_generation=generation,
        grant=grant,
    )


def is_provisioned(volume: Volume) -> bool:
    return is_true(volume.status.conditions, PROVISIONED)


def is_lost(volume: Volume) -> bool:
    return is_true(volume.status.conditions, LOST)


def _grant(volume: Volume) -> int:
    return volume.status.allocation.grant if volume.status.allocation is not None else 0


def _with_ready(  # noqa: PLR0917 - a sentence: whose, yes or no, why, when
    volume: Volume, status: VolumeStatus, ready: bool, reason: str, message: str, now: datetime
) -> VolumeStatus:
    return status.with_(
        conditions=set_condition(
            status.conditions,
            READY,
            ready,
            reason=reason,
            message=message[:MESSAGE_MAX],
            generation=volume.metadata.generation,
            now=now,
        )
    )


def created(volume: Volume, capacity_bytes: int, now: datetime) -> VolumeStatus:
    """The object exists. A filesystem that is known beforehand is planned in the same write."""
    spec, old = volume.spec, volume.status
    filesystem = old.filesystem
    if filesystem is None and spec.volume_mode is VolumeMode.FILESYSTEM and spec.fs_type is not None:
        filesystem = Filesystem(type=spec.fs_type, state=FilesystemState.FORMATTING)
    status = old.with_(
        phase=VolumePhase.AVAILABLE,
        capacity_bytes=capacity_bytes,
        filesystem=filesystem,
        operation=None,
        refusal=None,
        last_error=None,
        conditions=set_condition(
            old.conditions,
            PROVISIONED,
            True,
            reason="Created",
            generation=volume.metadata.generation,
            now=now,
        ),
    )
    return _with_ready(volume, status, True, "Available", "", now)


def operating(volume: Volume, kind: OperationKind, now: datetime, *, target_bytes: int = 0) -> VolumeStatus:
    """An operation that stands keeps its start and its deadline; one of another kind or grant is replaced."""
    phase = {
        OperationKind.CREATE: VolumePhase.CREATING,
        OperationKind.EXTEND: VolumePhase.EXTENDING,
        OperationKind.DELETE: VolumePhase.DELETING,
    }[kind]
    old = volume.status.operation
    if old is None or (old.kind, old.grant, old.target_bytes) != (kind, _grant(volume), target_bytes):
        old = Operation(
            kind=kind,
            started_at=now,
            deadline=now + timedelta(seconds=OPERATION_SECONDS),
            grant=_grant(volume),
            target_bytes=target_bytes,
            decided_on=volume.metadata.resource_version,
        )
    return volume.status.with_(phase=phase, operation=old)


def create_failed(volume: Volume, error: StorageError, now: datetime) -> VolumeStatus:
    """Something may be left and the same host tries again; the operation's deadline says for how long."""
    status = operating(volume, OperationKind.CREATE, now)
    record = error_record(error, generation=volume.metadata.generation, grant=_grant(volume))
    return _with_ready(volume, status.with_(last_error=record), False, error.reason, error.message, now)


def refused(volume: Volume, error: StorageError, now: datetime) -> VolumeStatus:
    """Nothing is left of this grant: the leader may place the volume elsewhere."""
    refusal = Refusal(
        grant=_grant(volume),
        reason=error.reason,
        message=error.message[:MESSAGE_MAX],
        grpc_code=grpc_code(error),
        at=now,
    )
    status = volume.status.with_(
        refusal=refusal, operation=None, last_error=None, phase=VolumePhase.SCHEDULED
    )
    return _with_ready(volume, status, False, "Refused", error.message, now)


def lost(volume: Volume, message: str, now: datetime) -> VolumeStatus:
    status = volume.status.with_(
        phase=VolumePhase.LOST,
        operation=None,
        conditions=set_condition(
            volume.status.conditions,
            LOST,
            True,
            reason="Vanished",
            message=message[:MESSAGE_MAX],
            generation=volume.metadata.generation,
            now=now,
        ),
    )
    return _with_ready(volume, status, False, "Lost", message, now)


def settled(volume: Volume, now: datetime, *, capacity_bytes: int | None = None) -> VolumeStatus:
    """Provisioned, here, and nothing to do: what a healthy volume says."""
    old = volume.status
    status = old.with_(
        phase=VolumePhase.AVAILABLE,
        capacity_bytes=capacity_bytes if capacity_bytes is not None else old.capacity_bytes,
        operation=None,
        last_error=None,
        conditions=drop_condition(old.conditions, LOST) if is_lost(volume) else old.conditions,
    )
    return _with_ready(volume, status, True, "Available", "", now)


def extend_failed(volume: Volume, error: StorageError, now: datetime, *, pending: bool) -> VolumeStatus:
    """The volume serves on with its old size. `pending`: it may still grow, so the target stands."""
    record = error_record(error, generation=volume.metadata.generation, grant=_grant(volume))
    if pending:
        return volume.status.with_(last_error=record)
    status = settled(volume, now)
    return status.with_(last_error=record)


def delete_waits(volume: Volume, reason: str, message: str, now: datetime) -> VolumeStatus:
    """Deletion was asked for and something in the world must change first."""
    status = volume.status.with_(phase=VolumePhase.DELETING, operation=None, last_error=None)
    return _with_ready(volume, status, False, reason, message, now)


def delete_failed(volume: Volume, error: StorageError, now: datetime) -> VolumeStatus:
    record = error_record(error, generation=volume.metadata.generation, grant=_grant(volume))
    status = volume.status.with_(phase=VolumePhase.DELETING, operation=None, last_error=record)
    return _with_ready(volume, status, False, error.reason, error.message, now)


# attachments[] -------------------------------------------------------------------------------------------
def entry_added(
    status: VolumeStatus, entry: VolumeAttachmentEntry, *, supersedes: str | None
) -> VolumeStatus:
    """`supersedes` is the UID of a vanished Attachment of the same node whose place the new one takes."""
    kept = tuple(e for e in status.attachments if e.attachment_uid != supersedes)
    return status.with_(attachments=(*kept, entry), attach_generation=entry.generation)


def entry_fenced(status: VolumeStatus, uid: str) -> VolumeStatus:
    return status.with_(
        attachments=tuple(e.with_(fenced=True) if e.attachment_uid == uid else e for e in status.attachments)
    )


def entry_removed(status: VolumeStatus, uid: str) -> VolumeStatus:
    return status.with_(attachments=tuple(e for e in status.attachments if e.attachment_uid != uid))
