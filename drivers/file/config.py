"""Settings of the file driver."""

from __future__ import annotations

import re

from pydantic import Field, field_validator

from cinderblock.core.units import MIB
from cinderblock.drivers.base import DriverConfig
from cinderblock.drivers.fields import SizeBytes

# No component may start with a dot: that keeps out "..", and the driver's own folders beside the pools.
_COMPONENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
MIN_POOL_IMAGE_BYTES = 320 * MIB  # mkfs.xfs refuses below 300 MiB


class PoolImage(DriverConfig):
    """The pool brings its own filesystem: XFS with reflinks in one image file."""

    size: SizeBytes
    preallocate: bool = Field(
        default=True,
        description="Take the room on the node's disk at once, so that volumes never meet a full disk below"
        " their pool. False: the image grows as it is written.",
    )

    @field_validator("size")
    @classmethod
    def _large_enough(cls, value: int) -> int:
        if value < MIN_POOL_IMAGE_BYTES:
            raise ValueError("XFS needs at least 320Mi")
        return value - value % MIB


class FileConfig(DriverConfig):
    directory: str = Field(
        default="default",
        max_length=300,
        description="Folder of the pool, relative to the pools' root.",
    )
    pool_image: PoolImage | None = None

    @field_validator("directory")
    @classmethod
    def _below_the_root(cls, value: str) -> str:
        if not all(_COMPONENT.fullmatch(part) for part in value.split("/")):
            raise ValueError(
                "write a folder relative to the pools' root: letters, digits, . _ - and / between names,"
                " no name that starts with a dot"
            )
        return value
