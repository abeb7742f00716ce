"""What a leader may still do: the Lease's remaining time, asked in the same step as every effect.

A process that was stopped, suspended or cut off comes back with work half done and a successor elsewhere. Whatever
it does next passes through here first, and a thread ends the process even when its event loop hangs.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

from cinderblock.core.api.meta import Resource
from cinderblock.core.clock import Clock
from cinderblock.core.errors import NotReady
from cinderblock.core.kube.fence import checked
from cinderblock.core.kube.port import Kube, KubeUnavailable
from cinderblock.core.kube.reads import PassedReads
from cinderblock.core.process import Result, Runner

R = TypeVar("R", bound=Resource)

_log = logging.getLogger(__name__)


class LeaseLost(KubeUnavailable):
    """This process leads no more: nothing was sent."""


class LeadershipLost(NotReady):
    """This process leads no more: the program was not started."""

    default_reason = "LeadershipLost"


class Guard:
    """Leadership with an end in local monotonic time. `epoch` tells this term from every other."""

    def __init__(self, clock: Clock, epoch: int) -> None:
        self._clock = clock
        self._until = float("-inf")
        self._ended = False
        self.epoch = epoch

    def extend(self, until: float) -> None:
        self._until = max(self._until, until)

    def end(self) -> None:
        """For good: a term that was given up does not come back."""
        self._ended = True

    @property
    def ended(self) -> bool:
        return self._ended

    def remaining(self) -> float:
        """Seconds in which effects may still begin; 0 or less = none."""
        return 0.0 if self._ended else self._until - self._clock.monotonic()

    def check(self) -> None:
        if self.remaining() <= 0:
            raise LeaseLost("this process leads no more")


class GuardedKube(PassedReads):
    """The port of a leader: reads pass, a write goes out only while there is time left."""

    def __init__(self, kube: Kube, guard: Guard) -> None:
        super().__init__(kube)
        self._guard = guard

    async def create(self, obj: R) -> R:
        with checked(self._guard.check):
            self._guard.check()
            return await self._kube.create(obj)

    async def update(self, before: R, after: R) -> R:
        with checked(self._guard.check):
            self._guard.check()
            return await self._kube.update(before, after)

    async def update_status(self, before: R, after: R) -> R:
        with checked(self._guard.check):
            self._guard.check()
            return await self._kube.update_status(before, after)

    async def delete(self, obj: R, *, unchanged: bool = False) -> None:
        with checked(self._guard.check):
            self._guard.check()
            await self._kube.delete(obj, unchanged=unchanged)


class GuardedRunner:
    """The process runner of a leader."""

    def __init__(self, runner: Runner, guard: Guard) -> None:
        self._runner = runner
        self._guard = guard

    async def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float = 30.0,
        stdin: bytes | None = None,
        ok: Sequence[int] = (0,),
    ) -> Result:
        if self._guard.remaining() <= 0:
            raise LeadershipLost(f"{argv[0]} was not started: this process leads no more")
        return await self._runner.run(argv, timeout=timeout, stdin=stdin, ok=ok)


def end_process(reason: str) -> NoReturn:
    """End now: no handler, no flush, no goodbye to anything that a successor may already own."""
    with contextlib.suppress(OSError, ValueError):
        os.write(2, f'{{"level":"critical","event":"ended: {reason}"}}\n'.encode())
    for children in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for pid in children.read_text().split():
                os.kill(int(pid), signal.SIGKILL)
    os._exit(70)


@contextlib.contextmanager
def watchdog(guard: Guard, end: Callable[[str], object] = end_process) -> Iterator[None]:
    """End the process when the Guard runs out, from a thread that a busy event loop cannot hold up."""
    stopped = threading.Event()

    def wait() -> None:
        while not guard.ended:
            left = guard.remaining()
            if left <= 0:
                if not guard.ended:
                    end("the Lease could not be renewed in time")
                return
            if stopped.wait(min(left, 1.0)):
                return

    thread = threading.Thread(target=wait, name="lease-watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
