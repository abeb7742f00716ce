"""Children that die by SIGKILL at a chosen call to the kernel, or at a random moment.

Run as a program this is a small clean process that forks a child for each line of JSON that it reads, and answers
with a line: children start at once, and without the threads of the test process.
"""

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from file_subject import FileSubject

from cinderblock.core.errors import StorageError
from cinderblock.drivers.base import CreateVolume, VolumeRef

CHANGING_CALLS = (
    "open",
    "write",
    "setxattr",
    "posix_fallocate",
    "ftruncate",
    "fsync",
    "rename",
    "link",
    "unlink",
    "mkdir",
    "close",
)


class Killer:
    """Counts calls into the kernel; the one with the chosen number is the last thing that this process does."""

    def __init__(self, at: int, *, after: bool) -> None:
        self.at = at
        self.after = after
        self.seen = 0
        self.log: list[str] = []
        self._lock = threading.Lock()

    def arm(self) -> None:
        for name in CHANGING_CALLS:
            setattr(os, name, self._wrap(name, getattr(os, name)))

    def _wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                self.seen += 1
                self.log.append(name)
                mine = self.seen == self.at
            if mine and not self.after:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return real(*args, **kwargs)
            finally:  # also after a call that failed
                if mine:
                    os.kill(os.getpid(), signal.SIGKILL)

        return wrapped


@dataclass(frozen=True)
class Order:
    """What a child does, and when it dies."""

    root: str
    verb: str  # or "busy": until it is killed, `delay` seconds after it is ready
    handle: str = ""
    grant: int = 1
    thick: bool = False
    at: int = 0
    after: bool = False
    seed: int = 0
    delay: float = 0.0


@dataclass(frozen=True)
class Outcome:
    killed: bool
    calls: tuple[str, ...] = ()  # of a child that got to the end


def one_verb(order: Order) -> list[str]:
    """Run one verb and be killed at the call number `at`; the names of the calls if it gets to the end."""
    root, verb, thick = order.root, order.verb, order.thick
    ref = VolumeRef(order.handle, order.grant)

    async def main() -> list[str]:
        driver = FileSubject(Path(root)).new_driver()
        killer = Killer(order.at, after=order.after)
        if verb == "open":
            killer.arm()
        await driver.open({})
        if verb != "open":
            killer.arm()
        if verb == "create":
            await driver.create_volume(CreateVolume(ref=ref, pool=None, size_bytes=1 << 20, thick=thick))
        elif verb == "delete":
            await driver.delete_volume(ref)
        elif verb == "extend":
            await driver.extend_volume(ref, 1 << 21)
        elif verb == "seal":
            await driver.seal_volume(ref)
        done = list(killer.log)
        killer.at = -1
        await driver.close()
        return done

    return asyncio.run(main())


def busy(order: Order, ready: Callable[[], object]) -> None:
    """Create, seal, extend and delete at random, eight at a time, until killed."""

    async def churn(driver: Any, dice: random.Random) -> None:
        while True:
            ref = VolumeRef(f"volume-{dice.randrange(12)}", 1)
            with contextlib.suppress(StorageError):
                match dice.randrange(4):
                    case 0 | 1:
                        await driver.create_volume(
                            CreateVolume(ref=ref, pool=None, size_bytes=1 << 20, thick=dice.random() < 0.5)
                        )
                    case 2:
                        await driver.extend_volume(ref, 1 << 21)
                    case _:
                        await driver.delete_volume(ref)

    async def main() -> None:
        driver = FileSubject(Path(order.root)).new_driver()
        await driver.open({})
        ready()
        await asyncio.gather(*(churn(driver, random.Random(f"{order.seed}-{lane}")) for lane in range(8)))

    asyncio.run(main())


def _child(order: Order, answer: int) -> None:
    if order.verb == "busy":
        busy(order, lambda: os.write(answer, b"ready"))
    else:
        os.write(answer, json.dumps(one_verb(order)).encode())


def _carry_out(order: Order) -> Outcome:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reader)
            _child(order, writer)
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    said = os.read(reader, 65536)
    if order.verb == "busy":
        time.sleep(order.delay)  # the moment of the kill, not a wait for something
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(reader)
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the child ended with {code}")
    return Outcome(killed=code != 0, calls=() if code else tuple(json.loads(said)))


class CrashServer:
    """The program's other end."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, order: Order) -> Outcome:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(order)) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the crash server died"
        return Outcome(**json.loads(line))

    def close(self) -> None:
        self._process.communicate(timeout=30)


if __name__ == "__main__":
    for request in sys.stdin:
        outcome = _carry_out(Order(**json.loads(request)))
        sys.stdout.write(json.dumps(asdict(outcome)) + "\n")
        sys.stdout.flush()
