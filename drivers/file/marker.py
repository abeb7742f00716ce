"""The marker of a pool's folder, and the lock that makes one process its owner.

The marker carries the pool's random id. It is what tells our folder from an empty mount point: a folder whose id
is known and that carries none is refused, never made anew, or an unmounted disk would be written under.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import socket
import uuid
from dataclasses import dataclass

from cinderblock.core.errors import BackendUnavailable, Lost

MARKER = ".cinderblock-pool"
HOLDER = ".cinderblock-holder"
_MAX = 4096


@dataclass(frozen=True)
class HeldLock:
    """An exclusive lock on an open file; it goes with the descriptor, so also with the process."""

    descriptor: int

    def release(self) -> None:
        os.close(self.descriptor)


def take_lock(folder_fd: int, name: str, holder_name: str, *, create: bool, what: str) -> HeldLock:
    """Lock the file `name`. Errors: BackendUnavailable that names who holds it; OSError."""
    # Read-only is enough for a lock, and does not keep an admin from remounting the disk read-only.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_CREAT if create else 0)
    descriptor = os.open(name, flags, 0o600, dir_fd=folder_fd)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _write_holder(folder_fd, holder_name)
    except BlockingIOError:
        os.close(descriptor)
        holder = _read(folder_fd, holder_name) or "an unknown process"
        raise BackendUnavailable(
            f"{what} is in use by {holder}: one process at a time may own a pool", reason="PoolLocked"
        ) from None
    except BaseException:
        os.close(descriptor)
        raise
    return HeldLock(descriptor)


def read_marker(folder_fd: int, what: str) -> str | None:
    """The pool id, None without a marker. Errors: Lost (a marker that cannot be understood), OSError."""
    text = _read(folder_fd, MARKER)
    if text is None:
        return None
    try:
        return str(uuid.UUID(json.loads(text)["poolID"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Lost(f"{what}: the marker {MARKER} is damaged; restore it from Pool.status.poolID") from None


def make_marker(folder_fd: int, what: str) -> str:
    """A new random id, durable before it returns. Another process that was faster wins: its id is the answer."""
    pool_id = str(uuid.uuid4())
    temporary = f"{MARKER}.{secrets.token_hex(8)}"
    descriptor = os.open(
        temporary,
        os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
        0o600,
        dir_fd=folder_fd,
    )
    try:
        os.write(descriptor, (json.dumps({"poolID": pool_id, "version": 1}) + "\n").encode())
        os.fsync(descriptor)
        with contextlib.suppress(FileExistsError):
            os.link(temporary, MARKER, src_dir_fd=folder_fd, dst_dir_fd=folder_fd)
    finally:
        os.close(descriptor)
        os.unlink(temporary, dir_fd=folder_fd)
    os.fsync(folder_fd)
    found = read_marker(folder_fd, what)
    if found is None:
        raise BackendUnavailable(f"{what}: the marker vanished while it was made")
    return found


def sweep(folder_fd: int) -> None:
    """Remove what a killed `make_marker` left. Only under the lock."""
    for name in os.listdir(folder_fd):
        if name.startswith(f"{MARKER}."):
            os.unlink(name, dir_fd=folder_fd)


def _write_holder(folder_fd: int, name: str) -> None:
    """Who we are, for the one who is refused. Not needed for safety, so not synced."""
    descriptor = os.open(
        name,
        os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC,
        0o600,
        dir_fd=folder_fd,
    )
    try:
        with contextlib.suppress(OSError):  # a full pool must open all the same
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
    finally:
        os.close(descriptor)


def _read(folder_fd: int, name: str) -> str | None:
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder_fd)
    except FileNotFoundError:
        return None
    try:
        return os.read(descriptor, _MAX).decode(errors="replace").strip()
    finally:
        os.close(descriptor)
