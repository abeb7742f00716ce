"""What a Volume or Attachment says about a request: pure functions, no I/O.

They answer three questions: is what exists what was asked for, is it ready, and has somebody recorded an error
that the caller must hear. An error counts only when it speaks of the present spec and the standing grant, so
that nobody takes an old one for a new one.
"""

from __future__ import annotations

from cinderblock.core.api.attachment import ADMITTED, DEVICE_BUSY, EXPORTED, Attachment, AttachmentSpec
from cinderblock.core.api.backend import Pool
from cinderblock.core.api.meta import ErrorRecord, find_condition, is_true
from cinderblock.core.api.volume import READY, SCHEDULED, CsiCapability, CsiRequest, Volume
from cinderblock.core.names import ANNOTATION_CSI_ANSWERED, LABEL_CSI_NAME, csi_name_label
from cinderblock.csi.gateway.requests import CreateRequest

ANSWERED = "OK"  # CreateVolume has answered OK: only DeleteVolume ends this Volume
DISCARDED = "Discarded"  # CreateVolume answers a final error: this Volume goes, nobody may answer OK for it


def csi_request_of(request: CreateRequest) -> CsiRequest:
    """What is stored with the Volume for the comparison of a later call."""
    return CsiRequest(
        name=request.name,
        required_bytes=request.size.required_bytes,
        limit_bytes=request.size.limit_bytes,
        capabilities=tuple(
            CsiCapability(volume_mode=c.volume_mode, access_mode=c.mode, fs_type=c.fs_type)
            for c in request.capabilities
        ),
        parameters=dict(request.parameters),
    )


def made_for(volume: Volume, csi_name: str) -> bool:
    """Whether a CreateVolume of this name made it."""
    return (
        volume.metadata.labels.get(LABEL_CSI_NAME) == csi_name_label(csi_name)
        and volume.spec.csi is not None
        and volume.spec.csi.name == csi_name
    )


def verdict_of(volume: Volume) -> str | None:
    """ANSWERED, DISCARDED, or None while CreateVolume has not said the last word."""
    return volume.metadata.annotations.get(ANNOTATION_CSI_ANSWERED)


def with_verdict(volume: Volume, verdict: str) -> Volume:
    annotations = {**volume.metadata.annotations, ANNOTATION_CSI_ANSWERED: verdict}
    return volume.with_(metadata=volume.metadata.with_(annotations=annotations))


def mismatch(volume: Volume, request: CreateRequest) -> str | None:
    """Why this Volume cannot be the answer to that request; None = it can.

    The size is compared with what exists, since a volume may have grown since it was made.
    """
    if not made_for(volume, request.name) or volume.spec.csi is None:
        return "it was not made by CreateVolume"
    stored, asked = volume.spec.csi, csi_request_of(request)
    same_range = (stored.required_bytes, stored.limit_bytes) == (asked.required_bytes, asked.limit_bytes)
    size_bytes = volume.status.capacity_bytes or volume.spec.size_bytes
    if not same_range and not request.size.holds(size_bytes):
        return f"it has {size_bytes} bytes"
    if frozenset(map(_key, stored.capabilities)) != frozenset(map(_key, asked.capabilities)):
        return "it was made with other capabilities"
    if stored.parameters != asked.parameters:
        return "it was made with other parameters"
    return None


def elsewhere(volume: Volume, pool: Pool | None, request: CreateRequest) -> bool:
    """Whether the Volume is, or without a grant would be, outside of what the request demands. `pool`: the granted."""
    if volume.status.allocation is None:
        return not _topologies_meet(volume, request)
    if pool is None or pool.spec.node is None or request.topology is None:
        return False
    requisite = request.topology.requisite
    return bool(requisite) and pool.spec.node not in requisite


def volume_ready(volume: Volume) -> bool:
    return (
        is_true(volume.status.conditions, READY)
        and volume.status.handle is not None
        and volume.status.capacity_bytes is not None
    )


def volume_error(volume: Volume) -> ErrorRecord | None:
    """The recorded error that keeps the Volume from being ready or from its spec."""
    status, generation = volume.status, volume.metadata.generation
    scheduled = find_condition(status.conditions, SCHEDULED)
    if status.scheduling is not None and (error := status.scheduling.error) is not None:
        refused = status.allocation is None and (
            scheduled is None or not is_true(status.conditions, SCHEDULED)
        )
        cannot_grow = status.allocation is not None and volume.spec.size_bytes > status.allocation.size_bytes
        if error.observed_generation == generation and (refused or cannot_grow):
            return error
    error = status.last_error
    if error is not None and status.allocation is not None and error.grant == status.allocation.grant:
        return error
    return None


def volume_progress(volume: Volume | None) -> str:
    """A few words for a message that says that the work goes on."""
    if volume is None:
        return "it is gone"
    if (error := volume_error(volume)) is not None:
        return error.message or error.reason
    phase = volume.status.phase
    return f"it is {phase}" if phase else "it waits to be scheduled"


def attachment_mismatch(existing: AttachmentSpec, wanted: AttachmentSpec) -> str | None:
    """Why an Attachment cannot be the answer to a publish; None = it can."""
    if existing.read_only != wanted.read_only:
        return f"it was published {'read-only' if existing.read_only else 'writable'}"
    if existing.use is not wanted.use:
        return f"it was published for use {existing.use}"
    if existing.access_mode is not None and existing.access_mode != wanted.access_mode:
        return f"it was published with access mode {existing.access_mode}"
    if existing.fs_type is not None and existing.fs_type != wanted.fs_type:
        return f"it was published with fsType {existing.fs_type}"
    return None


def exported(attachment: Attachment) -> bool:
    status = attachment.status
    return (
        is_true(status.conditions, EXPORTED)
        and status.connection is not None
        and status.connection.generation == status.generation
    )


def attachment_progress(attachment: Attachment | None) -> str:
    if attachment is None:
        return "it is gone"
    conditions = attachment.status.conditions
    busy = find_condition(conditions, DEVICE_BUSY)
    if attachment.deleting and busy is not None and is_true(conditions, DEVICE_BUSY):
        return f"the device is still in use: {busy.message or busy.reason}"
    if attachment.deleting:
        return "it is being detached"
    if (error := attachment.status.last_error) is not None:
        return error.message or error.reason
    return "it waits for its export" if is_true(conditions, ADMITTED) else "it waits to be admitted"


def _key(capability: CsiCapability) -> tuple[str, str, str]:
    return (capability.volume_mode, capability.access_mode, capability.fs_type)


def _topologies_meet(volume: Volume, request: CreateRequest) -> bool:
    stored = volume.spec.topology.requisite if volume.spec.topology else ()
    asked = request.topology.requisite if request.topology else ()
    return not stored or not asked or bool(set(stored) & set(asked))
