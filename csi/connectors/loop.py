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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

_CONFIGURE = 0x4C0A
_CLR_FD = 0x4C01
_GET_STATUS64 = 0x4C05
_SET_CAPACITY = 0x4C07
_CTL_GET_FREE = 0x4C82
_READ_ONLY = 1
_AUTOCLEAR = 4
_DIRECT_IO = 16
# struct loop_info64: device, inode, rdevice, offset, sizelimit; number, encrypt type, key size, flags;
# file name, crypt name, key; init[2]
_INFO = struct.Struct("=QQQQQIIII64s64s32sQQ")
_RESERVED = bytes(64)
_NAME_MAX = 63
_TRIES = 32


@dataclass(frozen=True)
class LoopStatus:
    """One bound loop device, as the kernel tells."""

    index: int
    name: str  # lo_file_name, as it was set
    backing: tuple[int, int, int]  # major, minor, inode of the backing file
    read_only: bool
    direct_io: bool
    leaving: bool  # let go of, and there until its last user closes it
    size_bytes: int

    @property
    def path(self) -> Path:
        return Path(f"/dev/loop{self.index}")


class LoopDevices(Protocol):
    """The port to the kernel's loop driver. Methods block for microseconds; `detach` may flush."""

    def bound(self) -> list[LoopStatus]: ...

    def attach(self, descriptor: int, name: str, *, read_only: bool, sector_bytes: int) -> LoopStatus: ...

    def set_capacity(self, status: LoopStatus) -> LoopStatus: ...

    def detach(self, status: LoopStatus) -> bool:
        """False when somebody still has the device open; the kernel lets go at the last close."""


@contextlib.contextmanager
def _opened(path: str | Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _kernel_device(number: int) -> tuple[int, int]:
    """major, minor of the kernel's huge_encode_dev."""
    return (number >> 8) & 0xFFF, (number & 0xFF) | ((number >> 12) & 0xFFF00)


def backing_of(stat: os.stat_result) -> tuple[int, int, int]:
    """The same three numbers as LoopStatus.backing, of a file."""
    return os.major(stat.st_dev), os.minor(stat.st_dev), stat.st_ino


class KernelLoopDevices:
    def __init__(self, sys_block: Path = Path("/sys/block")) -> None:
        self._sys = sys_block

    def _read(self, descriptor: int, index: int) -> LoopStatus:
        buffer = bytearray(_INFO.size)
        fcntl.ioctl(descriptor, _GET_STATUS64, buffer)
        device, inode, _, _, _, _, _, _, flags, name, *_ = _INFO.unpack(buffer)
        sectors = int((self._sys / f"loop{index}" / "size").read_text())
        return LoopStatus(
            index=index,
            name=name.split(b"\0", 1)[0].decode(errors="replace"),
            backing=(*_kernel_device(device), inode),
            read_only=bool(flags & _READ_ONLY),
            direct_io=bool(flags & _DIRECT_IO),
            leaving=bool(flags & _AUTOCLEAR),
            size_bytes=sectors * 512,
        )

    def bound(self) -> list[LoopStatus]:
        found = []
        for entry in sorted(self._sys.glob("loop*/loop/backing_file")):
            index = int(entry.parent.parent.name.removeprefix("loop"))
            # One that goes away under our hands is not bound any more.
            with contextlib.suppress(OSError):
                found.append(self._status(index))
        return found

    def _status(self, index: int) -> LoopStatus:
        with _opened(f"/dev/loop{index}", os.O_RDONLY) as descriptor:
            return self._read(descriptor, index)

    def attach(self, descriptor: int, name: str, *, read_only: bool, sector_bytes: int) -> LoopStatus:
        encoded = name.encode()
        if len(encoded) > _NAME_MAX:
            raise ValueError(f"a loop device's name has at most {_NAME_MAX} bytes")
        flags = _DIRECT_IO | (_READ_ONLY if read_only else 0)
        info = _INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, flags, encoded, b"", b"", 0, 0)
        config = struct.pack("=II", descriptor, sector_bytes) + info + _RESERVED
        with _opened("/dev/loop-control", os.O_RDWR) as control:
            for _ in range(_TRIES):
                index = fcntl.ioctl(control, _CTL_GET_FREE)
                self._ensure_node(index)
                with _opened(f"/dev/loop{index}", os.O_RDONLY if read_only else os.O_RDWR) as device:
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
        path = Path(f"/dev/loop{index}")
        if not path.exists():
            major, minor = (self._sys / path.name / "dev").read_text().strip().split(":")
            with contextlib.suppress(FileExistsError):
                os.mknod(path, 0o600 | 0o060000, os.makedev(int(major), int(minor)))

    def set_capacity(self, status: LoopStatus) -> LoopStatus:
        with _opened(status.path, os.O_RDONLY) as device:
            fcntl.ioctl(device, _SET_CAPACITY)
            return self._read(device, status.index)

    def detach(self, status: LoopStatus) -> bool:
        with _opened(status.path, os.O_RDONLY) as device:
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
