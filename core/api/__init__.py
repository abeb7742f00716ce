"""The kinds of group cinderblock.io as pydantic models; CRDs, their pages and the code all come from these."""

from __future__ import annotations

from cinderblock.core.api.attachment import Attachment
from cinderblock.core.api.backend import Backend, Pool, VolumeType
from cinderblock.core.api.meta import CustomResource
from cinderblock.core.api.node import StorageNode
from cinderblock.core.api.snapshot import Snapshot
from cinderblock.core.api.volume import Volume

KINDS: tuple[type[CustomResource], ...] = (
    Volume,
    Attachment,
    Snapshot,
    Backend,
    Pool,
    VolumeType,
    StorageNode,
)

__all__ = [
    "KINDS",
    "Attachment",
    "Backend",
    "CustomResource",
    "Pool",
    "Snapshot",
    "StorageNode",
    "Volume",
    "VolumeType",
]
