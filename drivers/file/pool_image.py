"""The pool that brings its own filesystem: an XFS image file beside the pools, on a loop device, mounted.

Everything is found again from the kernel at each start, by the inode of the image: its loop device, and whether
that is what is mounted at the pool's folder. There is never a second loop device on one image, and never a mount
option that would let two copies of one filesystem be mounted side by side.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cinderblock.core.errors import BackendUnavailable, InvalidRequest, Lost, OperationTimeout
from cinderblock.core.process import CommandFailed, Runner
from cinderblock.drivers.file.config import PoolImage
from cinderblock.drivers.file.loops import loops_of
from cinderblock.drivers.file.marker import MARKER, HeldLock, take_lock
from cinderblock.drivers.file.oserrors import translate
from cinderblock.drivers.file.place import open_folder
from cinderblock.drivers.file.worker import Worker

IMAGES = ".images"
_FILE_DEADLINE = 60.0
_MKFS_DEADLINE = 120.0
_MOUNT_DEADLINE = 120.0  # a log replay after a crash takes its time
_LOSETUP_DEADLINE = 30.0
T = TypeVar("T")
_OPTIONS = "nodev,nosuid,noexec,noatime"


@dataclass(frozen=True)
class ImagePlace:
    """Where the image is; the lock keeps a second process from making or mounting it."""

    name: str
    path: Path
    folder_fd: int
    lock: HeldLock

    def close(self) -> None:
        os.close(self.folder_fd)
        self.lock.release()


class PoolImageMount:
    """Brings the pool's filesystem up at pools_root/directory. It is never taken down: pods live on it."""

    def __init__(
        self, root: Path, directory: str, settings: PoolImage, *, runner: Runner, worker: Worker
    ) -> None:
        self._root = root
        self._directory = directory
        self._settings = settings
        self._runner = runner
        self._worker = worker
        self._mount_point = root / directory
        self.place: ImagePlace | None = None  # the caller closes it, once no thread works on it

    async def bring_up(self, known_pool_id: str | None) -> None:
        """Mounted, and grown to the size that the configuration says.

        Errors: Lost (known, but the image is not there), InvalidRequest, BackendUnavailable, OperationTimeout.
        """
        place = self.place = await self._worker.run(
            self._translated(lambda: self._open_images(known_pool_id)),
            timeout=_FILE_DEADLINE,
            abandoned=ImagePlace.close,
        )
        if not await self._in_thread(lambda: self._exists(place)):
            if known_pool_id is not None:
                raise Lost(f"{place.path} is not there; it held the pool with id {known_pool_id}")
            await self._make(place)
        await self._in_thread(lambda: self._grow_file(place))
        device = await self._loop_device(place)
        # This and xfs_growfs are without effect where all is grown, and finish what a crash interrupted.
        await self._program(["losetup", "--set-capacity", device], timeout=_LOSETUP_DEADLINE)
        if not await self._in_thread(lambda: self._is_mounted(device)):
            await self._program(
                ["mount", "-t", "xfs", "-o", _OPTIONS, device, str(self._mount_point)],
                timeout=_MOUNT_DEADLINE,
            )
            if not await self._in_thread(lambda: self._is_mounted(device)):
                raise BackendUnavailable(f"{device} does not show at {self._mount_point} after its mount")
        await self._program(["xfs_growfs", "-d", str(self._mount_point)], timeout=_MKFS_DEADLINE)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await self._worker.run(self._translated(call), timeout=_FILE_DEADLINE)

    def _translated(self, call: Callable[[], T]) -> Callable[[], T]:
        def translated() -> T:
            try:
                return call()
            except OSError as error:
                message = translate(error, str(self._mount_point), "bringing the pool image up").message
                raise BackendUnavailable(message) from error

        return translated

    def _open_images(self, known_pool_id: str | None) -> ImagePlace:
        parent, _, name = f"{IMAGES}/{self._directory}".rpartition("/")
        path = self._root / parent / f"{name}.img"
        try:
            folder_fd = open_folder(self._root, parent, make=known_pool_id is None)
        except FileNotFoundError as error:
            if known_pool_id is None:
                raise
            raise Lost(f"{path} is not there; it held the pool with id {known_pool_id}") from error
        try:
            os.close(open_folder(self._root, self._directory, make=True))
            lock = take_lock(folder_fd, f"{name}.lock", f"{name}.holder", create=True, what=str(path))
        except BaseException:
            os.close(folder_fd)
            raise
        return ImagePlace(f"{name}.img", path, folder_fd, lock)

    def _exists(self, place: ImagePlace) -> bool:
        try:
            os.stat(place.name, dir_fd=place.folder_fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    async def _make(self, place: ImagePlace) -> None:
        """Under a temporary name; whatever a killed predecessor left there is not used."""
        temporary = f"{place.name}.new"

        def allocate() -> None:
            if os.path.ismount(self._mount_point) or any(self._mount_point.iterdir()):
                raise InvalidRequest(
                    f"{self._mount_point} is not empty and there is no pool image {place.path}: a pool image"
                    " needs an empty folder of its own; remove poolImage to use the folder as it is"
                )
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=place.folder_fd)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(temporary, flags, 0o600, dir_fd=place.folder_fd)
            try:
                self._resize(descriptor, 0)
            except BaseException:
                os.unlink(temporary, dir_fd=place.folder_fd)
                raise
            finally:
                os.close(descriptor)

        def keep() -> None:
            descriptor = os.open(temporary, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place.folder_fd)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.rename(temporary, place.name, src_dir_fd=place.folder_fd, dst_dir_fd=place.folder_fd)
            os.fsync(place.folder_fd)

        await self._in_thread(allocate)
        # -K: no discard, which would give the preallocated room back.
        await self._program(
            ["mkfs.xfs", "-q", "-K", "-m", "reflink=1", str(place.path.with_name(temporary))],
            timeout=_MKFS_DEADLINE,
        )
        await self._in_thread(keep)

    def _grow_file(self, place: ImagePlace) -> None:
        """Grow the image to the configured size; a smaller setting changes nothing."""
        descriptor = os.open(place.name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place.folder_fd)
        try:
            old_bytes = os.fstat(descriptor).st_size
            if self._settings.size > old_bytes:
                self._resize(descriptor, old_bytes)
        finally:
            os.close(descriptor)

    def _resize(self, descriptor: int, old_bytes: int) -> None:
        more_bytes = self._settings.size - old_bytes
        room = os.fstatvfs(descriptor)
        free_bytes = room.f_bavail * room.f_frsize
        if self._settings.preallocate:
            if more_bytes > free_bytes:
                raise BackendUnavailable(
                    f"the pool image needs {more_bytes} bytes more and {self._root} has {free_bytes} free:"
                    " free room, lower poolImage.size, or set poolImage.preallocate to false",
                    reason="NoRoomForPoolImage",
                )
            os.posix_fallocate(descriptor, old_bytes, more_bytes)
        os.ftruncate(descriptor, self._settings.size)
        os.fsync(descriptor)

    async def _loop_device(self, place: ImagePlace) -> str:
        """The one loop device of the image, made where there is none."""

        def find() -> list[str]:
            status = os.stat(place.name, dir_fd=place.folder_fd, follow_symlinks=False)
            return loops_of(status)

        found = await self._in_thread(find)
        if not found:
            await self._program(
                ["losetup", "--direct-io=on", "--find", str(place.path)], timeout=_LOSETUP_DEADLINE
            )
            found = await self._in_thread(find)
        if len(found) != 1:
            raise BackendUnavailable(
                f"{place.path} is held by {', '.join(found) or 'no loop device'}, exactly one is right",
                reason="PoolImageLoop",
            )
        return found[0]

    def _is_mounted(self, device: str) -> bool:
        """Whether the folder is the root of this device's filesystem. Another mount there is an error."""
        mounted = self._mount_point.lstat().st_dev
        if mounted == Path(device).stat().st_rdev:
            return True
        if mounted != self._mount_point.parent.lstat().st_dev:
            raise BackendUnavailable(
                f"another filesystem is mounted at {self._mount_point}: unmount it", reason="ForeignMount"
            )
        if any(entry.name == MARKER for entry in self._mount_point.iterdir()):
            raise BackendUnavailable(
                f"{self._mount_point} is a pool without an image of its own: remove poolImage, or use another"
                " directory"
            )
        return False

    async def _program(self, argv: list[str], *, timeout: float) -> None:
        """A failed program may have left something: never a fault that means that nothing is left."""
        try:
            await self._runner.run(argv, timeout=timeout)
        except CommandFailed as error:
            raise BackendUnavailable(f"{self._mount_point}: {error.message}") from error
        except OperationTimeout as error:
            raise OperationTimeout(f"{self._mount_point}: {error.message}") from error
