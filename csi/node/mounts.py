"""Mounting and unmounting, each judged afterwards by the kernel's mountinfo.

Targets are never followed where they are symbolic links, and nothing is ever deleted but an empty folder or an
empty file that is no mount point: below a mount point lies a user's data.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from cinderblock.core.errors import BackendFault, InvalidRequest, OperationTimeout, VolumeInUse
from cinderblock.core.process import CommandFailed, Runner
from cinderblock.csi.connectors.base import Device
from cinderblock.csi.node.mountinfo import Mount, device_node_number, kernel_path, mount_at

# The journal is replayed, or much dirty data is flushed; a kill would not stop the kernel in either.
_MOUNT_DEADLINE = _UMOUNT_DEADLINE = 900.0
_STACK_MAX = 16


class Mounter:
    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    async def mount(self, device: Device, fs_type: str, path: str, options: Sequence[str]) -> None:
        """Mount a filesystem. Errors: CommandFailed, OperationTimeout; nothing stays mounted after an error."""
        path = ensure_directory(path)
        argv = ["mount", "-t", fs_type, "-o", ",".join(options) or "rw", "--", str(device.path), path]
        try:
            await self._runner.run(argv, timeout=_MOUNT_DEADLINE)
            mounted = mount_at(path)
            if mounted is None or mounted.device != device.number:
                raise BackendFault(f"mount said yes, and {path} does not show {device.path}")
        except (CommandFailed, OperationTimeout, BackendFault):
            if (left := mount_at(path)) is not None and left.device == device.number:
                await self.unmount(path)
            raise

    async def bind(self, source: str, path: str, *, read_only: bool) -> None:
        """Show the folder or device node `source` at `path`, which exists and is of the same kind."""
        await self._runner.run(["mount", "--bind", "--", source, path], timeout=_MOUNT_DEADLINE)
        if read_only:
            try:
                await self._runner.run(
                    ["mount", "-o", "remount,bind,ro", "--", path], timeout=_MOUNT_DEADLINE
                )
                mounted = mount_at(path)
                if mounted is None or "ro" not in mounted.options:
                    raise BackendFault(f"{path} did not become read-only")
            except (CommandFailed, OperationTimeout, BackendFault):
                await self.unmount(path)
                raise

    async def unmount(self, path: str) -> None:
        """Until mountinfo shows nothing there. Not mounted = success. Errors: VolumeInUse (busy)."""
        for _ in range(_STACK_MAX):
            if mount_at(path) is None:
                return
            try:
                # The name is a mount point, so it cannot be a link; the kernel's spelling of it leaves no other.
                await self._runner.run(["umount", "--", kernel_path(path)], timeout=_UMOUNT_DEADLINE)
            except CommandFailed as error:
                if mount_at(path) is not None:
                    text = error.result.stderr.decode(errors="replace")
                    if "busy" in text:
                        raise VolumeInUse(f"{path} is busy: a program still uses it") from None
                    raise
        raise VolumeInUse(f"{path} is mounted more than {_STACK_MAX} times over")


def _lstat(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None


def ensure_directory(path: str) -> str:
    """The kernel's name of `path`, a folder and no link; made where it is missing (its parent is not).

    Errors: InvalidRequest.
    """
    path = kernel_path(path)
    try:
        with contextlib.suppress(FileExistsError):
            Path(path).mkdir(mode=0o750)
    except FileNotFoundError:
        raise InvalidRequest(f"{Path(path).parent} does not exist") from None
    found = _lstat(path)
    if found is None or not stat.S_ISDIR(found.st_mode):
        raise InvalidRequest(f"{path} is not a folder")
    return path


def ensure_file(path: str) -> str:
    """The same for a plain file, to bind a device node onto."""
    path = kernel_path(path)
    try:
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    except FileNotFoundError:
        raise InvalidRequest(f"{Path(path).parent} does not exist") from None
    found = _lstat(path)
    if found is None or not stat.S_ISREG(found.st_mode):
        raise InvalidRequest(f"{path} is not a plain file")
    return path


def remove_place(path: str) -> None:
    """Remove an empty folder or an empty file that is no mount point; missing = success.

    Errors: VolumeInUse (mounted), InvalidRequest (holds something, so it is not ours to remove).
    """
    path = kernel_path(path)
    found = _lstat(path)
    if found is None:
        return
    if mount_at(path) is not None:
        raise VolumeInUse(f"{path} is still mounted")
    try:
        if stat.S_ISDIR(found.st_mode):
            Path(path).rmdir()
        elif stat.S_ISREG(found.st_mode) and found.st_size == 0:
            Path(path).unlink(missing_ok=True)
        else:
            raise InvalidRequest(f"{path} is neither an empty folder nor an empty file: it is left alone")
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise InvalidRequest(f"{path} holds files: it is left alone") from None
        if error.errno == errno.EBUSY:
            raise VolumeInUse(f"{path} is a mount point in another mount namespace") from None
        raise


def shows_device(mount: Mount, device: Device) -> bool:
    """Whether this mount is of that device: its filesystem, or its bind-mounted node."""
    return mount.device == device.number or device_node_number(mount) == device.number
