"""Connector `Local`: an image file on this node as a loop device with direct I/O (docs/drivers/file.md).

One loop device per inode: it is looked for by its backing inode and by the name we gave it. The image proves
itself by its attribute before anything is set up, on the same descriptor that the loop device then gets.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from cinderblock.core.api.attachment import Connection, ConnectionProtocol, LocalConnection
from cinderblock.core.errors import BackendFault, BackendUnavailable, InvalidRequest, VolumeInUse
from cinderblock.core.loops import LoopStatus, backing_of
from cinderblock.csi.connectors.base import Device, WrongDevice
from cinderblock.csi.connectors.beneath import open_beneath
from cinderblock.csi.connectors.loop import LoopDevices

IDENTITY_ATTRIBUTE = "user.cinderblock.identity"
SECTOR_BYTES = 512  # fixed for good: a filesystem made on one sector size does not mount on another
_IDENTITY_MAX = 50
T = TypeVar("T")


def _local(connection: Connection) -> LocalConnection:
    if connection.local is None:
        raise InvalidRequest("the connection says Local and carries no image")
    return connection.local


def _device(status: LoopStatus) -> Device:
    number = os.stat(status.path).st_rdev  # noqa: PTH116 (one stat of a device node, no Path needed)
    return Device(
        path=status.path,
        number=(os.major(number), os.minor(number)),
        size_bytes=status.size_bytes,
        read_only=status.read_only,
    )


class LocalConnector:
    protocol = ConnectionProtocol.LOCAL

    def __init__(self, pools_root: Path, loops: LoopDevices, *, sys_block: Path = Path("/sys/block")) -> None:
        self._root = pools_root
        self._loops = loops
        self._sys = sys_block

    def _prefix(self) -> str:
        """Tells our devices from those of another installation, or another node, on the same kernel."""
        try:
            root = self._root.stat()
        except OSError as error:
            raise BackendUnavailable(
                f"the pools' root cannot be read: {os.strerror(error.errno or 0)}"
            ) from None
        return f"cb-{hashlib.sha256(f'{root.st_dev}:{root.st_ino}'.encode()).hexdigest()[:8]}:"

    def _name(self, connection: Connection) -> str:
        identity = _local(connection).identity
        if len(identity.encode()) > _IDENTITY_MAX:
            identity = hashlib.sha256(identity.encode()).hexdigest()[:40]
        return self._prefix() + identity

    async def connect(self, connection: Connection) -> Device:
        return await _in_thread(lambda: self._connect(connection))

    async def find(self, connection: Connection) -> Device | None:
        found = await _in_thread(lambda: self._find(connection))
        return None if found is None else _device(found)

    async def disconnect(self, connection: Connection) -> None:
        await _in_thread(lambda: self._disconnect(self._name(connection)))

    async def resize(self, connection: Connection) -> Device:
        return await _in_thread(lambda: self._connect(connection))

    async def holders(self, device: Device) -> Sequence[str]:
        folder = self._sys / device.path.name / "holders"
        return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []

    async def strays(self) -> Sequence[tuple[str, Device]]:
        def scan() -> list[tuple[str, Device]]:
            prefix = self._prefix()
            return [(s.name, _device(s)) for s in self._loops.bound() if s.name.startswith(prefix)]

        return await _in_thread(scan)

    def stray_name(self, connection: Connection) -> str:
        return self._name(connection)

    async def disconnect_stray(self, name: str, device: Device) -> None:
        await _in_thread(lambda: self._disconnect(name))

    # What follows blocks, and runs in a thread.

    @contextlib.contextmanager
    def _proved(self, connection: Connection) -> Iterator[int]:
        """The open image, after it has proved to be the one that the connection names."""
        local = _local(connection)
        image = open_beneath(self._root, local.path, read_only=connection.read_only)
        try:
            try:
                said = os.getxattr(image, IDENTITY_ATTRIBUTE).decode(errors="replace")
            except OSError:
                raise WrongDevice(f"image {local.path} carries no identity of ours") from None
            if said != local.identity:
                raise WrongDevice(f"image {local.path} says it is {said!r}, not {local.identity!r}")
            if os.fstat(image).st_size < connection.size_bytes:
                raise WrongDevice(
                    f"image {local.path} holds {os.fstat(image).st_size} bytes, fewer than"
                    f" {connection.size_bytes}"
                )
            yield image
        finally:
            os.close(image)

    def _match(self, name: str, backing: tuple[int, int, int] | None) -> list[LoopStatus]:
        return [s for s in self._loops.bound() if s.name == name or s.backing == backing]

    def _find(self, connection: Connection) -> LoopStatus | None:
        # By the name we gave it after its proof: the image may be out of reach, and the device is there all the same.
        return next(iter(self._match(self._name(connection), None)), None)

    def _connect(self, connection: Connection) -> Device:
        name = self._name(connection)
        with self._proved(connection) as image:
            backing = backing_of(os.fstat(image))
            status: LoopStatus | None = None
            for found in self._match(name, backing):
                if found.backing != backing:
                    raise WrongDevice(f"{found.path} serves another file under the name of this volume")
                if found.name != name:
                    raise VolumeInUse(f"{found.path} holds the image and is not of our making")
                if found.leaving:
                    raise VolumeInUse(
                        f"{found.path} was let go of and is still open; it ends at the last close"
                    )
                if found.read_only != connection.read_only:
                    self._release(found)
                    continue
                status = found
            if status is None:
                status = self._loops.attach(
                    image, name, read_only=connection.read_only, sector_bytes=SECTOR_BYTES
                )
            if status.size_bytes < connection.size_bytes:
                status = self._loops.set_capacity(status)
            if status.size_bytes < connection.size_bytes:
                raise BackendFault(f"{status.path} stays at {status.size_bytes} bytes")
            return _device(status)

    def _disconnect(self, name: str) -> None:
        # By name alone: the image may be gone by now, and the device must go all the same.
        for found in self._match(name, None):
            self._release(found)

    def _release(self, status: LoopStatus) -> None:
        held = self._sys / status.path.name / "holders"
        on_top = sorted(entry.name for entry in held.iterdir()) if held.is_dir() else []
        if on_top:
            raise VolumeInUse(f"{status.path} is held by {', '.join(on_top)}")
        self._refuse_exclusive(status)
        if not self._loops.detach(status):
            raise VolumeInUse(f"{status.path} is still open; the kernel lets it go at the last close")

    def _refuse_exclusive(self, status: LoopStatus) -> None:
        """A mount in any mount namespace holds the device exclusively."""
        try:
            os.close(os.open(status.path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
        except OSError as error:
            raise VolumeInUse(f"{status.path} is in use: {os.strerror(error.errno or 0)}") from None


async def _in_thread(work: Callable[[], T]) -> T:
    """Work that may wait for a disk, away from the event loop.

    A thread cannot be stopped, so there is no deadline here: the caller's own answers in time, while the lock of
    the volume stays with the work until the kernel has answered.
    """
    return await asyncio.to_thread(work)
