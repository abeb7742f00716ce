"""The host's transitions of Attachment.status: pure, and equal to the old status when they say nothing new."""

from __future__ import annotations

from datetime import datetime

from cinderblock.core.api.attachment import (
    ADMITTED,
    EXPORTED,
    Attachment,
    AttachmentStatus,
    Connection,
    FormatPermit,
)
from cinderblock.core.api.meta import set_condition
from cinderblock.core.api.volume import VolumeAttachmentEntry
from cinderblock.core.errors import StorageError
from cinderblock.operator.host.volume_status import MESSAGE_MAX, error_record


def _condition(  # noqa: PLR0917 - a sentence: whose, which, yes or no, why, when
    attachment: Attachment,
    status: AttachmentStatus,
    type_: str,
    value: bool,
    reason: str,
    message: str,
    now: datetime,
) -> AttachmentStatus:
    return status.with_(
        conditions=set_condition(
            status.conditions,
            type_,
            value,
            reason=reason,
            message=message[:MESSAGE_MAX],
            generation=attachment.metadata.generation,
            now=now,
        )
    )


def refused(attachment: Attachment, error: StorageError, now: datetime) -> AttachmentStatus:
    status = attachment.status.with_(
        admitted=False,
        observed_generation=attachment.metadata.generation,
        last_error=error_record(error, generation=attachment.metadata.generation, grant=0),
    )
    return _condition(attachment, status, ADMITTED, False, error.reason, error.message, now)


def exported(
    attachment: Attachment, entry: VolumeAttachmentEntry, connection: Connection, now: datetime
) -> AttachmentStatus:
    old = attachment.status
    anew = old.generation != entry.generation or not old.admitted
    status = old.with_(
        observed_generation=attachment.metadata.generation,
        admitted=True,
        generation=entry.generation,
        connection=connection,
        last_error=None if anew else old.last_error,
        format_permit=None if anew else old.format_permit,
    )
    status = _condition(attachment, status, ADMITTED, True, "Admitted", "", now)
    return _condition(attachment, status, EXPORTED, True, "Exported", "", now)


def export_failed(attachment: Attachment, error: StorageError, now: datetime) -> AttachmentStatus:
    """What was published stays: the node may hold the device."""
    status = failed(attachment, error)
    return _condition(attachment, status, EXPORTED, False, error.reason, error.message, now)


def fenced(attachment: Attachment, now: datetime) -> AttachmentStatus:
    """The connection stays named, so that the node, should it come back, knows what to let go of."""
    return _condition(
        attachment, attachment.status, EXPORTED, False, "Fenced", "the node was cut off from the volume", now
    )


def failed(attachment: Attachment, error: StorageError) -> AttachmentStatus:
    record = error_record(error, generation=attachment.metadata.generation, grant=0)
    return attachment.status.with_(last_error=record)


def permitted(attachment: Attachment, permit: FormatPermit) -> AttachmentStatus:
    return attachment.status.with_(format_permit=permit, last_error=None)


def calm(attachment: Attachment) -> AttachmentStatus:
    return attachment.status.with_(last_error=None)
