"""Making and growing ext4 and xfs. When mkfs may run at all is decided in csi/node/stage.py."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path

from cinderblock.core.errors import BackendFault, InvalidRequest, PreconditionFailed
from cinderblock.core.process import Runner
from cinderblock.core.units import MIB
from cinderblock.csi.connectors.base import Device
from cinderblock.csi.node.probe import read_exactly

# No discard: the device is blank. ext4's journal is written out at once, its inode tables by the kernel later
# (they read as zeros anyway, and writing them now would fill a thin volume).
MKFS = {
    "ext4": ("mkfs.ext4", "-F", "-q", "-m", "0", "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=0"),
    "xfs": ("mkfs.xfs", "-f", "-q", "-K"),
}
_SMALLEST = {"ext4": 4 * MIB, "xfs": 300 * MIB}
# Of hung programs only. The work outlives its callers, and one that is killed half-way begins anew for ever, or
# leaves a filesystem half-changed: a check of terabytes takes its time.
_MKFS_DEADLINE = 900.0
_GROW_DEADLINE = _CHECK_DEADLINE = 4 * 3600.0
_SLACK = MIB  # both leave a remainder that is too small for a group of its own
_CAP_SYS_RESOURCE = 24
_DAMAGED = (
    "the filesystem on {} is damaged and e2fsck -p cannot repair it safely: detach it and run e2fsck by hand"
)
_EXT4_AT, _EXT4_MAGIC, _EXT4_HAS_ERRORS = 1024, 0xEF53, 2


async def make_filesystem(runner: Runner, device: Device, fs_type: str) -> None:
    """Destroys what is on the device. Errors: InvalidRequest (too small), CommandFailed, OperationTimeout."""
    if device.size_bytes < _SMALLEST[fs_type]:
        raise InvalidRequest(f"{fs_type} needs at least {_SMALLEST[fs_type] // MIB} MiB")
    await runner.run([*MKFS[fs_type], "--", str(device.path)], timeout=_MKFS_DEADLINE)


def _superblock_bytes(device: Device, fs_type: str) -> int:
    if fs_type == "xfs":
        head = read_exactly(device.path, 0, 512)
        block_bytes, blocks = struct.unpack_from(">IQ", head, 4)
        if not head.startswith(b"XFSB"):
            raise BackendFault(f"{device.path} holds no xfs")
        return int(block_bytes) * int(blocks)
    head = read_exactly(device.path, _EXT4_AT, 1024)
    (magic,) = struct.unpack_from("<H", head, 0x38)
    if magic != _EXT4_MAGIC:
        raise BackendFault(f"{device.path} holds no ext4")
    (low,) = struct.unpack_from("<I", head, 4)
    (shift,) = struct.unpack_from("<I", head, 0x18)
    (high,) = struct.unpack_from("<I", head, 0x150)
    return int((high << 32) | low) * (1024 << int(shift))


async def filesystem_bytes(device: Device, fs_type: str) -> int:
    """What the superblock says. Errors: BackendFault (no such filesystem), BackendUnavailable."""
    return await asyncio.to_thread(_superblock_bytes, device, fs_type)


async def needs_growing(device: Device, fs_type: str) -> bool:
    return await filesystem_bytes(device, fs_type) + _SLACK <= device.size_bytes


def grows_mounted(fs_type: str) -> bool:
    """Whether this process may grow a mounted one: ext4 asks for a right that not every sandbox gives root."""
    if fs_type != "ext4":
        return True
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff":
            return bool(int(value.strip(), 16) >> _CAP_SYS_RESOURCE & 1)
    return True


async def grow_filesystem(runner: Runner, device: Device, fs_type: str, mounted_at: str) -> bool:
    """Grow a mounted filesystem to its device; False when there was nothing to grow.

    Errors: PreconditionFailed (only the next mount can grow it), CommandFailed, OperationTimeout; the old size
    stands.
    """
    if not await needs_growing(device, fs_type):
        return False
    if not grows_mounted(fs_type):
        raise PreconditionFailed(
            "this process may not grow a mounted ext4 (CAP_SYS_RESOURCE is missing): it grows when the volume is"
            " next staged",
            reason="GrowsAtNextMount",
        )
    argv = ["xfs_growfs", "-d", mounted_at] if fs_type == "xfs" else ["resize2fs", str(device.path)]
    await runner.run(argv, timeout=_GROW_DEADLINE)
    return True


async def grow_unmounted(runner: Runner, device: Device, fs_type: str) -> None:
    """Before a mount, where a mounted one cannot be grown here. Errors: BackendFault, CommandFailed."""
    if grows_mounted(fs_type) or not await needs_growing(device, fs_type):
        return
    result = await runner.run(
        ["e2fsck", "-f", "-p", str(device.path)], timeout=_CHECK_DEADLINE, ok=tuple(range(128))
    )
    if result.returncode > 1:
        raise BackendFault(_DAMAGED.format(device.path))
    await runner.run(["resize2fs", str(device.path)], timeout=_GROW_DEADLINE)


async def repair_if_marked(runner: Runner, device: Device, fs_type: str) -> None:
    """Before a mount: ext4 that the kernel marked as faulty gets the safe repairs; the journal replays itself.

    Errors: BackendFault when a person is needed.
    """
    if fs_type != "ext4":
        return
    head = await asyncio.to_thread(read_exactly, device.path, _EXT4_AT, 1024)
    (state,) = struct.unpack_from("<H", head, 0x3A)
    if not state & _EXT4_HAS_ERRORS:
        return
    result = await runner.run(
        ["e2fsck", "-p", str(device.path)], timeout=_CHECK_DEADLINE, ok=tuple(range(128))
    )
    if result.returncode > 1:
        raise BackendFault(_DAMAGED.format(device.path))
