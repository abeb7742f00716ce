"""SIGTERM means: stop cleanly, and within a limit, so that nobody waits for the kubelet's SIGKILL."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Coroutine

_EXIT_FORCED = 75


def on_signals(stop: Callable[[], object], *, limit: float) -> None:
    """Call `stop` at SIGTERM or SIGINT; end the process `limit` seconds later if it is still there.

    The end comes from a thread: a hanging event loop or executor cannot hold it up.
    """

    def asked() -> None:
        timer = threading.Timer(limit, os._exit, (_EXIT_FORCED,))
        timer.daemon = True
        timer.start()
        stop()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked)


async def until_signalled(work: Coroutine[object, object, None], *, limit: float) -> None:
    """Run work that serves until cancelled, and cancel it at SIGTERM. What it raises otherwise is raised."""
    task = asyncio.ensure_future(work)
    asked = False

    def stop() -> None:
        nonlocal asked
        asked = True
        task.cancel()

    on_signals(stop, limit=limit)
    try:
        await task
    except asyncio.CancelledError:
        if not asked:
            raise
