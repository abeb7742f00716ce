"""What is on a device before anything is written to it.

A device is Blank only when blkid finds nothing AND every place where a signature, a superblock or its copy may
lie was read without error and holds zeros (reliability rule IDE-06). A read error is an error, never Blank.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from cinderblock.core.api.attachment import ProbeFound
from cinderblock.core.errors import BackendUnavailable
from cinderblock.core.process import Runner
from cinderblock.core.units import KIB, MIB

_DEADLINE = 30.0
_EDGE = MIB
# Copies of superblocks outside the first and last MiB: ext4 (1 KiB and 4 KiB blocks), btrfs.
_COPIES = (8 * MIB, 128 * MIB, 64 * MIB)
_COPY_BYTES = 64 * KIB
_NOTHING, _AMBIVALENT = 2, 8
_XFS_MAGIC, _XFS_IN_PROGRESS = b"XFSB", 126


def probe_ranges(size_bytes: int) -> list[tuple[int, int]]:
    """(offset, length) of what must be zero on a blank device of that size; never past its end."""
    ranges = [(0, min(_EDGE, size_bytes)), (max(0, size_bytes - _EDGE), min(_EDGE, size_bytes))]
    ranges += [(at, min(_COPY_BYTES, size_bytes - at)) for at in _COPIES if at < size_bytes]
    return ranges


def parse_export(text: str) -> dict[str, str]:
    """blkid's `-o export`: one KEY=value per line."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def read_exactly(device: Path, offset: int, length: int) -> bytes:
    """Bytes of a device, past the page cache of earlier readers. Errors: BackendUnavailable."""
    try:
        descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)
            data = bytearray()
            while len(data) < length:
                piece = os.pread(descriptor, length - len(data), offset + len(data))
                if not piece:
                    raise BackendUnavailable(f"{device} ends at {offset + len(data)} bytes, before its size")
                data += piece
            return bytes(data)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise BackendUnavailable(
            f"{device} cannot be read at {offset}: {os.strerror(error.errno or 0)}"
        ) from None


def _all_zero(device: Path, size_bytes: int) -> bool:
    # Every range is read, also after one that is not zero: an unreadable device is an error in any case.
    zero = True
    for offset, length in probe_ranges(size_bytes):
        zero &= not any(read_exactly(device, offset, length))
    return zero


async def probe_device(runner: Runner, device: Path, size_bytes: int) -> str:
    """ProbeFound.BLANK, a filesystem's type, or ProbeFound.OTHER. Errors: BackendUnavailable, CommandFailed."""
    zero = await asyncio.to_thread(_all_zero, device, size_bytes)
    found = await _blkid(runner, device)
    if not found:
        return ProbeFound.BLANK if zero else ProbeFound.OTHER
    fs_type = found.get("TYPE", "")
    if found.get("USAGE") != "filesystem" or not fs_type or "PTTYPE" in found:
        return ProbeFound.OTHER
    return ProbeFound.OTHER if await asyncio.to_thread(_is_half_made, device, fs_type) else fs_type


async def recognised(runner: Runner, device: Path) -> str:
    """What lies on a device that may hold a half-made filesystem of ours: "" = nothing whole, else its type.

    Both mkfs write their superblock, or its last mark, at the very end: what is recognised was finished by
    somebody. Errors: BackendUnavailable, CommandFailed.
    """
    found = await _blkid(runner, device)
    name = found.get("TYPE") or found.get("PTTYPE") or ("several signatures" if found else "")
    return "" if await asyncio.to_thread(_is_half_made, device, name) else name


async def _blkid(runner: Runner, device: Path) -> dict[str, str]:
    """Empty = it recognises nothing."""
    result = await runner.run(
        ["blkid", "-p", "-o", "export", "--", str(device)], timeout=_DEADLINE, ok=(0, _NOTHING, _AMBIVALENT)
    )
    if result.returncode == _AMBIVALENT:
        return {"USAGE": "ambivalent"}
    return parse_export(result.stdout.decode(errors="replace")) if result.returncode != _NOTHING else {}


def _is_half_made(device: Path, fs_type: str) -> bool:
    if fs_type != "xfs":
        return False
    head = read_exactly(device, 0, 512)
    # mkfs.xfs writes its superblock first and clears this mark last
    return head.startswith(_XFS_MAGIC) and bool(head[_XFS_IN_PROGRESS])
