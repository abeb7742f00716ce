"""Admission and detach of one Attachment: pure functions of what was observed.

Exclusivity is decided from Volume.status.attachments[] alone: what stands there may be exported, nothing else,
so that two requests, a stale list or a late process can never both win.

An entry whose Attachment has vanished (its finalizer was removed by force) is kept: the node may still write, and
nobody can say any more that it let go. It ends in one of these ways, each of them proven:
* a new Attachment of the same node, use and access takes its place (the same node keeps what it has);
* the driver fences it, as soon as somebody else needs the volume, or the volume is deleted;
* the volume is deleted and the driver is local to this node: it refuses to delete what a device holds open.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cinderblock.core.api.attachment import ADMITTED, EXPORTED, Attachment
from cinderblock.core.api.meta import is_true
from cinderblock.core.api.volume import (
    AccessMode,
    Filesystem,
    FilesystemState,
    Use,
    Volume,
    VolumeAttachmentEntry,
)
from cinderblock.core.errors import (
    AttachedElsewhere,
    IncompatibleExists,
    InvalidRequest,
    Lost,
    NotFound,
    NotReady,
    NotSupported,
    PreconditionFailed,
    StorageError,
)
from cinderblock.operator.host.volume_status import is_lost, is_provisioned

_READER_SUFFIX = "READER_ONLY"


def reads_only(attachment: Attachment) -> bool:
    """Asked for as read-only, or by an access mode that never writes."""
    spec = attachment.spec
    return spec.read_only or (spec.access_mode or "").endswith(_READER_SUFFIX)


def find_entry(volume: Volume, uid: str) -> VolumeAttachmentEntry | None:
    return next((e for e in volume.status.attachments if e.attachment_uid == uid), None)


# admission -----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class NodeFacts:
    """What is known of the node that an Attachment names."""

    exists: bool  # the Node object, by a fresh read
    storage_node: bool  # its agent has introduced itself
    same_node: bool = True  # the StorageNode speaks for this very Node object
    reachable: bool = True  # a node-local driver reaches its own node only


@dataclass(frozen=True)
class Admit:
    entry: VolumeAttachmentEntry
    filesystem: Filesystem | None  # to be recorded with the entry
    supersedes: str | None = None


@dataclass(frozen=True)
class Refuse:
    error: StorageError


def may_name(attachment: Attachment, release_namespace: str | None) -> bool:
    """Only objects of the release namespace may name a Volume of another one."""
    return attachment.namespace in (attachment.volume_key[0], release_namespace)


def judge_admission(
    volume: Volume, attachment: Attachment, node: NodeFacts, orphans: Iterable[str] = ()
) -> Admit | Refuse:
    """`orphans` are the UIDs of entries whose Attachment is gone by a fresh read."""
    error = judge_volume(volume) or _node_objects(attachment, node)
    if error is not None:
        return Refuse(error)
    orphaned = frozenset(orphans)
    supersedes: str | None = None
    read_only, use, name = reads_only(attachment), attachment.spec.use, attachment.spec.node
    for entry in volume.status.attachments:
        if entry.node == name:
            same = (entry.use, entry.read_only) == (use, read_only)
            if entry.attachment_uid in orphaned and same and not entry.fenced:
                supersedes = entry.attachment_uid
                continue
            return Refuse(
                IncompatibleExists(
                    f"node {name} holds the volume already by Attachment {entry.attachment}"
                    f" (use {entry.use}, {'read-only' if entry.read_only else 'read-write'})"
                )
            )
        if entry.fenced:
            continue  # cut off at the target: no write of it can land
        error = _sharing_objects(volume, entry, read_only)
        if error is not None:
            return Refuse(error)
    filesystem = volume.status.filesystem
    error = _use_objects(volume, use, read_only)
    if error is not None:
        return Refuse(error)
    if use is Use.BLOCK and (filesystem is None or filesystem.state is FilesystemState.FORMATTING):
        filesystem = Filesystem(type="", state=FilesystemState.RAW)
    if use is Use.BARE and not read_only and filesystem is not None:
        filesystem = filesystem.with_(permitted=False)  # what is found after this may be the user's own
    entry = VolumeAttachmentEntry(
        attachment_uid=attachment.uid,
        attachment=f"{attachment.namespace or ''}/{attachment.name}",
        node=name,
        read_only=read_only,
        generation=volume.status.attach_generation + 1,
        use=use,
    )
    return Admit(entry, filesystem, supersedes)


def judge_volume(volume: Volume) -> StorageError | None:
    """Why the Volume itself admits nobody now, whatever the node; None when it does."""
    if volume.deleting:
        return PreconditionFailed("the volume is being deleted", reason="VolumeDeleting")
    if not is_provisioned(volume):
        return NotReady("the volume does not exist on its backend yet")
    if is_lost(volume):
        return Lost("the backend does not hold the volume any more")
    return None


def _node_objects(attachment: Attachment, node: NodeFacts) -> StorageError | None:
    name = attachment.spec.node
    if not node.exists:
        return NotFound(f"node {name} does not exist")
    if not node.storage_node:
        return NotFound(f"node {name} has no StorageNode: is the node plugin running there?")
    if not node.same_node:
        return NotReady(f"node {name} was made anew and its node plugin has not reported since")
    if not node.reachable:
        return NotSupported(f"the volume's backend is local to another node than {name}")
    return None


def _sharing_objects(volume: Volume, other: VolumeAttachmentEntry, read_only: bool) -> StorageError | None:
    modes = volume.spec.access_modes
    if AccessMode.READ_WRITE_MANY in modes:
        return None
    if volume.spec.multi_attach and read_only and other.read_only:
        return None
    held = f"node {other.node} holds the volume by Attachment {other.attachment}"
    if volume.spec.multi_attach:
        return AttachedElsewhere(f"{held}: with ReadOnlyMany several nodes may only read it")
    return AttachedElsewhere(f"{held}: its access modes allow one node at a time")


def _use_objects(volume: Volume, use: Use, read_only: bool) -> StorageError | None:
    filesystem = volume.status.filesystem
    state = filesystem.state if filesystem is not None else FilesystemState.FORMATTING
    if use is Use.MOUNT and state is FilesystemState.RAW:
        return InvalidRequest("it was first used as a block device and is never formatted: use Block or Bare")
    if use is Use.BLOCK and filesystem is not None and state is FilesystemState.FORMATTED:
        return InvalidRequest(f"it holds a filesystem ({filesystem.type}): use Mount or Bare")
    writes = use is Use.BLOCK or (use is Use.BARE and not read_only)
    mounts = any(e.use is Use.MOUNT and not e.fenced for e in volume.status.attachments)
    if writes and mounts and state is FilesystemState.FORMATTING:
        return InvalidRequest("another node is about to make a filesystem on it: use Mount")
    return None


# export --------------------------------------------------------------------------------------------------
def is_exported(attachment: Attachment, entry: VolumeAttachmentEntry, capacity_bytes: int) -> bool:
    """Whether the Attachment says all of this entry's export, with the volume's present size."""
    status = attachment.status
    return (
        status.admitted
        and status.generation == entry.generation
        and status.connection is not None
        and status.connection.generation == entry.generation
        and status.connection.size_bytes == capacity_bytes
        and is_true(status.conditions, ADMITTED)
        and is_true(status.conditions, EXPORTED)
    )


# detach --------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class KeepEntry:
    """The node must let go first, or the leader must fence it."""


@dataclass(frozen=True)
class FenceEntry:
    entry: VolumeAttachmentEntry


@dataclass(frozen=True)
class DropEntry:
    """Nothing can write through it any more: unexport, then the entry goes."""

    entry: VolumeAttachmentEntry


def judge_detach(attachment: Attachment, entry: VolumeAttachmentEntry) -> KeepEntry | FenceEntry | DropEntry:
    """For an Attachment that was read fresh and is being deleted, or that the leader wants fenced."""
    status = attachment.status
    if entry.fenced:
        return DropEntry(entry) if attachment.deleting else KeepEntry()
    if attachment.deleting and (status.connection is None or status.released >= entry.generation):
        return DropEntry(entry)
    if ordered_off(attachment, entry):
        return FenceEntry(entry)
    return KeepEntry()


def ordered_off(attachment: Attachment, entry: VolumeAttachmentEntry) -> bool:
    """Whether the leader wants this node cut off: from then on it is given nothing more."""
    fence = attachment.status.fence
    return fence is not None and fence.generation >= entry.generation


@dataclass(frozen=True)
class OrphanView:
    """An entry whose Attachment is gone by a fresh read."""

    entry: VolumeAttachmentEntry
    volume_deleting: bool
    wanted_by_other_node: bool
    can_fence: bool
    node_local: bool  # the driver is local to this host's node, and so is the entry


def judge_orphan(view: OrphanView) -> KeepEntry | FenceEntry | DropEntry:
    if view.entry.fenced:
        return DropEntry(view.entry)
    if view.can_fence and (view.volume_deleting or view.wanted_by_other_node):
        return FenceEntry(view.entry)
    if view.node_local and view.volume_deleting:
        # The driver's delete is the proof: it refuses with VolumeInUse while a device holds the object open.
        return DropEntry(view.entry)
    return KeepEntry()


def in_order(attachments: Iterable[Attachment]) -> Sequence[Attachment]:
    """Oldest first, so that who asked first wins, whatever order the cache has."""
    return sorted(
        attachments,
        key=lambda a: (
            a.metadata.creation_timestamp.timestamp() if a.metadata.creation_timestamp else 0.0,
            a.namespace or "",
            a.name,
        ),
    )
