"""Image files of a pool in a temporary folder, and a check that nothing is left of them in the kernel."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from cinderblock.core.api.attachment import Connection, ConnectionProtocol, LocalConnection

MIB = 1024**2


@dataclass(frozen=True)
class NodePool:
    root: Path

    def image(self, identity: str, size_bytes: int = 64 * MIB, *, name: str | None = None) -> Path:
        folder = self.root / "pool" / "volumes"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / (name or f"{identity}.img")
        path.touch()
        os.truncate(path, size_bytes)
        os.setxattr(path, "user.cinderblock.identity", identity.encode())
        return path

    def connection(
        self,
        image: Path,
        identity: str,
        *,
        size_bytes: int | None = None,
        read_only: bool = False,
        generation: int = 1,
    ) -> Connection:
        return Connection(
            protocol=ConnectionProtocol.LOCAL,
            generation=generation,
            size_bytes=size_bytes or image.stat().st_size,
            read_only=read_only,
            local=LocalConnection(path=str(image.relative_to(self.root)), identity=identity),
        )


def loops_below(root: Path) -> list[str]:
    """Loop devices whose image lies (or lay) below root."""
    found = []
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            if entry.read_text().startswith(f"{root}/"):
                found.append(entry.parent.parent.name)
        except OSError:
            continue  # went away meanwhile: another test's
    return sorted(found)


def mounts_below(root: Path) -> list[str]:
    fields = [line.split(" ") for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [f[4] for f in fields if f[4].startswith(f"{root}/")]


def clean(root: Path) -> list[str]:
    """What was left below root; it is taken away, deepest first."""
    left = [*reversed(mounts_below(root)), *loops_below(root)]
    for path in reversed(mounts_below(root)):
        subprocess.run(["umount", "-l", "--", path], check=False, capture_output=True)
    for name in loops_below(root):
        subprocess.run(["losetup", "-d", f"/dev/{name}"], check=False, capture_output=True)
    return left
