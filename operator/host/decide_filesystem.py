"""The formatting dialogue with a node: when it may make a filesystem, and when one is recorded.

Data is never formatted over: a permit needs a device that the node found blank, recorded beforehand as Formatting,
and it binds to one generation of one Attachment. What a device already holds is recorded or refused.

The Volume remembers that a permit was given. A mkfs that was cut off may leave what looks like a whole filesystem,
so from then on only the report of a finished one counts, and whoever mounts next makes it anew. Nothing was ever
mounted before that report, hence nobody's data is on it; an admission that lets somebody else write
(decide_attachment.py) takes the memory back.
"""

from __future__ import annotations

from dataclasses import dataclass

from cinderblock.core.api.attachment import Attachment, FormatPermit, ProbeFound
from cinderblock.core.api.volume import Filesystem, FilesystemState, Use, Volume, VolumeAttachmentEntry
from cinderblock.core.errors import InvalidRequest, StorageError


@dataclass(frozen=True)
class Nothing:
    """The node's turn, or nothing to say."""


@dataclass(frozen=True)
class Record:
    """Write this to Volume.status.filesystem, then ask again."""

    filesystem: Filesystem


@dataclass(frozen=True)
class Permit:
    permit: FormatPermit


@dataclass(frozen=True)
class Object:
    """The device holds something else than what is wanted."""

    error: StorageError


Answer = Nothing | Record | Permit | Object


def may_be_writing(entry: VolumeAttachmentEntry, attachment: Attachment | None) -> bool:
    """Whether the node of this entry may be writing to a device without a filesystem, by making one or as a bare
    device; `attachment` None: it is gone, who knows."""
    if entry.fenced:
        return False
    if entry.use is not Use.MOUNT:
        return not entry.read_only
    if attachment is None:
        return True
    permit = attachment.status.format_permit
    return permit is not None and permit.generation == entry.generation


def judge_filesystem(
    volume: Volume, attachment: Attachment, entry: VolumeAttachmentEntry, *, rival: bool = False
) -> Answer:
    """`rival`: another node may be writing, so what this one found is no truth to act on."""
    status, filesystem = attachment.status, volume.status.filesystem
    if entry.use is not Use.MOUNT or entry.fenced or attachment.deleting:
        return Nothing()
    if filesystem is not None and filesystem.state is not FilesystemState.FORMATTING:
        return Nothing()
    permit = status.format_permit
    permitted = permit is not None and permit.generation == entry.generation
    formatted = status.formatted
    if formatted is not None and formatted.generation == entry.generation:
        if permitted and permit is not None and permit.type == formatted.type and filesystem is not None:
            return Record(Filesystem(type=formatted.type, state=FilesystemState.FORMATTED))
        return Object(
            InvalidRequest(f"the node reports a {formatted.type} that it was never permitted to make")
        )
    probe = status.probe
    if probe is None or probe.generation != entry.generation or permitted or rival:
        return Nothing()
    half_made = filesystem is not None and filesystem.permitted
    if not half_made and probe.found == probe.wanted_type:
        return Record(Filesystem(type=probe.found, state=FilesystemState.FORMATTED))
    if not half_made and probe.found != ProbeFound.BLANK:
        return Object(
            InvalidRequest(
                f"the device holds {_named(probe.found)}, {probe.wanted_type} is wanted: it is not formatted over"
            )
        )
    if entry.read_only:
        return Object(
            InvalidRequest("the device is blank and attached read-only: attach it read-write first")
        )
    if filesystem is not None and filesystem.type != probe.wanted_type:
        return Object(
            InvalidRequest(f"{filesystem.type} is planned for this volume, not {probe.wanted_type}")
        )
    if not half_made:
        planned = Filesystem(type=probe.wanted_type, state=FilesystemState.FORMATTING, permitted=True)
        return Record(planned)
    return Permit(FormatPermit(generation=entry.generation, type=probe.wanted_type))


def _named(found: str) -> str:
    return "something unknown" if found == ProbeFound.OTHER else found
