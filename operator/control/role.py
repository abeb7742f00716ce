"""The leader's role: takes over, then runs its queues until it is cancelled."""

from __future__ import annotations

import asyncio

from cinderblock.core.clock import Clock
from cinderblock.core.kube.events import EventRecorder
from cinderblock.core.kube.port import Kube
from cinderblock.core.metrics import NO_QUEUE_METRICS, QueueMetrics
from cinderblock.operator.control.attachments import AttachmentReconciler
from cinderblock.operator.control.backends import BackendReconciler, Judge
from cinderblock.operator.control.claims import OrphanReconciler
from cinderblock.operator.control.granting import Granting
from cinderblock.operator.control.ledger import Ledger
from cinderblock.operator.control.liveness import HostLiveness
from cinderblock.operator.control.nodes import Nodes
from cinderblock.operator.control.pools import PoolReconciler
from cinderblock.operator.control.takeover import take_over
from cinderblock.operator.control.tools import Tools
from cinderblock.operator.control.views import PoolViews
from cinderblock.operator.control.volumes import VolumeReconciler
from cinderblock.operator.control.waiting import Waiting
from cinderblock.operator.control.wiring import Wiring
from cinderblock.operator.engine.queue import Reconcile, WorkQueue
from cinderblock.operator.engine.stores import Stores
from cinderblock.operator.engine.writer import StatusWriter

_VOLUME_WORKERS = 16
_WORKERS = 4


class ControlRole:
    """Made anew for each term of leadership: `epoch` is the leaseTransitions of the term."""

    def __init__(  # noqa: PLR0917 - one composition, handed down whole
        self,
        kube: Kube,
        stores: Stores,
        clock: Clock,
        epoch: int,
        recorder: EventRecorder,
        registry: Judge,
        release_namespace: str,
        *,
        metrics: QueueMetrics = NO_QUEUE_METRICS,
    ) -> None:
        self._kube = kube
        self._stores = stores
        self._clock = clock
        self._epoch = epoch
        self._recorder = recorder
        self._registry = registry
        self._release_namespace = release_namespace
        self._metrics = metrics
        self._queues: tuple[WorkQueue, ...] = ()
        self.started = asyncio.Event()

    async def run(self) -> None:
        """Errors of the port on the way in; then only cancellation ends it."""
        await self._synced()
        await take_over(self._kube, self._stores.volumes, self._epoch, self._clock)
        wiring: Wiring | None = None

        def freed(pool: str) -> None:
            if wiring is not None:
                wiring.pool_freed(pool)

        def turned(host: str) -> None:
            if wiring is not None:
                wiring.host_turned(host)

        stores, clock = self._stores, self._clock
        liveness = HostLiveness(self._kube, self._release_namespace, clock, turned)
        tools = Tools(
            kube=self._kube,
            stores=stores,
            clock=clock,
            recorder=self._recorder,
            nodes=Nodes(self._kube, stores),
            liveness=liveness,
            epoch=self._epoch,
            release_namespace=self._release_namespace,
        )
        ledger = Ledger(stores.volumes, freed)
        writer = StatusWriter(self._kube, stores.volumes)
        views = PoolViews(stores, ledger, liveness)
        granting = Granting(writer, ledger, views, clock, self._epoch)
        waiting = Waiting(clock)
        volumes = self._queue(
            "volumes", VolumeReconciler(tools, granting, waiting).reconcile, _VOLUME_WORKERS
        )
        waiting.wakes(volumes.add)
        orphans = self._queue("orphans", OrphanReconciler(tools).reconcile)
        attachments = self._queue("attachments", AttachmentReconciler(tools).reconcile)
        backends = self._queue("backends", BackendReconciler(tools, self._registry, ledger).reconcile)
        pools = self._queue("pools", PoolReconciler(tools, ledger).reconcile)
        self._queues = (volumes, orphans, attachments, backends, pools)
        wiring = Wiring(
            stores,
            waiting,
            volumes=volumes,
            orphans=orphans,
            attachments=attachments,
            backends=backends,
            pools=pools,
            release_namespace=self._release_namespace,
        )
        wiring.connect()
        self.started.set()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(liveness.run())
                for queue in self._queues:
                    group.create_task(queue.run())
        finally:
            wiring.disconnect()
            ledger.close()

    async def wait_idle(self) -> None:
        """Until every queue has nothing to do now; for tests."""
        await self.started.wait()
        for queue in self._queues:
            await queue.wait_idle()

    async def _synced(self) -> None:
        stores = self._stores
        for store in (
            stores.volumes,
            stores.attachments,
            stores.backends,
            stores.pools,
            stores.volume_types,
            stores.storage_nodes,
            stores.nodes,
            stores.persistent_volumes,
        ):
            await store.synced.wait()

    def _queue(self, name: str, reconcile: Reconcile, workers: int = _WORKERS) -> WorkQueue:
        return WorkQueue(
            f"leader-{name}", reconcile, workers=workers, clock=self._clock, metrics=self._metrics
        )
