"""What NodeStage does next, given the Attachment and the Volume as they stand. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from cinderblock.core.api.attachment import CONNECTED, EXPORTED, Attachment, ProbeFound
from cinderblock.core.api.meta import is_true
from cinderblock.core.api.volume import FilesystemState, Use, Volume
from cinderblock.core.errors import NotReady, PreconditionFailed
from cinderblock.csi.capability import FS_TYPES, Capability
from cinderblock.csi.convert import error_of
from cinderblock.csi.node.decide import asked_to_go, published


class StageStep(StrEnum):
    WAIT = "Wait"
    FORMAT = "Format"
    USE = "Use"


@dataclass(frozen=True)
class Plan:
    step: StageStep
    why: str = ""  # WAIT: for what, as a message for the caller
    fs_type: str = ""  # FORMAT, USE


def waits_for_device(attachment: Attachment, capability: Capability, *, boot_id: str) -> Plan | None:
    """A Plan to wait while the device is not there; None when it is.

    Errors: PreconditionFailed (attached for another use), NotReady (being detached: asked again later).
    """
    status = attachment.status
    if attachment.spec.use is not capability.use:
        raise PreconditionFailed(
            f"the volume is attached for use {attachment.spec.use}, not {capability.use}"
        )
    if asked_to_go(attachment) or 0 < status.generation <= status.released:
        # Not a final answer: the kubelet would forget what an earlier call may have staged.
        raise NotReady(f"attachment {attachment.name} is being detached")
    if published(attachment) is None:
        if status.last_error is not None and not is_true(status.conditions, EXPORTED):
            return Plan(StageStep.WAIT, f"not exported: {status.last_error.message}")
        return Plan(StageStep.WAIT, "the volume host has not exported the volume yet")
    if status.boot_id == boot_id and is_true(status.conditions, CONNECTED):
        return None
    if status.node_error is not None:
        return Plan(StageStep.WAIT, f"not connected: {status.node_error.message}")
    return Plan(StageStep.WAIT, "the device is not connected yet")


def plan_stage(
    attachment: Attachment, volume: Volume, capability: Capability, *, boot_id: str, read_only: bool
) -> Plan:
    """The next step for a device that may be there. Errors: final ones, with nothing to undo; NotReady."""
    wait = waits_for_device(attachment, capability, boot_id=boot_id)
    if wait is not None:
        return wait
    if capability.use is Use.BLOCK:
        return Plan(StageStep.USE)
    filesystem = volume.status.filesystem
    if filesystem is not None and filesystem.state is FilesystemState.FORMATTED:
        return Plan(StageStep.USE, fs_type=_usable(filesystem.type, capability))
    if filesystem is not None and filesystem.state is FilesystemState.RAW:
        raise PreconditionFailed("the volume was used as a block device: it is never formatted")
    status = attachment.status
    generation = status.generation
    probe = status.probe if status.probe is not None and status.probe.generation == generation else None
    if status.last_error is not None and probe is not None and probe.found != ProbeFound.BLANK:
        raise error_of(status.last_error)  # the host judged what the probe found
    if read_only:
        raise PreconditionFailed("the volume holds no filesystem yet and is attached read-only")
    if status.formatted is not None and status.formatted.generation == generation:
        return Plan(StageStep.WAIT, "the volume host has not recorded the new filesystem yet")
    permit = status.format_permit
    if (
        filesystem is not None
        and permit is not None
        and permit.generation == generation
        and permit.type == filesystem.type
    ):
        return Plan(StageStep.FORMAT, fs_type=_usable(permit.type, capability))
    if probe is None:
        return Plan(StageStep.WAIT, "the device was not probed yet")
    return Plan(StageStep.WAIT, "the volume host has not permitted the filesystem yet")


def _usable(fs_type: str, capability: Capability) -> str:
    if fs_type not in FS_TYPES:
        raise PreconditionFailed(
            f"the volume holds {fs_type or 'an unknown filesystem'}, which is not offered"
        )
    if capability.fs_type and capability.fs_type != fs_type:
        raise PreconditionFailed(f"the volume holds {fs_type}, not {capability.fs_type}")
    return fs_type
