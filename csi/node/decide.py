"""What the agent does for one Attachment, and what it then reports. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum

from cinderblock.core.api.attachment import (
    CONNECTED,
    DEVICE_BUSY,
    Attachment,
    AttachmentStatus,
    Connection,
    Probe,
)
from cinderblock.core.api.meta import ErrorRecord, drop_condition, find_condition, set_condition
from cinderblock.core.api.volume import FilesystemState, Use, Volume
from cinderblock.core.errors import StorageError, grpc_code

DEFAULT_FS_TYPE = "ext4"
_MESSAGE_MAX = 1024


class Step(StrEnum):
    NOTHING = "Nothing"
    VOID = "Void"  # the device belongs to another boot
    CONNECT = "Connect"  # bring up, or prove again
    LET_GO = "LetGo"


def published(attachment: Attachment) -> Connection | None:
    """The connection info of the standing generation, if there is one and it was not let go of."""
    status = attachment.status
    connection = status.connection
    if connection is None or connection.generation != status.generation:
        return None
    return None if status.released >= status.generation else connection


def asked_to_go(attachment: Attachment) -> bool:
    fence = attachment.status.fence
    return attachment.deleting or (fence is not None and fence.generation >= attachment.status.generation)


def decide(attachment: Attachment, *, node: str, boot_id: str) -> Step:
    if attachment.spec.node != node or published(attachment) is None:
        return Step.NOTHING
    if asked_to_go(attachment):
        return Step.LET_GO
    if attachment.status.boot_id not in (None, boot_id):
        return Step.VOID
    return Step.CONNECT


def may_need_probe(attachment: Attachment) -> bool:
    """Whether, as far as the Attachment tells, the host still has to learn what is on the device.

    Under a permit of this generation nothing is probed any more: what is there is then half-made by our own mkfs.
    """
    status = attachment.status
    generation = status.generation
    return (
        attachment.spec.use is Use.MOUNT
        and not (status.probe is not None and status.probe.generation == generation)
        and not (status.format_permit is not None and status.format_permit.generation == generation)
        and not (status.formatted is not None and status.formatted.generation == generation)
    )


def wanted_type(attachment: Attachment, volume: Volume) -> str:
    planned = volume.status.filesystem
    return (
        (planned.type if planned is not None else "")
        or attachment.spec.fs_type
        or volume.spec.fs_type
        or DEFAULT_FS_TYPE
    )


def needs_probe(attachment: Attachment, volume: Volume) -> bool:
    filesystem = volume.status.filesystem
    settled = filesystem is not None and filesystem.state is not FilesystemState.FORMATTING
    return may_need_probe(attachment) and not settled


# What is reported: each function gives the whole object after the write.


def _connected(
    attachment: Attachment, status: bool, now: datetime, reason: str, message: str = ""
) -> AttachmentStatus:
    conditions = set_condition(
        attachment.status.conditions,
        CONNECTED,
        status,
        reason=reason,
        message=message[:_MESSAGE_MAX],
        generation=attachment.metadata.generation,
        now=now,
    )
    return attachment.status.with_(conditions=conditions)


def report_connected(
    attachment: Attachment,
    *,
    link: str,
    size_bytes: int,
    boot_id: str,
    probe: Probe | None,
    now: datetime,
) -> Attachment:
    status = _connected(attachment, True, now, "Connected")
    return attachment.with_(
        status=status.with_(
            device=link,
            device_bytes=size_bytes,
            boot_id=boot_id,
            probe=probe or status.probe,
            node_error=None,
            conditions=drop_condition(status.conditions, DEVICE_BUSY),
        )
    )


def report_failed(attachment: Attachment, error: StorageError, now: datetime) -> Attachment:
    status = _connected(attachment, False, now, error.reason, error.message)
    record = ErrorRecord(
        reason=error.reason,
        message=error.message[:_MESSAGE_MAX],
        grpc_code=grpc_code(error),
        observed_generation=attachment.metadata.generation,
    )
    return attachment.with_(status=status.with_(node_error=record))


def report_voided(attachment: Attachment, now: datetime) -> Attachment:
    """After a reboot: nothing of what the node said still holds."""
    status = _connected(attachment, False, now, "Rebooted", "the node has booted since")
    return attachment.with_(
        status=status.with_(device=None, device_bytes=None, boot_id=None, probe=None, node_error=None)
    )


def report_released(attachment: Attachment, now: datetime) -> Attachment:
    status = attachment.status
    if find_condition(status.conditions, CONNECTED) is not None:
        status = _connected(attachment, False, now, "Released")
    return attachment.with_(
        status=status.with_(
            device=None,
            device_bytes=None,
            boot_id=None,
            probe=None,
            node_error=None,
            released=status.generation,
            conditions=drop_condition(status.conditions, DEVICE_BUSY),
        )
    )


def report_busy(attachment: Attachment, holders: Sequence[str], now: datetime) -> Attachment:
    shown = ", ".join(holders[:3]) + (f" and {len(holders) - 3} more" if len(holders) > 3 else "")
    conditions = set_condition(
        attachment.status.conditions,
        DEVICE_BUSY,
        True,
        reason="InUse",
        message=f"detach waits: still used by {shown}"[:_MESSAGE_MAX],
        generation=attachment.metadata.generation,
        now=now,
    )
    return attachment.with_(status=attachment.status.with_(conditions=conditions))
