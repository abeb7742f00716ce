"""The endpoint says what is wrong, and only what makes a restart useful fails /healthz."""

import socket

import aiohttp
from prometheus_client import CollectorRegistry

from cinderblock.core.health import Health, endpoint
from cinderblock.core.metrics import PrometheusQueueMetrics


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def test_probes_and_metrics():
    registry, health = CollectorRegistry(), Health()
    metrics = PrometheusQueueMetrics(registry)
    metrics.ran("volumes", 0.3, failed=True)
    metrics.depth("volumes", 4)
    fault = "not listed yet: volumes"
    health.ready("stores", lambda: fault)
    async with (
        endpoint(health, registry, port=free_port(), address="127.0.0.1") as port,
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http,
    ):

        async def get(path):
            async with http.get(path) as answer:
                return answer.status, await answer.text()

        assert await get("/healthz") == (200, "ok")
        assert await get("/readyz") == (503, "stores: not listed yet: volumes")
        fault = None
        assert await get("/readyz") == (200, "ok")
        health.alive("lease", lambda: "nothing for 400 s")
        assert await get("/healthz") == (503, "lease: nothing for 400 s")
        assert (await get("/readyz"))[0] == 503
        status, text = await get("/metrics")
        assert status == 200
        assert 'cinderblock_queue_depth{queue="volumes"} 4.0' in text
        assert 'cinderblock_reconcile_failures_total{queue="volumes"} 1.0' in text


async def test_port_zero_serves_nothing():
    async with endpoint(Health(), CollectorRegistry(), port=0) as port:
        assert port == 0
