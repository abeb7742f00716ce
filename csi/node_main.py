"""The process `cinderblock csi node`: agent, CSI server and kubelet registration of one node."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry

from cinderblock.core.api.attachment import Attachment
from cinderblock.core.clock import Clock, SystemClock
from cinderblock.core.health import Health, endpoint
from cinderblock.core.kube.adapter import connect
from cinderblock.core.kube.events import EventRecorder
from cinderblock.core.kube.informer import Informer
from cinderblock.core.kube.port import Kube, KubeError
from cinderblock.core.kube.store import Store
from cinderblock.core.names import DEVICE_LINKS
from cinderblock.core.process import Runner, SystemRunner
from cinderblock.csi.connectors.base import Connector
from cinderblock.csi.connectors.local import LocalConnector
from cinderblock.csi.connectors.loop import KernelLoopDevices
from cinderblock.csi.gateway.waiting import Cache
from cinderblock.csi.interceptors import Edge, RpcMetrics
from cinderblock.csi.node.agent import NodeAgent
from cinderblock.csi.node.links import DeviceLinks
from cinderblock.csi.node.lookup import NodeVolumes
from cinderblock.csi.node.mounts import Mounter
from cinderblock.csi.node.publish import Publisher
from cinderblock.csi.node.records import Records
from cinderblock.csi.node.stage import Stager
from cinderblock.csi.node.storage_node import read_boot_id, report_storage_node
from cinderblock.csi.node.volumes import KeyLocks
from cinderblock.csi.pb import csi_pb2
from cinderblock.csi.registration import registration
from cinderblock.csi.server import Service, serving, socket_path
from cinderblock.csi.services.identity import IdentityService
from cinderblock.csi.services.node import NodeService
from cinderblock.csi.work import KeyedWork

_FACTS_SECONDS = 600.0
_FACTS_RETRY = 5.0
_DRAIN_SECONDS = 20.0
_THREADS = 64
_BEHIND_SECONDS = 180.0  # a watch that lives is heard once a minute

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NodeSettings:
    node: str  # name of the Node object, and CSI's node id
    namespace: str  # the release namespace, where Attachments made by CSI live
    endpoint: str  # unix:///.../csi.sock
    pools_root: Path
    metrics_port: int = 0  # 0 = no endpoint
    kubelet_endpoint: Path | None = None  # the socket as the kubelet sees it, where that differs
    registration_dir: Path | None = None  # the kubelet's plugins_registry; None = somebody else registers
    state_dir: Path | None = None  # records of calls; default: `state` in the folder of the socket
    links_root: Path = Path(DEVICE_LINKS)
    kubeconfig: Path | None = None  # None = the pod's own account


@dataclass(frozen=True)
class NodePlugin:
    """One node's parts, wired; nothing runs yet."""

    kube: Kube
    settings: NodeSettings
    clock: Clock
    boot_id: str
    store: Store[Attachment]
    informer: Informer[Attachment]
    connectors: tuple[Connector, ...]
    agent: NodeAgent
    service: NodeService
    work: KeyedWork

    @classmethod
    def build(
        cls, kube: Kube, settings: NodeSettings, *, runner: Runner, clock: Clock, boot_id: str
    ) -> NodePlugin:
        store: Store[Attachment] = Store(Attachment)
        connectors: tuple[Connector, ...] = (LocalConnector(settings.pools_root, KernelLoopDevices()),)
        by_protocol = {connector.protocol: connector for connector in connectors}
        locks = KeyLocks()
        agent = NodeAgent(
            kube,
            store,
            by_protocol,
            links=DeviceLinks(settings.links_root),
            locks=locks,
            runner=runner,
            clock=clock,
            recorder=EventRecorder(kube, "cinderblock-node", clock, instance=settings.node),
            node=settings.node,
            boot_id=boot_id,
        )
        volumes = NodeVolumes(
            kube, Cache(kube, store), by_protocol, namespace=settings.namespace, node=settings.node
        )
        mounter = Mounter(runner)
        records = Records(settings.state_dir or socket_path(settings.endpoint).parent / "state")
        work = KeyedWork("node")
        service = NodeService(
            volumes=volumes,
            stager=Stager(volumes, mounter, runner, records, locks, boot_id),
            publisher=Publisher(volumes, mounter, runner, records, locks),
            agent=agent,
            work=work,
        )
        informer = Informer(kube, store, field_selector=f"spec.node={settings.node}", clock=clock)
        return cls(kube, settings, clock, boot_id, store, informer, connectors, agent, service, work)

    @property
    def ready(self) -> bool:
        return self.store.synced.is_set()

    @property
    def health(self) -> Health:
        """Only readiness tells of the API server: without it the kubelet must still be able to unmount here,
        and a fresh process could not register."""
        health = Health()
        health.ready(
            "attachments", lambda: self.informer.fault(_BEHIND_SECONDS) if self.ready else "not listed yet"
        )
        return health

    @contextlib.asynccontextmanager
    async def running(self, edge: Edge) -> AsyncIterator[None]:
        """Agent and CSI server run as long as the context lives; mounts stay as they are afterwards."""
        services = csi_pb2.DESCRIPTOR.services_by_name
        async with asyncio.TaskGroup() as group:
            background = [
                group.create_task(work)
                for work in (self.informer.run(), self.agent.run(), self._report_facts())
            ]
            try:
                async with serving(
                    socket_path(self.settings.endpoint),
                    [
                        Service(services["Identity"], IdentityService(lambda: self.ready)),
                        Service(services["Node"], self.service),
                    ],
                    edge,
                ):
                    yield
            finally:
                await self.work.drain(_DRAIN_SECONDS)
                for task in background:
                    task.cancel()

    async def _report_facts(self) -> None:
        protocols = tuple(connector.protocol.value for connector in self.connectors)
        while True:
            pause = _FACTS_SECONDS
            try:
                await report_storage_node(
                    self.kube, self.settings.node, boot_id=self.boot_id, protocols=protocols
                )
            except KubeError as error:
                _log.warning("StorageNode %s: %s", self.settings.node, error)
                pause = _FACTS_RETRY
            await self.clock.sleep(pause)


async def run_node(settings: NodeSettings) -> None:
    """Serve until cancelled.

    Errors: InvalidRequest (settings), PreconditionFailed (the socket is taken), RegistrationFailed.
    """
    # Each thread that hangs on a sick disk is lost for all volumes; the default would be lost with six of them.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS, "disk"))
    registry = CollectorRegistry()
    edge = Edge(RpcMetrics(registry))
    boot_id = await asyncio.to_thread(read_boot_id)
    async with contextlib.AsyncExitStack() as stack:
        kube = await stack.enter_async_context(connect(settings.kubeconfig))
        plugin = NodePlugin.build(kube, settings, runner=SystemRunner(), clock=SystemClock(), boot_id=boot_id)
        await stack.enter_async_context(plugin.running(edge))
        await stack.enter_async_context(endpoint(plugin.health, registry, port=settings.metrics_port))
        # A device of an earlier boot must be void before the kubelet may ask for staging.
        await plugin.store.synced.wait()
        if settings.registration_dir is None:
            await asyncio.Event().wait()
            return
        csi_socket = settings.kubelet_endpoint or socket_path(settings.endpoint)
        registered = await stack.enter_async_context(
            registration(settings.registration_dir, csi_socket, edge)
        )
        await registered.until_refused()
