"""A child process that dies by SIGKILL at a chosen call to the kernel, or whenever its parent likes."""

import asyncio
import contextlib
import os
import random
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
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


def one_verb(
    root: str, verb: str, ref: VolumeRef, thick: bool, at: int, after: bool, log: Connection
) -> None:
    """Run one verb and be killed at the call number `at`; sends the names of the calls if it gets to the end."""

    async def main() -> list[str]:
        driver = FileSubject(Path(root)).new_driver()
        killer = Killer(at, after=after)
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

    log.send(asyncio.run(main()))


def busy(root: str, seed: int, ready: Connection) -> None:
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
        driver = FileSubject(Path(root)).new_driver()
        await driver.open({})
        ready.send("ready")
        await asyncio.gather(*(churn(driver, random.Random(f"{seed}-{lane}")) for lane in range(8)))

    asyncio.run(main())
