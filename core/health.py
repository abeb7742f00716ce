"""One HTTP endpoint per process: /metrics for Prometheus, /healthz and /readyz for the kubelet.

An answer at all proves that the event loop runs; the checks say whether the rest does.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

Check = Callable[[], str | None]  # None = well, else what is wrong


class Health:
    """Named checks; add and drop them as parts of the process come and go."""

    def __init__(self) -> None:
        self._alive: dict[str, Check] = {}
        self._ready: dict[str, Check] = {}

    def alive(self, name: str, check: Check) -> None:
        """While this says what is wrong, the kubelet shall restart the container."""
        self._alive[name] = check

    def ready(self, name: str, check: Check) -> None:
        """While this says what is wrong, the process does not serve yet."""
        self._ready[name] = check

    def faults(self, *, ready: bool) -> list[str]:
        checks = {**self._alive, **self._ready} if ready else self._alive
        return [f"{name}: {fault}" for name, check in checks.items() if (fault := check()) is not None]


@contextlib.asynccontextmanager
async def endpoint(
    health: Health, registry: CollectorRegistry, *, port: int, address: str = ""
) -> AsyncIterator[int]:
    """Serve until the end of the block; yields the port. Port 0 serves nothing."""
    if not port:
        yield 0
        return

    async def metrics(_: web.Request) -> web.Response:
        body = generate_latest(registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    def probe(*, ready: bool) -> Callable[[web.Request], object]:
        async def answer(_: web.Request) -> web.Response:
            faults = health.faults(ready=ready)
            return web.Response(status=503 if faults else 200, text="\n".join(faults) or "ok")

        return answer

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/healthz", probe(ready=False))  # type: ignore[arg-type]
    app.router.add_get("/readyz", probe(ready=True))  # type: ignore[arg-type]
    runner = web.AppRunner(app, access_log=None, keepalive_timeout=5, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, address or None, port).start()
        yield port
    finally:
        await runner.cleanup()
