"""The floor: the least that two kopf processes can do, with three writes per object and nothing to decide.

`python -m tools.bench.bare_pipeline one|two KUBECONFIG`. Process one sees every object and writes an allocation;
process two watches by field selector what was allocated to it and writes the result. What our operator and host
cost beyond this, on the same API server in the same run, is ours.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import kopf

from cinderblock.core.kube.adapter import ApiServerKube, connect
from tools.bench.kinds import BARE_HOST, BareVolume

_GROUP, _, _VERSION = BareVolume.API_VERSION.partition("/")
_WORKERS = 16
Body = dict[str, Any]


def allocate(body: Body) -> Body | None:
    """Process one's whole decision."""
    if (body.get("status") or {}).get("allocation"):
        return None
    return {"allocation": {"host": BARE_HOST, "pool": "bare-pool"}, "phase": "Scheduled"}


def provide(body: Body) -> Body | None:
    """Process two's whole decision."""
    if (body.get("status") or {}).get("phase") == "Available":
        return None
    return {"phase": "Available", "capacityBytes": 2**30}


async def _write(kube: ApiServerKube, session: aiohttp.ClientSession, body: Body, status: Body) -> None:
    meta = body["metadata"]
    url = (
        f"{kube.credentials.server}/apis/{BareVolume.API_VERSION}/namespaces/{meta['namespace']}"
        f"/{BareVolume.PLURAL}/{meta['name']}/status"
    )
    patch = {"metadata": {"resourceVersion": meta["resourceVersion"]}, "status": status}
    headers = {"Content-Type": "application/merge-patch+json"}
    async with session.patch(
        url, data=json.dumps(patch), headers=headers, timeout=aiohttp.ClientTimeout(total=10)
    ) as answer:
        await answer.read()  # a conflict needs no answer: the newer object is on its way to us


async def pipeline(kubeconfig: Path, decide: Callable[[Body], Body | None], selector: str) -> None:
    """Watch, queue, decide, write, until told to stop."""
    queue: asyncio.Queue[Body] = asyncio.Queue()
    registry = kopf.OperatorRegistry()
    settings = kopf.OperatorSettings()
    settings.peering.standalone = True
    settings.scanning.disabled = True
    settings.posting.enabled = False
    settings.queueing.idle_timeout = 1.0
    if selector:
        settings.watching.field_selectors[f"{BareVolume.PLURAL}.{_GROUP}"] = selector
    async with connect(kubeconfig) as kube, kube.open_session() as session:

        @kopf.on.login(id="login", registry=registry)
        async def login(**_: Any) -> kopf.AiohttpSession:
            return kopf.AiohttpSession(server=kube.credentials.server, aiohttp_session=kube.open_session())

        @kopf.on.event(_GROUP, _VERSION, BareVolume.PLURAL, id="bare", registry=registry)
        async def bare(event: kopf.RawEvent, **_: Any) -> None:
            if event["type"] != "DELETED":
                queue.put_nowait(dict(event["object"]))

        async def work() -> None:
            while True:
                body = await queue.get()
                if (status := decide(body)) is not None:
                    await _write(kube, session, body, status)

        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        async with asyncio.TaskGroup() as group:
            workers = [group.create_task(work()) for _ in range(_WORKERS)]
            await kopf.operator(
                registry=registry, settings=settings, standalone=True, clusterwide=True, stop_flag=stop
            )
            for worker in workers:
                worker.cancel()


def main(argv: list[str]) -> None:
    which, kubeconfig = argv
    if which == "one":
        asyncio.run(pipeline(Path(kubeconfig), allocate, ""))
    else:
        asyncio.run(pipeline(Path(kubeconfig), provide, f"status.allocation.host={BARE_HOST}"))


if __name__ == "__main__":
    main(sys.argv[1:])
