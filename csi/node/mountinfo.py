"""/proc/self/mountinfo: the kernel's word on what is mounted where. Pure parser and the few questions we ask."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

# Where nodes of devices lie. Anything else is not looked at: a stat of a foreign NFS or FUSE mount may hang for ever.
_HOLDS_NODES = frozenset({"devtmpfs", "tmpfs", "ramfs", "ext4", "xfs", "btrfs", "overlay"})
_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Mount:
    device: tuple[int, int]  # major, minor of the filesystem's device
    root: str  # which folder or file of the filesystem is seen here
    path: str
    options: frozenset[str]  # of this mount point
    fs_type: str
    source: str
    super_options: frozenset[str]  # of the filesystem

    @property
    def read_only(self) -> bool:
        return "ro" in self.options or "ro" in self.super_options


def _text(field: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), field)


def parse_mountinfo(text: str) -> list[Mount]:
    """All mounts, in the kernel's order: of two on one path the later one is on top."""
    mounts = []
    for line in text.splitlines():
        left, separator, right = line.partition(" - ")
        fields, rest = left.split(" "), right.split(" ")
        if not separator or len(fields) < 6 or len(rest) < 3:
            continue
        major, _, minor = fields[2].partition(":")
        mounts.append(
            Mount(
                device=(int(major), int(minor)),
                root=_text(fields[3]),
                path=_text(fields[4]),
                options=frozenset(fields[5].split(",")),
                fs_type=rest[0],
                source=_text(rest[1]),
                super_options=frozenset(rest[2].split(",")),
            )
        )
    return mounts


def read_mounts() -> list[Mount]:
    # Bytes that are no UTF-8 occur in paths; they must not hide the other mounts.
    return parse_mountinfo(Path("/proc/self/mountinfo").read_text(errors="surrogateescape"))


def kernel_path(path: str | Path) -> str:
    """The name that the kernel uses for a path: its parents resolved, its last part taken as it is."""
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 (resolve() would follow the last part)
    return str(Path(os.path.realpath(absolute.parent)) / absolute.name)


def mount_at(path: str | Path, mounts: list[Mount] | None = None) -> Mount | None:
    """The topmost mount of exactly this path."""
    wanted = kernel_path(path)
    found = [m for m in (read_mounts() if mounts is None else mounts) if m.path == wanted]
    return found[-1] if found else None


def device_node_number(mount: Mount) -> tuple[int, int] | None:
    """The device behind a bind-mounted device node; None for anything else."""
    if mount.root == "/" or mount.fs_type not in _HOLDS_NODES:
        return None
    try:
        info = os.lstat(mount.path)
    except OSError:
        return None
    if not stat.S_ISBLK(info.st_mode):
        return None
    return os.major(info.st_rdev), os.minor(info.st_rdev)


def uses_of(device: tuple[int, int], mounts: list[Mount] | None = None) -> list[str]:
    """The paths where a device is mounted, or where its node is bind-mounted."""
    known = read_mounts() if mounts is None else mounts
    return [m.path for m in known if m.device == device or device_node_number(m) == device]
