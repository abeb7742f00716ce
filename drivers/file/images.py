"""The image files of one pool: blocking calls on an open folder, each safe to be killed at any point.

A volume is one file, `<handle>-<grant>.img`; its size is the file's size and its metadata are attributes of the
file, so nothing can come apart. It is made as `.img.new` with its attributes, synced, and renamed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator

from cinderblock.core.errors import (
    BackendUnavailable,
    IncompatibleExists,
    InvalidRequest,
    NotFound,
    OutOfCapacity,
    StorageError,
    VolumeInUse,
)
from cinderblock.drivers.base import CreateVolume, VolumeInfo, VolumeRef
from cinderblock.drivers.file.loops import holders_of
from cinderblock.drivers.file.oserrors import translate
from cinderblock.drivers.file.place import VOLUMES, Place, names_in

IDENTITY = "user.cinderblock.identity"  # <handle>-<grant>; node agents compare it before they use an image
SEALED = "user.cinderblock.sealed"  # "false" until the CR knows of it
THICK = "user.cinderblock.thick"
BLOCK_BYTES = 4096
_IMAGE, _HALF = ".img", ".img.new"
_HANDLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_MAX_BYTES = 2**63 - BLOCK_BYTES


class Images:
    def __init__(self, place: Place) -> None:
        self._place = place
        self._folder = place.volumes_fd
        self._where = str(place.path / VOLUMES)

    def create(self, request: CreateVolume) -> VolumeInfo:
        name = image_name(request.ref)
        size_bytes = whole_blocks(request.size_bytes)
        with self._guarded("making a volume"):
            existing = self._look(request.ref)
            if existing is not None:
                if existing.size_bytes != size_bytes:
                    raise IncompatibleExists(
                        f"volume {request.ref.object_name} exists with {existing.size_bytes} bytes,"
                        f" not {size_bytes}"
                    )
                return existing
            self._discard(request.ref.object_name + _HALF)
            if request.thick:
                self._check_room(size_bytes)
            try:
                self._make(request, size_bytes)
                os.rename(
                    request.ref.object_name + _HALF, name, src_dir_fd=self._folder, dst_dir_fd=self._folder
                )
                os.fsync(self._folder)
            except OSError as error:
                # Only after this clean-up may "no room" be said, which means that nothing is left.
                self._discard(request.ref.object_name + _HALF)
                self._discard(name)
                os.fsync(self._folder)
                raise translate(error, self._where, "making a volume") from error
        return VolumeInfo(request.ref, size_bytes, None, sealed=False)

    def seal(self, ref: VolumeRef) -> None:
        with self._guarded("sealing a volume"), self._opened(ref) as descriptor:
            os.setxattr(descriptor, SEALED, b"true")
            os.fsync(descriptor)

    def delete(self, ref: VolumeRef) -> None:
        name = image_name(ref)
        with self._guarded("deleting a volume"):
            status = None
            with contextlib.suppress(FileNotFoundError):
                status = os.stat(name, dir_fd=self._folder, follow_symlinks=False)
            if status is not None and (holders := holders_of(status, name)):
                raise VolumeInUse(f"volume {ref.object_name} is still held by {', '.join(holders)}")
            for candidate in (ref.object_name + _HALF, name):
                self._discard(candidate)
            os.fsync(self._folder)  # also when nothing was found: an earlier call may have died before this

    def get(self, ref: VolumeRef) -> VolumeInfo | None:
        with self._guarded("looking for a volume"):
            return self._look(ref)

    def extend(self, ref: VolumeRef, size_bytes: int) -> VolumeInfo:
        size_bytes = whole_blocks(size_bytes)
        with self._guarded("extending a volume"), self._opened(ref) as descriptor:
            old_bytes = os.fstat(descriptor).st_size
            if size_bytes > old_bytes:
                thick = _attribute(descriptor, THICK) == "true"
                if thick:
                    self._check_room(size_bytes - old_bytes)
                try:
                    if thick:
                        os.posix_fallocate(descriptor, old_bytes, size_bytes - old_bytes)
                    os.ftruncate(descriptor, size_bytes)
                    os.fsync(descriptor)
                except OSError as error:
                    # Nothing can stand in the grown part: no device was told of it yet.
                    os.ftruncate(descriptor, old_bytes)
                    os.fsync(descriptor)
                    raise translate(error, self._where, "extending a volume") from error
            return self._describe(ref, descriptor)

    def inventory(self) -> list[VolumeInfo]:
        with self._guarded("listing volumes"):
            return [info for name in names_in(self._folder) if (info := self._listed(name)) is not None]

    def usage(self) -> tuple[int, int, int, int]:
        """total, free, allocated, provisioned bytes."""
        allocated_bytes = provisioned_bytes = 0
        with self._guarded("measuring the pool"):
            for name in names_in(self._folder):
                with contextlib.suppress(FileNotFoundError):  # deleted in this moment
                    status = os.stat(name, dir_fd=self._folder, follow_symlinks=False)
                    allocated_bytes += status.st_blocks * 512
                    provisioned_bytes += status.st_size
            room = os.fstatvfs(self._folder)
        return (
            room.f_blocks * room.f_frsize,
            room.f_bavail * room.f_frsize,
            allocated_bytes,
            provisioned_bytes,
        )

    @contextlib.contextmanager
    def _guarded(self, doing: str) -> Iterator[None]:
        """Only on a verified place; an OSError leaves as what it means."""
        self._place.verify()
        try:
            yield
        except OSError as error:
            translated = translate(error, self._where, doing)
            if isinstance(translated, OutOfCapacity):
                # That would say "nothing is left", which only the code that cleaned up can know.
                raise BackendUnavailable(translated.message) from error
            raise translated from error

    def _make(self, request: CreateVolume, size_bytes: int) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(request.ref.object_name + _HALF, flags, 0o600, dir_fd=self._folder)
        try:
            os.setxattr(descriptor, IDENTITY, request.ref.object_name.encode())
            os.setxattr(descriptor, SEALED, b"false")
            if request.thick:
                os.setxattr(descriptor, THICK, b"true")
                os.posix_fallocate(descriptor, 0, size_bytes)
            os.ftruncate(descriptor, size_bytes)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _check_room(self, size_bytes: int) -> None:
        """Before a large allocation: filling the disk and then taking it back would harm the neighbours."""
        room = os.fstatvfs(self._folder)
        free_bytes = room.f_bavail * room.f_frsize
        if size_bytes > free_bytes:
            raise OutOfCapacity(f"{self._where} has {free_bytes} bytes free, {size_bytes} wanted")

    def _look(self, ref: VolumeRef) -> VolumeInfo | None:
        try:
            with self._opened(ref) as descriptor:
                return self._describe(ref, descriptor)
        except NotFound:
            return None

    @contextlib.contextmanager
    def _opened(self, ref: VolumeRef) -> Iterator[int]:
        """The image, proved to be a plain file with our identity. Errors: NotFound, BackendUnavailable."""
        try:
            descriptor = os.open(
                image_name(ref),
                os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
                dir_fd=self._folder,
            )
        except FileNotFoundError:
            raise NotFound(f"volume {ref.object_name} does not exist") from None
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                raise
            raise self._foreign(ref, "is no plain file") from None
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise self._foreign(ref, "is no plain file")
            if (said := _attribute(descriptor, IDENTITY)) != ref.object_name:
                raise self._foreign(
                    ref, f"says in attribute {IDENTITY} that it is {said!r} (copied without its attributes?)"
                )
            yield descriptor
        finally:
            os.close(descriptor)

    def _foreign(self, ref: VolumeRef, what: str) -> StorageError:
        return BackendUnavailable(f"{self._where}/{image_name(ref)} {what}", reason="ForeignImage")

    def _describe(self, ref: VolumeRef, descriptor: int) -> VolumeInfo:
        # Unsealed is only what says so: an image without the attribute may be somebody's data.
        sealed = _attribute(descriptor, SEALED) != "false"
        return VolumeInfo(ref, os.fstat(descriptor).st_size, None, sealed=sealed)

    def _listed(self, name: str) -> VolumeInfo | None:
        half = name.endswith(_HALF)
        ref = VolumeRef.from_object_name(name.removesuffix(_HALF if half else _IMAGE))
        if ref is None or not (half or name.endswith(_IMAGE)) or not _HANDLE.fullmatch(ref.handle):
            return None
        try:
            status = os.stat(name, dir_fd=self._folder, follow_symlinks=False)
            if not stat.S_ISREG(status.st_mode):
                return None
            if half:
                return VolumeInfo(ref, status.st_size, None, sealed=False, complete=False)
            sealed = _attribute(f"/proc/self/fd/{self._folder}/{name}", SEALED) != "false"
        except FileNotFoundError:
            return None  # deleted while we listed
        return VolumeInfo(ref, status.st_size, None, sealed=sealed)

    def _discard(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._folder)


def image_name(ref: VolumeRef) -> str:
    """Errors: InvalidRequest, for a handle that could be anything but one file name."""
    if not _HANDLE.fullmatch(ref.handle) or ref.grant < 0:
        raise InvalidRequest(f"{ref.handle!r} is not a handle")
    return ref.object_name + _IMAGE


def whole_blocks(size_bytes: int) -> int:
    """Rounded up to 4096, so that every device has whole sectors of any size."""
    if size_bytes <= 0:
        raise InvalidRequest(f"a volume of {size_bytes} bytes cannot be made")
    if size_bytes > _MAX_BYTES:
        raise OutOfCapacity(f"no file holds {size_bytes} bytes")
    return -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES


def _attribute(file: int | str, name: str) -> str | None:
    try:
        return os.getxattr(file, name).decode(errors="replace")
    except OSError as error:
        if error.errno == errno.ENODATA:
            return None
        raise
