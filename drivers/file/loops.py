"""Which loop devices hold a file: asked of the kernel each time, never remembered."""

from __future__ import annotations

import fcntl
import os
import struct
from dataclasses import dataclass
from pathlib import Path

_LOOP_GET_STATUS64 = 0x4C05
_INFO_SIZE = 232  # struct loop_info64
_SYS_BLOCK = Path("/sys/block")


@dataclass(frozen=True)
class Loop:
    name: str  # loop7
    device: tuple[int, int] | None  # device and inode of the file; None where the device node cannot be asked
    backing_name: str  # last part of the file's path, as far as the kernel shows it

    @property
    def path(self) -> str:
        return f"/dev/{self.name}"


def bound_loops() -> list[Loop]:
    """Every loop device that has a file. Errors: OSError when /sys cannot be read."""
    found = []
    for entry in _SYS_BLOCK.iterdir():
        if not entry.name.startswith("loop"):
            continue
        try:
            text = (entry / "loop" / "backing_file").read_text()
        except OSError:
            continue  # not bound, or let go in this moment
        backing = text.rstrip("\n").removesuffix(" (deleted)").rpartition("/")[2]
        found.append(Loop(entry.name, _backing(entry.name), backing))
    return found


def loops_of(status: os.stat_result) -> list[Loop]:
    """Those that hold the file of this stat, by inode: names lie across mount namespaces and renames."""
    return [loop for loop in bound_loops() if loop.device == (status.st_dev, status.st_ino)]


def holders_of(status: os.stat_result, name: str) -> list[str]:
    """Devices that hold the file, or a file of this name where only the name can be seen.

    For names that are unique in the world, such as our images': then a name in another mount namespace, or one
    that a missing device node hides the inode of, counts too.
    """
    return [
        loop.path
        for loop in bound_loops()
        if loop.device == (status.st_dev, status.st_ino) or loop.backing_name == name
    ]


def _backing(name: str) -> tuple[int, int] | None:
    try:
        descriptor = os.open(f"/dev/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        info = bytearray(_INFO_SIZE)
        fcntl.ioctl(descriptor, _LOOP_GET_STATUS64, info)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    encoded, inode = struct.unpack_from("=QQ", info)
    return _decode_device(encoded), inode


def _decode_device(encoded: int) -> int:
    """The kernel's huge_encode_dev -> st_dev."""
    return os.makedev((encoded >> 8) & 0xFFF, (encoded & 0xFF) | ((encoded >> 12) & 0xFFFFF00))
