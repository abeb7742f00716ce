"""Facts of placement that leader and CSI controller must see alike: the default type, what a Volume holds."""

from __future__ import annotations

from collections.abc import Iterable

from cinderblock.core.api.backend import VolumeType
from cinderblock.core.api.volume import Volume


def default_type(types: Iterable[VolumeType]) -> VolumeType | None:
    """The oldest default; ties go by name."""
    return min((t for t in types if t.spec.is_default and not t.deleting), key=_age, default=None)


def held_bytes(volume: Volume) -> int:
    """What a Volume takes of its pool: the largest of what was granted, what exists, and what a running
    operation goes to."""
    allocation, operation = volume.status.allocation, volume.status.operation
    if allocation is None:
        return 0
    target_bytes = operation.target_bytes if operation is not None else 0
    return max(allocation.size_bytes, volume.status.capacity_bytes or 0, target_bytes)


def _age(volume_type: VolumeType) -> tuple[float, str]:
    created = volume_type.metadata.creation_timestamp
    return (created.timestamp() if created is not None else 0.0, volume_type.name)
