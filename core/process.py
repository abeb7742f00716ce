"""The only place that starts programs.

Every program is an argv list with a deadline; secrets go in by stdin, never by argv. A child dies with us
(PDEATHSIG) so that a killed process leaves no command behind that a fresh one would race with.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cinderblock.core.errors import BackendFault, OperationTimeout

_PR_SET_PDEATHSIG = 1


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

        Errors: CommandFailed on a return code outside `ok`; OperationTimeout when the deadline passes (the
        program was killed and reaped); FileNotFoundError is turned into CommandFailed with code 127.
        A cancelled caller kills the program before the cancellation goes on.
        """


def _die_with_parent() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class SystemRunner:
    async def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float = 30.0,
        stdin: bytes | None = None,
        ok: Sequence[int] = (0,),
    ) -> Result:
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.PIPE if stdin is not None else asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                preexec_fn=_die_with_parent,
                env={"PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), "LC_ALL": "C"},
            )
        except FileNotFoundError:
            raise CommandFailed(argv, Result(127, b"", f"{argv[0]}: not installed".encode())) from None
        try:
            async with asyncio.timeout(timeout):
                stdout, stderr = await process.communicate(stdin)
        except TimeoutError:
            raise OperationTimeout(f"{argv[0]} did not end within {timeout:g} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        result = Result(process.returncode or 0, stdout, stderr)
        if result.returncode not in ok:
            raise CommandFailed(argv, result)
        return result
