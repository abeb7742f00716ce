"""Opening a file strictly below a folder: one component at a time, never through a symbolic link."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from cinderblock.core.errors import BackendUnavailable, InvalidRequest

_PATH_MAX = 4096


def components(path: str) -> list[str]:
    """The parts of a relative path. InvalidRequest: absolute, empty, `.` or `..`, or the root itself."""
    parts = path.split("/")
    if len(path) > _PATH_MAX or "\0" in path or any(part in ("", ".", "..") for part in parts):
        raise InvalidRequest(f"{path!r} is not a path below the pools' root")
    return parts


def open_beneath(root: Path, path: str, *, read_only: bool) -> int:
    """A descriptor of the regular file `path` below `root`; the caller closes it.

    Errors: InvalidRequest (leaves the root, a link, no regular file), BackendUnavailable (not there).
    """
    *folders, name = components(path)
    current = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for folder in folders:
            inner = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=current)
            os.close(current)
            current = inner
        # O_NONBLOCK: a FIFO put there must not hang us.
        mode = os.O_RDONLY if read_only else os.O_RDWR
        opened = os.open(name, mode | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=current)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO):
            raise InvalidRequest(f"{path!r} is not a plain file below the pools' root") from None
        raise BackendUnavailable(
            f"image {path!r} cannot be opened: {os.strerror(error.errno or 0)}"
        ) from None
    finally:
        os.close(current)
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise InvalidRequest(f"{path!r} is not a plain file below the pools' root")
    return opened
