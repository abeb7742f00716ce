"""The process `cinderblock csi controller`: caches, the CSI socket, the metrics endpoint, until told to stop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry

from cinderblock.core.clock import Clock, SystemClock
from cinderblock.core.health import Health, endpoint
from cinderblock.core.kube.adapter import connect
from cinderblock.core.kube.port import Kube
from cinderblock.csi.gateway.controller import ControllerGateway
from cinderblock.csi.interceptors import Edge, RpcMetrics
from cinderblock.csi.pb import csi_pb2
from cinderblock.csi.server import Service, serving, socket_path
from cinderblock.csi.services.controller import ControllerService
from cinderblock.csi.services.identity import IdentityService

_DRAIN_SECONDS = 5.0
_BEHIND_SECONDS = 180.0  # a watch that lives is heard once a minute
_STALE_SECONDS = 1200.0  # by then nothing but a fresh start may help


@dataclass(frozen=True)
class ControllerSettings:
    """`endpoint`: the socket, such as unix:///csi/csi.sock (CSI_ENDPOINT); `namespace`: the release namespace;
    `metrics_port` 0 = no endpoint; `kubeconfig` None = the pod's own account."""

    endpoint: str
    namespace: str
    kubeconfig: Path | None = None
    metrics_port: int = 0


async def run_controller(settings: ControllerSettings) -> None:
    """Serve until cancelled. Errors: InvalidRequest (settings), PreconditionFailed (the socket is taken)."""
    path = socket_path(settings.endpoint)
    registry = CollectorRegistry()
    async with (
        connect(settings.kubeconfig) as kube,
        controller(kube, path, settings.namespace, registry, SystemClock()) as gateway,
        endpoint(health_of(gateway), registry, port=settings.metrics_port),
    ):
        await asyncio.Event().wait()


def health_of(gateway: ControllerGateway) -> Health:
    """Not ready while the caches are empty or behind; to be restarted when they stay behind for long."""
    caches, health = gateway.caches, Health()
    health.alive("caches", lambda: caches.fault(_STALE_SECONDS))
    health.ready("caches", lambda: caches.fault(_BEHIND_SECONDS) if caches.synced else "not filled yet")
    return health


@contextlib.asynccontextmanager
async def controller(
    kube: Kube, path: Path, namespace: str, registry: CollectorRegistry, clock: Clock
) -> AsyncIterator[ControllerGateway]:
    """The controller on that socket; ends cleanly: no new calls, running ones answered, effects finished."""
    gateway = ControllerGateway(kube, namespace, clock)
    services = csi_pb2.DESCRIPTOR.services_by_name
    async with asyncio.TaskGroup() as group:
        feeding = group.create_task(gateway.caches.run())
        try:
            async with serving(
                path,
                [
                    Service(services["Identity"], IdentityService(lambda: gateway.caches.synced)),
                    Service(
                        services["Controller"], ControllerService(gateway), ControllerService.CHECKS_LIMITS
                    ),
                ],
                Edge(RpcMetrics(registry)),
            ):
                yield gateway
        finally:
            await gateway.work.drain(_DRAIN_SECONDS)
            feeding.cancel()
