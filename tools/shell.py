"""Running other programs from the tools: argv only, always with a deadline, errors that say what was said.

The product has a process runner of its own (core/process.py); the tools do not use it, because they must work
before and without the product, and synchronously.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


class ToolError(Exception):
    """Something that a person can act on; shown without a traceback."""


def say(text: str) -> None:
    """Progress for the person who waits."""
    print(text, flush=True)


def run(
    argv: Sequence[str | Path],
    *,
    timeout: float,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: str | None = None,
    check: bool = True,
    log: Path | None = None,
) -> str:
    """Run to the end and return stdout; `env` is added to ours; `log` takes both streams instead.

    Raises ToolError when the program is missing, fails (with `check`) or outlives `timeout` (then it is
    killed with everything in its process group).
    """
    args = [str(part) for part in argv]
    stream = log.open("ab") if log is not None else None
    try:
        child = subprocess.Popen(
            args,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=stream or subprocess.PIPE,
            stderr=subprocess.STDOUT if stream else subprocess.PIPE,
            text=True,
            process_group=0,
        )
    except FileNotFoundError as error:
        raise ToolError(f"{args[0]} is not installed on this machine") from error
    finally:
        if stream is not None:
            stream.close()
    try:
        out, err = child.communicate(stdin, timeout=timeout)
    except BaseException as error:
        kill_group(child.pid)
        child.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise ToolError(f"{args[0]} did not end within {timeout:.0f} s: {' '.join(args)}") from None
        raise
    if check and child.returncode:
        said = tail(log) if log is not None else (err or out or "").strip()[-2000:]
        raise ToolError(f"{' '.join(args)[:300]} ended with {child.returncode}:\n{said}")
    return out or ""


def kill_group(pid: int) -> None:
    """SIGKILL to a process group that we made; gone is fine."""
    try:
        os.killpg(pid, 9)
    except ProcessLookupError:
        return


def tail(path: Path, lines: int = 15) -> str:
    """The last lines of a log, empty when there is none."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""


def wait_until(what: str, probe: Callable[[], bool], *, timeout: float, every: float = 0.05) -> None:
    """Poll until `probe` is true; ToolError naming `what` at the deadline; `probe` may raise one to give
    up."""
    deadline = time.monotonic() + timeout
    while not probe():
        if time.monotonic() >= deadline:
            raise ToolError(f"waited {timeout:.0f} s in vain for {what}")
        time.sleep(every)


def main_guard(main: Callable[[], int | None]) -> None:
    """Entry point wrapper: a ToolError becomes one line and exit code 1."""
    try:
        sys.exit(main() or 0)
    except ToolError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
