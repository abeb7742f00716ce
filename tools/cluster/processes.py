"""Daemons that outlive the command that started them, found again by pid files that cannot lie.

A pid file holds the process's own /proc stat line and the boot id, written by the process itself just before
it becomes the program: so there is no moment in which a started process is unknown, and a pid that the
kernel gave to somebody else is never signalled (the start time differs).
"""

import contextlib
import os
import select
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.shell import ToolError, tail

_LAUNCHER = 'cat "/proc/$$/stat" /proc/sys/kernel/random/boot_id >"$0.new" && mv "$0.new" "$0" && exec "$@"'
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Identity:
    """Which process, beyond doubt: start_ticks counts from boot."""

    pid: int
    start_ticks: int
    boot_id: str


def parse_stat(text: str) -> tuple[int, str, int]:
    """pid, state letter and start time of a /proc stat line; the program's name may hold spaces and
    brackets."""
    pid = int(text.split(" ", 1)[0])
    fields = text.rpartition(")")[2].split()
    return pid, fields[0], int(fields[19])


def parse_pid_file(text: str) -> Identity | None:
    """What a pid file says; None for a torn or foreign one."""
    lines = text.splitlines()
    try:
        pid, _, start = parse_stat(lines[0])
        return Identity(pid, start, lines[1].strip())
    except (IndexError, ValueError):
        return None


def is_running(identity: Identity) -> bool:
    """That very process lives; a zombie does not count."""
    try:
        if _BOOT_ID.read_text().strip() != identity.boot_id:
            return False
        _, state, start = parse_stat(Path(f"/proc/{identity.pid}/stat").read_text())
    except (OSError, ValueError, IndexError):
        return False
    return start == identity.start_ticks and state not in "ZX"


@dataclass(frozen=True)
class Daemon:
    """One background program with a pid file and a log."""

    name: str
    pid_file: Path
    log: Path

    def identity(self) -> Identity | None:
        """Who the pid file names, alive or not."""
        try:
            return parse_pid_file(self.pid_file.read_text())
        except FileNotFoundError:
            return None

    def running(self) -> Identity | None:
        """The living process, or None."""
        identity = self.identity()
        return identity if identity is not None and is_running(identity) else None

    def start(self, argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None) -> Identity:
        """Start in a session of its own unless it runs already; returns once the pid file stands."""
        if alive := self.running():
            return alive
        self.pid_file.unlink(missing_ok=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        # posix_spawn, not Popen: nothing here waits for the child, and a forgotten Popen warns.
        child = os.posix_spawn(
            "/bin/sh",
            ["sh", "-c", _LAUNCHER, str(self.pid_file), *map(str, argv)],
            {**os.environ, **(env or {})},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(self.log), flags, 0o644),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
        )
        deadline = time.monotonic() + 10
        while (identity := self.identity()) is None:
            if time.monotonic() > deadline or _reaped(child):
                raise ToolError(f"{self.name} did not start:\n{tail(self.log)}")
            time.sleep(0.002)
        return identity

    def stop(self, *, grace: float) -> None:
        """SIGTERM, after `grace` seconds SIGKILL, until it is gone; the pid file goes last."""
        identity = self.identity()
        if identity is not None:
            _end(self.name, identity, grace)
        self.pid_file.unlink(missing_ok=True)

    def require_running(self) -> None:
        """ToolError with the end of its log where it has died."""
        if self.running() is None:
            raise ToolError(f"{self.name} has ended; its log ({self.log}) says:\n{tail(self.log)}")


def _end(name: str, identity: Identity, grace: float) -> None:
    try:
        handle = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return
    try:
        # The handle is taken first: while we hold it, the pid cannot change its owner under the check.
        if not is_running(identity):
            _reaped(identity.pid)
            return
        if grace > 0:
            signal.pidfd_send_signal(handle, signal.SIGTERM)
        if not _ended(handle, grace):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            if not _ended(handle, 30):
                raise ToolError(f"{name} (pid {identity.pid}) does not end on SIGKILL")
        _reaped(identity.pid)
    finally:
        os.close(handle)


def _ended(handle: int, timeout: float) -> bool:
    return bool(select.select([handle], [], [], max(timeout, 0))[0])


def _reaped(pid: int) -> bool:
    """Collect the child where it is ours and has ended."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return False
