"""Loop devices through the kernel's own calls.

losetup opens the file by its name once more, after we have checked it. LOOP_CONFIGURE takes the very descriptor
that was checked, and sets everything in one step.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from pathlib import Path
from typing import Protocol

from cinderblock.core.loops import (
    DIRECT_IO,
    INFO,
    READ_ONLY,
    SYS_BLOCK,
    LoopStatus,
    bound_loops,
    loop_path,
    opened,
    read_status,
)

_CONFIGURE = 0x4C0A
_CLR_FD = 0x4C01
_SET_CAPACITY = 0x4C07
_CTL_GET_FREE = 0x4C82
_RESERVED = bytes(64)
_NAME_MAX = 63
_TRIES = 32


class LoopDevices(Protocol):
    """The port to the kernel's loop driver. Methods block for microseconds; `detach` may flush."""

    def bound(self) -> list[LoopStatus]: ...

    def attach(self, descriptor: int, name: str, *, read_only: bool, sector_bytes: int) -> LoopStatus: ...

    def set_capacity(self, status: LoopStatus) -> LoopStatus: ...

    def detach(self, status: LoopStatus) -> bool:
        """False when somebody still has the device open; the kernel lets go at the last close."""


class KernelLoopDevices:
    def __init__(self, sys_block: Path = SYS_BLOCK) -> None:
        self._sys = sys_block

    def _read(self, descriptor: int, index: int) -> LoopStatus:
        return read_status(descriptor, index, sys_block=self._sys)

    def bound(self) -> list[LoopStatus]:
        return [loop.status for loop in bound_loops(self._sys) if loop.status is not None]

    def attach(self, descriptor: int, name: str, *, read_only: bool, sector_bytes: int) -> LoopStatus:
        encoded = name.encode()
        if len(encoded) > _NAME_MAX:
            raise ValueError(f"a loop device's name has at most {_NAME_MAX} bytes")
        flags = DIRECT_IO | (READ_ONLY if read_only else 0)
        info = INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, flags, encoded, b"", b"", 0, 0)
        config = struct.pack("=II", descriptor, sector_bytes) + info + _RESERVED
        with opened(Path("/dev/loop-control"), os.O_RDWR) as control:
            for _ in range(_TRIES):
                index = fcntl.ioctl(control, _CTL_GET_FREE)
                self._ensure_node(index)
                with opened(loop_path(index), os.O_RDONLY if read_only else os.O_RDWR) as device:
                    try:
                        fcntl.ioctl(device, _CONFIGURE, config)
                    except OSError as error:
                        if error.errno == errno.EBUSY:
                            continue  # somebody else took it first
                        raise
                    return self._read(device, index)
        raise OSError(errno.EBUSY, "no free loop device")

    def _ensure_node(self, index: int) -> None:
        """In a container with a /dev of its own the kernel's new node does not appear by itself."""
        path = loop_path(index)
        if not path.exists():
            major, minor = (self._sys / path.name / "dev").read_text().strip().split(":")
            with contextlib.suppress(FileExistsError):
                os.mknod(path, 0o600 | 0o060000, os.makedev(int(major), int(minor)))

    def set_capacity(self, status: LoopStatus) -> LoopStatus:
        with opened(status.path, os.O_RDONLY) as device:
            fcntl.ioctl(device, _SET_CAPACITY)
            return self._read(device, status.index)

    def detach(self, status: LoopStatus) -> bool:
        with opened(status.path, os.O_RDONLY) as device:
            try:
                now = self._read(device, status.index)
                if (now.name, now.backing) != (status.name, status.backing):
                    return True  # it was let go, and the number serves another file by now
                fcntl.ioctl(device, _CLR_FD)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return True
                raise
        # The kernel answers success also where others have it open: what counts is what is there afterwards.
        return all((s.index, s.backing) != (status.index, status.backing) for s in self.bound())
