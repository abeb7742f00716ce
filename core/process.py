"""The only place that starts programs.

Every program is an argv list with a deadline; secrets go in by stdin, never by argv. A child dies with us
(PDEATHSIG) so that a killed process leaves no command behind that a fresh one would race with.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cinderblock.core.errors import BackendFault, OperationTimeout

# Between our fork and its PDEATHSIG a child can lose us unnoticed: it looks who its parent is before it begins.
_ONLY_CHILD_OF = 'test "$PPID" = "$0" && exec "$@"; exit 125'
_REAP_SECONDS = 2.0  # a program in an uninterruptible wait is not waited for: every call has a deadline


@dataclass(frozen=True)
class Result:
    returncode: int
    stdout: bytes
    stderr: bytes


class CommandFailed(BackendFault):
    """A program ended with an unexpected code; `result` holds what it printed."""

    default_reason = "CommandFailed"

    def __init__(self, argv: Sequence[str], result: Result) -> None:
        tail = result.stderr.decode(errors="replace").strip()[-400:]
        super().__init__(f"{argv[0]} ended with {result.returncode}: {tail}")
        self.result = result


class Runner(Protocol):
    """The process port: tests inject faults here."""

    async def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float = 30.0,
        stdin: bytes | None = None,
        ok: Sequence[int] = (0,),
    ) -> Result:
        """Run argv to its end.

        Errors: CommandFailed on a return code outside `ok`, with code 127 where the program is missing and 126
        where it cannot be run; OperationTimeout when the deadline passes (the program and what it started were
        killed and reaped, or cannot be). A cancelled caller kills them before the cancellation goes on.
        """


def _program(name: str, path: str) -> str:
    """Where the program is. Errors: CommandFailed."""
    found = shutil.which(name, path=path)
    if found is not None:
        return found
    if "/" in name and Path(name).exists():
        raise CommandFailed([name], Result(126, b"", f"{name}: cannot be run".encode()))
    raise CommandFailed([name], Result(127, b"", f"{name}: not installed".encode()))


class SystemRunner:
    """Runs programs of this machine. To be used from the main thread: PDEATHSIG follows the thread that forks."""

    async def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float = 30.0,
        stdin: bytes | None = None,
        ok: Sequence[int] = (0,),
    ) -> Result:
        process = await _start(argv, stdin is not None)
        try:
            async with asyncio.timeout(timeout):
                stdout, stderr = await process.communicate(stdin)
        except TimeoutError:
            ended = await _end(process)
            raise OperationTimeout(
                f"{argv[0]} did not end within {timeout:g} s"
                + ("" if ended else f" and cannot be killed: process {process.pid} hangs in the kernel")
            ) from None
        except BaseException:
            await _end(process)
            raise
        result = Result(process.returncode or 0, stdout, stderr)
        if result.returncode not in ok:
            raise CommandFailed(argv, result)
        return result


async def _start(argv: Sequence[str], with_stdin: bool) -> asyncio.subprocess.Process:
    path = os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
    program = _program(argv[0], path)
    try:
        # setpriv sets PDEATHSIG in the child. A preexec_fn would do it without a program more, but it forces a
        # real fork, and code that runs there, ours or gRPC's fork handlers, crashes beside gRPC's threads.
        return await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "KILL", "--"),
            *("/bin/sh", "-c", _ONLY_CHILD_OF, str(os.getpid()), program, *argv[1:]),
            stdin=asyncio.subprocess.PIPE if with_stdin else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            # A group of its own: what the program starts ends with it, and Ctrl-C reaches only us.
            start_new_session=True,
            env={"PATH": path, "LC_ALL": "C"},
        )
    except FileNotFoundError:
        raise CommandFailed(argv, Result(127, b"", b"setpriv: not installed")) from None
    except OSError as error:
        said = f"{argv[0]}: cannot be run: {error.strerror}"
        raise CommandFailed(argv, Result(126, b"", said.encode())) from None


async def _end(process: asyncio.subprocess.Process) -> bool:
    """Kill the program and what it started, and reap it; False when the kernel does not let it go."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    try:
        async with asyncio.timeout(_REAP_SECONDS):
            await process.wait()
        return True
    except TimeoutError:
        return False
    finally:
        process._transport.close()  # type: ignore[attr-defined]  # else a pipe that somebody still holds stays open
