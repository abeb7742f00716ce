"""The folder of a pool, opened: found or made without following any link, marked, locked, and checked before use."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from cinderblock.core.errors import BackendUnavailable, InvalidRequest, Lost
from cinderblock.drivers.file.marker import (
    HOLDER,
    MARKER,
    HeldLock,
    make_marker,
    read_marker,
    sweep,
    take_lock,
)
from cinderblock.drivers.file.oserrors import translate

VOLUMES = "volumes"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FICLONE = 0x40049409
_PROBE_ATTRIBUTE = "user.cinderblock.probe"


@dataclass(frozen=True)
class Place:
    """An open pool. Holds descriptors: whatever is mounted over the path later, we write where we looked."""

    path: Path
    pool_id: str
    reflink: bool
    folder_fd: int
    volumes_fd: int
    lock: HeldLock

    def verify(self) -> None:
        """Raise BackendUnavailable unless the path still leads here and the marker is still ours."""
        try:
            here, there = os.fstat(self.folder_fd), self.path.lstat()
            marker = read_marker(self.folder_fd, str(self.path))
        except Lost as error:
            raise BackendUnavailable(error.message, reason="PoolChanged") from None
        except OSError as error:
            raise translate(error, str(self.path), "looking at the pool") from error
        if (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino):
            raise BackendUnavailable(
                f"{self.path} is not the folder that was opened: something was mounted or unmounted there",
                reason="PoolChanged",
            )
        if marker != self.pool_id:
            raise BackendUnavailable(f"{self.path} lost its marker {MARKER}", reason="PoolChanged")

    def close(self) -> None:
        os.close(self.volumes_fd)
        os.close(self.folder_fd)
        self.lock.release()


def open_folder(root: Path, directory: str, *, make: bool) -> int:
    """A descriptor of root/directory. Missing parts are made only with `make`. Errors: OSError, InvalidRequest."""
    current = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        parts = directory.split("/")
        for position, part in enumerate(parts):
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o700, dir_fd=current)
                    os.fsync(current)
            inner = os.open(part, _FOLDER, dir_fd=current)
            os.close(current)
            current = inner
            if position + 1 < len(parts) and _exists(MARKER, current):
                raise InvalidRequest(
                    f"{directory} lies inside another pool, {'/'.join(parts[: position + 1])}"
                )
        return current
    except BaseException:
        os.close(current)
        raise


def open_place(root: Path, directory: str, known_pool_id: str | None, *, mounted: bool) -> Place:
    """Open, and where nothing is known of it make, the pool at root/directory.

    `mounted`: the folder is the root of the pool's own filesystem and must not be made here.
    Errors: Lost, InvalidRequest, BackendUnavailable.
    """
    path = root / directory
    with contextlib.ExitStack() as undo:
        try:
            folder_fd = open_folder(root, directory, make=known_pool_id is None and not mounted)
            undo.callback(os.close, folder_fd)
            _check_marker(folder_fd, path, known_pool_id)
            lock = take_lock(folder_fd, MARKER, HOLDER, create=False, what=str(path))
            undo.callback(lock.release)
            pool_id = _check_marker(folder_fd, path, known_pool_id)
            sweep(folder_fd)
            with contextlib.suppress(FileExistsError):
                os.mkdir(VOLUMES, 0o700, dir_fd=folder_fd)
                os.fsync(folder_fd)
            volumes_fd = os.open(VOLUMES, _FOLDER, dir_fd=folder_fd)
            undo.callback(os.close, volumes_fd)
            reflink = _probe(volumes_fd, path)
        except OSError as error:
            raise _opening_error(error, path, known_pool_id) from error
        undo.pop_all()
    return Place(path, pool_id, reflink, folder_fd, volumes_fd, lock)


def _check_marker(folder_fd: int, path: Path, known_pool_id: str | None) -> str:
    found = read_marker(folder_fd, str(path))
    if known_pool_id is not None and found != known_pool_id:
        what = "carries no marker" if found is None else f"carries the marker of another pool, {found}"
        raise Lost(
            f"{path} {what}; pool id {known_pool_id} is expected: is its disk mounted? To give the data up,"
            " delete the Volumes of this Pool and then the Pool"
        )
    if found is not None:
        return found
    if _has_volumes(folder_fd):
        raise Lost(f"{path} holds volumes but no marker {MARKER}: restore the marker, or empty the folder")
    return make_marker(folder_fd, str(path))


def names_in(folder_fd: int) -> list[str]:
    """A fresh listing. On a descriptor of its own: two listings on one would share its position and miss names."""
    own = os.open(".", _FOLDER, dir_fd=folder_fd)
    try:
        with os.scandir(own) as entries:
            return [entry.name for entry in entries]
    finally:
        os.close(own)


def _has_volumes(folder_fd: int) -> bool:
    try:
        volumes_fd = os.open(VOLUMES, _FOLDER, dir_fd=folder_fd)
    except FileNotFoundError:
        return False
    try:
        return bool(names_in(volumes_fd))
    finally:
        os.close(volumes_fd)


def _opening_error(error: OSError, path: Path, known_pool_id: str | None) -> Exception:
    if isinstance(error, FileNotFoundError) and known_pool_id is not None:
        return Lost(f"{path} is not there; pool id {known_pool_id} is expected: is its disk mounted?")
    if error.errno in (errno.ELOOP, errno.ENOTDIR):
        return InvalidRequest(
            f"{path} is or passes through something that is no folder: symbolic links are not followed,"
            " use a bind mount"
        )
    translated = translate(error, str(path), "opening the pool")
    # Opening has no OutOfCapacity: the folder is there, only full, and this may pass.
    return BackendUnavailable(translated.message) if error.errno == errno.ENOSPC else translated


def _probe(volumes_fd: int, path: Path) -> bool:
    """Whether files here can share blocks. Errors: BackendUnavailable where they cannot carry attributes."""
    with contextlib.ExitStack() as stack:
        source = _nameless(volumes_fd)
        stack.callback(os.close, source)
        try:
            os.setxattr(source, _PROBE_ATTRIBUTE, b"1")
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            raise BackendUnavailable(
                f"the filesystem of {path} has no user attributes; use ext4, xfs or btrfs",
                reason="FilesystemNotSupported",
            ) from None
        target = _nameless(volumes_fd)
        stack.callback(os.close, target)
        try:
            os.write(source, bytes(4096))
            fcntl.ioctl(target, _FICLONE, source)
        except OSError:  # EOPNOTSUPP, ENOTTY, EINVAL by filesystem; ENOSPC: cannot tell, so promise nothing
            return False
        return True


def _nameless(folder_fd: int) -> int:
    """A file without a name, which goes with its descriptor."""
    try:
        return os.open(_proc(folder_fd, "."), os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR):
            raise
    name = f".probe-{secrets.token_hex(8)}"  # this filesystem has no nameless files
    descriptor = os.open(
        name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder_fd
    )
    os.unlink(name, dir_fd=folder_fd)
    return descriptor


def _proc(folder_fd: int, name: str) -> str:
    """A path for calls that take no folder descriptor."""
    return f"/proc/self/fd/{folder_fd}/{name}"


def _exists(name: str, folder_fd: int) -> bool:
    try:
        os.stat(name, dir_fd=folder_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
