"""Loop devices as the kernel tells of them: asked each time, never remembered.

Drivers ask who holds a file, node agents make and let go of devices; both read the kernel's answer here.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SYS_BLOCK = Path("/sys/block")
# struct loop_info64: device, inode, rdevice, offset, sizelimit; number, encrypt type, key size, flags;
# file name, crypt name, key; init[2]
INFO = struct.Struct("=QQQQQIIII64s64s32sQQ")
READ_ONLY = 1
AUTOCLEAR = 4
DIRECT_IO = 16
_GET_STATUS64 = 0x4C05

Backing = tuple[int, int, int]
"""major, minor, inode of a file."""


@dataclass(frozen=True)
class LoopStatus:
    """One bound loop device, as the kernel tells."""

    index: int
    name: str  # lo_file_name, as it was set
    backing: Backing
    read_only: bool
    direct_io: bool
    leaving: bool  # let go of, and there until its last user closes it
    size_bytes: int

    @property
    def path(self) -> Path:
        return loop_path(self.index)


@dataclass(frozen=True)
class BoundLoop:
    """A loop device that has a file."""

    index: int
    file_name: str  # last part of the file's path, as far as the kernel shows it
    status: LoopStatus | None  # None where the device node cannot be asked

    @property
    def path(self) -> Path:
        return loop_path(self.index)


def loop_path(index: int) -> Path:
    return Path(f"/dev/loop{index}")


def backing_of(stat: os.stat_result) -> Backing:
    """The same three numbers as LoopStatus.backing, of a file."""
    return os.major(stat.st_dev), os.minor(stat.st_dev), stat.st_ino


@contextlib.contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def read_status(descriptor: int, index: int, *, sys_block: Path = SYS_BLOCK) -> LoopStatus:
    """Of an open loop device. Errors: OSError, ENXIO where it has no file."""
    buffer = bytearray(INFO.size)
    fcntl.ioctl(descriptor, _GET_STATUS64, buffer)
    device, inode, _, _, _, _, _, _, flags, name, *_ = INFO.unpack(buffer)
    sectors = int((sys_block / f"loop{index}" / "size").read_text())
    return LoopStatus(
        index=index,
        name=name.split(b"\0", 1)[0].decode(errors="replace"),
        backing=(*_kernel_device(device), inode),
        read_only=bool(flags & READ_ONLY),
        direct_io=bool(flags & DIRECT_IO),
        leaving=bool(flags & AUTOCLEAR),
        size_bytes=sectors * 512,
    )


def bound_loops(sys_block: Path = SYS_BLOCK) -> list[BoundLoop]:
    """Every loop device that has a file. Errors: OSError when /sys cannot be read."""
    found = []
    for entry in sorted(sys_block.iterdir()):
        number = entry.name.removeprefix("loop")
        if number == entry.name or not number.isdecimal():
            continue
        try:
            text = (entry / "loop" / "backing_file").read_text()
        except OSError:
            continue  # not bound, or let go in this moment
        name = text.rstrip("\n").removesuffix(" (deleted)").rpartition("/")[2]
        status = None
        with contextlib.suppress(OSError), opened(loop_path(int(number)), os.O_RDONLY) as descriptor:
            status = read_status(descriptor, int(number), sys_block=sys_block)
        found.append(BoundLoop(int(number), name, status))
    return found


def _kernel_device(number: int) -> tuple[int, int]:
    """major, minor of the kernel's huge_encode_dev."""
    return (number >> 8) & 0xFFF, (number & 0xFF) | ((number >> 12) & 0xFFF00)
